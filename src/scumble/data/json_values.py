"""`loads`, `parsed`: values of JSON, read the same however deep the stack is already.

Knows JSON, and nothing of files and what values mean.
"""

from __future__ import annotations

import json
import re
from typing import Any

# levels of lists and objects within each other. Python's own limit is that of its stack, so that what can be read would
# depend on who reads it
DEEPEST = 100
SPACE = " \t\n\r"
_DECODER = json.JSONDecoder()
_MARKS = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"?|[\[\]{}]', re.DOTALL)  # strings, whole or cut off; brackets


class TooDeepError(ValueError):
    """A value has more than `DEEPEST` levels."""

    def __init__(self) -> None:
        super().__init__(f"nested deeper than {DEEPEST} levels")


def loads(text: str) -> Any:
    """The one value of a text, as `json.loads` reads it.

    Raises:
        ValueError: it is no JSON, or nested too deeply.
    """
    value, end = parsed(text, len(text) - len(text.lstrip(SPACE)))
    if rest := text[end:].lstrip(SPACE):
        raise json.JSONDecodeError("Extra data", text, len(text) - len(rest))
    return value


def parsed(text: str, at: int) -> tuple[Any, int]:
    """The value that begins at `at`, and where it ends; the same however deep the stack is already.

    Raises:
        ValueError: it is no JSON, or nested too deeply; the latter where both are so, and the depth comes first.
    """
    try:
        value, end = _DECODER.raw_decode(text, at)
    except RecursionError:
        raise TooDeepError from None
    except json.JSONDecodeError as error:
        if _levels(text[at : error.pos]) > DEEPEST:
            raise TooDeepError from error
        raise
    brackets = text.count("[", at, end) + text.count("{", at, end)
    if brackets > DEEPEST and _levels(text[at:end]) > DEEPEST:
        raise TooDeepError
    return value, end


def _levels(text: str) -> int:
    """How many brackets are open at once, at most; those in strings do not count."""
    level = most = 0
    for mark in _MARKS.finditer(text):
        first = text[mark.start()]
        level += (first in "[{") - (first in "]}")
        most = max(most, level)
    return most
