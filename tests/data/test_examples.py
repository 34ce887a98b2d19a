"""Reading and splitting examples: what is refused is refused by line, and a split is decided by content alone."""

from __future__ import annotations

import datetime
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scumble.data.examples import hash_examples, read_examples, split_by_hash
from scumble.errors import DataError, MissingFileError, NotSupportedError, ScumbleError
from tests.bases import chat, sums


def written(path: Path, *lines: Any) -> Path:
    path.write_text("".join((x if isinstance(x, str) else json.dumps(x)) + "\n" for x in lines), "utf-8")
    return path


def turns(*messages: Any) -> dict[str, Any]:
    return {"messages": list(messages)}


USER = {"role": "user", "content": "hi"}
ANSWER = {"role": "assistant", "content": "yes"}


def test_a_file_gives_its_examples_in_order(tmp_path: Path) -> None:
    path = written(tmp_path / "data.jsonl", chat("1", "one"), "", chat("2", "two", "3", "three", system="s"))
    first, second = read_examples(path)
    assert (first.question, first.expected, first.where) == ("1", "one", f"{path}, line 1")
    assert (second.question, second.expected, second.where) == ("3", "three", f"{path}, line 3")
    assert [m["role"] for m in second.prompt] == ["system", "user", "assistant", "user"]


def test_every_source_gives_the_same_examples(tmp_path: Path) -> None:
    import datasets

    rows = [chat("1", "one"), turns({**USER, "name": "Ada"}, ANSWER)]
    path = written(tmp_path / "data.jsonl", *rows)
    from_file = read_examples(path)
    for source in (rows, from_file, str(path), datasets.Dataset.from_list(rows), (row for row in rows)):
        found = read_examples(source)
        assert [e.messages for e in found] == [e.messages for e in from_file]
        # a Dataset fills up with None what other rows have: that must not change the hash
        assert hash_examples(found) == hash_examples(from_file)


def test_line_ends_byte_order_mark_and_separators_within_a_string(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    text = json.dumps(chat("a\u2028b\x85c", "d"), ensure_ascii=False)
    path.write_bytes(b"\xef\xbb\xbf" + f"{text}\r\n{text}".encode())
    assert [e.question for e in read_examples(path)] == ["a\u2028b\x85c"] * 2


def test_content_parts_are_joined() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert read_examples([turns({"role": "user", "content": parts}, ANSWER)])[0].question == "ab"


def test_a_call_of_a_tool_needs_no_text() -> None:
    call = {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"function": {"name": "f", "arguments": {}}}],
    }
    assert read_examples([turns(USER, call)])[0].expected == ""


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("1" * 5000, "not JSON"),
        ("[]", "no `messages`"),
        ({"question": "x"}, "it has question"),
        ({"messages": []}, "not a list with something"),
        ({"messages": "hi"}, "not a list"),
        (turns("hi"), "message 1: not an object"),
        (turns(USER), "no assistant's turn"),
        (turns(USER, {"role": "robot", "content": ""}), "message 2: unknown role 'robot'"),
        (turns(USER, {"role": ["assistant"], "content": ""}), "unknown role"),
        (turns(USER, {"role": "assistant", "content": 3}), "`content` is int"),
        (turns(USER, {"role": "assistant", "content": None}), "`content` is NoneType"),
        (turns(USER, {"role": "assistant", "content": ["x"]}), "content part that is no text"),
        (
            '{"messages": [{"role": "assistant", "content": "a\\ud800"}]}',
            "half a surrogate pair at character 2",
        ),
    ],
)
def test_what_is_wrong_is_named_with_its_line(tmp_path: Path, line: Any, said: str) -> None:
    path = written(tmp_path / "data.jsonl", chat("1", "one"), line)
    with pytest.raises(DataError, match=r"data\.jsonl, line 2") as caught:
        read_examples(path)
    assert said in str(caught.value)
    assert caught.value.hint


def test_what_is_done_elsewhere_is_named() -> None:
    with pytest.raises(NotSupportedError, match="DPOTrainer"):
        read_examples([{"chosen": [], "rejected": []}])
    image = {"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}
    with pytest.raises(NotSupportedError, match="image_url"):
        read_examples([turns(image, ANSWER)])


@pytest.mark.parametrize(
    "source", ["missing.jsonl", "~nobody-of-that-name/x.jsonl", "x" * 5000, "a\0b", 3, b"", {}, [], None]
)
def test_sources_that_are_none(source: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises((DataError, MissingFileError)):
        read_examples(source)


def test_a_folder_an_empty_file_and_another_encoding(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is a folder"):
        read_examples(tmp_path)
    with pytest.raises(DataError, match="is empty"):
        read_examples(written(tmp_path / "empty.jsonl", "", "  "))
    latin = tmp_path / "latin.jsonl"
    latin.write_bytes(json.dumps(chat("1", "2")).encode() + b"\n\xe9")
    with pytest.raises(DataError, match="line 2: not UTF-8"):
        read_examples(latin)


def test_shipped_sets_have_three_parts() -> None:
    parts = [read_examples("cron", part) for part in ("train", "validation", "test")]
    assert len({hash_examples(part) for part in parts}) == 3
    assert read_examples("cron")[0].where == "cron train, example 1"


def test_values_that_json_does_not_know_have_a_hash() -> None:
    row = turns({**USER, "when": datetime.date(2024, 1, 1)}, ANSWER)
    other = turns({**USER, "when": datetime.date(2024, 1, 2)}, ANSWER)
    one, two = read_examples([row, other])
    assert one.hash != two.hash
    with pytest.raises(DataError, match="key that is no text"):
        read_examples([turns({**USER, 3: "x"}, ANSWER)])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["user", "assistant"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=3) | st.sampled_from(["role", "content", "messages", "type", "text", "tool_calls"]), inner, max_size=4)
    ),
    max_leaves=12,
)  # fmt: skip
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "tool"]) | JSON, "content": JSON | st.text(max_size=5)}
)
ROW = JSON | st.fixed_dictionaries({"messages": st.lists(MESSAGE | JSON, max_size=4)})


@given(rows=st.lists(ROW, max_size=4))
@settings(max_examples=150, deadline=None)
def test_random_structures_are_read_or_refused(rows: list[Any]) -> None:
    examples = []
    with suppress(ScumbleError):
        examples = read_examples(rows)
        assert len(examples) == len(rows)
    for example in examples:
        assert (example.text is None) == bool(example.messages)
        assert isinstance(example.expected if example.text is None else example.text, str)
        assert isinstance(example.question, str)
        assert 0 <= example.hash < 2**64


@given(
    data=st.binary(max_size=60)
    | st.lists(ROW, max_size=3).map(lambda rows: "\n".join(map(json.dumps, rows)).encode())
)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_random_files_are_read_or_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(data)
    with suppress(ScumbleError):
        read_examples(path)


NUMBERS = st.lists(st.integers(0, 300), max_size=40)
SHARE = st.floats(0.01, 0.99)


@given(numbers=NUMBERS, share=SHARE)
@settings(max_examples=100, deadline=None)
def test_a_split_is_disjoint_and_loses_nothing(numbers: list[int], share: float) -> None:
    examples = read_examples([chat(str(n), "a") for n in numbers]) if numbers else []
    kept, held = split_by_hash(examples, share)
    order = {id(example): index for index, example in enumerate(examples)}
    assert sorted([order[id(e)] for e in [*kept, *held]]) == list(range(len(examples)))
    assert not {e.question for e in kept} & {e.question for e in held}
    for part in (kept, held):
        assert [order[id(e)] for e in part] == sorted(order[id(e)] for e in part)
    if len(set(numbers)) > 1:
        assert kept
        assert held


@given(
    numbers=NUMBERS.filter(lambda found: len(set(found)) > 1),
    more=NUMBERS,
    share=st.floats(0.1, 0.6),
    at=st.integers(0, 40),
)
@settings(max_examples=100, deadline=None)
def test_adding_examples_moves_no_others(numbers: list[int], more: list[int], share: float, at: int) -> None:
    few = read_examples([chat(str(n), "a") for n in numbers])
    many = read_examples([chat(str(n), "a") for n in [*numbers[:at], *more, *numbers[at:]]])
    before = {e.question for e in split_by_hash(few, share)[1]}
    after = {e.question for e in split_by_hash(many, share)[1]}
    moved = {n for n in map(str, numbers) if (n in before) != (n in after)}
    # only where a part would have been empty was one example moved there, and may go back
    by_hash = {e.question for e in few if e.hash < share * 2**64}
    assert len(moved) <= (not by_hash or by_hash == {e.question for e in few})


def test_the_share_is_about_what_was_asked_for() -> None:
    kept, held = split_by_hash(read_examples(sums(2000)), 0.1)
    assert 150 < len(held) < 250  # 200 expected, standard deviation 13
    assert len(kept) + len(held) == 2000


def test_equal_examples_cannot_be_split() -> None:
    kept, held = split_by_hash(read_examples([chat("1", "one")] * 5), 0.5)
    assert len(kept) + len(held) == 5
    assert not kept or not held
