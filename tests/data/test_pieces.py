"""Tokens as texts: nothing is lost, and characters that several tokens make up are whole."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from scumble.data.pieces import PART, Pieces, visible
from tests.bases import END, START, letters_tokenizer

TOKENIZER = letters_tokenizer()
# half surrogates cannot be tokenized
TEXTS = st.text(st.characters(exclude_categories=("Cs",)), max_size=40)


def ids(text: str) -> list[int]:
    return TOKENIZER(text, add_special_tokens=False)["input_ids"]


@given(TEXTS)
def test_the_texts_of_all_tokens_are_the_text(text: str) -> None:
    texts = Pieces(TOKENIZER).texts(ids(text))
    assert "".join(texts) == text
    assert len(texts) == len(ids(text))


def test_a_character_of_several_tokens_stands_at_the_last() -> None:
    assert Pieces(TOKENIZER).texts(ids("aé😀!")) == ["a", "", "é", "", "", "", "😀", "!"]


def test_bytes_that_are_no_character_are_written_as_bytes() -> None:
    broken = ids("é")[:1]
    end = TOKENIZER.convert_tokens_to_ids(END)
    assert Pieces(TOKENIZER).texts([*broken, end, *broken]) == ["\\xc3", END, "\\xc3"]
    assert Pieces(TOKENIZER).texts([*ids("é")[1:], *ids("x")]) == ["\\xa9", "x"]


def test_special_tokens_are_told() -> None:
    pieces = Pieces(TOKENIZER)
    assert pieces.special(TOKENIZER.convert_tokens_to_ids(START))
    assert not pieces.special(ids("a")[0])


def test_a_number_without_a_token_is_said_to_be_one() -> None:
    assert Pieces(TOKENIZER).texts([10**6]) == ["<no token 1000000>"]


def test_sentencepiece_spaces_and_bytes() -> None:
    vocabulary = ["<unk>", "▁hi", "<0xF0>", "<0x9F>", "<0x98>", "<0x80>", "▁", "h", "i"]
    words = Tokenizer(models.BPE({token: i for i, token in enumerate(vocabulary)}, [], byte_fallback=True))
    words.pre_tokenizer = pre_tokenizers.Metaspace()
    words.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    pieces = Pieces(PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>"))
    assert pieces.texts([1, 2, 3, 4, 5]) == [" hi", "", "", "", "😀"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a b", "a b"),
        ("\n", "↵\n"),
        ("\r\n", "␍↵\n"),
        ("\t", "→\t"),
        ("\x1b[31m", "\\x1b[31m"),
        ("\u202e", "\\u202e"),
        ("", PART),
    ],
)
def test_what_is_not_printable_is_seen(text: str, shown: str) -> None:
    assert visible(text) == shown
