"""Advice as people read it: what is the case, on which figures, how sure that is, and what to type."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scumble.train.advice.advise import Advice
    from scumble.train.advice.finding import Finding


def show(found: Advice) -> None:
    """Print it."""
    from rich.console import Console

    console = Console(highlight=False)
    _line(console, f"{found.path} ({found.kind}): {found.about}")
    for finding in found.findings:
        console.print()
        _finding(console, finding)
    if not found.findings:
        _line(console, "nothing to advise")
    if found.missing:
        console.print()
        for each in found.missing:
            _line(console, f"missing: {each}", style="dim")


def _finding(console: Any, finding: Finding) -> None:
    _line(console, finding.finding, style="bold")
    figures = ", ".join(
        f"{name} {_figure(value)}" for name, value in finding.evidence.items() if value is not None
    )
    _line(console, figures, 2)
    _line(console, f"confidence {finding.confidence} ({finding.rule})", 2)
    if finding.lesson:
        _line(console, finding.lesson, 2)
    if finding.command:
        # unbroken, so that it can be copied
        console.print(f"  {finding.command}", style="green", markup=False, soft_wrap=True)


def _figure(value: Any) -> str:
    return (
        f"{value:.3g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
    )


def _line(console: Any, text: str, indent: int = 0, style: str = "") -> None:
    from rich.text import Text

    for line in Text(text).wrap(console, max(20, min(console.width, 100) - indent)):
        line.rstrip()
        console.print(Text(" " * indent) + line, style=style, no_wrap=True, crop=False)
