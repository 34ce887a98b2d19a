"""Rows of tables: CSV, Parquet, and what the `datasets` library holds, saves or fetches.

Knows columns, and nothing of what they mean.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

from scumble.data.json_rows import LIMIT, UTF8, MiB, bounded_lines
from scumble.data.rows import Report, Row, unreadable
from scumble.errors import DataError, MissingFileError, clipped

BATCH = 1000  # rows of a table made Python objects at once
# what else a part is called
PARTS = {"train": ("train",), "validation": ("validation", "valid", "val", "dev"), "test": ("test",)}
HUB_NAME = re.compile(r"(?P<name>\w[\w.-]*/\w[\w.-]*)(:(?P<config>[\w.-]+))?", re.ASCII)


def read_csv(file: BinaryIO, source: str, report: Report, delimiter: str = ",") -> Iterator[Row]:
    """The rows of a table of texts whose first line names the columns.

    Quotes must be closed and every row have as many cells as there are columns: what is taken in silence
    otherwise is the rest of the file as one cell.
    """
    # one limit for the whole process, 128 KiB unless told; a conversation in a cell may be longer
    csv.field_size_limit(max(csv.field_size_limit(), LIMIT))
    reader = csv.reader(_text_lines(file, source, report), delimiter=delimiter, strict=True)
    columns: list[str] | None = None
    while True:
        number = reader.line_num + 1
        where = f"{source}, line {number}"
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            report(
                unreadable(where, f"not CSV ({clipped(error)})", "close quotes, double those within", number)
            )
            continue
        if not cells:
            continue
        if columns is None:
            columns = cells
            if len(set(columns)) < len(columns):
                raise unreadable(where, "two columns of one name", "the first line names the columns", number)
        elif len(cells) != len(columns):
            reason = f"{len(cells)} cells, and there are {len(columns)} columns"
            report(unreadable(where, reason, "put quotes around cells that hold a comma", number))
        else:
            yield Row(dict(zip(columns, cells, strict=True)), where, number)


def read_parquet(file: BinaryIO, source: str, report: Report) -> Iterator[Row]:
    """The rows of a Parquet file, some at a time."""
    import pyarrow
    from pyarrow import parquet

    number = 0
    try:
        opened = parquet.ParquetFile(file)
        _check_counts(opened.metadata)
        for batch in opened.iter_batches(batch_size=BATCH):
            for value in batch.to_pylist():
                number += 1
                yield Row(without_none(value), f"{source}, row {number}", number)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        where = f"{source}, row {number + 1}"
        report(unreadable(where, f"not Parquet ({clipped(error)})", "write it again", number + 1))


def _check_counts(metadata: Any) -> None:
    """Refuse numbers of rows that contradict each other: the library makes room for so many, and ends the process.

    Raises:
        ValueError: they do.
    """
    groups = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
    if metadata.num_rows < 0 or any(count < 0 for count in groups) or sum(groups) != metadata.num_rows:
        raise ValueError(f"it says {metadata.num_rows} rows, and its groups have {sum(groups)}")
    if groups and not metadata.num_columns:
        raise ValueError("it has rows, and no columns")


def read_dataset(dataset: Any, source: str, report: Report) -> Iterator[Row]:
    """The rows of a `datasets.Dataset` or `IterableDataset`, whatever format it is set to give."""
    number = 0
    try:
        for value in dataset.with_format(None):
            number += 1
            yield Row(without_none(value), f"{source}, example {number}", number)
    except Exception as error:  # a dataset may be a program, and fail in any way
        where = f"{source}, example {number + 1}"
        report(unreadable(where, f"the dataset fails: {_first_line(error)}", "", number + 1))


def load_folder(path: Path, source: str) -> Any:
    """What `save_to_disk` of `datasets` wrote.

    Raises:
        DataError: it is no such folder, or cannot be loaded.
    """
    names = ("dataset_dict.json", "dataset_info.json", "state.json")
    if not any((path / name).exists() for name in names):
        raise DataError(
            f"{source} is a folder, and `save_to_disk` of datasets did not write it", "name a data file"
        )
    import datasets

    try:
        return datasets.load_from_disk(str(path))
    except Exception as error:
        raise unreadable(source, f"datasets cannot load it: {_first_line(error)}", "save it again") from error


def is_hub_name(source: str) -> bool:
    """Whether a text may name a data set of the hub: `owner/name` or `owner/name:configuration`."""
    return HUB_NAME.fullmatch(source) is not None


@lru_cache(maxsize=4)
def load_hub(source: str) -> Any:
    """A data set of the hub, downloaded once to the cache of `datasets` and mapped into memory from there.

    Raises:
        MissingFileError: it cannot be had.
    """
    import datasets

    found = HUB_NAME.fullmatch(source)
    assert found is not None
    try:
        return datasets.load_dataset(found["name"], found["config"])
    except Exception as error:
        raise MissingFileError(
            f"{source} is no file, and the hub does not give it: {_first_line(error)}",
            "name a data file, or a data set of the hub as owner/name or owner/name:configuration",
        ) from error


def is_dataset(source: Any) -> bool:
    """Whether it is one of the `datasets` library, which is not imported to tell."""
    return type(source).__module__.split(".")[0] == "datasets" and hasattr(source, "with_format")


def choose_part(dataset: Any, part: str, source: str) -> Any:
    """The part of a `DatasetDict`; what has one part only is that part, whatever is asked for.

    Raises:
        DataError: it has several parts, and not this one.
    """
    if not isinstance(dataset, dict):
        return dataset
    if len(dataset) == 1:
        return next(iter(dataset.values()))
    name = part_name(list(dataset), part)
    if name is None:
        raise DataError(
            f"{source} has no part {part}; it has {', '.join(map(clipped, dataset)) or 'none'}",
            "save the part you mean to a file, and name that",
        )
    return dataset[name]


def part_name(names: Sequence[str], part: str) -> str | None:
    """What a part is called among several."""
    known = next((name for name in PARTS.get(part, (part,)) if name in names), None)
    near = [name for name in names if name.startswith(part)]
    return known or (near[0] if len(near) == 1 else None)


def without_none(value: Any) -> Any:
    """A value without the keys that are None: Arrow fills up each object with the keys that others have."""
    if isinstance(value, dict):
        return {key: without_none(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [without_none(inner) for inner in value]
    return value


def _text_lines(file: BinaryIO, source: str, report: Report) -> Iterator[str]:
    for number, raw in enumerate(bounded_lines(file), start=1):
        where = f"{source}, line {number}"
        if raw is None:
            report(unreadable(where, f"longer than {MiB}", "each line is one example", number))
            yield ""
            continue
        try:
            yield raw.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            report(unreadable(where, f"not UTF-8 ({error.reason})", UTF8, number))
            yield ""  # so that the numbers of the lines below stay right


def _first_line(error: Exception) -> str:
    return clipped(next(iter(str(error).splitlines()), "") or type(error).__name__, 200)
