"""A row: one value of a source, before anything is known of what it means, and where it stands."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

from scumble.errors import DataError

Report: TypeAlias = Callable[[DataError], None]


class Row(NamedTuple):
    """One value of a source.

    Attributes:
        value: an object, a text, or whatever else stands there.
        where: the source and the number, for errors: "data.jsonl, line 3".
        number: the line, row or example, from 1.
    """

    value: Any
    where: str
    number: int


def unreadable(where: str, reason: str, hint: str, number: int | None = None) -> DataError:
    """The error for what cannot be read at all."""
    return DataError(f"{where}: {reason}", hint, kind="unreadable", line=number)


def raise_it(error: DataError) -> None:
    """A `Report` that stops at the first error.

    Raises:
        DataError: always.
    """
    raise error
