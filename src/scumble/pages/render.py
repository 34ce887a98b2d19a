"""Templates of the package filled with values, and figures as pages write them.

A page is one file that asks for nothing else. Every text in it may come from strangers, so that all of it is
escaped, and the page itself forbids scripts and requests. Knows values, and nothing of how they came about.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache
from typing import Any

import jinja2

DASH = "–"  # for a figure that is not there
GAP = "\u00a0"  # between a number and its unit: they stay on one line


def render(template: str, **values: Any) -> str:
    """Fill a template of the package, such as `compare/comparison.html.j2`.

    Returns:
        A text that can be written as UTF-8, whatever was in the values.
    """
    text = templates().get_template(template).render(**values)
    # half of a surrogate pair cannot be written, and NUL cannot stand in HTML
    return text.encode("utf-8", "replace").decode("utf-8").replace("\0", "\ufffd").rstrip() + "\n"


@cache
def templates() -> jinja2.Environment:
    """The templates of the package, everything escaped, and a name that was not given an error."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("scumble", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        size=size, count=count, share=share, number=number, duration=duration, setting=setting
    )
    return environment


def size(value: Any) -> str:
    """Bytes in decimal units: 538 MB, 1.86 MB."""
    if not _is_number(value):
        return DASH
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= unit * 0.9995:
            return f"{_digits(value / unit)}{GAP}{name}"
    return f"{value:.0f}{GAP}bytes"


def count(value: Any) -> str:
    """A whole number with its thousands apart: 134,515,008."""
    return f"{value:,.0f}" if _is_number(value) else DASH


def share(value: Any) -> str:
    """A share from 0 to 1 in percent: 70 %, 70.5 %, 0.35 %; 0 and 100 only where it is exactly that."""
    if not _is_number(value):
        return DASH
    percent = 100 * value
    shown = f"{percent:.2g}" if 0 < abs(percent) < 1 else f"{percent:.1f}".removesuffix(".0")
    if shown == "100" and percent < 100:
        shown = "99.9"
    return f"{shown}{GAP}%"


def number(value: Any, digits: int = 4) -> str:
    """A figure to that many significant digits, zeros too: 0.2931, 4.000, 1.320e-04."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return DASH
    if not math.isfinite(value):
        return "not finite"
    if value != 0 and not 1e-3 <= abs(value) < 1e6:
        return f"{value:.{digits - 1}e}"
    return f"{value:#.{digits}g}".rstrip(".") if abs(value) < 10**digits else f"{value:,.0f}"


def duration(value: Any) -> str:
    """Seconds as people say them: 41.3 s, 3 min 41 s, 2 h 05 min."""
    if not _is_number(value):
        return DASH
    if value < 59.95:
        return f"{value:.1f}{GAP}s"
    seconds = round(value)
    if seconds < 3600:
        return f"{seconds // 60}{GAP}min {seconds % 60}{GAP}s"
    return f"{seconds // 3600}{GAP}h {seconds % 3600 // 60:02d}{GAP}min"


def setting(value: Any) -> str:
    """The value of an option: as given, numbers short, lists with commas, nothing as a dash."""
    if value is None or value == "":
        return DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {setting(each)}" for key, each in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(setting(each) for each in value)
    return str(value)


def _digits(value: float) -> str:
    """Three significant digits, never in powers of ten."""
    return f"{value:.0f}" if value >= 99.95 else f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
