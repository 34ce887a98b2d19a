"""How weights were learned, to look at: the curve as a few lines of text, and as a drawing (SVG).

The drawing's colours are CSS variables with mid-tones to fall back on, as in the pages of runs. The same
result gives the same text. Knows a `Learned`, and nothing of the page that shows it.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from scumble.manage.learning.learn import Learned
from scumble.manage.learning.search import Point

WIDTH, HEIGHT, LEFT, GAP = 640, 380, 64, 36  # of the drawing, in units of its viewBox
COLOURS = (
    "var(--plot-train, #3f86a6)",
    "var(--plot-eval, #c07a2b)",
    "var(--plot-third, #6f9a4a)",
    "var(--plot-fourth, #9a6aa6)",
)
INK, GRID = "var(--plot-ink, #7d7d7d)", "var(--plot-grid, #9a9a9a)"

Line = tuple[str, list[tuple[float, float]], str]  # name, points (step, value), colour


def in_lines(learned: Learned) -> list[str]:
    """The curve as lines of text: step, losses, and each adapter's weight (its mean over layers)."""
    widths = [max(9, len(name)) for name in learned.names]
    names = "  ".join(f"{name:>{width}}" for name, width in zip(learned.names, widths, strict=True))
    lines = [f"step  training  held back  {names}"]
    for point in learned.curve:
        training = "" if point.training is None else f"{point.training:.4f}"
        weights = "  ".join(f"{w:>{width}.4f}" for w, width in zip(_means(point), widths, strict=True))
        kept = "  kept" if point.step == learned.step else ""
        lines.append(f"{point.step:>4}  {training:>8}  {point.validation:>9.4f}  {weights}{kept}")
    return lines


def curve_svg(learned: Learned) -> str:
    """The losses by step, and below them the weights (their means over layers); the step kept is marked.

    Returns:
        An `<svg>` element for HTML, of no fixed size.
    """
    curve = learned.curve
    losses: list[Line] = [
        ("loss in training", [(p.step, p.training) for p in curve if p.training is not None], COLOURS[0]),
        ("held back", [(p.step, p.validation) for p in curve], COLOURS[1]),
    ]
    weights: list[Line] = [
        (name, [(p.step, _means(p)[i]) for p in curve], COLOURS[i % len(COLOURS)])
        for i, name in enumerate(learned.names)
    ]
    half = (HEIGHT - 3 * GAP) / 2
    last = max(point.step for point in curve) or 1
    body = [
        *_panel(losses, GAP, half, last, learned.step),
        *_panel(weights, 2 * GAP + half, half, last, learned.step),
        f'<text x="{WIDTH}" y="{HEIGHT - 4}" text-anchor="end">step</text>',
    ]
    label = "Loss by step, on examples learned from and held back, and the weights below"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="learned" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}" '
        f'font-family="sans-serif" font-size="12" fill="{INK}">\n' + "\n".join(body) + "\n</svg>"
    )


def _means(point: Point) -> list[float]:
    """Each adapter's weight, the mean over layers."""
    return [sum(column) / len(column) for column in zip(*point.weights, strict=True)]


def _panel(lines: Sequence[Line], top: float, height: float, last: float, kept: int) -> list[str]:
    """Lines over the steps, a scale from the lowest to the highest value, and the names above."""
    values = [y for _, points, _ in lines for _, y in points]
    low, high = min(values), max(values)
    span = high - low or 1.0

    def x(step: float) -> str:
        return f"{LEFT + (WIDTH - LEFT - 10) * step / last:.1f}"

    def y(value: float) -> str:
        return f"{top + height * (high - value) / span:.1f}"

    parts = []
    for value in dict.fromkeys((low, high)):
        parts.append(
            f'<line x1="{LEFT}" x2="{WIDTH}" y1="{y(value)}" y2="{y(value)}" stroke="{GRID}" opacity="0.35"/>'
            f'<text x="{LEFT - 8}" y="{y(value)}" dy="4" text-anchor="end">{value:.3g}</text>'
        )
    parts.append(
        f'<line x1="{x(kept)}" x2="{x(kept)}" y1="{top:.1f}" y2="{top + height:.1f}" stroke="{GRID}" '
        'stroke-dasharray="3 3"/>'
    )
    for number, (name, points, colour) in enumerate(lines):
        path = " ".join(f"{x(step)},{y(value)}" for step, value in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts.append(
            f'<text x="{LEFT + 150 * number}" y="{top - 12:.1f}" fill="{colour}">{escape(name)}</text>'
        )
    return parts
