"""What `convert` writes gives the same examples when it is read, and nothing is left half written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import scumble.data
from scumble.data.converting import convert
from scumble.data.examples import hash_examples, read_examples
from scumble.errors import ConfigError, DataError, OutputExistsError
from tests.bases import chat
from tests.data.test_formats import ANSWER, CALL, RESULT, ROWS, USER, WEATHER


def test_every_format_becomes_chat_and_reads_back_the_same(tmp_path: Path) -> None:
    call = {
        "role": "assistant",
        "content": None,
        "tool_calls": [CALL],
        "weight": 0,
        "reasoning_content": "\u2028é",
    }
    rows = [*ROWS.values(), {"messages": [USER, call, RESULT, ANSWER], "tools": [WEATHER]}]
    out = tmp_path / "deep" / "out.jsonl"
    found = convert(rows, out)
    assert found.to_dict() == {
        "out": str(out),
        "examples": 5,
        "formats": {"chat": 2, "prompt_completion": 1, "alpaca": 1, "sharegpt": 1},
    }
    again = read_examples(out)
    assert [(e.messages, e.tools) for e in again] == [(e.messages, e.tools) for e in read_examples(rows)]
    assert hash_examples(again) == hash_examples(read_examples(rows))
    written = [json.loads(line) for line in out.read_text("utf-8").split("\n")[:-1]]
    assert written[-1]["messages"][1]["tool_calls"][0]["function"]["arguments"] == '{"city": "Bern"}'
    assert written[-1]["messages"][1]["content"] is None
    assert set(written[0]) == {"messages"}
    assert scumble.data.convert is convert


def test_a_part_and_a_format_can_be_named(tmp_path: Path) -> None:
    assert convert("cron", tmp_path / "out.jsonl", part="validation").examples == len(
        read_examples("cron", "validation")
    )
    with pytest.raises(DataError, match="example 1: no `conversations`"):
        convert([chat("1", "2")], tmp_path / "no.jsonl", format="sharegpt")
    assert not (tmp_path / "no.jsonl").exists()


def test_nothing_is_overwritten_or_half_written(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    convert([chat("1", "2")], out)
    before = out.read_bytes()
    with pytest.raises(OutputExistsError, match="exists already"):
        convert([chat("3", "4")], out)
    with pytest.raises(DataError, match="example 2: no assistant's turn"):
        convert([chat("3", "4"), {"messages": [USER]}], out, force=True)
    with pytest.raises(OutputExistsError, match="which is read, and is not replaced"):
        convert(out, out, force=True)
    assert out.read_bytes() == before
    assert convert([chat("3", "4"), chat("5", "6")], out, force=True).examples == 2
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl"]


def test_what_cannot_be_written_as_chat_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="example 2: a plain text has no turns") as caught:
        convert([chat("1", "2"), {"text": "once"}], tmp_path / "out.jsonl")
    assert caught.value.line == 2
    with pytest.raises(ConfigError, match="under the name of a table"):
        convert([chat("1", "2")], tmp_path / "out.csv")
    with pytest.raises(DataError, match="holds no examples"):
        convert([], tmp_path / "out.jsonl")
    assert not list(tmp_path.iterdir())
