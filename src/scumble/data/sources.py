"""Rows from wherever they are: a file, a folder, the hub, a list, a `datasets.Dataset`, a shipped set.

Nothing is held whole that is not in memory already. Knows nothing of what a row means.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from scumble.data.json_rows import read_lines
from scumble.data.rows import Report, Row, raise_it
from scumble.data.shipped import SHIPPED, load_shipped
from scumble.errors import DataError, MissingFileError
from scumble.files import open_regular

KINDS = "a JSON-lines file"


def open_rows(source: Any, part: str = "train", report: Report = raise_it) -> Iterator[Row]:
    """The rows of a source, one after the other.

    Args:
        source: a path, the name of a shipped set, a list of examples, or a `datasets.Dataset`.
        part: which part of what has parts: `train`, `validation`, `test`.
        report: is handed what cannot be read (one line of many); by default it is raised.

    Raises:
        MissingFileError: the file does not exist.
        DataError: the source as a whole cannot be read.
    """
    if isinstance(source, str) and source in SHIPPED:
        return _listed(load_shipped(source, part), f"{source} {part}")  # type: ignore[arg-type]
    if isinstance(source, str) and not source.strip():
        raise DataError("no data was named", f"name {KINDS}, or a shipped set: {', '.join(SHIPPED)}")
    if isinstance(source, str | Path):
        return _from_path(Path(source), str(source), part, report)
    if isinstance(source, Iterable) and not isinstance(source, bytes | dict):
        return _listed(source, "the data")
    raise DataError(
        f"a {type(source).__name__} is no data", "give a path, a list of examples, or a datasets.Dataset"
    )


def _listed(values: Iterable[Any], title: str) -> Iterator[Row]:
    for number, value in enumerate(values, start=1):
        yield Row(value, f"{title}, example {number}", number)


def _from_path(path: Path, source: str, part: str, report: Report) -> Iterator[Row]:
    try:
        path = path.expanduser()
        there = path.exists()
    except (OSError, RuntimeError, ValueError) as error:  # a name too long, a folder closed to us, a `~name`
        raise DataError(f"{source[:100]} cannot be looked up: {error}", f"name {KINDS}") from error
    if not there:
        known = ", ".join(SHIPPED)
        raise MissingFileError(
            f"the data file {source} does not exist", f"name {KINDS}, or a shipped set: {known}"
        )
    if path.is_dir():
        raise DataError(f"{source} is a folder, not a data file", f"name {KINDS}")
    return _from_file(path, source, report)


def _from_file(path: Path, source: str, report: Report) -> Iterator[Row]:
    try:
        with open_regular(path) as file:
            yield from read_lines(file, source, report)
    except OSError as error:
        if isinstance(error, DataError | MissingFileError):
            raise
        raise DataError(f"{source} cannot be read: {error.strerror}", "check its permissions") from error
