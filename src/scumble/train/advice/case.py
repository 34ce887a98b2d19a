"""`Case`: one run as the diagnoses look at it: its reading, its curve and how its adapter moved. Knows no diagnosis."""

from __future__ import annotations

import math
from dataclasses import dataclass

from scumble.lora.initial import SHIFTED
from scumble.train.advice.command import asked
from scumble.train.advice.curves import Curve
from scumble.train.advice.reading import Reading, finite
from scumble.train.advice.spectra import Movement, movement_of


@dataclass(frozen=True)
class Case:
    """One run.

    Attributes:
        reading: what its folder says.
        curve: of the steps whose figures are finite.
        movement: of its adapter; None where there is none, or what is saved is not what was trained.
    """

    reading: Reading
    curve: Curve
    movement: Movement | None

    @classmethod
    def of(cls, reading: Reading) -> Case:
        """From a reading."""
        rows = [
            (int(row["step"]), float(row["loss"]), float(row["learning_rate"]), float(row["grad_norm"]))
            for row in reading.steps
        ]
        curve = Curve.of(
            [row for row in rows if all(map(finite, row))],
            [each for each in reading.evals if finite(each[1])],
        )
        movement = None
        if reading.adapter is not None and len(curve.steps) and not _shifted(reading):
            seen = curve.rates[curve.steps <= (reading.adapter_step or math.inf)]
            movement = movement_of(reading.adapter, reading.options, seen)
        return cls(reading, curve, movement)

    @property
    def steps(self) -> int:
        """Optimizer steps that were made."""
        return len(self.curve.steps)

    @property
    def whole(self) -> bool:
        """Whether all weights were trained, and there is no adapter to shape."""
        return "adapter" not in self.reading.facts

    @property
    def shifted(self) -> bool:
        """Whether a difference of two adapters is saved, whose spectrum is not that of the trained rank."""
        return _shifted(self.reading)

    @property
    def rank(self) -> int:
        """The rank that was trained."""
        return int(asked(self.reading)["rank"])

    @property
    def kinds(self) -> frozenset[str]:
        """The last parts of the names of the adapter's modules; empty where there is none."""
        adapter = self.reading.adapter
        return frozenset(path.rpartition(".")[2] for path in adapter.factors) if adapter else frozenset()

    @property
    def rate(self) -> float:
        """The highest learning rate of the run."""
        return float(self.reading.training["learning_rate"])

    @property
    def persistence(self) -> float | None:
        """P of the adapter."""
        return self.movement.persistence if self.movement else None

    @property
    def growth(self) -> float | None:
        """G of the adapter."""
        return self.movement.growth if self.movement else None

    @property
    def broken(self) -> str | None:
        """Why the run broke off by its own figures; None where it did not, or somebody stopped it."""
        stopped = str(self.reading.result.get("stopped") or "")
        return (
            stopped
            if any(word in stopped for word in ("loss is", "loss on", "norm is", "grown beyond"))
            else None
        )

    @property
    def cut_off(self) -> bool:
        """Whether it has not come to its last step, and did not mean to end before."""
        result = self.reading.result
        return not result or (bool(result.get("stopped")) and self.broken is None)


def _shifted(reading: Reading) -> bool:
    return reading.options.get("init") in SHIFTED
