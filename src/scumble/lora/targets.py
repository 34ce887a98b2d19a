"""Which modules of a model an adapter reaches: PEFT's matching rules, by module path.

Knows module paths and nothing of weights. The rules are those of PEFT's `check_target_module_exists`,
so that a configuration means here what it means there.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence

from scumble.errors import AdapterError
from scumble.lora.patterns import PatternTable, check_patterns, find

TARGET_SETS: dict[str, tuple[str, ...]] = {
    "minimal": ("q_proj", "v_proj"),
    "standard": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "comprehensive": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
}
ALL_LINEAR = "all-linear"
# what PEFT takes for the number of a layer where no pattern says what it stands behind
_ANY_LAYER = re.compile(r".*?\.[^.]*\.(?P<idx>\d+)\.")
_DIGITS = 18  # of a layer's number that are read; Python refuses numbers of thousands of them


def expand_targets(value: str | Sequence[str]) -> str | tuple[str, ...]:
    """Turn what a user writes into what PEFT's format holds.

    Args:
        value: a set's name (`minimal`, `standard`, `comprehensive`), `all-linear`, module names with
            commas between them, one module name, a regular expression, or a sequence of names.

    Returns:
        A tuple of module names; or a string: `all-linear` or a regular expression.

    Raises:
        AdapterError: nothing was named, or the regular expression cannot be read.
    """
    if not isinstance(value, str):
        names = tuple(str(name).strip() for name in value)
        if not names or not all(names):
            raise AdapterError("no target modules were named", "use for example --targets minimal")
        return names
    text = value.strip()
    if text in TARGET_SETS:
        return TARGET_SETS[text]
    if text.lower() == ALL_LINEAR:
        return ALL_LINEAR
    if re.fullmatch(r"[\w.\-]+(\s*,\s*[\w.\-]+)*", text):
        return tuple(part.strip() for part in text.split(","))
    if not text:
        raise AdapterError("no target modules were named", "use for example --targets minimal")
    check_pattern(text)
    return text


def check_pattern(pattern: str) -> None:
    """Raise `AdapterError` where `pattern` is no regular expression."""
    check_patterns([pattern])


def named_by(path: str, names: Iterable[str]) -> bool:
    """Whether `path` is one of `names`, or ends in `.` and one of them (whole components only)."""
    if isinstance(names, frozenset):  # of any size: the few ends of the path are looked up in it
        place = -1
        while (place := path.find(".", place + 1)) >= 0:
            if path[place + 1 :] in names:
                return True
        return path in names
    return any(path == name or path.endswith(f".{name}") for name in names)


def layer_index(path: str, layers_pattern: Sequence[str]) -> int | None:
    """The number of the layer that `path` lies in: of the first numbered component, as PEFT reads it."""
    if not layers_pattern:
        found = _ANY_LAYER.match(path)
        return int(found.group("idx")[:_DIGITS]) if found else None
    for pattern in layers_pattern:
        found = find(pattern, path, "layer")
        if found:
            return int(found.group("idx")[:_DIGITS])
    return None


def pattern_value(patterns: Mapping[str, float], path: str, default: float) -> float:
    """The value of the first pattern that names `path`, as in PEFT's `rank_pattern` and `alpha_pattern`."""
    return PatternTable(patterns).value(path, default)


def nearest_names(wanted: str | Sequence[str], paths: Iterable[str], limit: int = 6) -> list[str]:
    """The last components of `paths` that look most like what was wanted, for an error that teaches."""
    last = sorted({path.rsplit(".", 1)[-1] for path in paths})
    words = [wanted] if isinstance(wanted, str) else list(wanted)
    # a stranger's configuration may name thousands, and long ones
    words = [word[:100] for word in words[:8]]
    close = [name for word in words for name in difflib.get_close_matches(word, last, n=3, cutoff=0.4)]
    return list(dict.fromkeys(close))[:limit] or last[:limit]
