"""What the commands print: one JSON document on stdout with `--json`, else a few lines for people."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from typing import Any, Protocol

from scumble.errors import printable


class Result(Protocol):
    """What every function of the package returns."""

    def to_dict(self) -> dict[str, Any]:
        """What `--json` prints."""


def show(result: Result, as_json: bool, people: Callable[[], None]) -> None:
    """Print a result, for programs or for people."""
    if as_json:
        sys.stdout.write(json.dumps(finite(result.to_dict()), indent=2, default=str, allow_nan=False) + "\n")
    else:
        people()


def failure(message: str, hint: str) -> None:
    """Say on stderr what is wrong and where, and below it what to do."""
    print(f"error: {' '.join(printable(message).split())}", file=sys.stderr)
    if hint:
        print(f"  hint: {' '.join(printable(hint).split())}", file=sys.stderr)


def finite(value: Any) -> Any:
    """A document without NaN and infinity, which JSON cannot hold: null stands for them."""
    if isinstance(value, dict):
        return {key: finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def size(count: int | float) -> str:
    """A number of bytes as people read it: 1.9 MB."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError


def written(found: Any) -> None:
    """Print what an adapter that was made of others is, and how far off."""
    lowest, highest = min(found.ranks.values(), default=0), found.rank
    ranks = f"rank {highest}" if lowest == highest else f"ranks {lowest} to {highest}"
    print(
        f"{found.out}: {ranks} on {len(found.ranks)} modules, {found.parameters:,} numbers, {size(found.bytes)}"
    )
    print(f"error: predicted {_error(found.error['predicted'])}, measured {_error(found.error['measured'])}")
    worst = max((e for e in found.modules.items() if e[1]), key=lambda each: each[1], default=None)
    if worst and found.error["measured"] > 1e-5:
        print(f"worst module: {worst[0]}, {_error(worst[1])}")


def _error(value: float) -> str:
    """An error as people read it: a share, or where it is rounding, so small that a share says nothing."""
    return f"{value:.3%}" if value >= 1e-5 else f"{value:.1e} (rounding)" if value else "0"


def comparison(found: Any) -> None:
    """Print before and after: the examples side by side, then the figures."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    if found.examples:
        table = Table(show_lines=True)
        for title in ("prompt", "expected", "before", "after"):
            table.add_column(title, overflow="fold")
        for example in found.examples:
            before = Text(_short(example.before), "green" if example.right_before else "red")
            after = Text(_short(example.after) + (" ✓" if example.right_after else " ✗"))
            after.stylize("green" if example.right_after else "red")
            table.add_row(Text(example.prompt), Text(example.expected), before, after)
        console.print(table)
    metric = found.metric
    console.print(
        f"{metric.name} on {metric.n} examples: before {metric.before:.1%}{_interval(metric.before_interval)}, "
        f"after {metric.after:.1%}{_interval(metric.after_interval)}",
        markup=False,
        soft_wrap=True,
    )
    console.print(
        f"loss: {found.loss['before']:.3f} -> {found.loss['after']:.3f}   "
        f"perplexity: {found.perplexity['before']:.2f} -> {found.perplexity['after']:.2f}",
        soft_wrap=True,
    )
    source = (
        f" ({size(found.source_bytes)} as it came)"
        if found.source_bytes and found.source_bytes != found.base_bytes
        else ""
    )
    console.print(
        f"{found.kind} {size(found.adapter_bytes)} beside a base of {size(found.base_bytes)}{source}",
        soft_wrap=True,
    )


def _interval(bounds: tuple[float, float]) -> str:
    return f" [{bounds[0]:.1%}, {bounds[1]:.1%}]"


def _short(text: str, limit: int = 160) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
