"""From options to the `Setup` that is planned: what was left open is decided, what no model could do is refused.

Knows options and shapes, and nothing of memory.
"""

from __future__ import annotations

import os
from typing import Any, Literal

from scumble.config import Choice, PlanOptions
from scumble.errors import ConfigError, NotSupportedError
from scumble.lora.spec import LoraSpec
from scumble.models.threads import available_cores
from scumble.plan.parameters import adapter_of
from scumble.plan.setup import Dtype, Setup, Sharding
from scumble.plan.shape import Shape

LENGTH = 2048  # tokens of the longest example, where the base allows


def length_of(options: PlanOptions, shape: Shape) -> int:
    """Tokens of the longest example that is trained on.

    More than the base has positions is refused rather than cut: training leaves such examples out, so that nothing would
    ever be computed at the length that was asked about.

    Raises:
        ConfigError: it is more than the base has positions.
    """
    most = shape.positions_limit
    asked = options.max_length
    if asked is None:
        return LENGTH if most is None else min(LENGTH, most)
    if most is not None and asked > most:
        raise ConfigError(
            f"--max-length is {asked:,}, and {shape.name} has {most:,} positions", f"from 2 to {most:,}"
        )
    return asked


def with_lora(options: dict[str, Any], lora: LoraSpec | Any | None) -> dict[str, Any]:
    """The options with the shape of an adapter's configuration, a `LoraSpec` or PEFT's `LoraConfig`.

    Raises:
        ConfigError: an option says the same.
        NotSupportedError: it has more than one rank for all its modules, whose memory is not planned.
    """
    if lora is None:
        return options
    spec = lora if isinstance(lora, LoraSpec) else LoraSpec.from_peft(lora)
    names = ("rank", "alpha", "targets", "dropout", "rslora", "dora")
    twice = [name for name in names if options.get(name) is not None]
    if twice:
        raise ConfigError(f"{', '.join(twice)} is given beside lora, which says it too", "leave it out")
    of_options = {name: getattr(spec, name) for name in names}
    plain = LoraSpec(**of_options)
    if plain.shape() != spec.shape():
        raise NotSupportedError(
            f"memory is planned of one rank for all modules: {plain.difference(spec)}",
            "scumble.plan.parameters.count_parameters counts what it has",
        )
    targets = spec.targets if isinstance(spec.targets, str) else list(spec.targets)
    return {**options, **of_options, "targets": targets}


def setup_of(options: PlanOptions, shape: Shape, batch: int, accumulate: int, choices: list[Choice]) -> Setup:
    """The setup, but for what is computed at once (`Portion`), and without layers that are computed twice by `auto`.

    Args:
        options: the user's.
        shape: of the base.
        batch, accumulate: examples in a micro-step, and micro-steps in an optimizer step.
        choices: gets what is decided here, with the reason.

    Raises:
        ConfigError: options contradict each other, or the base.
    """
    if options.adapters > 1 and options.method == "full":
        raise ConfigError(
            "--adapters is given with --method full, which trains none", "leave one of them out"
        )
    setup = Setup(
        method=options.method,
        dtype=_dtype(options, shape, choices),
        rank=options.rank,
        alpha=options.alpha,
        targets=options.targets if isinstance(options.targets, str) else tuple(options.targets),
        rslora=options.rslora,
        dora=options.dora,
        dropout=options.dropout,
        optimizer=options.optimizer,
        batch=batch,
        accumulate=accumulate,
        repeat=_repeat(options, shape),
        device=options.device,
        processes=options.processes,
        sharding=_sharding(options, choices),
        threads=_threads(),
        adapters=options.adapters,
    )
    if setup.method != "full":
        check_rank(shape, setup)
    return setup


def check_rank(shape: Shape, setup: Setup) -> None:
    """Refuse a rank that none of the modules can have: a matrix of (out, in) has min(out, in) at most.

    Raises:
        ConfigError: with the range.
        AdapterError: the targets match nothing.
    """
    one = adapter_of(
        shape, Setup(rank=1, targets=setup.targets, dora=setup.dora, rslora=setup.rslora, alpha=setup.alpha)
    )
    most = max((min(f.A.shape[1], f.B.shape[0]) for f in one.factors.values()), default=None)
    if most is not None and setup.rank > most:
        raise ConfigError(
            f"--rank is {setup.rank:,}, and no target module's update can have a rank above {most:,}",
            f"from 1 to {most:,}; 8 is a good start",
        )


def _dtype(options: PlanOptions, shape: Shape, choices: list[Choice]) -> Dtype:
    method, asked = options.method, options.dtype
    if method == "qlora":
        if asked == "int8":
            raise ConfigError("--dtype int8 is given with --method qlora, whose base is in NF4", _INT8)
        return asked or "nf4"
    if method == "full" and asked in ("int8", "nf4"):
        raise ConfigError(
            f"--dtype {asked} is given with --method full, and quantised weights are not trained",
            "use --dtype bf16 or fp32, or --method qlora",
        )
    if asked is not None:
        return asked
    if options.device == "cpu" and shape.dtype != "fp32":
        choices.append(Choice("dtype", "fp32", "as training loads a base on a CPU where no type is named"))
        return "fp32"
    return float_type(shape)


_INT8 = "leave --dtype out, or use --method lora --dtype int8"


def float_type(shape: Shape) -> Dtype:
    """The type of the weights as the configuration has it."""
    known: tuple[Dtype, ...] = ("fp32", "bf16", "fp16")
    return next(each for each in known if each == shape.dtype)


def _repeat(options: PlanOptions, shape: Shape) -> int | Literal["all"]:
    asked = options.gradient_checkpointing
    if asked == "all":
        return "all"
    if isinstance(asked, str):
        return 0
    if asked > shape.layers:
        raise ConfigError(
            f"--gradient-checkpointing is {asked}, and {shape.name} has {shape.layers} layers",
            f"from 0 to {shape.layers}, or auto, none or all",
        )
    return "all" if asked == shape.layers else asked


def _sharding(options: PlanOptions, choices: list[Choice]) -> Sharding:
    asked, processes = options.sharding, options.processes
    if processes == 1:
        if asked not in (None, "none"):
            raise ConfigError(f"--sharding {asked} is given for one process", "add --processes 2 or more")
        return "none"
    if asked == "none":
        raise ConfigError(
            f"--processes {processes} with --sharding none: several processes share at least gradients",
            "use --sharding ddp or fsdp2",
        )
    if asked is None:
        choices.append(Choice("sharding", "ddp", "everything on every device, as training does it"))
        return "ddp"
    return asked


def _threads() -> int:
    """Of a CPU: those that training was told to use, or as many as there are cores."""
    told = os.environ.get("SCUMBLE_THREADS", "").partition(",")[0].strip()
    return int(told) if told.isdecimal() and int(told) else available_cores()
