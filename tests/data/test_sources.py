"""Every source gives the same rows, some at a time, and a broken one is named with its line."""

from __future__ import annotations

import csv
import json
import re
import tracemalloc
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pytest
from pyarrow import parquet

from scumble.data import json_rows, tables
from scumble.data.examples import hash_examples, iter_examples, read_examples
from scumble.data.rows import Row
from scumble.data.sources import open_rows, parts_of
from scumble.errors import DataError, MissingFileError
from tests.bases import chat

CALL = {"function": {"name": "f", "arguments": {"x": 1}}}
ROWS: list[dict[str, Any]] = [
    chat("1", "one"),
    {"messages": [{"role": "user", "content": "2"}, {"role": "assistant", "content": None, "tool_calls": [CALL]}]},
    chat("a\nb, \"c\"\u2028", "é", system="s"),
]  # fmt: skip


def as_csv(path: Path, rows: list[dict[str, Any]], delimiter: str = ",") -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(["id", "messages"])
        writer.writerows([index, json.dumps(row["messages"])] for index, row in enumerate(rows))


WRITERS: dict[str, Callable[[Path, list[dict[str, Any]]], Any]] = {
    "lines.jsonl": lambda p, rows: p.write_text("\n".join(map(json.dumps, rows)), "utf-8"),
    "lines.json": lambda p, rows: p.write_text("\n\n".join(map(json.dumps, rows)) + "\n", "utf-8"),
    "list.json": lambda p, rows: p.write_text(json.dumps(rows), "utf-8"),
    "pretty.json": lambda p, rows: p.write_text("\ufeff" + json.dumps(rows, indent=2, ensure_ascii=False), "utf-8"),
    "object.json": lambda p, rows: p.write_text(json.dumps({"version": 1, "data": rows}), "utf-8"),
    "pretty-object.JSON": lambda p, rows: p.write_text(json.dumps({"data": rows}, indent=1), "utf-8"),
    "table.csv": as_csv,
    "table.tsv": lambda p, rows: as_csv(p, rows, "\t"),
    "table.parquet": lambda p, rows: parquet.write_table(pa.Table.from_pylist(rows), p),
    "saved": lambda p, rows: datasets.Dataset.from_list(rows).save_to_disk(str(p)),
    "parts": lambda p, rows: datasets.DatasetDict({"train": datasets.Dataset.from_list(rows)}).save_to_disk(str(p)),
}  # fmt: skip


@pytest.mark.parametrize("name", WRITERS)
def test_every_file_gives_the_same_examples(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    WRITERS[name](path, ROWS)
    wanted, found = read_examples(ROWS), read_examples(path)
    assert [e.messages for e in found] == [e.messages for e in wanted]
    assert hash_examples(found) == hash_examples(wanted)
    assert all(str(path) in e.where and e.where.endswith(f" {e.number}") for e in found)
    assert [e.number for e in found] == ([1, 3, 5] if name == "lines.json" else [2, 3, 4] if name == "table.csv" or "tsv" in name else [1, 2, 3])  # fmt: skip
    assert list(map(hash, (e.hash for e in read_examples(str(path))))) == [hash(e.hash) for e in found]


def test_datasets_of_every_sort_are_read() -> None:
    made = datasets.Dataset.from_list(ROWS)
    wanted = hash_examples(read_examples(ROWS))
    for source in (
        made,
        made.with_format("arrow"),
        made.with_format("numpy"),
        made.to_iterable_dataset(),
        datasets.DatasetDict({"test": made}),
    ):
        assert hash_examples(read_examples(source)) == wanted  # fmt: skip
    parts = datasets.DatasetDict({"train": made, "dev": made.select([0])})
    assert [len(read_examples(parts, part)) for part in ("train", "validation")] == [3, 1]
    assert parts_of(parts) == ("train", "validation")
    with pytest.raises(DataError, match="no part test; it has train, dev"):
        read_examples(parts, "test")
    assert (parts_of(made), parts_of(ROWS), parts_of("cron")) == ((), (), ("train", "validation", "test"))


def test_a_name_of_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    tables.load_hub.cache_clear()
    asked: list[Any] = []

    def load(name: str, config: str | None) -> Any:
        asked.append((name, config))
        if name != "ada/sums":
            raise ConnectionError("no such set\nand more")
        return datasets.DatasetDict({"train_sft": datasets.Dataset.from_list(ROWS), "test": datasets.Dataset.from_list(ROWS[:1])})  # fmt: skip

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert len(read_examples("ada/sums:small")) == 3
    assert read_examples("ada/sums:small", "test")[0].where == "ada/sums:small, example 1"
    assert parts_of("ada/sums:small") == ("train", "test")
    assert asked == [("ada/sums", "small")]  # once
    with pytest.raises(
        MissingFileError, match="bob/sums is no file, and the hub does not give it: no such set"
    ):
        read_examples("bob/sums")
    for path in ("data/train.jsonl", "data/train.csv", "a/b/c", "./x"):
        with pytest.raises(MissingFileError, match="does not exist"):
            read_examples(path)
    (tmp_path / "ada").mkdir()
    WRITERS["lines.jsonl"](tmp_path / "ada" / "sums", ROWS[:2])
    assert len(read_examples("ada/sums")) == 2  # a file that is there is never taken for a name
    tables.load_hub.cache_clear()


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("a.json", b"[1, ", "line 1: not JSON"),
        ("a.json", b'[{"a": 1},\n{"b" 2}]', "line 2: not JSON (Expecting ':' delimiter)"),
        ("a.json", b'[{"a": 1}\n{"b": 2}]', "line 2: not JSON (']' expected, '{' found)"),
        ("a.json", b"[1]\n[2]", "line 2: not JSON (more text after the end)"),
        ("a.json", b'[{"a": "\xff"}]', "line 1: not UTF-8"),
        ("a.json", b'[{"a": 1},\n{"b": "\xff', "line 2: not UTF-8"),
        ("a.json", b'{"a": [1],\n"b": [2]}', "line 1: an object with 2 lists: a, b"),
        ("a.json", b"[" * 100_000, "line 1: not JSON"),
        ("a.json", b"[" + b"1" * 5000 + b"]", "line 1: not JSON"),
        ("a.json", b'{\n"a": \x00}', "line 2: not JSON"),
        ("a.json", b"", "is empty"),
        ("a.json", b"\n[]", "is empty"),
        ("a.csv", b"", "is empty"),
        ("a.csv", b"prompt,completion\n", "is empty"),
        ("a.csv", b"prompt,prompt\na,b\n", "line 1: two columns of one name"),
        ("a.csv", b"prompt,completion\na,b\nc\n", "line 3: 1 cells, and there are 2 columns"),
        ("a.csv", b'prompt,completion\na,"b\nc,d\n', "line 2: not CSV"),
        ("a.csv", b"prompt,completion\na,\xff\n", "line 2: not UTF-8"),
        ("a.jsonl.gz", b"\x1f\x8b", "a.jsonl.gz is compressed"),
        ("a.parquet", b"", "row 1: not Parquet"),
        ("a.parquet", b"PAR1" + b"\0" * 64 + b"PAR1", "row 1: not Parquet"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_has_its_line(name: str, data: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(DataError) as caught:
        list(open_rows(path)) and read_examples(path)
        read_examples(path)
    assert said in caught.value.message
    assert caught.value.hint
    if re.search(r"(line|row) [0-9]", said):
        assert caught.value.kind == "unreadable"
        assert f" {caught.value.line}:" in caught.value.message


def test_a_file_goes_on_after_a_broken_line(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b'\xef\xbb\xbfprompt,completion\n1,"one\n(1)"\n2\n\n\xff,x\n3,"th"ree\n4,four\n')
    errors: list[DataError] = []
    found = list(iter_examples(path, on_error=errors.append))
    assert [(e.number, e.question, e.expected) for e in found] == [(2, "1", "one\n(1)"), (8, "4", "four")]
    assert [e.line for e in errors] == [4, 6, 7]


def test_one_object_is_one_example_and_a_long_line_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(ROWS[0], indent=1))
    assert [e.expected for e in read_examples(path)] == ["one"]
    path.write_text(json.dumps(ROWS[0]))
    assert [e.expected for e in read_examples(path)] == ["one"]
    monkeypatch.setattr(json_rows, "LIMIT", 200)
    monkeypatch.setattr(json_rows, "PIECE", 16)
    lines = tmp_path / "a.jsonl"
    lines.write_text("\n".join(json.dumps(chat(q, "x")) for q in ("1", "2" * 500, "3")))
    errors: list[DataError] = []
    assert [e.question for e in iter_examples(lines, on_error=errors.append)] == ["1", "3"]
    assert [(e.line, "longer than" in e.message) for e in errors] == [(2, True)]
    path.write_text(json.dumps([chat(q, "x") for q in ("1", "2" * 500)]))
    with pytest.raises(DataError, match="an entry longer than"):
        read_examples(path)


@pytest.mark.parametrize("piece", [1, 2, 3, 7, 64])
def test_a_list_is_cut_anywhere(piece: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_rows, "PIECE", piece)
    values = [12345, -1.5e10, True, None, 'a\\"\u00e9\U0001f600\n', [], {}, [[1, 2], {"k": [True]}], 7]
    for ascii_only, indent in ((True, None), (False, 2)):
        (tmp_path / "a.json").write_text(json.dumps(values, ensure_ascii=ascii_only, indent=indent), "utf-8")
        assert [row.value for row in open_rows(tmp_path / "a.json")] == values


@pytest.mark.parametrize("name", ["lines.jsonl", "list.json", "table.csv", "table.parquet"])
def test_a_file_is_never_held_whole(name: str, tmp_path: Path) -> None:
    row = chat("q" * 2000, "a")
    WRITERS[name](tmp_path / name, [row] * 10_000)  # 20 MB of text
    list(open_rows(tmp_path / name))  # what is imported for it counts for nothing
    tracemalloc.start()
    rows = sum(1 for _ in open_rows(tmp_path / name))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert rows == 10_000
    # a thousand rows of Parquet are 2 MB twice; a piece of JSON is 1 MiB held some times over
    assert peak < 8e6
    first = next(iter(islice(open_rows(tmp_path / name), 1)))
    assert isinstance(first, Row)
