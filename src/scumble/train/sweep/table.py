"""The table of a sweep, for a terminal: while it runs by trial, afterwards by setting, the best first.

Knows lines and how figures are written, and nothing of how they came about.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from scumble.pages.render import DASH, count, duration, number, setting, share, size
from scumble.train.sweep.journal import Journal
from scumble.train.sweep.lines import Line, ranked

_TITLES = {"learning_rate": "rate", "max_steps": "steps", "weight_decay": "decay", "lora_plus": "LoRA+"}


def columns_of(lines: Sequence[Line], axes: Sequence[str]) -> list[str]:
    """The settings that are shown: those that vary; of a sweep in which none does, those that people ask for first."""
    return list(axes) or [name for name in ("rank", "targets") if lines and name in lines[0].settings]


def titled(name: str) -> str:
    """A setting as a column's head."""
    return _TITLES.get(name, name.replace("_", " "))


def said(line: Line) -> str:
    """What has become of a line, in a few words."""
    if line.state == "finished":
        return line.reason or ""
    if line.state == "failed":
        return f"failed: {line.reason}"
    if line.state == "ended":
        return str(line.reason)
    return f"paused at step {line.steps} of {line.of}" if line.steps else "not begun"


def interval_of(line: Line) -> str:
    """The interval of the metric, in percent."""
    return f"[{100 * line.interval[0]:.1f}, {100 * line.interval[1]:.1f}]" if line.interval else ""


def result_table(
    lines: Sequence[Line], axes: Sequence[str], metric: Mapping[str, Any] | None, *, best: int | None
) -> Table:
    """The lines, the best first.

    Args:
        lines: of the sweep.
        axes: the options that vary.
        metric: what `sweep.json` says of it.
        best: the number of the best line, which is marked.
    """
    table = Table(box=None, pad_edge=False, header_style="bold")
    shown = columns_of(lines, axes)
    seeds = max((len(line.trials) for line in lines), default=1)
    for title in ("", *(titled(name) for name in shown)):
        table.add_column(title, no_wrap=True)
    heads = [
        "loss",
        *(["seeds"] if seeds > 1 else []),
        *([metric["name"].replace("_", " ")] if metric else []),
    ]
    for title in (*heads, "parameters", "size", "memory", "time"):
        table.add_column(title, justify="right", no_wrap=True)
    for line in ranked(lines, by_metric=bool(metric and metric["decides"])):
        marked = {"finished": "best" if line.number == best else ""}.get(line.state, line.state)
        cells = [
            marked,
            *(setting(line.settings[name]) for name in shown),
            number(line.loss) if line.loss is not None else DASH,
            *([str(len(line.trials))] if seeds > 1 else []),
            *([f"{share(line.metric)} {interval_of(line)}".strip()] if metric else []),
            count(line.parameters),
            size(line.bytes),
            size(line.memory),
            duration(line.seconds) if line.steps else DASH,
        ]
        table.add_row(*(Text(cell.replace("\u00a0", " ")) for cell in cells))
    return table


def live_table(journal: Journal, far: Mapping[str, Mapping[str, Any]], rows: int) -> Table:
    """The trials under way: those in training first, then those that ended last.

    Args:
        journal: of the sweep.
        far: of each trial that is not over, the last figures that it wrote.
        rows: that there is room for.
    """
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title, justify in (
        ("trial", "left"),
        ("step", "right"),
        ("loss", "right"),
        ("validation", "right"),
        ("", "left"),
    ):
        table.add_column(title, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    under_way = [t for t in journal.trials if not t.over and far.get(t.name)]
    over = sorted((t for t in journal.trials if t.over), key=lambda t: (t.loss is None, t.loss))
    waiting = [t for t in journal.trials if not t.over and not far.get(t.name)]
    shown = [*under_way, *over, *waiting]
    for trial in shown[:rows]:
        found = far.get(trial.name, {})
        step = found.get("step", trial.steps)
        loss = found.get("loss")
        judged = trial.loss if trial.over else found.get("eval_loss", found.get("rung_loss"))
        table.add_row(
            Text(trial.name),
            f"{step}/{trial.of}",
            number(loss, 3),
            number(judged),
            Text({"waiting": "", "paused": ""}.get(trial.state, trial.state) if not found else "training"),
        )
    if len(shown) > rows:
        table.add_row(f"and {len(shown) - rows} more")
    return table
