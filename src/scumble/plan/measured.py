"""`Measured`: the peak of a step that was made, beside the one that was planned. Made by `lab.planned`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Measured:
    """A step that was made, beside its plan.

    Attributes:
        peak: bytes that PyTorch had allocated at most.
        planned: the same, as planned.
        weights: of which the base's weights are so many, in both.
        seconds: of the step; on a CPU under the profiler, which slows it down.
    """

    peak: int
    planned: int
    weights: int
    seconds: float

    @property
    def error(self) -> float:
        """How far the plan is off, of the peak less the weights, which are easy."""
        return (self.planned - self.peak) / (self.peak - self.weights)

    def to_dict(self) -> dict[str, Any]:
        """What `--json` prints."""
        return {**asdict(self), "error": self.error}
