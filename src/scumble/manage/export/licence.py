"""The licence of a base: what its own card says, or what is known of the embedded default. Never guessed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from scumble.files import read_bounded
from scumble.models.resolve import EMBEDDED_NAME, is_embedded

# Of bases whose copy here has no card: the embedded default, as its card on the hub says.
KNOWN = {EMBEDDED_NAME: "apache-2.0"}
_BIGGEST = 2 * 2**20  # bytes of a card that are read


def licence_of(base: str | None, folder: Path | None = None) -> str | None:
    """The licence of a base, in the hub's spelling.

    Args:
        base: a hub name, a folder, or None where it is not known.
        folder: of a model made of it, whose own card may say.

    Returns:
        None where it is not known.
    """
    if base and is_embedded(base):
        return KNOWN[EMBEDDED_NAME]
    for place in (Path(base) if base and Path(base).is_dir() else _cached(base), folder):
        found = _said(place) if place is not None else None
        if found is not None:
            return found
    return None


def _cached(base: str | None) -> Path | None:
    """The folder of a hub name's card in the hub's cache, where it was fetched."""
    if not base or base.count("/") != 1 or Path(base).is_absolute():
        return None
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(base, "README.md")
    except HFValidationError:
        return None
    return Path(found).parent if isinstance(found, str) else None


def _said(folder: Path) -> str | None:
    """What the card in a folder says, in the YAML before its text; `unknown` says nothing."""
    try:
        text = read_bounded(folder / "README.md", _BIGGEST).decode("utf-8")
        front: Any = yaml.safe_load(text.split("---", 2)[1]) if text.startswith("---") else None
    except (OSError, ValueError, IndexError, yaml.YAMLError, RecursionError):
        return None
    if not isinstance(front, dict):
        return None
    said = front.get("license_name") if front.get("license") == "other" else front.get("license")
    return said if isinstance(said, str) and said not in ("", "unknown") else None
