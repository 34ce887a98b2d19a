"""The curves of a run as inline SVG: the loss of each step with the evaluations, the learning rate below.

Colours are CSS variables with mid-tones to fall back on, and the background is transparent, so that one
drawing is readable on light and dark pages. The same rows give the same bytes. Knows the rows of
`metrics.jsonl`, and nothing of the page that shows the drawing.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

# matplotlib knows no CSS: what is drawn in these colours gets the variable when the SVG is written.
INK, GRID, TRAIN, EVAL = "#010101", "#020202", "#030303", "#040404"
VARIABLES = {
    INK: "var(--plot-ink, #7d7d7d)",
    GRID: "var(--plot-grid, #9a9a9a)",
    TRAIN: "var(--plot-train, #3f86a6)",
    EVAL: "var(--plot-eval, #c07a2b)",
}
# Width and height in px, and the size of letters: a narrow window gets a drawing of its own, so that
# letters stay readable.
SIZES = {"wide": (1000, 430, 12.5), "narrow": (400, 400, 12.5)}
MOST_POINTS = 1200  # a longer run is drawn by the lowest and highest loss of each stretch
LOG_FROM = 12.0  # highest loss over lowest, above which a linear axis would hide the end of the run
SETTINGS: dict[str, Any] = {"svg.fonttype": "none", "svg.hashsalt": "scumble", "font.family": ["DejaVu Sans"]}

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Series:
    """The finite values of one figure: `x` and `y` of shape (points,), x in optimizer steps."""

    x: np.ndarray
    y: np.ndarray

    def __len__(self) -> int:
        return len(self.x)


def series(rows: Rows, key: str) -> Series:
    """The values under `key` by step, rows without a finite one left out."""
    found = [(row["step"], row[key]) for row in rows if _finite(row.get(key)) and _finite(row.get("step"))]
    points = np.array(found, dtype=float).reshape(len(found), 2)
    return Series(points[:, 0], points[:, 1])


def smoothed(values: np.ndarray) -> np.ndarray:
    """A line fitted around each point with Gaussian weights: it neither lags behind nor bends at the ends.

    Local linear regression (Cleveland 1979), kept between the lowest and the highest value.

    Args:
        values: of shape (points,); the weights' width is a fortieth of that, at least one point.

    Returns:
        Of the same shape.
    """
    sigma = max(1.0, len(values) / 40)
    reach = min(math.ceil(3 * sigma), max(len(values) - 1, 0))
    offsets = np.arange(-reach, reach + 1)
    weights = np.exp(-0.5 * (offsets / sigma) ** 2)

    def sums(of: np.ndarray, power: int) -> np.ndarray:
        # at point i: the sum over j of w(j - i) (j - i)^power of[j], whose kernel convolve wants reversed
        kernel = (weights * offsets**power)[::-1]
        return np.convolve(of, kernel)[reach : reach + len(of)]

    ones = np.ones(len(values))
    s0, s1, s2 = (sums(ones, power) for power in range(3))
    determinant = s0 * s2 - s1 * s1
    with np.errstate(invalid="ignore", divide="ignore"):
        fitted = np.where(
            determinant > 0, (s2 * sums(values, 0) - s1 * sums(values, 1)) / determinant, values
        )
    return np.clip(fitted, values.min(), values.max()) if len(values) else fitted


def training_curves(
    rows: Rows, size: Literal["wide", "narrow"] = "wide", *, best_step: int | None = None
) -> str:
    """Draw the training loss (raw and smoothed), the evaluations, and the learning rate below.

    Args:
        rows: of `metrics.jsonl`: `step` with `loss` and `learning_rate`, or `step` with `eval_loss`.
        size: of the drawing, in viewBox units; it has no fixed width, and fills what holds it.
        best_step: the step of the adapter that was kept, marked where it was evaluated.

    Returns:
        An `<svg>` element without namespaces, for HTML; empty where there is no loss to draw.
    """
    losses, evals, rates = series(rows, "loss"), series(rows, "eval_loss"), series(rows, "learning_rate")
    if not len(losses) and not len(evals):
        return ""
    width, height, letters = SIZES[size]
    with matplotlib.rc_context(drawing_settings(letters)):
        # 72 to the inch makes a point, which SVG is written in, one unit of the viewBox
        figure = Figure(figsize=(width / 72, height / 72), dpi=72)
        figure.patch.set_visible(False)
        grid = figure.add_gridspec(2, 1, height_ratios=(3.4, 1), hspace=0.1)
        axes = figure.add_subplot(grid[0]), figure.add_subplot(grid[1])
        left, bottom, top = 66 / width, 46 / height, 1 - 20 / height
        figure.subplots_adjust(left=left, right=1 - 14 / width, bottom=bottom, top=top)
        span = (0.0, max(float(s.x[-1]) for s in (losses, evals, rates) if len(s)) or 1.0)
        for each in axes:
            _plain(each, span)
        _draw_losses(axes[0], losses, evals, best_step)
        _draw_rates(axes[1], rates)
        _mark_epochs(axes, rows, span)
        return inline_svg(
            figure, f"curves-{size}", "Training loss by step, evaluation loss, and the learning rate below"
        )


def drawing_settings(letters: float) -> Any:
    """matplotlib's own defaults and ours, whatever a matplotlibrc of the user says."""
    defaults = {name: value for name, value in matplotlib.rcParamsDefault.items() if "backend" not in name}
    return {**defaults, **SETTINGS, "font.size": letters}


def _draw_losses(axes: Axes, losses: Series, evals: Series, best_step: int | None) -> None:
    if len(losses):
        raw = _thinned(losses)
        # one step or two make no line that could be seen
        axes.plot(raw.x, raw.y, color=TRAIN, alpha=0.42, linewidth=0.9, marker="o" if len(raw) < 3 else "")
    if len(losses) > 2:
        smooth = _sampled(Series(losses.x, smoothed(losses.y)))
        axes.plot(smooth.x, smooth.y, color=TRAIN, linewidth=2)
    if len(evals):
        axes.plot(evals.x, evals.y, color=EVAL, linewidth=1.1, linestyle=(0, (4, 3)), alpha=0.8)
        axes.plot(
            evals.x, evals.y, color=EVAL, marker="o", markersize=6, linestyle="none", clip_on=False, zorder=4
        )
    if best_step is not None:
        at = evals.x == best_step
        axes.plot(
            evals.x[at], evals.y[at], marker="o", markersize=13, linestyle="none", clip_on=False, zorder=4,
            markerfacecolor="none", markeredgecolor=EVAL, markeredgewidth=1.4,
        )  # fmt: skip
    values = np.concatenate([losses.y, evals.y])
    lowest, highest = float(values.min()), float(values.max())
    if lowest > 0 and highest / lowest > LOG_FROM:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=12))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.tick_params(axis="y", which="minor", length=0)
        axes.set_ylabel("loss (log scale)", color=INK)
    else:
        axes.set_ylim(bottom=min(0.0, lowest))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.set_ylabel("loss", color=INK)
    axes.tick_params(axis="x", labelbottom=False)


def _draw_rates(axes: Axes, rates: Series) -> None:
    if len(rates):
        shown = _sampled(rates)
        axes.plot(shown.x, shown.y, color=INK, linewidth=1.5)
        highest = float(rates.y.max()) or 1.0
        axes.set_ylim(0, highest * 1.18)
        axes.set_yticks([0.0, highest])
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _rate(value)))
    axes.set_ylabel("rate", color=INK)
    axes.set_xlabel("optimizer step", color=INK)


def _mark_epochs(axes: Sequence[Axes], rows: Rows, span: tuple[float, float]) -> None:
    """A line where an epoch ends, and its number above, while there are few enough to be read."""
    ends = {round(row["epoch"]): row["step"] for row in rows if _whole(row.get("epoch"))}
    if not 0 < len(ends) <= 12:
        return
    for number, (epoch, step) in enumerate(sorted(ends.items())):
        for each in axes:
            each.axvline(step, color=GRID, alpha=0.5, linewidth=0.8, linestyle=(0, (2, 3)), zorder=0)
        place = axes[0].transData.transform((step, 0))[0], axes[0].bbox.y1 + 6
        last = step >= span[1] * 0.97
        axes[0].annotate(
            f"epoch {epoch}" if number == 0 else str(epoch), place, xycoords="figure pixels",
            ha="right" if last else "center", color=INK, fontsize=11, annotation_clip=False,
        )  # fmt: skip


def _plain(axes: Axes, span: tuple[float, float]) -> None:
    """No frame, faint horizontal lines, whole steps below."""
    axes.set_xlim(*span)
    axes.margins(y=0.08)
    axes.patch.set_visible(False)
    for name, spine in axes.spines.items():
        spine.set_visible(name == "bottom")
        spine.set_color(GRID)
    axes.grid(axis="y", color=GRID, alpha=0.35, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(axis="both", color=GRID, labelcolor=INK, length=0, pad=6)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.yaxis.set_label_coords(-54 / axes.bbox.width, 0.5)


def inline_svg(figure: Figure, name: str, label: str, kind: str = "") -> str:
    """The figure as an element of a page: ids of its own, no fixed size, no namespaces, CSS variables.

    Args:
        figure: drawn in the colours of `VARIABLES`, or in others that are readable on light and dark pages.
        name: that its ids begin with; no other drawing of the page has it.
        label: what it shows, in words.
        kind: its CSS class; its name where it has no other.
    """
    file = io.StringIO()
    bare = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    FigureCanvasSVG(figure).print_svg(file, metadata=bare)  # type: ignore[no-untyped-call, unused-ignore]
    text = file.getvalue()
    text = text[text.index("<svg") :].strip()
    text = re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    box = re.search(r'viewBox="([^"]+)"', text)
    assert box is not None  # matplotlib writes one on every figure
    head = f'<svg class="{kind or name}" viewBox="{box[1]}" role="img" aria-label="{label}">'
    text = re.sub(r"<svg\b[^>]*>", head, text, count=1, flags=re.DOTALL)
    text = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', text)
    text = text.replace("url(#", f"url(#{name}-").replace('xlink:href="#', f'href="#{name}-')
    text = re.sub("|".join(VARIABLES), lambda match: VARIABLES[match[0]], text)
    return re.sub(r"\n\s*\n", "\n", text)


def _thinned(values: Series) -> Series:
    """At most about `MOST_POINTS` points: the lowest and highest of each stretch, so that no peak is lost."""
    if len(values) <= MOST_POINTS:
        return values
    kept: list[int] = []
    for part in np.array_split(np.arange(len(values)), MOST_POINTS // 2):
        kept.extend(sorted({int(part[values.y[part].argmin()]), int(part[values.y[part].argmax()])}))
    return Series(values.x[kept], values.y[kept])


def _sampled(values: Series) -> Series:
    """At most `MOST_POINTS` points of a smooth curve, both ends among them."""
    if len(values) <= MOST_POINTS:
        return values
    kept = np.linspace(0, len(values) - 1, MOST_POINTS).round().astype(int)
    return Series(values.x[kept], values.y[kept])


def _rate(value: float) -> str:
    """A learning rate in as few letters as can be: 0, 1e-3, 1.5e-3."""
    if value == 0:
        return "0"
    digits, power = f"{value:.2e}".split("e")
    return f"{digits.rstrip('0').rstrip('.')}e{int(power)}"


def _whole(value: Any) -> bool:
    return _finite(value) and value > 0.5 and abs(value - round(value)) < 1e-6


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
