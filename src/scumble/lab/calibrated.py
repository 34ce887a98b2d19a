"""How fast this machine trains a shape, measured in a few seconds on a thin model of it: some of its layers, random weights.

    kept layers: the first, the last, some of each kind in between (`thin`)
    for a few micro-batches of the user's own, in turns: a real optimizer step of the real engine, with a time stamp
        where each layer begins, forward and backward
    seconds of a layer of each kind, and of all the rest, as `plan.timing` fits them

What is in the weights changes no time. What was measured is kept in the cache under what it holds for.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from scumble.data.encoding import Encoded
from scumble.data.packing import pack
from scumble.errors import ConfigError, NotSupportedError
from scumble.files import write_text
from scumble.lab.layer_times import timed_layers
from scumble.lab.planned import settings_of, subject_of
from scumble.lab.thin import Thin
from scumble.models.base import Base
from scumble.models.cache import cache_dir
from scumble.models.packable import ways_of
from scumble.models.threads import available_cores, choose_threads, cpu_name, layer_shapes, with_threads
from scumble.models.weights import DTYPES, device_named
from scumble.plan.setup import Setup
from scumble.plan.shape import Shape
from scumble.plan.timing import Calibration, Layers, Linear, Work, fit, key_of
from scumble.progress import Reporter
from scumble.train.engine import Engine
from scumble.train.optimizer import make_optimizer
from scumble.train.subject import Subject

SECONDS = 10.0
SAMPLES = 3  # micro-batches that are timed, besides a single example
_SHARE = 8  # a step takes no more than this part of the seconds where that can be had
_KEPT = 100  # calibrations in the cache


def calibrate(
    shape: Shape,
    setup: Setup,
    micro_batches: Sequence[Sequence[Encoded]],
    *,
    seconds: float = SECONDS,
    reporter: Reporter,
) -> Calibration:
    """Measure how fast a way to train is here, and keep it for `recalled`.

    Args:
        shape: of the base.
        setup: the way to train; its threads are those that training would choose.
        micro_batches: of the data that will be trained on (`Epoch.micro_batches`), at least one.
        seconds: to measure for, about; it takes longer where one step of each micro-batch does.
        reporter: is told what is done.

    Raises:
        NotSupportedError: this is not trained here.
        ConfigError: there is no such device here, or too little memory.
    """
    started = time.perf_counter()
    busy = _busy()
    _refuse(setup)
    device = device_named(setup.device)
    threads = _threads(shape, setup, device)
    thin = Thin.of(shape, setup)
    reporter.note(
        f"calibrating on {machine(device)}: training steps of {len(thin.kept)} of {shape.layers} layers with random "
        f"weights, about {seconds:.0f} s"
    )
    with with_threads(threads):
        found = _measured(thin, setup, device, micro_batches, seconds)
    made = _fitted(thin, found)
    largest = pack(max(micro_batches, key=_tokens), share=not setup.dropout)
    calibration = Calibration(
        key=key_of(shape, setup, machine(device)),
        machine=machine(device),
        made=datetime.now(UTC).isoformat(timespec="seconds"),
        threads=threads,
        **made,
        largest=largest.computed,
        seconds=time.perf_counter() - started,
        steps=sum(map(len, found.totals)),
        busy=busy,
    )
    _keep(calibration)
    return calibration


def recalled(shape: Shape, setup: Setup) -> Calibration | None:
    """What was measured before of this way to train, on this machine and with these versions; None where nothing was."""
    with contextlib.suppress(ConfigError, KeyError, TypeError, ValueError):
        key = key_of(shape, setup, machine(device_named(setup.device)))
        return Calibration.from_dict(_read()[key])
    return None


def machine(device: torch.device) -> str:
    """What decides on speed beside the model: processor, cores, versions."""
    where = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{cpu_name()} | {available_cores()} cores"
    )
    return f"{where} | torch {torch.__version__} | scumble {version('scumble')}"


def _refuse(setup: Setup) -> None:
    if setup.engine != "scumble" or setup.dtype not in DTYPES or setup.processes > 1:
        raise NotSupportedError(
            "only what is trained here by one process, on a base that is not quantised, can be calibrated",
            "leave --calibrate out, or plan --method lora or full with --dtype fp32 or bf16",
        )


def _threads(shape: Shape, setup: Setup, device: torch.device) -> int:
    """As training would choose them."""
    if device.type != "cpu":
        return torch.get_num_threads()
    return choose_threads(layer_shapes(shape.skeleton.model, "train"), "train", dtype=DTYPES[setup.dtype])


def _busy() -> bool:
    """Whether the machine has had other work in the last minute."""
    return hasattr(os, "getloadavg") and os.getloadavg()[0] > 0.75 * available_cores()


# -- the measuring ---------------------------------------------------------------------------------


@dataclass
class _Found:
    """Seconds by micro-batch, of every step that was timed.

    Attributes:
        works: of the micro-batches.
        totals: of each one's steps, the engine's part.
        layers: of each one's steps, the layers between the first and the last, in order.
        optimizer: of all steps, as the whole model's would take.
    """

    works: list[Work] = field(default_factory=list)
    totals: list[list[float]] = field(default_factory=list)
    layers: list[list[list[float]]] = field(default_factory=list)
    optimizer: list[float] = field(default_factory=list)


def _measured(
    thin: Thin,
    setup: Setup,
    device: torch.device,
    micro_batches: Sequence[Sequence[Encoded]],
    seconds: float,
) -> _Found:
    """Time steps of the thin model, each micro-batch in turn, until the seconds are over."""
    model = thin.build(device)
    if not ways_of(model).packed:
        raise NotSupportedError(
            f"{thin.shape.name} takes no examples laid end to end: {ways_of(model).reason}",
            "leave --calibrate out: the time of padded batches is not planned",
        )
    subject = subject_of(Base(model), thin.setup)
    try:
        engine = Engine(subject, setup.batch, repeat=int(thin.setup.repeat), reporter=Reporter(quiet=True))
        stepper = _Stepper(subject, engine, thin)
        groups = _samples(micro_batches)
        with subject.using(), engine.running(groups[0]):
            before = time.perf_counter()
            stepper.step(groups[0])  # wakes the threads, makes the moments
            stepper.step(groups[0])
            rate = (time.perf_counter() - before) / 2 / _tokens(groups[0])
            groups = [_cut(group, seconds / _SHARE / rate) for group in groups]
            return _rounds(stepper, groups, seconds)
    finally:
        subject.close()


def _rounds(stepper: _Stepper, groups: Sequence[Sequence[Encoded]], seconds: float) -> _Found:
    found = _Found()
    for group in groups:
        found.works.append(Work.of(pack(group, share=stepper.engine.share)))
        found.totals.append([])
        found.layers.append([])
    ended = time.perf_counter() + seconds
    again = True
    while again:
        again = False
        for number, group in enumerate(groups):
            before = found.totals[number]
            if before and time.perf_counter() + before[-1] > ended:
                continue
            total, layers, optimizer = stepper.step(group)
            before.append(total)
            found.layers[number].append(layers)
            found.optimizer.append(optimizer)
            again = True
    return found


def _samples(micro_batches: Sequence[Sequence[Encoded]]) -> list[Sequence[Encoded]]:
    """Micro-batches that are timed: the shortest example alone, and some as far apart as an epoch's tokens are.

    Where all are of one size, that example tells the constant from what grows.
    """
    ordered = sorted(micro_batches, key=_tokens)
    sizes = [_tokens(group) for group in ordered]
    chosen: list[int] = []
    before = 0
    for number, size in enumerate(sizes):
        before += size
        if before * SAMPLES >= len(chosen) * sum(sizes):
            chosen.append(number)
    shortest = min((example for group in ordered for example in group), key=lambda each: len(each.ids))
    kept = dict.fromkeys([*chosen[: SAMPLES - 1], len(ordered) - 1])
    return [[shortest], *(ordered[number] for number in kept)]


def _tokens(group: Sequence[Encoded]) -> int:
    return sum(len(example.ids) for example in group)


def _cut(group: Sequence[Encoded], most: float) -> list[Encoded]:
    """The longest examples of a micro-batch that have no more tokens together; one at least."""
    kept: list[Encoded] = []
    for example in sorted(group, key=lambda each: -len(each.ids)):
        if not kept or _tokens((*kept, example)) <= most:
            kept.append(example)
    return kept


class _Stepper:
    """Makes optimizer steps of one micro-batch, and times them."""

    def __init__(self, subject: Subject, engine: Engine, thin: Thin) -> None:
        self.subject, self.engine, self.thin = subject, engine, thin
        # apart, for there are more layers in the whole model, and one embedding
        parts: dict[bool, dict[str, nn.Parameter]] = {}
        for name, parameter in subject.parameters().items():
            parts.setdefault(thin.in_layers(name), {})[name] = parameter
        settings = settings_of(thin.setup)
        self.parts = [
            (list(part.values()), make_optimizer(part, settings), thin.more if inside else 1.0)
            for inside, part in parts.items()
        ]
        model: Any = subject.model
        self.layers = next(
            list(m)
            for m in model.modules()
            if isinstance(m, nn.ModuleList) and len(m) == model.config.num_hidden_layers
        )

    def step(self, group: Sequence[Encoded]) -> tuple[float, list[float], float]:
        """Seconds of the engine, of each layer between the first and the last, and of the whole model's optimizer."""
        self.engine.batch = len(group)  # so that it stays one micro-batch
        started = time.perf_counter()
        with timed_layers(self.layers) as stamps:
            self.engine.step(0, group)
        total = time.perf_counter() - started
        updates = [more * self._update(part, optimizer) for part, optimizer, more in self.parts]
        return total, stamps.spans(), sum(updates)

    def _update(self, parameters: list[nn.Parameter], optimizer: torch.optim.Optimizer) -> float:
        """Seconds of clipping and of the optimizer, for some of the parameters."""
        started = time.perf_counter()
        float(torch.nn.utils.clip_grad_norm_(parameters, 1.0))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if self.engine.device.type == "cuda":
            torch.cuda.synchronize(self.engine.device)
        return time.perf_counter() - started


# -- what comes of it ------------------------------------------------------------------------------


def _fitted(thin: Thin, found: _Found) -> dict[str, Any]:
    """The fields of a calibration that are fitted: medians over rounds, of the mean over the layers of a kind."""
    counted = {place for places in thin.kinds for place in places}
    each: list[Linear] = []
    for places in thin.kinds:
        means = [
            statistics.median(statistics.fmean(layers[place - 1] for place in places) for layers in steps)
            for steps in found.layers
        ]
        each.append(fit(found.works, means, "constant", "computed", "pairs"))
    rests = [
        statistics.median(
            total - sum(layers[place - 1] for place in counted)
            for total, layers in zip(totals, steps, strict=True)
        )
        for totals, steps in zip(found.totals, found.layers, strict=True)
    ]
    rest = fit(found.works, rests, "constant", "computed", "losses", "pairs")
    off = weights = 0.0
    for work, totals in zip(found.works, found.totals, strict=True):
        planned = rest.of(work) + sum(
            len(places) * kind.of(work) for places, kind in zip(thin.kinds, each, strict=True)
        )
        # by their seconds, since large micro-batches decide on an epoch's
        off += sum(planned * (total / planned - 1) ** 2 for total in totals)
        weights += planned * len(totals)
    return {
        "layers": tuple(Layers(count, kind) for count, kind in zip(thin.counts, each, strict=True)),
        "rest": rest,
        "optimizer": statistics.median(found.optimizer),
        "spread": 2 * (off / weights) ** 0.5,
    }


# -- the cache -------------------------------------------------------------------------------------


def _place() -> Path:
    return cache_dir() / "timing.json"


def _read() -> dict[str, Any]:
    """What was measured before; a file that is missing or broken counts as empty."""
    with contextlib.suppress(OSError, ValueError):
        found = json.loads(_place().read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return found
    return {}


def _keep(calibration: Calibration) -> None:
    """Write one down, the latest last. A cache that cannot be written costs a calibration each time, and nothing else."""
    known = {key: value for key, value in _read().items() if key != calibration.key}
    kept = dict(list(known.items())[-(_KEPT - 1) :])
    with contextlib.suppress(OSError):
        write_text(_place(), json.dumps(kept | {calibration.key: calibration.to_dict()}, indent=1) + "\n")
