"""Data: what a model is trained on, token by token.

Handed a tokenizer where it needs one; knows nothing of models. The functions of `__all__` are the commands of
`scumble data`; they are imported when first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scumble.data.checking import check
    from scumble.data.converting import convert
    from scumble.data.previewing import preview
    from scumble.data.splitting import split

__all__ = ["check", "convert", "preview", "split"]

_HOMES = {
    "check": "scumble.data.checking",
    "convert": "scumble.data.converting",
    "preview": "scumble.data.previewing",
    "split": "scumble.data.splitting",
}


def __getattr__(name: str) -> Any:
    import importlib

    if name not in _HOMES:
        raise AttributeError(f"module 'scumble.data' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
