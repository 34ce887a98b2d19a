"""Heat maps as SVG: a row for each layer, a column for each kind of module, and a figure in each cell.

Colours are one hue by opacity, so that the same picture reads on a light and on a dark page; within a page it
takes that page's colours (`--ours`, `--wrong`, `--ink`), and elsewhere follows the reader's own preference.
Knows numbers with a layer and a column, and nothing of what they mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape, quoteattr

_LABEL, _CELL, _ROW, _TOP, _FOOT = 30, 44, 17, 24, 44  # widths and heights in pixels
_LEGEND = 150  # width of the legend's bar
_FEW = 4  # columns up to which there is room to spare
_WIDE = 12  # columns from which cells are too narrow for their figures
_STYLE = (
    ".heat{--map-ink:var(--ink,#1f2124);--map-soft:var(--soft,#63666b);--map-line:var(--line,#e4e1db);"
    "--map-up:var(--ours,#2f7594);--map-down:var(--wrong,#b3452f);--map-strength:1}"
    "@media (prefers-color-scheme:dark){.heat{--map-ink:var(--ink,#e6e4df);--map-soft:var(--soft,#a0a4a8);"
    "--map-line:var(--line,#31353a);--map-up:var(--ours,#74b6d2);--map-down:var(--wrong,#e58a72);"
    "--map-strength:0.78}}"
    ".heat text{font:10.5px system-ui,sans-serif;fill:var(--map-soft)}"
    ".heat .cell{fill:var(--map-ink)}.heat .up,.heat .down{opacity:var(--map-strength)}"
    ".heat .up{fill:var(--map-up)}.heat .down{fill:var(--map-down)}"
    ".heat .none{fill:none;stroke:var(--map-line)}"
)


@dataclass(frozen=True)
class Cell:
    """One module.

    Attributes:
        layer: its number; None for a module outside the layers.
        column: what it is called, such as `q_proj`.
        value: the figure, None where there is none.
        path: of the module, shown where the mouse rests.
    """

    layer: int | None
    column: str
    value: float | None
    path: str = ""


def heat_map(
    title: str,
    cells: Sequence[Cell],
    *,
    shown: Callable[[float], str] = lambda value: f"{value:.2g}",
    low: float | None = None,
    high: float | None = None,
) -> str:
    """Draw modules by layer and kind.

    Args:
        title: what the figures are, for readers that cannot see the picture.
        cells: of several in one place, the mean is drawn.
        shown: how a figure is written.
        low, high: where the colours begin and end; by default 0 and the largest size among the figures. Where
            some figures are negative, both signs have a colour of their own, and `low` is not used.

    Returns:
        An SVG element, whose text is that of the same cells always; an empty string without cells.
    """
    if not cells:
        return ""
    columns, rows = list(dict.fromkeys(cell.column for cell in cells)), _rows(cells)
    values = {place: value for place, (value, _) in _placed(cells).items() if value is not None}
    top = high if high is not None else max((abs(value) for value in values.values()), default=0.0)
    signed = any(value < 0 for value in values.values())
    bottom = 0.0 if signed or low is None else low
    width = max(_LABEL + len(columns) * _cell_width(columns) + 2, _LABEL + _LEGEND + 24)
    height = _TOP + len(rows) * _ROW + _FOOT
    parts = [_columns(columns)]
    for number, row in enumerate(rows):
        y = _TOP + number * _ROW
        name = "–" if row is None else str(row)
        parts.append(f'<text x="{_LABEL - 6}" y="{y + 12}" text-anchor="end">{name}</text>')
        for k, column in enumerate(columns):
            value, paths = _placed(cells).get((row, column), (None, []))
            if paths:
                x = _LABEL + k * _cell_width(columns)
                parts.append(_cell(x, y, _cell_width(columns), value, paths, (bottom, top), shown))
    parts.append(_legend(height - _FOOT + 14, (bottom, top), signed, shown))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="heat" role="img" aria-label={quoteattr(title)} '
        f'viewBox="0 0 {width} {height}" width="{width}" height="{height}" style="max-width:{width}px">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style>{''.join(parts)}</svg>"
    )


def columns_of(paths: Sequence[str]) -> dict[str, str]:
    """A short name for the column of each module: the last part of its path, more where two kinds share it.

    `self_attn.q_proj` and `cross_attn.q_proj` of one layer stay apart; numbers of layers do not count.
    """
    kinds = {path: ".".join(part for part in path.split(".") if not part.isdigit()) for path in paths}
    names: dict[str, str] = {}
    for path, kind in kinds.items():
        words = kind.split(".")
        length = next(
            n
            for n in range(1, len(words) + 1)
            if n == len(words)
            or {other for other in kinds.values() if other.split(".")[-n:] == words[-n:]} == {kind}
        )
        names[path] = ".".join(words[-length:])
    return names


def _rows(cells: Sequence[Cell]) -> list[int | None]:
    """Modules outside the layers first, then every layer from the first to the last."""
    numbers = [cell.layer for cell in cells if cell.layer is not None]
    outside: list[int | None] = [None] if any(cell.layer is None for cell in cells) else []
    # a layer that the adapter leaves out is a gap to see; thousands of them are not
    every = range(min(numbers), max(numbers) + 1) if numbers else range(0)
    return outside + list(every if len(every) <= 512 else sorted(set(numbers)))


def _placed(cells: Sequence[Cell]) -> Mapping[tuple[int | None, str], tuple[float | None, list[str]]]:
    """The mean figure of each place, and the modules in it."""
    places: dict[tuple[int | None, str], list[Cell]] = {}
    for cell in cells:
        places.setdefault((cell.layer, cell.column), []).append(cell)
    found = {}
    for place, there in places.items():
        values = [c.value for c in there if c.value is not None and math.isfinite(c.value)]
        found[place] = sum(values) / len(values) if values else None, [c.path or c.column for c in there]
    return found


def _cell_width(columns: Sequence[str]) -> int:
    if len(columns) <= _WIDE:
        return _CELL if len(columns) > _FEW else _CELL + 12
    return max(8, _CELL * _WIDE // len(columns))


def _columns(columns: Sequence[str]) -> str:
    width = _cell_width(columns)
    texts = []
    for k, column in enumerate(columns):
        room = width // 6  # characters
        name = column if len(column) <= room else column.removesuffix("_proj")
        name = name if len(name) <= room else name[: max(1, room - 1)] + "…"
        x = _LABEL + k * width + width / 2
        texts.append(f'<text x="{x:g}" y="{_TOP - 8}" text-anchor="middle">{escape(name)}</text>')
    return "".join(texts)


def _cell(
    x: float,
    y: float,
    width: int,
    value: float | None,
    paths: Sequence[str],
    ends: tuple[float, float],
    shown: Callable[[float], str],
) -> str:
    box = f'x="{x + 0.5:g}" y="{y + 0.5:g}" width="{width - 1.5:g}" height="{_ROW - 1.5:g}" rx="1.5"'
    figure = "not finite" if value is None else shown(value)
    told = paths[0] if len(paths) == 1 else f"{len(paths)} modules, mean"
    title = f"<title>{escape(told)}: {escape(figure)}</title>"
    if value is None:
        return f'<rect class="none" {box}>{title}</rect>'
    depth = _depth(value, ends)
    rect = f'<rect class="{"down" if value < 0 else "up"}" {box} fill-opacity="{depth:.3f}">{title}</rect>'
    if width < _CELL:
        return rect  # no room for the figure
    middle = f'x="{x + width / 2:g}" y="{y + 12:g}" text-anchor="middle" pointer-events="none"'
    return f'{rect}<text class="cell" {middle}>{escape(figure)}</text>'


def _depth(value: float, ends: tuple[float, float]) -> float:
    """The opacity of a figure, from 0.04 to 0.7: up to there, dark figures on it can be read."""
    low, high = ends
    share = (abs(value) - low) / (high - low) if high > low else float(value != 0)
    return round(0.04 + 0.66 * min(1.0, max(0.0, share)), 3)


def _legend(y: float, ends: tuple[float, float], signed: bool, shown: Callable[[float], str]) -> str:
    """A bar of the colours, with the figures at its ends and in its middle."""
    low, high = ends
    first = -high if signed else low
    steps = 15
    size = _LEGEND / steps
    parts = []
    for k in range(steps):
        value = first + (high - first) * k / (steps - 1)
        hue = "down" if value < 0 else "up"
        box = f'x="{_LABEL + k * size:g}" y="{y:g}" width="{size + 0.2:g}" height="7"'
        parts.append(f'<rect class="{hue}" {box} fill-opacity="{_depth(value, ends):.3f}"/>')
    for share, anchor in ((0.0, "start"), (0.5, "middle"), (1.0, "end")):
        value = first + (high - first) * share
        x = _LABEL + share * _LEGEND
        parts.append(f'<text x="{x:g}" y="{y + 20:g}" text-anchor="{anchor}">{escape(shown(value))}</text>')
    return "".join(parts)
