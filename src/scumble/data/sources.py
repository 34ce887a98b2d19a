"""Rows from wherever they are: a file, a folder, the hub, a list, a `datasets.Dataset`, a shipped set.

Nothing is held whole that is not in memory already. Knows nothing of what a row means.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from scumble.data.json_rows import read_json, read_lines
from scumble.data.rows import Report, Row, raise_it
from scumble.data.shipped import SHIPPED, load_shipped
from scumble.data.tables import (
    choose_part,
    is_dataset,
    is_hub_name,
    load_folder,
    load_hub,
    part_name,
    read_csv,
    read_dataset,
    read_parquet,
)
from scumble.errors import DataError, MissingFileError, clipped
from scumble.files import open_regular

READERS: dict[str, Callable[[BinaryIO, str, Report], Iterator[Row]]] = {
    ".json": read_json,
    ".csv": read_csv,
    ".tsv": partial(read_csv, delimiter="\t"),
    ".parquet": read_parquet,
}  # every other file holds JSON lines
PACKED = (".gz", ".zst", ".xz", ".bz2", ".zip", ".tar", ".tgz")
KINDS = "a file of JSON lines, JSON, CSV or Parquet, a saved `datasets` folder"
CHOICE = f"name {KINDS}, owner/name of the hub, or a shipped set: {', '.join(SHIPPED)}"


def open_rows(source: Any, part: str = "train", report: Report = raise_it) -> Iterator[Row]:
    """The rows of a source, one after the other.

    Args:
        source: a path, the name of a shipped set or of one on the hub, a list of examples, or what `datasets`
            holds. A path that exists is never taken for a name of the hub.
        part: which part of what has parts: `train`, `validation`, `test`.
        report: is handed what cannot be read (one line of many); by default it is raised.

    Raises:
        MissingFileError: the file does not exist, or the hub does not give the set.
        DataError: the source as a whole cannot be read.
    """
    if isinstance(source, str) and source in SHIPPED:
        return _listed(load_shipped(source, part), f"{source} {part}")  # type: ignore[arg-type]
    if isinstance(source, str) and not source.strip():
        raise DataError("no data was named", CHOICE)
    if isinstance(source, str | Path):
        dataset = _dataset_of(source)
        if dataset is None:
            return _from_file(Path(source).expanduser(), str(source), report)
        return read_dataset(choose_part(dataset, part, str(source)), str(source), report)
    if is_dataset(source):
        return read_dataset(choose_part(source, part, "the data"), "the data", report)
    if isinstance(source, Iterable) and not isinstance(source, bytes | dict):
        return _listed(source, "the data")
    raise DataError(
        f"a {type(source).__name__} is no data", "give a path, a list of examples, or a datasets.Dataset"
    )


def parts_of(source: Any) -> tuple[str, ...]:
    """Which of `train`, `validation` and `test` a source has; none where it is one list of examples.

    Raises:
        MissingFileError: as `open_rows`.
        DataError: as `open_rows`.
    """
    if isinstance(source, str) and source in SHIPPED:
        return tuple(SHIPPED[source].sizes)
    found = _dataset_of(source) if isinstance(source, str | Path) and str(source).strip() else source
    if not is_dataset(found) or not isinstance(found, dict):
        return ()
    names = list(found)
    return tuple(part for part in ("train", "validation", "test") if part_name(names, part) is not None)


def _listed(values: Iterable[Any], title: str) -> Iterator[Row]:
    for number, value in enumerate(values, start=1):
        yield Row(value, f"{title}, example {number}", number)


def _dataset_of(source: str | Path) -> Any:
    """What `datasets` loads from a folder or a name of the hub; None where the source is a file."""
    try:
        path = Path(source).expanduser()
        folder, there = path.is_dir(), path.exists()
    except (OSError, RuntimeError, ValueError) as error:  # a name too long, a folder closed to us, a `~name`
        raise DataError(f"{clipped(source)} cannot be looked up: {error}", CHOICE) from error
    if folder:
        return load_folder(path, str(source))
    if there:
        return None
    if isinstance(source, str) and is_hub_name(source) and path.suffix not in (*READERS, ".jsonl", ".txt"):
        return load_hub(source)
    raise MissingFileError(f"the data file {source} does not exist", CHOICE)


def _from_file(path: Path, source: str, report: Report) -> Iterator[Row]:
    if path.suffix.lower() in PACKED:
        raise DataError(f"{source} is compressed", "unpack it first", kind="unreadable")
    reader = READERS.get(path.suffix.lower(), read_lines)
    try:
        with open_regular(path) as file:
            yield from reader(file, source, report)
    except OSError as error:
        raise DataError(f"{source} cannot be read: {error.strerror}", "check its permissions") from error
