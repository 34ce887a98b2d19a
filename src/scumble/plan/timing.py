"""How long an epoch takes, from a calibration of a few seconds: arithmetic on times that were measured elsewhere.

A micro-batch of T tokens computed, R of them read for a loss, with P pairs of a query and a key that it sees, takes

    layers * (a + b T + c P)  +  d + e R + f T + g P            seconds, no coefficient below 0

the first term for the layers in the middle, of each kind there is; the second for the rest: embedding, first and last
layer, output layer and loss. The last layer computes only what is read, and the first one hands no gradient on, so
neither costs what the others do. To every optimizer step the optimizer's time is added.

Which micro-batches an epoch has is no estimate: the seed decides it, as in training. Knows encoded examples and numbers;
no models, and not how times are measured (`lab.calibrated`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import xxhash

from scumble.data.encoding import Encoded
from scumble.data.order import order_of
from scumble.data.packing import Packed, micro_batches, pack
from scumble.pages.render import duration
from scumble.plan.setup import Setup
from scumble.plan.shape import Shape

STEPS = (
    256  # optimizer steps of an epoch that are laid out; their order is random, so they stand for the others
)
LEAST_SPREAD = (
    0.1  # a calibration is a moment: what else a machine does, and its clock, change by about so much
)
_SAYS_NOTHING = ("name", "source", "skeleton", "dtype", "positions_limit")  # of a shape, about time
_REACH = 1.5  # times the largest micro-batch that it was made for, up to which a calibration is used


class Work(NamedTuple):
    """What a micro-batch has to compute.

    Attributes:
        tokens: of its examples, shared ones in full.
        computed: of them, shared ones once.
        losses: tokens that are predicted.
        pairs: of a query and a key that it sees.
    """

    tokens: int
    computed: int
    losses: int
    pairs: int

    @classmethod
    def of(cls, batch: Packed) -> Work:
        """Of examples laid end to end."""
        pairs = 0
        for start, end, _, depth, _ in batch.segments:
            own = end - start
            pairs += own * (own + 1) // 2 + own * depth
        return cls(batch.tokens, batch.computed, batch.targets, pairs)


@dataclass(frozen=True)
class Epoch:
    """The micro-batches of an epoch.

    Attributes:
        steps: of the first optimizer steps, at most `STEPS`: the examples of each micro-batch.
        count: optimizer steps that there are.
        tokens: of all of them, shared ones in full.
        share: what several examples begin with is computed once.
    """

    steps: tuple[tuple[tuple[Encoded, ...], ...], ...]
    count: int
    tokens: int
    share: bool

    @classmethod
    def of(cls, examples: Sequence[Encoded], setup: Setup, seed: int = 0) -> Epoch:
        """The first epoch of a run, as training lays it out.

        Args:
            examples: that are trained on, at least one.
            setup: whose batch, accumulation and dropout decide.
            seed: of the run.
        """
        order = order_of(len(examples), seed, 0)
        size, share = setup.batch * setup.accumulate, not setup.dropout
        starts = range(0, len(order), size)
        steps = (
            micro_batches([examples[i] for i in order[first : first + size]], setup.batch, share=share)
            for first in starts[:STEPS]
        )
        laid = tuple(tuple(map(tuple, groups)) for groups in steps)
        return cls(laid, len(starts), sum(len(example.ids) for example in examples), share)

    @property
    def micro_batches(self) -> list[tuple[Encoded, ...]]:
        """All that were laid out."""
        return [group for groups in self.steps for group in groups]

    def works(self) -> Iterator[list[Work]]:
        """What the micro-batches of each step compute."""
        for groups in self.steps:
            yield [Work.of(pack(group, share=self.share)) for group in groups]


class Linear(NamedTuple):
    """Seconds that grow with work: a constant, and so many for each token computed, each loss and each pair."""

    constant: float = 0.0
    computed: float = 0.0
    losses: float = 0.0
    pairs: float = 0.0

    def of(self, work: Work) -> float:
        """The seconds of a micro-batch."""
        return (
            self.constant
            + self.computed * work.computed
            + self.losses * work.losses
            + self.pairs * work.pairs
        )


@dataclass(frozen=True)
class Layers:
    """Layers of one kind, and the seconds of one of them."""

    count: int
    each: Linear


@dataclass(frozen=True)
class Calibration:
    """What was measured of a way to train on a machine.

    Attributes:
        key: of what it holds for (`key_of`).
        machine: where it was made.
        made: when, in ISO 8601.
        threads: of the CPU.
        layers: the kinds in the middle of the model.
        rest: of a micro-batch, all but those.
        optimizer: seconds of a step's clipping and optimizer.
        spread: how far a single step was off the fit, as a share: two standard deviations, steps weighed by their seconds.
        largest: tokens computed of the largest micro-batch that it was made for.
        seconds: that it took.
        steps: that were measured.
        busy: other work ran on the machine.
    """

    key: str
    machine: str
    made: str
    threads: int
    layers: tuple[Layers, ...]
    rest: Linear
    optimizer: float
    spread: float
    largest: int
    seconds: float
    steps: int
    busy: bool

    def micro_batch(self, work: Work) -> float:
        """Seconds of one micro-batch, forward and backward."""
        return self.rest.of(work) + sum(kind.count * kind.each.of(work) for kind in self.layers)

    def covers(self, epoch: Epoch) -> bool:
        """Whether it was made for micro-batches like those of an epoch: none is much larger."""
        return all(work.computed <= _REACH * self.largest for works in epoch.works() for work in works)

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        kinds = [{"count": kind.count, "each": kind.each._asdict()} for kind in self.layers]
        return {**asdict(self), "layers": kinds, "rest": self.rest._asdict()}

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Calibration:
        """Of what `to_dict` gave.

        Raises:
            KeyError, TypeError: it is something else.
        """
        kinds = tuple(Layers(int(kind["count"]), Linear(**kind["each"])) for kind in found["layers"])
        return cls(**{**found, "layers": kinds, "rest": Linear(**found["rest"])})


@dataclass(frozen=True)
class EpochTime:
    """How long an epoch takes: training alone, without loading and evaluation.

    Attributes:
        seconds: as planned.
        low, high: it should lie between them.
        steps: optimizer steps.
        tokens: of all examples, shared ones in full.
    """

    seconds: float
    low: float
    high: float
    steps: int
    tokens: int

    @property
    def tokens_per_second(self) -> float:
        """Tokens seen for each second of training."""
        return self.tokens / self.seconds

    @property
    def spread(self) -> float:
        """How far it may be off, as a share."""
        return self.high / self.seconds - 1

    def __str__(self) -> str:
        return f"{duration(self.seconds)}, give or take {100 * self.spread:.0f} %"

    def to_dict(self) -> dict[str, Any]:
        """What `--json` prints."""
        return {**asdict(self), "tokens_per_second": self.tokens_per_second}


def key_of(shape: Shape, setup: Setup, machine: str) -> str:
    """What a calibration holds for: all that changes the seconds of a micro-batch of given tokens."""
    of_model = [getattr(shape, each.name) for each in fields(shape) if each.name not in _SAYS_NOTHING]
    of_setup: list[Any] = [setup.method, setup.dtype, setup.optimizer, setup.repeat, setup.device]
    if setup.method != "full":
        targets = setup.targets if isinstance(setup.targets, str) else sorted(setup.targets)
        of_setup += [setup.rank, targets, setup.dora, setup.dropout > 0]
    return xxhash.xxh3_128_hexdigest(repr([machine, of_model, of_setup]).encode())


def fit(works: Sequence[Work], seconds: Sequence[float], *features: str) -> Linear:
    """Coefficients of least relative error, none below 0, exactly: every choice of those that are not 0 is tried.

    Args:
        works: that were measured, at least one.
        seconds: of each.
        features: coefficients that may be other than 0, by their names in `Linear`.
    """
    columns: dict[str, Callable[[Work], float]] = {
        "constant": lambda work: 1.0,
        "computed": lambda work: work.computed,
        "losses": lambda work: work.losses,
        "pairs": lambda work: work.pairs,
    }
    weights = 1 / np.maximum(np.asarray(seconds, dtype=float), 1e-9)
    wanted = np.asarray(seconds, dtype=float) * weights
    best, least = Linear(), float(np.square(wanted).sum())
    for count in range(1, min(len(works), len(features)) + 1):
        for chosen in combinations(features, count):
            table = np.array([[columns[name](work) for name in chosen] for work in works]) * weights[:, None]
            scale = np.maximum(np.abs(table).max(axis=0), 1e-300)
            found = np.linalg.lstsq(table / scale, wanted, rcond=None)[0] / scale
            error = float(np.square(table @ found - wanted).sum())
            if (found >= 0).all() and error < least - 1e-12:
                best, least = Linear(**dict(zip(chosen, map(float, found), strict=True))), error
    return best


def epoch_time(calibration: Calibration, shape: Shape, setup: Setup, epoch: Epoch) -> EpochTime:
    """The seconds of an epoch.

    Args:
        calibration: of this shape and setup.
        shape: of the base.
        setup: the way to train.
        epoch: `Epoch.of` the data.

    Raises:
        ValueError: the calibration is of another shape or setup.
    """
    if calibration.key != key_of(shape, setup, calibration.machine):
        raise ValueError("this calibration is of another shape or setup")
    seconds = 0.0
    tokens = 0
    for works in epoch.works():
        seconds += sum(map(calibration.micro_batch, works)) + calibration.optimizer
        tokens += sum(work.tokens for work in works)
    seconds *= epoch.tokens / tokens
    spread = max(LEAST_SPREAD, calibration.spread)
    return EpochTime(seconds, seconds / (1 + spread), seconds * (1 + spread), epoch.count, epoch.tokens)
