"""`check`: what is wrong with a data set, found before anything is trained on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from scumble.data.checks.finding import Finding


@dataclass(frozen=True)
class Checked:
    """A data set that was looked through.

    Attributes:
        source: what was checked.
        format: the format of its first examples, and why it was taken to be that.
        examples: how many could be read, validation not counted.
        tokens: of all of them; 0 where no tokenizer was given.
        supervised_tokens: those that carry a loss.
        findings: errors first, then warnings.
    """

    source: str
    examples: int
    tokens: int
    supervised_tokens: int
    findings: tuple[Finding, ...]
    format: str | None = None
    format_reason: str = ""

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings that stop training."""
        return tuple(each for each in self.findings if each.severity == "error")

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """The findings that do not."""
        return tuple(each for each in self.findings if each.severity == "warning")

    def to_dict(self) -> dict[str, Any]:
        """What `--json` prints."""
        return {
            "source": self.source,
            "format": self.format,
            "format_reason": self.format_reason,
            "examples": self.examples,
            "tokens": self.tokens,
            "supervised_tokens": self.supervised_tokens,
            "findings": [each.to_dict() for each in self.findings],
        }


def check(
    source: Any,
    *,
    tokenizer: Any = None,
    format: str | None = None,
    template: Any = None,
    train_on: str = "all",
    max_length: int = 2048,
    rank: int = 8,
    epochs: float = 3.0,
    batch: int | None = None,
    accumulate: int | None = None,
    warmup: int | None = None,
    max_steps: int | None = None,
    eval: Any = None,
    quiet: bool = True,
) -> Checked:
    """Look through a data set; being written."""
    raise NotImplementedError
