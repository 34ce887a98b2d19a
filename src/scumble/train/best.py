"""Which evaluation was the best so far, and how many there were since. Knows scores, and nothing of how they are made."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass
class Best:
    """The best of a run's evaluations.

    Attributes:
        higher: a higher score is better; with False a lower one.
        step: of the best; None before the first.
        score: of the best; None where nothing was measured.
        stale: evaluations since the best one.
    """

    higher: bool = False
    step: int | None = None
    score: float | None = None
    stale: int = 0

    def see(self, step: int, score: float | None) -> bool:
        """Note an evaluation, and say whether it is the best so far; of equal ones the first is.

        Without a score the last is the best: nothing is known that speaks against it.
        """
        better = (
            score is None or self.score is None or (score > self.score if self.higher else score < self.score)
        )
        if better:
            self.step, self.score, self.stale = step, score, 0
        else:
            self.stale += 1
        return better

    def to_dict(self) -> dict[str, Any]:
        """As a checkpoint holds it."""
        return asdict(self)
