"""A mixture: which adapters act on a row, and how strongly. `legal*0.7+medical*-0.3`, or a mapping.

Knows names and numbers only. A mixture without entries is the base.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import TypeAlias

from scumble.errors import AdapterError

NAME = r"[A-Za-z0-9][A-Za-z0-9_.\-]*"
_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_TERM = re.compile(rf"\s*({NAME})\s*(?:\*\s*({_NUMBER}))?\s*(\+|$)")

Mixture: TypeAlias = str | Mapping[str, float] | Iterable[tuple[str, float]] | None


def check_name(name: str) -> str:
    """Return `name` where an adapter may bear it; `base` is taken. Raises `AdapterError`."""
    if not re.fullmatch(NAME, name):
        raise AdapterError(
            f"{name!r} cannot name an adapter",
            "use letters, digits, '_', '.' and '-', a letter or a digit first",
        )
    if name == "base":
        raise AdapterError("'base' cannot name an adapter", "it names the model without any adapter")
    return name


def parse_mixture(mixture: Mixture) -> dict[str, float]:
    """Read a mixture in any of its three forms.

    Args:
        mixture: `NAME[*NUMBER]` joined by `+`; a mapping from name to weight; a list of pairs, in which
            one adapter may stand twice (its weights add up); `base`, `{}` or None for the base alone.

    Returns:
        The weight of each name; names of weight zero are left out.

    Raises:
        AdapterError: the text cannot be read, or a weight is not a finite number.
    """
    if mixture is None:
        return {}
    pairs = _parse_text(mixture) if isinstance(mixture, str) else mixture
    weights: dict[str, float] = {}
    for name, weight in pairs.items() if isinstance(pairs, Mapping) else pairs:
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
            raise AdapterError(f"the weight of {name!r} is {weight!r}", "weights are finite numbers")
        weights[check_name(name)] = weights.get(name, 0.0) + float(weight)
    return {name: weight for name, weight in weights.items() if weight != 0.0}


def format_mixture(weights: Mapping[str, float]) -> str:
    """Write a mixture as text that `parse_mixture` reads back to the same weights."""
    terms = [name if weight == 1.0 else f"{name}*{float(weight)!r}" for name, weight in weights.items()]
    return "+".join(terms) or "base"


def _parse_text(text: str) -> list[tuple[str, float]]:
    if text.strip() in ("", "base"):
        return []
    pairs: list[tuple[str, float]] = []
    at = 0
    while at < len(text):
        term = _TERM.match(text, at)
        ends_in_plus = term is not None and term.group(3) == "+" and not text[term.end() :].strip()
        if term is None or ends_in_plus:
            raise AdapterError(
                f"the blend {text!r} cannot be read at position {at + 1}",
                "write NAME*NUMBER joined by '+', for example legal*0.7+medical*0.3",
            )
        pairs.append((term.group(1), float(term.group(2) or 1.0)))
        at = term.end()
    return pairs
