"""`plan`: parameters and memory of a way to train, before anything is loaded, and what to change.

    found = plan("meta-llama/Llama-3.1-8B-Instruct", rank=16, targets="standard", batch=4, gpu="24GB")
    found.parameters.trainable, found.memory.peak, found.fits, found.to_dict()

Puts together what the other files of this folder know. No weights are read and no device is touched.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scumble.complaints import flag
from scumble.config import Choice, DataOptions, PlanOptions, RunOptions, TrainOptions, make
from scumble.errors import ConfigError, ScumbleError
from scumble.lora.spec import LoraSpec
from scumble.plan.advice import Advice, Facts, advise_configuration
from scumble.plan.asked import float_type, length_of, setup_of, with_lora
from scumble.plan.batch import settle_batch
from scumble.plan.cards import Card, find_card
from scumble.plan.fitting import Fit, Largest, fit, largest
from scumble.plan.memory import Memories, Memory
from scumble.plan.modules import ModuleCost, module_costs
from scumble.plan.notes import notes_of
from scumble.plan.parameters import Parameters, count_parameters
from scumble.plan.portion import Portions, largest_of, steps_of_run, worst_case
from scumble.plan.setup import Setup
from scumble.plan.shape import Shape, find_shape
from scumble.plan.siblings import smaller_bases

if TYPE_CHECKING:
    from scumble.data.encoding import Encoded
    from scumble.plan.measured import Measured
    from scumble.plan.reading import ReadData
    from scumble.plan.timing import Calibration, EpochTime

Planner = Callable[[Setup], Memory]
_TITLES = {"lora": "LoRA", "qlora": "QLoRA", "full": "full"}


@dataclass(frozen=True)
class Alternative:
    """Another way to train the same base on the same examples.

    Attributes:
        title: in a few words.
        setup: of it.
        memory: that it takes.
    """

    title: str
    setup: Setup
    memory: Memory


@dataclass(frozen=True)
class PlannedData:
    """What is known of the data.

    Attributes:
        source: what was read.
        examples: that are trained on, and `tokens` and `supervised` tokens in one pass over them.
        longest: tokens of the longest of them.
        too_long: how many are left out, and how many tokens the longest of those has.
        padding: share of the plain script's positions that are padding.
        tokenizer: whose tokens these are; `approximate` where that is not the base's own.
        steps: optimizer steps of the run, `steps_per_epoch` of them in each epoch.
    """

    source: str
    examples: int
    tokens: int
    supervised: int
    longest: int
    too_long: tuple[int, int]
    padding: float
    tokenizer: str
    approximate: bool
    steps_per_epoch: int
    steps: int


@dataclass(frozen=True)
class Plan:
    """What a way to train takes.

    Attributes:
        shape: of the base.
        setup: that was planned.
        parameters: counted exactly.
        memory: of one device, at the peak of a step.
        alternatives: the same for the other methods, and for the plain PEFT script, by name.
        modules: what each kind of target module takes.
        data: what is known of the data; None without.
        card: the memory that there is; None where none was named.
        fit: whether it fits, and what to change; None where no memory was named.
        largest: batch, length and rank that fit, each alone; with `auto`, where every layer may be computed twice; None
            as `fit`.
        auto: as many layers are computed twice as it takes.
        advice: on the configuration.
        choices: what was decided for the user, and why.
        notes: what the figures rest on.
        examples: of the data, encoded; empty without.
        measured: a real step beside the plan, where one was made.
        time: of an epoch, or without data of an optimizer step, where this machine was calibrated.
        calibration: that the time is by.
    """

    shape: Shape
    setup: Setup
    parameters: Parameters
    memory: Memory
    alternatives: Mapping[str, Alternative]
    modules: tuple[ModuleCost, ...]
    data: PlannedData | None
    card: Card | None
    fit: Fit | None
    largest: Largest | None
    auto: bool
    advice: tuple[Advice, ...]
    choices: tuple[Choice, ...]
    notes: tuple[str, ...]
    examples: tuple[Encoded, ...] = field(default=(), repr=False, compare=False)
    measured: Measured | None = None
    time: EpochTime | None = None
    calibration: Calibration | None = None

    @property
    def fits(self) -> bool | None:
        """Whether the memory that was named is enough; None where none was."""
        return None if self.fit is None else self.fit.fits

    @property
    def title(self) -> str:
        """What was planned, in a word or two."""
        return _TITLES[self.setup.method]

    def to_dict(self) -> dict[str, Any]:
        """What `--json` prints."""
        p, fitted = self.parameters, self.fit
        return {
            "base": self.shape.name,
            "source": self.shape.source,
            "parameters": {
                "total": p.total,
                "trainable": p.trainable,
                "percent": p.percent,
                "base": p.base,
                "by_module": dict(p.by_module),
                "file_bytes": p.file_bytes,
            },
            "memory": {**self.memory.to_dict(), "at_most": dict(self.memory.largest)},
            "fits": self.fits,
            "gpu": None if self.card is None else self.card.to_dict(),
            "suggestions": [] if fitted is None else [asdict(each) for each in fitted.suggestions],
            "suggested": "" if fitted is None else fitted.options,
            "alone": [] if fitted is None else [asdict(each) for each in fitted.alone],
            "largest": None if self.largest is None else asdict(self.largest),
            "alternatives": {
                name: {"title": each.title, **each.memory.to_dict()}
                for name, each in self.alternatives.items()
            },
            "modules": [each.to_dict() for each in self.modules],
            "data": None if self.data is None else asdict(self.data),
            "advice": [each.to_dict() for each in self.advice],
            "setup": asdict(self.setup),
            "choices": [each._asdict() for each in self.choices],
            "notes": list(self.notes),
            "measured": None if self.measured is None else self.measured.to_dict(),
            "time": None if self.time is None else self.time.to_dict(),
            "calibration": None if self.calibration is None else self.calibration.to_dict(),
        }


def plan(
    base: str | Path | None = None, *, data: Any = None, lora: LoraSpec | Any | None = None, **options: Any
) -> Plan:
    """Plan a way to train: parameters exactly, memory part by part, and what to change where it does not fit.

    Args:
        base: alias, folder, hub name, GGUF file, config.json, adapter or run; None for the default base.
        data: what would be trained on: a path, the name of a shipped set, a list of examples, a `datasets.Dataset`.
            Without it, every example has `max_length` tokens.
        lora: the adapter's configuration, as a `LoraSpec` or a `peft.LoraConfig`, instead of rank, alpha and targets.
        options: those of `PlanOptions`, by name.

    Raises:
        ConfigError: an option has a value that it cannot have, with the range.
        MissingFileError, BaseModelError: there is no such base; the nearest known ones are named.
        AdapterError: the targets match nothing.
        DataError: the data cannot be read.
    """
    asked = make(PlanOptions, **with_lora(options, lora))
    _refuse_idle(asked, with_data=data is not None)
    card = None if asked.gpu is None else find_card(asked.gpu, on_gpu=asked.device != "cpu")
    name = asked.base if base is None else str(base)
    shape = find_shape(name)
    length = length_of(asked, shape)
    read = None if data is None else _read(data, asked, shape, length)
    batch, accumulate, choices = settle_batch(asked, None if read is None else len(read.examples))
    portions = _portions(read, asked, batch, accumulate, length)
    memories = cache(Memories(shape))  # the same setups are asked for by several
    setup = setup_of(asked, shape, batch, accumulate, choices)
    setup = max((each.of(setup) for each in portions.ours), key=lambda each: memories(each).peak)
    auto = asked.gradient_checkpointing == "auto"
    if auto and card is not None:
        setup = _as_memory_asks(setup, shape, memories, card, choices)
    planned = None if read is None else _planned_data(read, portions, asked, setup)
    lengths = () if read is None else read.lengths
    fitted, most = (
        (None, None) if card is None else _fitted(setup, shape, memories, card.usable, lengths, auto=auto)
    )
    alternatives, missing = _alternatives(shape, setup, portions, memories)
    facts = None if read is None else Facts(len(read.examples), read.supervised)
    run = TrainOptions(**asked.model_dump(include=set(RunOptions.model_fields), exclude_unset=True))
    return Plan(
        shape=shape,
        setup=setup,
        parameters=count_parameters(shape, setup),
        memory=memories(setup),
        alternatives=alternatives,
        modules=module_costs(shape, setup, memories),
        data=planned,
        card=card,
        fit=fitted,
        largest=most,
        auto=auto,
        advice=tuple(advise_configuration(shape, setup, run, facts, peak=memories)),
        choices=tuple(choices),
        notes=(*notes_of(shape, setup, asked, planned, card), *missing),
        examples=() if read is None else read.examples,
    )


def _read(data: Any, asked: PlanOptions, shape: Shape, length: int) -> ReadData:
    from scumble.plan.reading import read_data  # which takes as long to import as to plan

    return read_data(data, asked, shape.name, length)


def _portions(
    read: ReadData | None, asked: PlanOptions, batch: int, accumulate: int, length: int
) -> Portions:
    """What is computed at once: the largest of the data, or without data the worst case."""
    if read is None:
        return worst_case(batch, length, asked.supervised or 1.0)
    return largest_of(read.examples, asked, batch, accumulate, length if read.too_long else None)


def _refuse_idle(asked: PlanOptions, *, with_data: bool) -> None:
    """Refuse options that would change nothing."""
    if with_data and asked.supervised is not None:
        raise ConfigError(
            "--supervised is given with --data, whose tokens with a loss are counted", "leave it out"
        )
    idle = sorted(asked.model_fields_set & {*DataOptions.model_fields, "eval", "seed"})
    if idle and not with_data:
        what = ", ".join(flag(name) for name in idle)
        raise ConfigError(f"{what} is given without --data, and changes nothing", "add --data FILE")


def _as_memory_asks(
    setup: Setup, shape: Shape, memories: Planner, card: Card, choices: list[Choice]
) -> Setup:
    """As few layers computed twice as fit, all where that is not enough; as training does by `auto`."""
    layers = shape.layers

    def fits(once: int) -> bool:
        return memories(replace(setup, repeat=layers - once)).peak <= card.usable

    once = largest(fits, layers)
    if once == layers:
        return setup
    what = f"{layers - once} of {layers} layers are computed twice, the fewest that fit {card.name}"
    reason = what if once else f"all {layers} layers are computed twice, since fewer do not fit {card.name}"
    found = replace(setup, repeat=layers - once if once else "all")
    choices.append(Choice("gradient_checkpointing", found.repeat, reason))
    return found


def _fitted(
    setup: Setup, shape: Shape, memories: Planner, limit: int, lengths: Sequence[int], *, auto: bool
) -> tuple[Fit, Largest]:
    """Whether it fits, and the largest that does; by `auto`, every layer may be computed twice for that."""
    found = fit(memories, shape, setup, limit, lengths, smaller_bases(shape))
    if not auto:
        return found, found.largest
    return found, fit(memories, shape, replace(setup, repeat="all"), limit).largest


def _alternatives(
    shape: Shape, setup: Setup, portions: Portions, memories: Planner
) -> tuple[dict[str, Alternative], list[str]]:
    """The other methods, the one asked for with every layer computed twice, and the script without and with that.

    Returns:
        These by name; and of those that cannot be planned, why.
    """
    plain = setup.dtype if setup.dtype not in ("nf4", "int8") else float_type(shape)
    script = replace(portions.script.of(setup), engine="script", adapters=1)
    setups = {
        "lora": ("LoRA", replace(setup, method="lora", dtype=plain)),
        "qlora": ("QLoRA", replace(setup, method="qlora", dtype="nf4")),
        "full": ("full", replace(setup, method="full", dtype=plain, adapters=1)),
        "checkpointing": (
            f"{_TITLES[setup.method]}, gradient checkpointing",
            replace(setup, repeat="all"),
        ),
        "script": (f"plain script, {_TITLES[setup.method]}", replace(script, repeat=0)),
        "script_checkpointing": (
            f"plain script, {_TITLES[setup.method]}, gradient checkpointing",
            replace(script, repeat="all"),
        ),
    }
    found, missing = {}, []
    for name, (title, each) in setups.items():
        if name == setup.method or each == setup:
            continue
        try:
            found[name] = Alternative(title, each, memories(each))
        except ScumbleError as error:
            missing.append(f"{title} is not planned beside it: {error.message}")
    return found, missing


def _planned_data(read: ReadData, portions: Portions, options: PlanOptions, setup: Setup) -> PlannedData:
    per_epoch, steps = steps_of_run(len(read.examples), options, setup.batch, setup.accumulate)
    return PlannedData(
        source=read.source,
        examples=len(read.examples),
        tokens=sum(read.lengths),
        supervised=read.supervised,
        longest=max(read.lengths),
        too_long=(len(read.too_long), max(read.too_long, default=0)),
        padding=portions.padding,
        tokenizer=read.tokenizer,
        approximate=read.approximate,
        steps_per_epoch=per_epoch,
        steps=steps,
    )
