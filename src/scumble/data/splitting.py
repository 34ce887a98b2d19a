"""`split`: a data set in parts that share nothing, by content.

Each example has a key, the hash of its contents or of its group, and the key's place on [0, 1) decides the part:

    0                 share            share + test                                1
    |   validation    |      test      |                  train                    |

Nothing else does, so adding examples moves no others, and equal examples are never on two sides. Examples of two
groups that are equal join their groups. With strata the places are taken in order until a part has its share of
each stratum, so that each example added moves at most one other across each cut. The first pass
over the source keeps a hash of each example, 8 bytes (with groups or strata a few hundred), the second writes. Knows
nothing of tokens.
"""

from __future__ import annotations

import contextlib
import datetime
import json
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import xxhash

from scumble.config import DataOptions, SplitOptions, make
from scumble.data.example import Example
from scumble.data.examples import example_of
from scumble.data.rows import Row
from scumble.data.sources import open_rows
from scumble.errors import ConfigError, DataError, shown
from scumble.files import new_folder, refuse_existing
from scumble.progress import Reporter

PARTS = ("train", "validation", "test")
PROMPT = "@prompt"  # as a group: everything before the last answer
_TOLD_STRATA = 50
_STRIDE = 1000  # rows between two moves of the progress bar


@dataclass(frozen=True)
class Split:
    """A data set that was cut in parts.

    Attributes:
        out: the folder.
        files: the file of each part.
        examples: how many each part has.
        repeated: examples that are equal to an earlier one; each is in the part of that one.
        groups: how many groups there were; None without.
        strata: for each value of the field, how many examples of it each part has (the first 50 values); None
            without.
    """

    out: str
    files: Mapping[str, str]
    examples: Mapping[str, int]
    repeated: int
    groups: int | None = None
    strata: Mapping[str, Mapping[str, int]] | None = None

    def to_dict(self) -> dict[str, Any]:
        """What `--json` prints."""
        strata = None if self.strata is None else {key: dict(held) for key, held in self.strata.items()}
        return {
            "out": self.out,
            "files": dict(self.files),
            "examples": dict(self.examples),
            "repeated": self.repeated,
            "groups": self.groups,
            "strata": strata,
        }


def split(
    source: Any,
    share: float | None = None,
    *,
    out: str | Path,
    test: float | None = None,
    stratify: str | None = None,
    group: str | None = None,
    seed: int | None = None,
    format: str | None = None,
    force: bool = False,
    quiet: bool = True,
) -> Split:
    """Cut a data set in `train.jsonl`, `validation.jsonl` and, where asked, `test.jsonl`.

    The rows are written as they are, with all their fields. Only where a part would be empty, one key moves to it.

    Args:
        source: a path, a shipped set, a list of examples, or a `datasets.Dataset`.
        share: of the validation part; 0.1 by default.
        out: the folder that is written.
        test: share of a test part; none by default.
        stratify: a field (`language`, `meta.language`) of whose every value each part gets its share.
        group: a field whose equal values stay together, or `@prompt` for everything before the last answer.
        seed: another seed cuts elsewhere; 0 by default.
        format: of the examples; recognised by default.
        force: replace the folder where it exists.
        quiet: show no progress.

    Raises:
        DataError: a line is malformed or has not the field, or there are fewer different examples than parts.
        ConfigError: an option has a value that it cannot have.
        OutputExistsError: the folder exists already.
    """
    options = make(SplitOptions, share=share, test=test, stratify=stratify, group=group, seed=seed)
    named = make(DataOptions, format=format).format
    _check_shares(options)
    refuse_existing(out, force=force, inputs=(source,))
    if isinstance(source, Iterator):  # it is read twice
        source = list(source)
    keys, reporter = _Keys(options), Reporter(quiet=quiet)
    with reporter.bar("reading", None):
        for row in _counted(open_rows(source), reporter):
            keys.add(row, example_of(row, named))
    parts = keys.parts()
    with new_folder(out, force=force) as folder, reporter.bar("writing", len(parts)):
        _write(_counted(open_rows(source), reporter), parts, folder, options)
    names = _named_parts(options)
    counts = Counter(parts)
    return Split(
        out=str(out),
        files={name: str(Path(out) / f"{name}.jsonl") for name in names},
        examples={name: counts[PARTS.index(name)] for name in names},
        repeated=len(keys.contents) - _distinct(keys.contents),
        groups=keys.groups() if options.group else None,
        strata=keys.told(parts, names) if options.stratify else None,
    )


def _check_shares(options: SplitOptions) -> None:
    if options.share + options.test >= 1:
        raise ConfigError(
            f"--share {options.share:g} and --test {options.test:g} leave nothing to train on",
            "together they must be below 1",
        )


class _Keys:
    """What decides the part of each example."""

    def __init__(self, options: SplitOptions) -> None:
        self.options = options
        self.contents, self.grouped = array("Q"), array("Q")
        self.strata: list[str] = []
        self._names: dict[str, str] = {}
        self._above: dict[int, int] = {}  # a key that was joined to a smaller one
        self._group_of: dict[int, int] = {}  # the group in which a content was first seen

    def add(self, row: Row, example: Example) -> None:
        """Note the next example."""
        content = example.hash
        self.contents.append(content)
        if self.options.group:
            key = _group(row, example, self.options.group)
            self.grouped.append(key)
            self._join(key, self._group_of.setdefault(content, key))
        if self.options.stratify:
            value = _field(row, self.options.stratify)
            name = value if isinstance(value, str) else _as_json(value)
            self.strata.append(self._names.setdefault(name, name))

    def parts(self) -> bytearray:
        """The part of each example, as its number in `PARTS`.

        Raises:
            DataError: there are no examples, or fewer keys than parts.
        """
        keys = self._keys()
        if not keys:
            raise DataError("the data is empty: it holds no examples", "give at least two")
        if not self.strata:
            parts = bytearray(self._part(self._place(key)) for key in keys)
            if all(PARTS.index(name) in parts for name in _named_parts(self.options)):
                return parts
        sizes = Counter(keys)
        place = {key: self._place(key) for key in sizes}
        decided = (
            self._by_stratum(keys, sizes, place)
            if self.strata
            else {key: self._part(at) for key, at in place.items()}
        )
        self._fill(decided, place)
        return bytearray(decided[key] for key in keys)

    def groups(self) -> int:
        """How many groups there are, those that share an example counted as one."""
        return _distinct(self._keys())

    def told(self, parts: Sequence[int], names: Sequence[str]) -> dict[str, dict[str, int]]:
        """The examples of each stratum and part, for the first strata."""
        held: dict[str, Counter[int]] = defaultdict(Counter)
        for stratum, part in zip(self.strata, parts, strict=True):
            held[stratum][part] += 1
        first = list(held)[:_TOLD_STRATA]
        return {each: {name: held[each][PARTS.index(name)] for name in names} for each in first}

    def _keys(self) -> Sequence[int]:
        return array("Q", map(self._root, self.grouped)) if self.grouped else self.contents

    def _root(self, key: int) -> int:
        """The smallest of the keys that this one was joined with."""
        path = []
        while (above := self._above.get(key, key)) != key:
            path.append(key)
            key = above
        for each in path:
            self._above[each] = key
        return key

    def _join(self, one: int, other: int) -> None:
        low, high = sorted((self._root(one), self._root(other)))
        if low != high:
            self._above[high] = low

    def _place(self, key: int) -> float:
        """Where a key stands on [0, 1), by the seed."""
        return _hashed(f"split/{self.options.seed}/{key}".encode()) / 2**64

    def _part(self, place: float) -> int:
        share, test = self.options.share, self.options.test
        return 1 if place < share else 2 if place < share + test else 0

    def _by_stratum(
        self, keys: Sequence[int], sizes: Mapping[int, int], place: Mapping[int, float]
    ) -> dict[int, int]:
        """Of each stratum the keys in order of their places, each part taking its share of the examples."""
        seen: dict[int, Counter[str]] = defaultdict(Counter)
        for key, stratum in zip(keys, self.strata, strict=True):
            seen[key][stratum] += 1
        members: dict[str, list[int]] = defaultdict(list)
        for key, counted in seen.items():
            # a group of several strata goes with the one it has most of
            members[min(counted, key=lambda name: (-counted[name], name))].append(key)
        decided: dict[int, int] = {}
        for held in members.values():
            total, before = sum(sizes[key] for key in held), 0
            for key in sorted(held, key=lambda key: (place[key], key)):
                decided[key] = self._part((before + sizes[key] / 2) / total)
                before += sizes[key]
        return decided

    def _fill(self, decided: dict[int, int], place: Mapping[int, float]) -> None:
        """Give a part that is empty the one key that is nearest to it."""
        wanted = [PARTS.index(name) for name in _named_parts(self.options)]
        if len(decided) < len(wanted):
            what = "groups" if self.grouped else "different examples"
            raise DataError(
                f"the data has {len(decided)} {what}, and {len(wanted)} parts were asked for",
                "give more data" if not self.grouped else "give more data, or cut without --group",
            )
        ordered = sorted(decided, key=lambda key: (place[key], key))
        for part in wanted:
            if part not in decided.values():
                held = Counter(decided.values())
                spare = [key for key in ordered if held[decided[key]] > 1]
                decided[spare[-1 if part == 0 else 0]] = part


def _counted(rows: Iterator[Row], reporter: Reporter) -> Iterator[Row]:
    """The same rows; now and then the bar is moved."""
    for count, row in enumerate(rows, start=1):
        yield row
        if count % _STRIDE == 0:
            reporter.advance(_STRIDE)


def _named_parts(options: SplitOptions) -> tuple[str, ...]:
    return PARTS if options.test else PARTS[:2]


def _group(row: Row, example: Example, field: str) -> int:
    """The key of an example's group."""
    if field == PROMPT:
        return _hashed(_as_json([example.prompt, example.tools]).encode("utf-8", "surrogatepass"))
    value = _field(row, field)
    if value is None:
        raise DataError(
            f"{row.where}: the field {field!r} is null", "give each example a group", line=row.number
        )
    return _hashed(_as_json(value).encode("utf-8", "surrogatepass"))


def _field(row: Row, field: str) -> Any:
    """The value of a field, dots leading into objects; a field whose own name has dots comes first."""
    if isinstance(row.value, Mapping) and field in row.value:
        return row.value[field]
    value = row.value
    for name in field.split("."):
        if not isinstance(value, Mapping) or name not in value:
            there = ", ".join(map(str, row.value)) if isinstance(row.value, Mapping) else "none"
            raise DataError(
                f"{row.where}: there is no field {shown(field)}", f"there are: {there[:200]}", line=row.number
            )
        value = value[name]
    return value


def _write(rows: Iterator[Row], parts: Sequence[int], folder: Path, options: SplitOptions) -> None:
    """Write each row to the file of its part."""
    changed = DataError("the data changed while it was read", "try again when nothing writes to it")
    count = 0
    with contextlib.ExitStack() as stack:
        files: list[BinaryIO] = [
            stack.enter_context((folder / f"{name}.jsonl").open("wb")) for name in _named_parts(options)
        ]
        for row in rows:
            if count == len(parts):
                raise changed
            files[parts[count]].write(_line(row))
            count += 1
    if count != len(parts):
        raise changed


def _line(row: Row) -> bytes:
    value = row.value
    if isinstance(value, Example):
        content = {"messages": value.messages, "tools": value.tools, "text": value.text}
        value = {key: each for key, each in content.items() if each}
    elif isinstance(value, tuple):
        value = {"messages": value}
    try:
        return json.dumps(value, ensure_ascii=False, default=_as_text).encode() + b"\n"
    except UnicodeEncodeError:  # half a surrogate pair, which only an escape can hold
        return json.dumps(value, default=_as_text).encode() + b"\n"
    except TypeError as error:
        raise DataError(
            f"{row.where}: {error}", "leave the field out, or turn it into text", line=row.number
        ) from error


def _as_text(value: Any) -> Any:
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if hasattr(value, "tolist"):  # an array or a number of numpy
        return value.tolist()
    raise TypeError(f"a {type(value).__name__} cannot be written as JSON")


def _as_json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)


def _distinct(keys: Sequence[int]) -> int:
    return int(np.unique(np.asarray(keys, dtype=np.uint64)).size)


def _hashed(text: bytes) -> int:
    return xxhash.xxh3_64_intdigest(text)
