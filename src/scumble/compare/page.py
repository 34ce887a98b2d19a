"""The page of a comparison, and the parts of it that other pages show too.

Knows mappings, and nothing of how they came about.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scumble.pages.render import render


def render_comparison(comparison: Mapping[str, Any]) -> str:
    """The before-and-after page of a comparison.

    Args:
        comparison: what `Comparison.to_dict()` gives; `base` (a name) may be added, and `metric` may be None.

    Returns:
        A self-contained HTML document; the same comparison gives the same text.
    """
    return render("compare/comparison.html.j2", comparison=compared(comparison), base=comparison.get("base"))


def compared(comparison: Mapping[str, Any]) -> dict[str, Any]:
    """What the templates show of a comparison: every key there, and None where it was not."""
    keys = ("metric", "loss", "perplexity", "data", "settings", "adapter")
    view = {key: comparison.get(key) or None for key in keys}
    if view["metric"]:
        names = ("name", "n", "before", "after", "before_interval", "after_interval")
        view["metric"] = {name: view["metric"].get(name) for name in names}
    examples = [
        {
            key: example.get(key)
            for key in ("prompt", "expected", "before", "after", "right_before", "right_after")
        }
        for example in comparison.get("examples") or []
    ]
    judged = [e for e in examples if e["right_before"] is not None and e["right_after"] is not None]
    right = {when: sum(e[f"right_{when}"] for e in judged) for when in ("before", "after")}
    sizes = size_bars(*(comparison.get(key) for key in ("adapter_bytes", "base_bytes", "source_bytes")))
    if comparison.get("kind") == "model":
        sizes = None  # both are models of one size
    return {**view, "examples": examples, "right": {"n": len(judged), **right}, "sizes": sizes}


def size_bars(adapter: int | None, base: int | None, source: int | None = None) -> dict[str, Any] | None:
    """The adapter's bytes beside those of its base and of the packed file that the base came from.

    Returns:
        `times` (the base in adapters) and `bars` of name, bytes and percent of the largest; None where a size
        is not known.
    """
    if not adapter or not base:
        return None
    largest = max(adapter, base, source or 0)
    named = [
        ("base, as loaded", base, False),
        ("base, packed file", source, False),
        ("adapter", adapter, True),
    ]
    bars = [
        {"name": name, "bytes": value, "percent": round(100 * value / largest, 3), "ours": ours}
        for name, value, ours in named
        if value
    ]
    return {"adapter": adapter, "base": base, "times": base / adapter, "bars": bars}
