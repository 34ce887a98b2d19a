"""The pictures of the lesson, for its page and for the docs: the same drawing as inline SVG and as PNG.

Colours are CSS variables in the page, so that one drawing is readable on light and dark; the PNG has a light ground.
Knows `lab.json`'s figures, and nothing of how they came about.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MultipleLocator, NullFormatter, NullLocator, PercentFormatter

# matplotlib knows no CSS: what is drawn in these colours gets the variable when the SVG is written
INK, GRID, OURS, OTHER, RIGHT, WRONG = "#010101", "#020202", "#030303", "#040404", "#050505", "#060606"
VARIABLES = {
    INK: ("--plot-ink", "#63666b"),
    GRID: ("--plot-grid", "#a8a49b"),
    OURS: ("--plot-train", "#2f7594"),
    OTHER: ("--plot-eval", "#b9701f"),
    RIGHT: ("--right", "#2e7d4f"),
    WRONG: ("--wrong", "#b3452f"),
}
VERDICTS = {"holds": RIGHT, "does not hold": WRONG, "depends": INK}
SETTINGS: dict[str, Any] = {
    "svg.fonttype": "none", "svg.hashsalt": "scumble", "font.family": ["DejaVu Sans"], "font.size": 12,
}  # fmt: skip
WIDTH = 940.0  # of every drawing, in units of its viewBox

Points = Sequence[Mapping[str, Any]]


class Drawing:
    """One picture.

    Args:
        name: of the file and of the element, such as `rank`.
        label: what it shows, for readers that cannot see it.
        height: in units of the viewBox.
        draw: draws into axes side by side.
        columns: how many of those there are.
        left: room for labels at the left of each, in units.
    """

    def __init__(
        self,
        name: str,
        label: str,
        height: float,
        draw: Callable[..., None],
        *,
        columns: int = 1,
        left: float = 64,
    ) -> None:
        self.name, self.label, self.height = name, label, height
        self._draw, self._columns, self._left = draw, columns, left

    def svg(self) -> str:
        """An `<svg>` element for a page."""
        file = io.StringIO()
        with matplotlib.rc_context(_settings()):
            figure = self._figure(FigureCanvasSVG)
            bare = dict.fromkeys(("Date", "Creator", "Format", "Type"))
            figure.savefig(file, format="svg", metadata=bare, transparent=True)
        text = file.getvalue()
        text = text[text.index("<svg") :].strip()
        for pattern in (r"<style.*?</style>", r"<metadata>.*?</metadata>", r"<!--.*?-->"):
            text = re.sub(pattern, "", text, flags=re.DOTALL)
        box = re.search(r'viewBox="([^"]+)"', text)
        assert box is not None  # matplotlib writes one on every figure
        head = f'<svg class="{self.name}" viewBox="{box[1]}" role="img" aria-label="{self.label}">'
        text = re.sub(r"<svg\b[^>]*>", head, text, count=1, flags=re.DOTALL)
        text = re.sub(r'\bid="([^"]+)"', rf'id="{self.name}-\1"', text)
        text = text.replace("url(#", f"url(#{self.name}-").replace('xlink:href="#', f'href="#{self.name}-')
        return re.sub("|".join(VARIABLES), lambda m: "var({}, {})".format(*VARIABLES[m[0]]), text)

    def png(self, file: Path) -> Path:
        """Write it as a picture on a light ground."""
        from scumble.files import new_file

        with matplotlib.rc_context(_settings()):
            figure = self._figure(FigureCanvasAgg)
            for part in figure.findobj(
                lambda each: hasattr(each, "set_color") or hasattr(each, "set_facecolor")
            ):
                _plainly(part)
            figure.patch.set_facecolor("#ffffff")
            with new_file(file) as temporary:
                figure.savefig(temporary, format="png", dpi=144)
        return file

    def _figure(self, canvas: Any) -> Figure:
        figure = Figure(figsize=(WIDTH / 72, self.height / 72), dpi=72)
        canvas(figure)
        axes = figure.subplots(1, self._columns, squeeze=False)[0]
        for each in axes:
            _plain(each)
        self._draw(*axes)
        figure.subplots_adjust(
            left=self._left / WIDTH, right=1 - 20 / WIDTH, bottom=52 / self.height,
            top=1 - 34 / self.height, wspace=0.22 if self._left < 100 else 0.9,
        )  # fmt: skip
        return figure


def _settings() -> Any:
    """matplotlib's own defaults and ours, whatever a matplotlibrc of the user says."""
    defaults: dict[Any, Any] = {
        name: value for name, value in matplotlib.rcParamsDefault.items() if "backend" not in name
    }
    return {**defaults, **SETTINGS}


def _plainly(part: Any) -> None:
    """Colours of a page as the plain ones that they fall back on."""
    from matplotlib.colors import to_hex

    for name in ("color", "facecolor", "edgecolor", "markerfacecolor", "markeredgecolor"):
        getter, setter = getattr(part, f"get_{name}", None), getattr(part, f"set_{name}", None)
        if getter is None or setter is None:
            continue
        try:
            found = to_hex(getter())
        except (ValueError, TypeError):
            try:
                found = to_hex(getter()[0])
            except (ValueError, TypeError, IndexError):
                continue
        if found in VARIABLES:
            setter(VARIABLES[found][1])


def _plain(axes: Axes) -> None:
    """No frame, faint lines, our colours."""
    axes.patch.set_visible(False)
    for name, spine in axes.spines.items():
        spine.set_visible(name == "bottom")
        spine.set_color(GRID)
    axes.grid(axis="y", color=GRID, alpha=0.35, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(axis="both", color=GRID, labelcolor=INK, length=0, pad=6)


def _title(axes: Axes, text: str) -> None:
    axes.set_title(text, loc="left", color=INK, fontsize=12)


def _percent(axis: Any) -> None:
    axis.set_major_formatter(PercentFormatter(1.0, decimals=0))


def _ranks(axes: Axes, ranks: Sequence[float], label: str) -> None:
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(matplotlib.ticker.FixedLocator(list(ranks)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel(label, color=INK)


def _error(axes: Axes, x: float, point: Mapping[str, Any], colour: str, *, across: bool = False) -> None:
    """A mean with its interval, and the seeds as small dots."""
    mean, low, high = point["mean"], point["low"], point["high"]
    span = [low, high] if low is not None and high is not None else [mean, mean]
    line, dots = ([x, x], [x] * len(point["seeds"]))
    if across:
        axes.plot(span, line, color=colour, linewidth=2, solid_capstyle="round")
        axes.plot(point["seeds"], dots, "|", color=colour, markersize=9, alpha=0.7)
        axes.plot([mean], [x], "o", color=colour, markersize=7)
    else:
        axes.plot(line, span, color=colour, linewidth=2, solid_capstyle="round")
        axes.plot(dots, point["seeds"], "_", color=colour, markersize=9, alpha=0.7)
        axes.plot([x], [mean], "o", color=colour, markersize=7)


def _top(points: Points) -> float:
    """The end of an axis of shares that begins at 0."""
    highest = max((each["high"] or each["mean"] for each in points), default=0.0)
    return min(1.02, max(0.05, 1.08 * highest))


def ways(points: Points) -> Drawing:
    """Right answers of every way to train."""

    def draw(axes: Axes) -> None:
        for place, point in enumerate(points):
            _error(axes, place, point, OTHER if point["way"] == "full" else OURS, across=True)
        axes.set_yticks(range(len(points)), [point["title"] for point in points])
        axes.set_ylim(len(points) - 0.4, -0.6)
        axes.grid(axis="y", visible=False)
        axes.grid(axis="x", color=GRID, alpha=0.35, linewidth=0.7)
        _percent(axes.xaxis)
        axes.set_xlim(0, _top(points))
        axes.set_xlabel("right answers on unseen examples, 95 % interval; bars: seeds", color=INK)

    return Drawing(
        "ways", "Right answers of every way to train", 96 + 30 * max(1, len(points)), draw, left=270
    )


def rank(fixed_ratio: Points, fixed_alpha: Points) -> Drawing:
    """Right answers and the chosen learning rate by rank."""

    def draw(right: Axes, rates: Axes) -> None:
        for points, colour, shift, name in (
            (fixed_ratio, OURS, 0.97, "alpha = 2 r"),
            (fixed_alpha, OTHER, 1.03, "alpha = 16"),
        ):
            xs = [point["rank"] * shift for point in points]
            right.plot(xs, [point["mean"] for point in points], color=colour, linewidth=1.2, label=name)
            for x, point in zip(xs, points, strict=True):
                _error(right, x, point, colour)
            rates.plot(xs, [point["rate"] for point in points], "o-", color=colour, linewidth=1.2)
        everything = sorted({point["rank"] for point in (*fixed_ratio, *fixed_alpha)})
        for each in (right, rates):
            _ranks(each, everything, "rank")
        _percent(right.yaxis)
        right.set_ylim(0, _top([*fixed_ratio, *fixed_alpha]))
        rates.set_yscale("log")
        tried = sorted({rate for point in (*fixed_ratio, *fixed_alpha) for rate in point["tried"]})
        rates.set_yticks(tried, [f"{rate:g}" for rate in tried])
        rates.yaxis.set_minor_formatter(NullFormatter())
        rates.yaxis.set_minor_locator(NullLocator())
        if tried:
            rates.set_ylim(tried[0] / 1.6, tried[-1] * 1.6)
        _title(right, "right answers, q and v")
        _title(rates, "best of the learning rates tried")
        if fixed_ratio or fixed_alpha:
            right.legend(frameon=False, labelcolor=INK, fontsize=11)

    return Drawing("rank", "Right answers and best learning rate by rank", 340, draw, columns=2)


def overfitting(points: Points) -> Drawing:
    """Loss on few training examples and on validation by rank."""

    def draw(axes: Axes) -> None:
        for key, colour, name in (
            ("validation", OTHER, "validation"),
            ("train", OURS, "the few training examples"),
        ):
            axes.plot(
                [point["rank"] for point in points],
                [sum(point[key]) / len(point[key]) for point in points],
                "o-", color=colour, linewidth=1.4, label=name,
            )  # fmt: skip
            for point in points:
                axes.plot(
                    [point["rank"]] * len(point[key]), point[key], "_", color=colour, markersize=9, alpha=0.7
                )
        _ranks(axes, [point["rank"] for point in points], "rank, q and v, alpha = 2 r")
        axes.set_ylim(bottom=0)
        axes.set_ylabel("loss, nats a token", color=INK)
        if points:
            axes.legend(frameon=False, labelcolor=INK, fontsize=11)

    return Drawing("overfitting", "Training and validation loss by rank on few examples", 320, draw)


def spectrum(found: Mapping[str, Any]) -> Drawing:
    """Singular values of a full fine-tuning's update, and what ranks would hold of it."""
    kinds = found["kinds"]
    styles = ["-", "--", ":", "-."]

    def draw(values: Axes, held: Axes) -> None:
        seen = {True: 0, False: 0}
        for name, kind in kinds.items():
            attention = name[0] in "qkvo"
            colour, style = (OURS if attention else OTHER), styles[seen[attention] % len(styles)]
            seen[attention] += 1
            label = name.removesuffix("_proj")
            values.plot(
                range(1, len(kind["values"]) + 1), kind["values"], color=colour, linestyle=style, label=label
            )
            ranks = [int(each) for each in kind["held"]]
            held.plot(
                ranks, list(kind["held"].values()), color=colour, linestyle=style, marker="o", markersize=4
            )
        ranks = [int(each) for each in found["held"]]
        held.plot(
            ranks, list(found["held"].values()), color=INK, linewidth=2.4, marker="o", label="all modules"
        )
        _ranks(held, ranks, "rank")
        _percent(held.yaxis)
        held.set_ylim(0, 1)
        values.set_ylim(bottom=0)
        values.set_xlabel("number of the singular value", color=INK)
        _title(values, "singular values, of the largest")
        _title(held, "share of the update's squared norm held")
        values.legend(frameon=False, labelcolor=INK, fontsize=10, ncols=2)
        held.legend(frameon=False, labelcolor=INK, fontsize=11, loc="lower right")

    return Drawing("spectrum", "Singular values of a full fine-tuning's update", 340, draw, columns=2)


def memory(tables: Mapping[str, Points], said: tuple[float, float]) -> Drawing:
    """What each further module takes."""

    def draw(axes: Axes) -> None:
        names = [row["added"] for row in next(iter(tables.values()))[1:]]
        width = 0.8 / len(tables)
        for place, ((title, rows), colour) in enumerate(
            zip(tables.items(), (OURS, GRID, OTHER), strict=False)
        ):
            xs = [number - 0.4 + (place + 0.5) * width for number in range(len(names))]
            axes.bar(xs, [row["share"] for row in rows[1:]], width * 0.9, color=colour, label=title)
        axes.axhspan(*said, color=WRONG, alpha=0.18, label="as the lesson says", linewidth=0)
        axes.set_xticks(range(len(names)), [f"+ {name}" for name in names])
        axes.axhline(0, color=GRID, linewidth=0.8)
        _percent(axes.yaxis)
        axes.yaxis.set_major_locator(MultipleLocator(0.05))
        axes.set_ylabel("more memory at the peak", color=INK)
        axes.legend(frameon=False, labelcolor=INK, fontsize=11, loc="center right")

    return Drawing("memory", "More memory for each further target module", 320, draw)


def evidence(claims: Sequence[Mapping[str, Any]]) -> Drawing:
    """Every comparison of right answers as evidence for its claim, in points."""
    rows = [
        (claim, each)
        for claim in claims
        for each in claim.get("comparisons", ())
        if each["measure"] == "right" and each["evidence"]["low"] is not None
    ]

    def draw(axes: Axes) -> None:
        for place, (claim, each) in enumerate(rows):
            point = each["evidence"]
            colour = VERDICTS[claim["verdict"]]
            axes.plot([point["low"], point["high"]], [place, place], color=colour, linewidth=2.4)
            axes.plot([point["mean"]], [place], "o", color=colour, markersize=7)
        axes.axvline(0, color=INK, linewidth=1)
        axes.set_yticks(range(len(rows)), [_cut(each["title"]) for _, each in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.grid(axis="y", visible=False)
        axes.xaxis.set_major_formatter(
            FuncFormatter(lambda value, _: f"{100 * value:+.0f}" if value else "0")
        )
        axes.set_xlabel("points of right answers; right of zero speaks for the claim", color=INK)

    return Drawing(
        "evidence", "Evidence for each claim with its interval", 96 + 32 * max(1, len(rows)), draw, left=440
    )


def _cut(text: str, most: int = 62) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
