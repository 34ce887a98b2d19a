"""Values of JSON: what `json.loads` reads, but for what is nested so deeply that the stack would decide."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scumble.data.examples import read_examples
from scumble.data.json_values import DEEPEST, loads
from scumble.errors import DataError

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(alphabet='[]{}"\\ab\n'),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(alphabet='[{"\\'), inner),
)


def told(call: Callable[[str], Any], text: str) -> str:
    """What is read, or why nothing is."""
    try:
        return repr(call(text))
    except ValueError as error:
        return f"{type(error).__name__}: {error}"


def deeper(frames: int, call: Callable[[], str]) -> str:
    """What a call says with so many frames more on the stack."""
    return deeper(frames - 1, call) if frames else call()


@given(value=VALUES, cut=st.integers(0, 60), more=st.sampled_from(["", " ", "x", "]", "\n{}"]))
def test_the_same_as_the_standard_library(value: Any, cut: int, more: str) -> None:
    whole = json.dumps(value)
    for text in (whole, f" {whole}{more}", whole[:cut]):
        assert told(loads, text) == told(json.loads, text)


def levels_of(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inner is None else 1 + max(map(levels_of, inner), default=0)


@given(value=VALUES, around=st.integers(DEEPEST - 6, DEEPEST + 1))
def test_levels_are_counted_as_they_are(value: Any, around: int) -> None:
    inner = json.dumps([value, *['[{"' * 3] * 40])  # in a string they are none
    found = told(loads, "[" * around + inner + "]" * around)
    assert ("nested deeper" in found) == (around + 1 + levels_of(value) > DEEPEST)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 5000 + "]" * 5000,
        "[" * 600 + "]" * 600,
        "[" * 600 + "oops" + "]" * 600,
        '{"a":' * 300 + "1" + "}" * 300,
        "[" * 90 + "oops",
        "[" * 90 + "]" * 90,
    ],
    ids=["5000", "600", "600 and wrong", "300 objects", "90 and wrong", "90"],
)
def test_how_deep_the_stack_is_already_decides_nothing(text: str, tmp_path: Path) -> None:
    assert len({deeper(frames, lambda: told(loads, text)) for frames in (0, 200, 400)}) == 1
    for name in ("data.jsonl", "data.json"):
        path = tmp_path / name
        path.write_text(text)
        assert len({deeper(frames, lambda path=path: refusal(path)) for frames in (0, 200, 400)}) == 1


def refusal(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        read_examples(path)
    return str(caught.value)
