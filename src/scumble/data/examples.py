"""Examples read from wherever they are: files of several kinds, lists, `datasets`, the shipped sets.

Every example is checked when read, so that an error names the file and the line. Knows nothing of tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import xxhash

from scumble.data.example import Example
from scumble.data.formats import to_example
from scumble.data.messages import ROLES
from scumble.data.rows import Row
from scumble.data.sources import open_rows
from scumble.errors import DataError, clipped

__all__ = ["ROLES", "Example", "Part", "hash_examples", "iter_examples", "read_examples", "split_by_hash"]

Part: TypeAlias = Literal["train", "validation", "test"]


def read_examples(source: Any, part: Part = "train", *, format: str | None = None) -> list[Example]:
    """Read and check the examples of a source, all at once.

    Args:
        source: a path, the name of a shipped set or of one on the hub, a list of examples, a `datasets.Dataset`.
        part: which part of what has parts (a shipped set, a `DatasetDict`); other sources have one part only.
        format: one of `scumble.data.formats.FORMATS`; each example's own is recognised where it is not told.

    Raises:
        MissingFileError: the file does not exist.
        DataError: it is empty or cannot be read, or an example is malformed; with the line number.
    """
    return list(iter_examples(source, part, format=format))


def iter_examples(
    source: Any,
    part: Part = "train",
    *,
    format: str | None = None,
    on_error: Callable[[DataError], None] | None = None,
) -> Iterator[Example]:
    """Read and check the examples of a source one after the other; a file is never held whole.

    Args:
        source: as in `read_examples`.
        part: as in `read_examples`.
        format: as in `read_examples`.
        on_error: is handed what is wrong with a line or example, which is then left out; without it, it is raised.

    Raises:
        MissingFileError: the file does not exist.
        DataError: the source as a whole cannot be read or is empty; without `on_error`, an example is malformed.
    """
    found = 0

    def report(error: DataError) -> None:
        nonlocal found
        found += 1
        if on_error is None:
            raise error
        on_error(error)

    for row in open_rows(source, part, report):
        found += 1
        try:
            example = example_of(row, format)
        except DataError as error:
            if on_error is None:
                raise
            on_error(error)
            continue
        yield example
    if not found:
        raise DataError(
            f"{_title(source)} is empty: it holds no examples",
            "each line is one JSON object with a list `messages`",
        )


def hash_examples(examples: Sequence[Example]) -> str:
    """The hash of a data set, order included, as 32 hexadecimal digits."""
    digest = xxhash.xxh3_128()
    for example in examples:
        digest.update(example.hash.to_bytes(8, "little"))
    return digest.hexdigest()


def split_by_hash(examples: Sequence[Example], share: float) -> tuple[list[Example], list[Example]]:
    """Split off a share for validation, by content: adding examples moves no others, equal ones stay together.

    Only where one part would be empty does a single example move to it, that with the lowest or highest hash.

    Args:
        examples: all of them.
        share: of the validation part, above 0 and below 1.

    Returns:
        The training part and the validation part, both in order and, where there are two different examples
        or more, neither of them empty.
    """
    hashes = [example.hash for example in examples]
    distinct = set(hashes)
    held = {number for number in distinct if number < share * 2**64}
    if len(distinct) > 1:
        held = held or {min(distinct)}
        held = held - {max(distinct)}
    paired = list(zip(examples, hashes, strict=True))
    return [e for e, number in paired if number not in held], [e for e, number in paired if number in held]


def example_of(row: Row, format: str | None = None) -> Example:
    """The example that a row is; one that was made before is checked again, and keeps its place.

    Raises:
        DataError: it is malformed; with the line number.
    """
    value = row.value
    if not isinstance(value, Example):
        return to_example(
            {"messages": value} if isinstance(value, tuple) else value, format, row.where, row.number
        )
    if value.text is not None:
        made = to_example(value.text, "text", value.where or row.where, value.number or row.number)
    else:
        content = {"messages": value.messages, "tools": value.tools}
        made = to_example(content, "chat", value.where or row.where, value.number or row.number)
    return replace(made, format=value.format)


def _title(source: Any) -> str:
    return clipped(source) if isinstance(source, str | Path) else "the data"
