"""Whatever is given as data ends in a result, or in a `ScumbleError` that names the line; never in a traceback.

The inputs are drawn by hypothesis: bytes, mutated files of every kind, JSON of any structure, rows that are
right but for one place, lists of Python objects, nesting without end.
"""

from __future__ import annotations

import copy
import datetime
import io
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from pyarrow import parquet

from scumble.data.checking import check
from scumble.data.converting import as_line
from scumble.data.encoding import encode
from scumble.data.examples import Example, hash_examples, iter_examples, read_examples
from scumble.data.formats import FORMATS
from scumble.errors import DataError, ScumbleError
from tests.bases import letters_tokenizer
from tests.data.test_formats import ANSWER, CALL, RESULT, ROWS, USER, WEATHER

TOKENIZER = letters_tokenizer()
PLACE = re.compile(r"(line|row|example) [1-9]\d*")
WHOLE = re.compile(r"holds no examples|is no data|has no part")  # errors that belong to no line

GOOD: list[dict[str, Any]] = [
    *ROWS.values(),
    {"text": "once upon a time"},
    {"messages": [USER, {"role": "assistant", "content": None, "tool_calls": [CALL]}, RESULT, {**ANSWER, "weight": 0, "name": "ada"}, USER, ANSWER], "tools": [WEATHER]},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}, {**ANSWER, "reasoning_content": "hm"}]},
    {"prompt": [USER], "completion": [ANSWER]},
    {"instruction": "a", "input": "b", "output": "c", "history": [["d", "e"]]},
    {"messages": [USER, {**ANSWER, "weight": 0}]},  # can be read and not be encoded
    {"messages": [ANSWER, USER]},  # it ends with a question: some templates refuse it
]  # fmt: skip
KEYS = st.sampled_from(
    [
        "role",
        "content",
        "messages",
        "conversations",
        "from",
        "value",
        "prompt",
        "completion",
        "instruction",
        "input",
        "output",
        "text",
        "system",
        "tools",
        "history",
        "tool_calls",
        "function",
        "arguments",
        "name",
        "type",
        "weight",
        "tool_call_id",
        "reasoning_content",
        "chosen",
        "rejected",
    ]
) | st.text(max_size=3)
STRANGE = st.sampled_from(
    ["\ud800", "\x00", "\u202e", "\ufeff", "<|im_end|>", "<s>", "{{ x }}", "{% raw %}", "[{", '[{"role": "user"}]', "",
     " ", "user", "assistant", "system", "tool", "human", "gpt", "function_call", "é\u0301", "\ufffd", "Ã©", "x" * 3000]
)  # fmt: skip
LEAF = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([0, 1, 2, -1, 10**400, 1e400, float("nan"), -0.0, 0.5])
    | st.text(max_size=8)
    | STRANGE
)
TREE = st.recursive(
    LEAF,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=5),
    max_leaves=15,
)
# what only Python can hold
PYTHON = TREE | st.sampled_from(
    [b"bytes", {1: "a"}, {None: {}}, {"a", "b"}, datetime.date(2024, 1, 1), object, 3j, range(3), (USER, ANSWER), (), Example((), "")]
)  # fmt: skip
SUFFIX = st.sampled_from([".jsonl", ".json", ".csv", ".tsv", ".parquet", ".txt", ""])


@st.composite
def spoilt(draw: st.DrawFn, junk: st.SearchStrategy[Any] = TREE) -> Any:
    """A good row in which one to three places hold something else, or nothing, or twice the same."""
    row: Any = copy.deepcopy(draw(st.sampled_from(GOOD)))
    for _ in range(draw(st.integers(1, 3))):
        at = row
        while True:
            if isinstance(at, dict) and at:
                key: Any = draw(st.sampled_from(sorted(at, key=str)))
            elif isinstance(at, list) and at:
                key = draw(st.integers(0, len(at) - 1))
            else:
                break
            if isinstance(at[key], dict | list) and draw(st.booleans()):
                at = at[key]
                continue
            act = draw(st.sampled_from(["replace", "remove", "repeat", "add"]))
            if act == "remove":
                del at[key]
            elif act == "repeat" and isinstance(at, list):
                at.insert(key, copy.deepcopy(at[key]))
            elif act == "add" and isinstance(at, dict):
                at[draw(KEYS)] = copy.deepcopy(draw(junk))
            else:
                at[key] = copy.deepcopy(draw(junk))
            break
    return row


def nested(depth: int, opening: str, closing: str, closed: bool) -> str:
    return opening * depth + ("1" + closing * depth if closed else "")


NESTED = st.builds(
    nested,
    st.sampled_from([10, 65, 66, 200, 900, 1000, 2000, 50_000]),
    st.just("["),
    st.just("]"),
    st.booleans(),
) | st.builds(
    nested,
    st.sampled_from([10, 65, 66, 200, 900, 1000, 2000, 20_000]),
    st.just('{"a":'),
    st.just("}"),
    st.booleans(),
)
# deep nesting within a row that is right without it
HOLES = st.sampled_from(
    [
        '{"messages": [{"role": "user", "content": %s}, {"role": "assistant", "content": "a"}]}',
        '{"messages": [{"role": "user", "content": "a", "x": %s}, {"role": "assistant", "content": "a"}]}',
        '{"messages": [{"role": "assistant", "content": "a"}], "tools": [{"name": "f", "parameters": %s}]}',
        '{"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": %s}}]}]}',
        '{"conversations": [{"from": "human", "value": %s}]}',
        '{"instruction": "a", "output": "b", "history": %s}',
        "%s",
    ]
)
ROW = TREE | spoilt() | st.sampled_from(GOOD)
LINE = (
    ROW.map(json.dumps)
    | st.text(max_size=20)
    | STRANGE
    | st.builds(lambda hole, deep: hole.replace("%s", deep), HOLES, NESTED)
)
RAW = st.binary(max_size=80) | st.lists(LINE, max_size=4).map(
    lambda lines: "\n".join(lines).encode("utf-8", "replace")
)


def as_json(rows: list[Any]) -> bytes:
    return json.dumps(rows).encode()


def as_object(rows: list[Any]) -> bytes:
    return json.dumps({"data": rows}, indent=1).encode()


def as_cells(rows: list[Any]) -> bytes:
    columns = sorted({str(key) for row in rows if isinstance(row, dict) for key in row})
    lines = [",".join(columns)]
    for row in rows:
        cells = [json.dumps(row.get(c)) if isinstance(row, dict) and c in row else "" for c in columns]
        lines.append(",".join('"' + cell.replace('"', '""') + '"' for cell in cells))
    return "\n".join(lines).encode("utf-8", "replace")


def as_parquet(rows: list[Any]) -> bytes:
    file = io.BytesIO()
    try:
        parquet.write_table(pa.Table.from_pylist([row for row in rows if isinstance(row, dict)]), file)
    except (pa.ArrowException, ValueError, TypeError, OverflowError, AttributeError):
        return b"PAR1"
    return file.getvalue()


@st.composite
def damaged(draw: st.DrawFn, whole: st.SearchStrategy[bytes]) -> bytes:
    """Bytes in which some are other bytes, or gone."""
    data = bytearray(draw(whole))
    for _ in range(draw(st.integers(0, 3))):
        if data:
            at = draw(st.integers(0, len(data) - 1))
            if draw(st.booleans()):
                data[at] = draw(st.integers(0, 255))
            else:
                del data[at : at + draw(st.integers(1, 20))]
    return bytes(data)


ROWS_OF = st.lists(ROW, max_size=4)
FILES = st.one_of(
    st.tuples(SUFFIX, RAW),
    st.tuples(st.sampled_from([".jsonl", ".json", ""]), damaged(RAW)),
    st.tuples(st.just(".json"), damaged(ROWS_OF.map(as_json))),
    st.tuples(st.just(".json"), damaged(ROWS_OF.map(as_object))),
    st.tuples(st.just(".csv"), damaged(ROWS_OF.map(as_cells))),
    st.tuples(st.just(".parquet"), damaged(ROWS_OF.map(as_parquet))),
)
LISTS = st.lists(PYTHON | spoilt(PYTHON) | st.sampled_from(GOOD), max_size=4)
FORMAT = st.none() | st.sampled_from(FORMATS)


def judge(error: ScumbleError, found: Counter[str]) -> None:
    """An error names a line, a row or an example, unless it is about the whole."""
    said = PLACE.search(error.message) or WHOLE.search(error.message)
    assert said, f"no place in {error!r}"
    assert error.message.isprintable()
    found["refused" if PLACE.search(error.message) else "empty"] += 1


def go_through(source: Any, format: str | None, found: Counter[str]) -> None:
    """Read what can be read, twice; then all that is done with an example."""
    errors: list[DataError] = []
    examples: list[Example] = []
    try:
        examples = list(iter_examples(source, format=format, on_error=errors.append))
    except ScumbleError as error:
        judge(error, found)
    for error in errors:
        judge(error, found)
        assert error.line is None or f" {error.line}" in error.message
    if errors:
        with pytest.raises(ScumbleError) as caught:
            read_examples(source, format=format)
        assert str(caught.value) == str(errors[0])
    for example in examples:
        found["read"] += 1
        assert 0 <= example.hash < 2**64
        assert isinstance(example.question, str)
        if example.text is None:
            # what is written as chat is read back as the same conversation
            (again,) = read_examples([json.loads(as_line(example))])
            assert hash_examples([again]) == hash_examples([example])
        try:
            encode(example, TOKENIZER)
        except ScumbleError as error:
            judge(error, found)
            found["not encoded"] += 1
    try:
        checked = check(source, tokenizer=TOKENIZER, format=format)
        assert checked.examples == len(examples)
        json.dumps(checked.to_dict())
    except ScumbleError as error:
        judge(error, found)


def run(count: int, folder: Path, number: int = 0) -> Counter[str]:
    """`count` inputs drawn with a seed, three quarters of them files."""
    found: Counter[str] = Counter()
    options: dict[str, Any] = {
        "database": None,
        "deadline": None,
        "phases": (Phase.generate,),
        "suppress_health_check": list(HealthCheck),
    }

    @seed(number)
    @settings(max_examples=count * 3 // 4, **options)
    @given(file=FILES, format=FORMAT)
    def files(file: tuple[str, bytes], format: str | None) -> None:
        path = folder / f"data{file[0]}"
        path.write_bytes(file[1])
        found["inputs"] += 1
        go_through(path, format, found)

    @seed(number)
    @settings(max_examples=count // 4, **options)
    @given(rows=LISTS, format=FORMAT)
    def lists(rows: list[Any], format: str | None) -> None:
        found["inputs"] += 1
        go_through(rows, format, found)

    files()
    lists()
    return found


def test_a_thousand_malformed_inputs(tmp_path: Path) -> None:
    found = run(1000, tmp_path)
    assert found["inputs"] >= 1000
    # both ends are frequent, so that a check of either is one that can fail
    assert found["refused"] > 200
    assert found["read"] > 200
    assert found["not encoded"] > 0


# found by the soak: a group of -2,479 rows, of which pyarrow makes room for 2^64 - 2,479 and ends the process
ENDS_THE_PROCESS = bytes.fromhex(
    "a54152311504191c35001806736368656d611500001600191c190c160016dd2600160000191c180c4152524f573a7363"
    "68656d61184c2f2f2f2f2f7a414141414151414141414141414b41417741426741464141674143674141414141424241"
    "414d414141414341414941414141424141494141414142414141414141414141413d001820706172717565742d637070"
    "2d6172726f772076657273696f6e2032362e302e31190c00a400000050415231"
)


def test_a_file_that_would_end_the_process_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "data.parquet"
    path.write_bytes(ENDS_THE_PROCESS)
    with pytest.raises(DataError, match=r"data\.parquet, row 1: not Parquet \(it says 0 rows"):
        read_examples(path)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_a_hundred_thousand_malformed_inputs(tmp_path: Path) -> None:
    found: Counter[str] = Counter()
    for number in range(100):  # hypothesis remembers what it drew: a thousand at a time
        found += run(1000, tmp_path, number)
    print(dict(found))
    assert found["inputs"] >= 100_000
    assert found["refused"] > 20_000
    assert found["read"] > 20_000
