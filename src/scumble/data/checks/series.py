"""Columns of numbers that grow by one row at a time, 8 bytes a number: what is kept of a million examples."""

from __future__ import annotations

from array import array
from typing import Any

import numpy as np
import xxhash


class Series:
    """Columns of whole numbers from 0 to 2**64 - 1."""

    def __init__(self, *names: str) -> None:
        self.names = names
        self._columns = [array("Q") for _ in names]

    def __len__(self) -> int:
        return len(self._columns[0])

    def add(self, *row: int) -> None:
        """One row more, a number for each column."""
        for column, number in zip(self._columns, row, strict=True):
            column.append(number)

    def columns(self) -> list[Any]:
        """The columns as arrays of (rows,) int64 or, where a number needs it, uint64."""
        found = []
        for column in self._columns:
            numbers = np.frombuffer(column, dtype=np.uint64) if len(column) else np.empty(0, np.uint64)
            fits = not len(numbers) or numbers.max() < 2**62
            found.append(numbers.astype(np.int64) if fits else numbers.copy())
        return found


def digest(text: str) -> int:
    """A 64-bit number of a text."""
    return xxhash.xxh3_64_intdigest(text.encode("utf-8", "surrogatepass"))
