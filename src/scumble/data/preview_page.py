"""The page of a preview: tokens side by side, those with a loss in colour, and a histogram drawn as SVG.

One file without scripts that asks for nothing else. Knows a `Preview`, and nothing of how it came about.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from scumble.data.pieces import visible
from scumble.data.previewing import Preview, Shown
from scumble.data.savings import Bar
from scumble.pages.render import render

TOKENS = 3000  # of one example on the page: its beginning and its end, where it has more
WIDTH, HEIGHT = 960, 190  # of the histogram, in the units of its own picture
MARGIN, FLOOR = 8, 150


def render_preview(preview: Preview) -> str:
    """The page of a preview as a self-contained HTML document; the same preview gives the same text."""
    return render(
        "data/preview.html.j2",
        preview=preview,
        examples=[_example(each) for each in preview.shown],
        drawing=draw(preview.bars, preview.max_length),
    )


def _example(shown: Shown) -> dict[str, Any]:
    tokens = [
        {
            "id": token.id,
            "text": visible(token.text),
            "kind": " ".join(["t", *["loss"] * token.supervised, *["special"] * token.special]),
        }
        for token in shown.tokens
    ]
    head, left_out, tail = clip(tokens, TOKENS)
    facts = {"where": shown.where, "length": len(tokens), "supervised": shown.supervised, "kept": shown.kept}
    return {**facts, "head": head, "left_out": left_out, "tail": tail}


def clip(tokens: Sequence[Any], most: int) -> tuple[Sequence[Any], int, Sequence[Any]]:
    """The beginning of a long sequence, how many are left out of its middle, and its end."""
    if len(tokens) <= most:
        return tokens, 0, []
    half = most // 2
    return tokens[:half], len(tokens) - 2 * half, tokens[len(tokens) - half :]


def draw(bars: Sequence[Bar], max_length: int) -> Mapping[str, Any]:
    """Where the histogram's rectangles and words stand.

    Returns:
        `bars` of x, y, width, height, title and whether training leaves them out; `ticks` of x, text and anchor.
    """
    step = min(60.0, (WIDTH - 2 * MARGIN) / len(bars))
    most = max(bar.examples for bar in bars)
    drawn, ticks = [], []
    for i, bar in enumerate(bars):
        height = 0.0 if not bar.examples else max(2.0, (FLOOR - 20) * bar.examples / most)
        x = MARGIN + i * step
        drawn.append(
            {
                "x": round(x, 1),
                "y": round(FLOOR - height, 1),
                "width": round(max(step - 2, 1), 1),
                "height": round(height, 1),
                "title": f"{named(bar)} tokens: {bar.examples:,}",
                "over": bar.low > max_length,
            }
        )
        if i % max(1, len(bars) // 10) == 0 or bar.high is None:
            ticks.append({"x": round(x, 1), "text": f"{bar.low:,}" + ("+" if bar.high is None else "")})
    return {"bars": drawn, "ticks": ticks, "most": most, "floor": FLOOR, "width": WIDTH, "height": HEIGHT}


def named(bar: Bar) -> str:
    """A bar's lengths: `40 to 59`, or `400 and more`."""
    if bar.high is None:
        return f"{bar.low:,} and more"
    return f"{bar.low:,} to {bar.high - 1:,}" if bar.high - bar.low > 1 else f"{bar.low:,}"
