"""`Finding`: one piece of advice, with the figures that it rests on. Knows words and figures, and nothing of how they come about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from scumble.train.advice.command import NextRun
from scumble.train.advice.lesson import LESSON

Confidence = Literal["high", "medium", "low"]


@dataclass(frozen=True)
class Finding:
    """One piece of advice.

    Attributes:
        topic: `diverged`, `rate too high`, `rate too low`, `overfit`, `rank`, `plateau`, `still improving`, `fine`,
            `rank wasted`; of a sweep also `option`, `seeds` and `best`.
        finding: what is the case, in one line.
        evidence: from the name of a figure to it.
        confidence: how sure that is.
        rule: why it is so sure: what would have to be seen for more.
        next: the run to make; None where there is none to make.
    """

    topic: str
    finding: str
    evidence: Mapping[str, Any]
    confidence: Confidence
    rule: str
    next: NextRun | None = None

    @property
    def command(self) -> str | None:
        """What to type."""
        return self.next.command if self.next else None

    @property
    def lesson(self) -> str | None:
        """What the lesson says beside it."""
        return LESSON.get(self.topic)

    def to_dict(self) -> dict[str, Any]:
        """The same by name."""
        return {
            "topic": self.topic,
            "finding": self.finding,
            "evidence": dict(self.evidence),
            "confidence": self.confidence,
            "rule": self.rule,
            "command": self.command,
            "next": self.next.to_dict() if self.next else None,
            "lesson": self.lesson,
        }
