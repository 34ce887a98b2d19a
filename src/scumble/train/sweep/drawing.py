"""The drawings of a sweep as inline SVG: loss curves together, what is reached against what is trained, rank by targets.

They hold numbers and names that were made safe for XML by matplotlib, which writes text as text. One drawing is readable
on light and dark pages: see `train.curves`, whose style this is. The same figures give the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from scumble.train.curves import (
    EVAL,
    GRID,
    INK,
    SIZES,
    TRAIN,
    Rows,
    drawing_settings,
    inline_svg,
    series,
    smoothed,
)

Size = Literal["wide", "narrow"]
# mid-tones, apart from one another on light and on dark ground
HUES = ("#3f86a6", "#c07a2b", "#5b9a58", "#b3608a", "#8577c4", "#3fa196", "#a68a3c")
OTHERS = "#8f8f8f"
_MANY = 4  # evaluations of a run, from which on they make a curve by themselves
_LOG_FROM = 12.0  # highest over lowest, above which a linear axis would hide the end


@dataclass(frozen=True)
class Curve:
    """The runs of one line, to draw: the rows of each one's `metrics.jsonl`, and a colour."""

    runs: Sequence[Rows]
    colour: str


@dataclass(frozen=True)
class Point:
    """A line in the picture of the tradeoff.

    Attributes:
        name: what stands beside it.
        parameters: trained numbers.
        value: of the loss, or of the metric.
        interval: of that; None where there is none.
        front: no other has as few parameters and a better value.
        best: it is the best of all.
    """

    name: str
    parameters: int
    value: float
    interval: tuple[float, float] | None
    front: bool
    best: bool


def evaluations_alone(curves: Sequence[Curve]) -> bool:
    """Whether validation losses make the curves; else the training losses do, and evaluations are dots."""
    counts = [len(series(rows, "eval_loss")) for curve in curves for rows in curve.runs]
    return bool(counts) and sorted(counts)[len(counts) // 2] >= _MANY


def loss_curves(curves: Sequence[Curve], size: Size) -> str:
    """The loss of all runs by optimizer step, the first curve on top."""
    with matplotlib.rc_context(_settings(size)):
        figure, axes = _canvas(size)
        alone, highest, lowest, last = evaluations_alone(curves), 0.0, np.inf, 1.0
        for order, curve in enumerate(curves):
            width = 1.9 if curve.colour != OTHERS else 1.0
            style: dict[str, Any] = {"color": curve.colour, "zorder": 20 - min(order, 15)}
            for rows in curve.runs:
                losses, evals = series(rows, "loss"), series(rows, "eval_loss")
                if alone:
                    axes.plot(evals.x, evals.y, linewidth=width, marker="o", markersize=3.5, **style)
                else:
                    drawn = smoothed(losses.y) if len(losses) > 2 else losses.y
                    axes.plot(losses.x, drawn, linewidth=width, alpha=0.75, **style)
                    after = evals.x > 0
                    axes.plot(evals.x[after], evals.y[after], "o", markersize=6, clip_on=False, **style)
                values = evals.y if alone else np.concatenate([losses.y, evals.y])
                if len(values):
                    highest, lowest = max(highest, values.max()), min(lowest, values.min())
                    last = max(last, *(s.x[-1] for s in (losses, evals) if len(s)))
        axes.set_xlim(0, last)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.set_xlabel("optimizer step", color=INK)
        _loss_axis(axes, lowest, highest, "validation loss" if alone else "loss")
        return inline_svg(
            figure, f"losses-{size}", "Losses of all settings by optimizer step", f"curves-{size}"
        )


def tradeoff(points: Sequence[Point], what: str, size: Size, *, shares: bool) -> str:
    """A value of each line against its parameters; the Pareto front is a line.

    Args:
        points: at least one.
        what: the value is called.
        size: of the drawing.
        shares: the value is a share from 0 to 1, and higher is better; else lower is.
    """
    with matplotlib.rc_context(_settings(size)):
        figure, axes = _canvas(size)
        front = sorted((p for p in points if p.front), key=lambda p: p.parameters)
        axes.plot(
            [p.parameters for p in front],
            [p.value for p in front],
            color=EVAL,
            linewidth=1.6,
            drawstyle="steps-post",
        )
        for point in points:
            colour = EVAL if point.front else TRAIN
            if point.interval is not None:
                axes.plot([point.parameters] * 2, point.interval, color=colour, alpha=0.35, linewidth=2.2)
            axes.plot(point.parameters, point.value, "o", color=colour, markersize=7, clip_on=False, zorder=4)
            if point.best:
                axes.plot(
                    point.parameters, point.value, "o", markersize=14, markerfacecolor="none",
                    markeredgecolor=EVAL, markeredgewidth=1.4, clip_on=False, zorder=4,
                )  # fmt: skip
        _parameter_axis(axes, [p.parameters for p in points])
        if shares:
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %"))
            axes.yaxis.set_major_locator(MaxNLocator(5))
            top = max((p.interval[1] if p.interval else p.value) for p in points)
            axes.set_ylim(0, min(1.04, max(0.05, top * 1.12)))
            axes.set_ylabel(what, color=INK)
        else:
            values = [p.value for p in points]
            _loss_axis(axes, min(values), max(values), what, from_zero=False)
        _name_points(axes, front, SIZES[size][0])
        label = f"{what} against trained parameters, with the Pareto front"
        return inline_svg(figure, f"tradeoff-{size}", label, f"curves-{size}")


def heat_map(
    values: Mapping[tuple[str, str], float],
    columns: Sequence[str],
    rows: Sequence[str],
    size: Size,
    *,
    shares: bool,
) -> str:
    """A value for each rank (columns) and targets (rows); the better, the fuller the colour.

    Args:
        values: by row and column; a cell without one stays empty.
        columns: ranks, in order.
        rows: targets, in order.
        size: of the drawing.
        shares: values are shares, and higher is better; else lower is.
    """
    width = SIZES[size][0]
    height = 70 + 54 * len(rows)
    with matplotlib.rc_context(_settings(size)):
        figure = Figure(figsize=(width / 72, height / 72), dpi=72)
        figure.patch.set_visible(False)
        margin = min(0.4, (24 + 7.2 * max(len(_clipped(row, size)) for row in rows)) / width)
        axes = figure.add_axes((margin, 46 / height, 1 - margin - 14 / width, 1 - 56 / height))
        axes.patch.set_visible(False)
        low, high = min(values.values()), max(values.values())
        for y, row in enumerate(rows):
            for x, column in enumerate(columns):
                if (value := values.get((row, column))) is None:
                    continue
                good = (value - low) / (high - low) if high > low else 1.0
                full = 0.08 + 0.36 * (good if shares else 1 - good)
                axes.fill_between(
                    [x - 0.48, x + 0.48], y - 0.46, y + 0.46, color=TRAIN, alpha=full, linewidth=0
                )
                shown = f"{100 * value:.1f} %" if shares else f"{value:.3f}"
                axes.text(x, y, shown, ha="center", va="center", color=INK)
        axes.set_xlim(-0.5, len(columns) - 0.5)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xticks(range(len(columns)), columns)
        axes.set_yticks(range(len(rows)), [_clipped(row, size) for row in rows])
        axes.set_xlabel("rank", color=INK)
        axes.tick_params(axis="both", length=0, labelcolor=INK, pad=6)
        for spine in axes.spines.values():
            spine.set_visible(False)
        return inline_svg(figure, f"heat-{size}", "Best value for each rank and targets", f"curves-{size}")


def _settings(size: Size) -> Any:
    """Those of all drawings; a `$` in a pattern of targets is a letter, not mathematics."""
    return {**drawing_settings(SIZES[size][2]), "text.parse_math": False}


def _canvas(size: Size) -> tuple[Figure, Axes]:
    """No frame, faint horizontal lines."""
    width, height, _ = SIZES[size]
    figure = Figure(figsize=(width / 72, height / 72), dpi=72)
    figure.patch.set_visible(False)
    axes = figure.add_axes((66 / width, 52 / height, 1 - 92 / width, 1 - 72 / height))
    axes.patch.set_visible(False)
    for name, spine in axes.spines.items():
        spine.set_visible(name == "bottom")
        spine.set_color(GRID)
    axes.grid(axis="y", color=GRID, alpha=0.35, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(axis="both", which="both", color=GRID, labelcolor=INK, length=0, pad=6)
    axes.margins(y=0.08)
    axes.yaxis.set_label_coords(-48 / (width - 92), 0.5)
    return figure, axes


def _loss_axis(axes: Axes, lowest: float, highest: float, what: str, *, from_zero: bool = True) -> None:
    if lowest > 0 and highest / lowest > _LOG_FROM:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=12))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        what += " (log scale)"
    else:
        if from_zero:
            axes.set_ylim(bottom=0)
        axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.set_ylabel(what, color=INK)


def _parameter_axis(axes: Axes, counts: Sequence[int]) -> None:
    """Trained numbers by their logarithm, with a tick at each that there is while they do not touch."""
    axes.set_xscale("log")
    low, high = min(counts), max(counts)
    room = max((high / low) ** 0.07, 1.15)
    axes.set_xlim(low / room, high * room)
    ticks: list[int] = []
    for count in sorted(set(counts)):
        if not ticks or count / ticks[-1] >= (high / low) ** 0.12:
            ticks.append(count)
    axes.set_xticks(ticks, [_counted(count) for count in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("trained parameters (log scale)", color=INK)


def _name_points(axes: Axes, points: Sequence[Point], width: float) -> None:
    """The names of the front, each on the side of its point where the picture has room."""
    left, right = axes.get_xlim()
    for point in points:
        late = np.log(point.parameters / left) > 0.6 * np.log(right / left)
        axes.annotate(
            _clipped(point.name, "wide" if width > 500 else "narrow"),
            (point.parameters, point.value),
            xytext=(-9 if late else 9, 9),
            textcoords="offset points",
            ha="right" if late else "left",
            color=INK,
            fontsize=11,
            annotation_clip=False,
        )


def _counted(count: float) -> str:
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= unit:
            return f"{count / unit:.3g}{name}"
    return f"{count:g}"


def _clipped(name: str, size: Size) -> str:
    most = 34 if size == "wide" else 18
    return name if len(name) <= most else name[: most - 1] + "…"
