"""The drawing of `scumble bench train`: speed and memory of each system, with the roof."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from scumble.files import write_text

if TYPE_CHECKING:
    from scumble.lab.bench_train import TrainBench

OTHERS, OURS, LINE = "#8fa3ad", "#3f86a6", "#c07a2b"


def draw(found: TrainBench, file: Path) -> Path:
    """Write the drawing as SVG.

    Args:
        found: what `bench_train` found.
        file: to write; one that exists is replaced.

    Raises:
        OutputError: it cannot be written.
    """
    titles = [each.title for each in found.systems]
    colours = [OURS if each.name == "scumble" else OTHERS for each in found.systems]
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "scumble", "font.size": 11}):
        figure = Figure(figsize=(10, 1.2 + 0.55 * len(titles)))
        FigureCanvasSVG(figure)
        speed, memory = figure.subplots(1, 2, sharey=True)
        rates = [each.tokens_per_second for each in found.systems]
        spread = [
            [each.tokens_per_second - min(each.rounds) for each in found.systems],
            [max(each.rounds) - each.tokens_per_second for each in found.systems],
        ]
        speed.barh(titles, rates, xerr=spread, color=colours)
        speed.axvline(found.roof_tokens, color=LINE, linestyle="--")
        speed.set_xlabel(f"tokens/s (dashed: {found.roof_tokens:.0f}, products of matrices alone)")
        memory.barh(titles, [each.above_bytes / 1e9 for each in found.systems], color=colours)
        memory.set_xlabel("peak memory of training, GB")
        speed.invert_yaxis()
        for axes in (speed, memory):
            axes.spines[["top", "right"]].set_visible(False)
        figure.tight_layout()
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
    return write_text(file, text.getvalue())
