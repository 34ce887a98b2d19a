"""Tokens that are kept are those that would be made, and are made again where anything differs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from scumble.data import token_cache
from scumble.data.encoding import Encoded, encode_each
from scumble.data.example import Example
from scumble.data.examples import read_examples
from scumble.data.templates import Template
from scumble.data.token_cache import encode_once
from scumble.errors import DataError
from tests.bases import CHATML, letters_tokenizer, sums

CHANGED = CHATML.replace("<|im_start|>assistant\n", "<|im_start|>assistant\n<think>\n")


@pytest.fixture(autouse=True)
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_cache, "TOGETHER", 10)


def made(monkeypatch: pytest.MonkeyPatch, *given: Any, **options: Any) -> tuple[list[Encoded], int]:
    """What comes of it, and how many examples were tokenized for it."""
    counted = 0

    def counting(examples: Any, *more: Any, **others: Any) -> Any:
        nonlocal counted
        counted += len(examples)
        return encode_each(examples, *more, **others)

    monkeypatch.setattr(token_cache, "encode_each", counting)
    return list(encode_once(*given, **options)), counted


def test_the_second_time_nothing_is_tokenized(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    examples, tokenizer = read_examples(sums(25)), letters_tokenizer(CHANGED)
    plain = list(encode_each(examples, tokenizer))
    assert all(encoded.notes for encoded in plain)
    assert made(monkeypatch, examples, tokenizer, tmp_path) == (plain, 25)
    assert made(monkeypatch, iter(examples), letters_tokenizer(CHANGED), tmp_path) == (plain, 0)
    # more at the end: the whole groups before it stay
    longer = read_examples(sums(32))
    assert made(monkeypatch, longer, tokenizer, tmp_path) == (list(encode_each(longer, tokenizer)), 12)


def test_all_that_decides_tokens_is_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    examples, tokenizer = read_examples(sums(10)), letters_tokenizer()
    assert made(monkeypatch, examples, tokenizer, tmp_path)[1] == 10
    assert made(monkeypatch, examples[::-1], tokenizer, tmp_path)[1] == 10
    assert made(monkeypatch, examples, letters_tokenizer(CHANGED), tmp_path)[1] == 10
    named = Template(CHANGED + " ", "here", tokenizer)
    assert made(monkeypatch, examples, tokenizer, tmp_path, template=named)[1] == 10
    assert made(monkeypatch, examples, tokenizer, tmp_path, train_on="last")[1] == 10
    other = letters_tokenizer()
    other.add_tokens(["and"])
    assert made(monkeypatch, examples, other, tmp_path)[1] == 10
    assert made(monkeypatch, examples, tokenizer, tmp_path)[1] == 0


@pytest.mark.parametrize("damage", [b"", b"\x00" * 40, None])
def test_what_is_damaged_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: bytes | None
) -> None:
    examples, tokenizer = read_examples(sums(10)), letters_tokenizer()
    plain, _ = made(monkeypatch, examples, tokenizer, tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-20] if damage is None else damage)
    assert made(monkeypatch, examples, tokenizer, tmp_path) == (plain, 10)
    assert made(monkeypatch, examples, tokenizer, tmp_path) == (plain, 0)


def test_errors_are_found_every_time(tmp_path: Path) -> None:
    bad = Example(({"role": "assistant", "content": "I begin"},), "there")
    examples, tokenizer = [*read_examples(sums(12)), bad], letters_tokenizer()
    for _ in range(2):
        errors: list[DataError] = []
        found = list(encode_once(examples, tokenizer, tmp_path, on_error=errors.append))
        assert [each.number for each in found] == list(range(12))
        assert [str(error)[:5] for error in errors] == ["there"]
        with pytest.raises(DataError, match="there"):
            list(encode_once(examples, tokenizer, tmp_path))
    assert len(list(tmp_path.iterdir())) == 1
