"""The drawing of a plan: memory at the peak, part by part, of LoRA, QLoRA, full training and the plain script."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scumble.errors import ConfigError
from scumble.files import refuse_existing, write_text
from scumble.plan.tape import PARTS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from scumble.plan.memory import Memory
    from scumble.plan.plan import Plan

COLOURS = {
    "weights": "#52636b",
    "adapter": "#b5473c",
    "gradients": "#d98f4e",
    "optimizer": "#e3c15c",
    "activations": "#3f86a6",
    "logits": "#8dbfd3",
    "other": "#c9ced1",
}
_LINE = "#8a2f2f"
_ORDER = ("lora", "qlora", "full", "checkpointing", "script", "script_checkpointing")


def bars(found: Plan) -> list[tuple[str, Memory]]:
    """What stands side by side, in one order whatever was asked for: titles and memory."""
    every: dict[str, tuple[str, Memory]] = {
        name: (each.title, each.memory) for name, each in found.alternatives.items()
    }
    every[found.setup.method] = (found.title, found.memory)
    return [every[name] for name in _ORDER if name in every]


def check_plot(file: Path, *, force: bool, inputs: Iterable[Any] = ()) -> None:
    """Refuse a file that cannot be written, before there is any work.

    Raises:
        ConfigError: its name does not end in `.svg`.
        OutputExistsError, OutputError: as `refuse_existing`.
    """
    if file.suffix.lower() != ".svg":
        raise ConfigError(f"--plot {file} is no name of an SVG file", "let it end in .svg")
    refuse_existing(file, force=force, file=True, option="--plot", inputs=inputs)


def draw(found: Plan, file: Path) -> Path:
    """Write the drawing as SVG.

    Args:
        found: what `plan` found.
        file: to write; one that exists is replaced.

    Raises:
        OutputError: it cannot be written.
    """
    import io

    import matplotlib

    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "scumble", "font.size": 11}):
        text = io.StringIO()
        picture(found).savefig(text, format="svg", metadata={"Date": None})
    return write_text(file, text.getvalue())


def picture(found: Plan) -> Figure:
    """The drawing itself, of matplotlib."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    shown = bars(found)
    figure = Figure(figsize=(10, 1.9 + 0.55 * len(shown)))
    FigureCanvasSVG(figure)
    axes = figure.subplots()
    _stack(axes, shown)
    if found.card is not None:
        axes.axvline(found.card.usable / 1e9, color=_LINE, linestyle="--", label=found.card.name)
    axes.set_xlabel("GB at the peak of a step, on each device")
    axes.set_title(_title(found), loc="left", fontsize=12)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="lower center", ncols=8, frameon=False, fontsize=9, handlelength=1.2)
    figure.tight_layout(rect=(0, 0.08, 1, 1))
    return figure


def _stack(axes: Any, shown: list[tuple[str, Memory]]) -> None:
    """Bars from top to bottom, each with its sum behind it."""
    titles = [title.replace(", gradient", ",\ngradient") for title, _ in shown]
    left = [0.0] * len(shown)
    for part in PARTS:
        sizes = [memory.parts[part] / 1e9 for _, memory in shown]
        axes.barh(titles, sizes, left=left, color=COLOURS[part], label=part, height=0.65)
        left = [a + b for a, b in zip(left, sizes, strict=True)]
    for row, (_, memory) in enumerate(shown):
        axes.text(left[row] + max(left) * 0.01, row, f"{memory.peak / 1e9:.1f} GB", va="center", fontsize=10)
    axes.set_xlim(0, max(left) * 1.1)
    axes.invert_yaxis()


def _title(found: Plan) -> str:
    setup = found.setup
    lengths = "" if found.data is None else f" of {found.data.source}"
    return (
        f"{found.shape.name}: {setup.batch} examples of up to {setup.longest:,} tokens{lengths}, "
        f"{setup.dtype}"
    )
