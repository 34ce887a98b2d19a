"""Every format gives the conversation that it means, and what is malformed is named with its place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from scumble.data.examples import hash_examples, iter_examples, read_examples
from scumble.data.formats import FORMATS, KEYS, format_of, recognise, to_example
from scumble.errors import DataError, NotSupportedError
from tests.bases import chat

USER, ANSWER = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}
SYSTEM = {"role": "system", "content": "be brief"}
WEATHER = {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}
CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Bern"}}}
RESULT = {"role": "tool", "content": "12 degrees", "tool_call_id": "c1"}

ROWS: dict[str, dict[str, Any]] = {
    "chat": {"messages": [SYSTEM, USER, ANSWER]},
    "prompt_completion": {"prompt": "hi", "completion": "yes", "system": "be brief"},
    "alpaca": {"instruction": "hi", "input": "", "output": "yes", "system": "be brief"},
    "sharegpt": {"conversations": [{"from": "system", "value": "be brief"}, {"from": "human", "value": "hi"}, {"from": "gpt", "value": "yes"}]},
}  # fmt: skip


def messages(row: Any, format: str | None = None) -> list[dict[str, Any]]:
    return list(to_example(row, format, "here").messages)


@pytest.mark.parametrize("name", ROWS)
def test_every_format_gives_the_same_conversation_and_hash(name: str) -> None:
    found = to_example(ROWS[name], None, "here", 3)
    assert found.messages == (SYSTEM, USER, ANSWER)
    assert (found.format, found.where, found.number, found.text, found.tools) == (name, "here", 3, None, None)
    assert found.hash == to_example(ROWS["chat"], "chat", "elsewhere").hash
    assert to_example(ROWS[name], name, "here", 3) == found


def test_a_plain_text_has_no_turns() -> None:
    found = to_example({"text": "once"}, None, "here")
    assert (found.text, found.messages, found.format, found.question) == ("once", (), "text", "")
    assert found.hash != to_example({"text": "twice"}, None, "here").hash
    for attribute in ("expected", "prompt"):
        with pytest.raises(DataError, match="here: a plain text has no question"):
            getattr(found, attribute)
    assert to_example("once", "text", "here") == found
    with pytest.raises(DataError, match="here: a bare text"):
        to_example("once", None, "here")


def test_alpaca_puts_the_input_below_the_instruction_and_history_before_it() -> None:
    row = {"instruction": "add", "input": "1 2", "output": "3", "history": [["add 0", "0"]]}
    assert [m["content"] for m in messages(row)] == ["add 0", "0", "add\n1 2", "3"]
    assert [m["role"] for m in messages(row)] == ["user", "assistant"] * 2
    assert messages({"instruction": "a", "output": "b"}) == messages(
        {"instruction": "a", "input": None, "output": "b"}
    )


def test_prompt_and_completion_may_be_messages() -> None:
    assert messages({"prompt": [SYSTEM, USER], "completion": [ANSWER]}) == [SYSTEM, USER, ANSWER]
    assert messages({"prompt": [SYSTEM, USER], "completion": "yes"}) == [SYSTEM, USER, ANSWER]


def test_sharegpt_speakers_calls_and_weights() -> None:
    turns = [
        {"from": "human", "value": "hi"},
        {"from": "function_call", "value": json.dumps({"name": "weather", "arguments": {"city": "Bern"}})},
        {"from": "observation", "value": "12 degrees"},
        {"from": "gpt", "value": "yes", "weight": 0},
    ]
    found = to_example({"conversations": turns, "tools": json.dumps([WEATHER])}, None, "here")
    assert [m["role"] for m in found.messages] == ["user", "assistant", "tool", "assistant"]
    assert found.messages[1]["tool_calls"] == [
        {"type": "function", "function": {"name": "weather", "arguments": {"city": "Bern"}}}
    ]
    assert found.messages[3]["weight"] == 0
    assert found.tools == ({"type": "function", "function": WEATHER},)
    dumped = {"from": "gpt", "value": "yes", "markdown": None, "id": 3}
    assert messages({"conversations": [USER, dumped]}) == [USER, ANSWER]
    assert messages({"conversations": [USER, ANSWER]}) == [USER, ANSWER]  # `role` and `content` are taken too


def test_tools_and_calls_have_one_form() -> None:
    texts = {**CALL, "function": {**CALL["function"], "arguments": '{"city": "Bern"}'}}
    row = {
        "messages": [USER, {"role": "assistant", "content": None, "tool_calls": [texts]}, RESULT, ANSWER],
        "tools": [{"type": "function", "function": WEATHER}],
    }
    objects = {**row, "messages": [USER, {"role": "assistant", "tool_calls": [CALL]}, RESULT, ANSWER]}
    one, other = to_example(row, None, "here"), to_example({**objects, "tools": [WEATHER]}, None, "here")
    assert one == other
    assert one.messages[1] == {"role": "assistant", "content": "", "tool_calls": [CALL]}
    # tools are a part of what the model is shown, so they count
    assert one.hash != to_example({"messages": objects["messages"]}, None, "here").hash
    for none in ([], None, "", "[]"):
        assert to_example({"messages": [USER, ANSWER], "tools": none}, None, "here").tools is None


def test_messages_keep_what_the_issue_names() -> None:
    told = {**ANSWER, "weight": 1, "name": "ada", "reasoning_content": "hm"}
    assert messages({"messages": [USER, told, {**ANSWER, "weight": 0.0}]})[1:] == [
        told,
        {**ANSWER, "weight": 0},
    ]


@pytest.mark.parametrize(
    ("row", "kind", "said"),
    [
        ({"messages": [USER, {**ANSWER, "weight": 0.5}]}, "malformed", "message 2: `weight` is 0.5"),
        ({"messages": [USER, {**ANSWER, "weight": "1"}]}, "malformed", "message 2: `weight` is '1'"),
        ({"messages": [USER, {**ANSWER, "name": 3}]}, "malformed", "message 2: `name` is 3, not text"),
        ({"messages": [USER, {**ANSWER, "tool_calls": {}}]}, "malformed", "`tool_calls` is a dict"),
        ({"messages": [USER, {**ANSWER, "tool_calls": [{}]}]}, "malformed", "call 1 of `tool_calls` names no function"),
        ({"messages": [USER, {**ANSWER, "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}]}, "malformed", "is not JSON"),
        ({"messages": [USER, {**ANSWER, "tool_calls": [{"function": {"name": "f", "arguments": "[]"}}]}]}, "malformed", "is no object"),
        ({"messages": [USER, {**ANSWER, "x": [[["\ud800"]]]}]}, "malformed", "half a surrogate pair"),
        ({"messages": [USER, {**ANSWER, "x": {1: 2}}]}, "malformed", "a key that is no text"),
        ({"messages": [USER, {**ANSWER, "function_call": {"name": "f"}}]}, "malformed", "message 2: `function_call` is the old form"),
        ({"messages": [USER, ANSWER], "functions": [WEATHER]}, "malformed", "`functions` is the old form"),
        ({"system": "s", "conversations": [{"from": "human", "value": "a"}, {"from": "function_call", "value": "3"}]}, "malformed", "message 2: call 1"),
        ({"messages": [USER]}, "no_assistant_turn", "here: no assistant's turn"),
        ({"messages": [{"role": "robot", "content": "a"}]}, "unknown_role", "message 1: unknown role 'robot'"),
        ({"messages": [{"role": "user", "content": None}, ANSWER]}, "null_content", "message 1: `content` is NoneType"),
        ({"messages": [{"role": "user", "tool_calls": [CALL]}, ANSWER]}, "null_content", "message 1"),
        ({"messages": [{"role": "user", "content": ""}, ANSWER], "tools": [{}]}, "malformed", "tool 1 is no definition"),
        ({"messages": [USER, ANSWER], "tools": "{"}, "malformed", "`tools` is not JSON"),
        ({"messages": [USER, ANSWER], "tools": {"a": 1}}, "malformed", "`tools` is not a list"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "unsupported", "message 1: a content part"),
        ({"chosen": [], "rejected": []}, "unsupported", "preference pairs"),
        ({"prompt": "a", "completion": "b", "label": False}, "unsupported", "is a preference"),
        ({"conversations": [{"from": "alien", "value": "x"}]}, "unknown_role", "message 1: unknown role 'alien'"),
        ({"conversations": [{"from": "human", "value": None}]}, "null_content", "message 1"),
        ({"conversations": ["x"]}, "malformed", "message 1: not an object"),
        ({"conversations": [{"from": "function_call", "value": "{"}]}, "malformed", "the call is not JSON"),
        ({"conversations": [{"from": "function_call", "value": "3"}]}, "malformed", "names no function"),
        ({"prompt": "a", "completion": None}, "null_content", "message 2"),
        ({"prompt": 3, "completion": "b"}, "malformed", "message 1: `content` is int"),
        ({"instruction": "a", "output": None}, "null_content", "`output` is None"),
        ({"instruction": "a", "output": "b", "input": 3}, "malformed", "`input` is 3"),
        ({"instruction": "a", "output": "b", "history": [["a"]]}, "malformed", "no pair"),
        ({"text": None}, "malformed", "`text` is None"),
        ({"text": "\ud800"}, "malformed", "`text` has half a surrogate pair at character 1"),
        ({"question": "a"}, "malformed", "no `messages`; it has question"),
        (3, "malformed", "no `messages`"),
    ],
)  # fmt: skip
def test_what_is_malformed_has_its_place_its_kind_and_a_hint(row: Any, kind: str, said: str) -> None:
    with pytest.raises(DataError) as caught:
        to_example(row, None, "here, line 3", 3)
    assert said.removeprefix("here") in caught.value.message
    assert caught.value.message.startswith("here, line 3")
    assert (caught.value.kind, caught.value.line, bool(caught.value.hint)) == (kind, 3, True)
    assert isinstance(caught.value, NotSupportedError) == (kind == "unsupported")


def test_nesting_is_bounded_and_what_holds_itself_is_refused() -> None:
    deep: Any = {}
    for _ in range(500):
        deep = {"a": deep}
    itself: dict[str, Any] = {}
    itself["a"] = itself
    for value in (deep, itself):
        for row in (
            {"messages": [{**USER, "x": value}, ANSWER]},
            {"messages": [USER, ANSWER], "tools": [{**WEATHER, "x": value}]},
        ):
            with pytest.raises(DataError, match="nested deeper than 64 levels"):
                to_example(row, None, "here")


def test_a_format_that_is_named_is_held_to() -> None:
    with pytest.raises(DataError, match="here: no `conversations`; it has messages"):
        to_example(ROWS["chat"], "sharegpt", "here")
    with pytest.raises(DataError, match="no format 'chatml'"):
        to_example(ROWS["chat"], "chatml", "here")
    filled = {"messages": None, "prompt": None, "completion": None, "text": "x"}
    assert to_example(filled, None, "here").format == "text"
    both = {"messages": [USER, ANSWER], "text": "x"}
    assert to_example(both, "text", "here").text == "x"
    assert to_example(both, None, "here").format == "chat"


def test_the_format_is_recognised_and_the_reason_said() -> None:
    assert recognise([ROWS["alpaca"]]) == ("alpaca", "the first row has `instruction` and `output`")
    rows = [ROWS["chat"], ROWS["sharegpt"], ROWS["sharegpt"]]
    assert recognise(iter(rows)) == ("sharegpt", "2 of the first 3 rows have `conversations`")
    with pytest.raises(DataError, match="no format is recognised; it has a"):
        recognise([{"a": 1}])
    with pytest.raises(DataError, match="no format is recognised"):
        recognise([])
    assert {format_of(row) for row in ROWS.values()} | {"text"} == set(FORMATS) == set(KEYS)


def test_a_mixed_file_is_read_by_line_and_errors_are_collected(tmp_path: Path) -> None:
    path = tmp_path / "mixed.jsonl"
    lines = [
        json.dumps(ROWS["chat"]),
        "{",
        json.dumps(ROWS["alpaca"]),
        '{"text": "x"}',
        '{"messages": []}',
    ]
    path.write_bytes("\n".join(lines).encode() + b"\n\xff\n")
    errors: list[DataError] = []
    found = list(iter_examples(path, on_error=errors.append))
    assert [(e.number, e.format) for e in found] == [(1, "chat"), (3, "alpaca"), (4, "text")]
    assert [(e.line, e.kind) for e in errors] == [(2, "unreadable"), (5, "malformed"), (6, "unreadable")]
    with pytest.raises(DataError, match="line 2"):
        read_examples(path)
    errors.clear()
    assert [e.number for e in iter_examples(path, format="chat", on_error=errors.append)] == [1]
    assert [e.line for e in errors] == [2, 3, 4, 5, 6]


def test_examples_are_sources_themselves() -> None:
    rows = [{**ROWS["chat"], "tools": [WEATHER]}, {"text": "once"}, ROWS["alpaca"], chat("1", "2")]
    found = read_examples(rows)
    again = read_examples(found)
    assert again == found
    assert hash_examples(again) == hash_examples(found)


def test_the_docs_name_every_format_with_its_keys() -> None:
    text = (Path(__file__).parents[2] / "docs" / "data.md").read_text("utf-8")
    for name, keys in KEYS.items():
        (row,) = (line for line in text.split("\n") if line.startswith(f"| `{name}`"))
        assert all(f"`{key}`" in row for key in keys)
