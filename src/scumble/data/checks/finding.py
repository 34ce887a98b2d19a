"""What a check found: where, what it means, and what to do about it. Knows nothing of how it was found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Severity = Literal["error", "warning"]
KEPT = 1000  # line numbers that a finding names; `count` says how many there are


@dataclass(frozen=True)
class Finding:
    """Everything that one check found in one source.

    Attributes:
        check: the name of the check, such as `empty_answers`.
        severity: an error stops training, a warning does not.
        source: the file or data set that the lines are of.
        lines: line numbers (numbers of examples where the source has no lines), from 1, in order, the first
            `KEPT` of them; empty where the finding is about the whole.
        count: how many lines there are.
        message: one line on what was found.
        consequence: one sentence on what goes wrong if it is ignored.
        fix: what to do.
        where: the source and the first of the lines, `data.jsonl, line 9`; empty where it is about the whole.
        detail: what is wrong there.
    """

    check: str
    severity: Severity
    source: str
    lines: tuple[int, ...]
    count: int
    message: str
    consequence: str
    fix: str
    where: str = ""
    detail: str = ""

    def to_dict(self) -> dict[str, Any]:
        """What `--json` prints of it."""
        return {
            "check": self.check,
            "severity": self.severity,
            "source": self.source,
            "lines": list(self.lines),
            "count": self.count,
            "message": self.message,
            "consequence": self.consequence,
            "fix": self.fix,
        }
