"""Pieces: tokens as texts that people can read, whatever kind of tokenizer wrote them.

Byte-level tokenizers write every byte as a letter (`Ġ` is a space), SentencePiece a space as `▁` and a byte as
`<0x0A>`: all are turned back. Of a character that several tokens make up, the last has it and the others are
empty. Knows a tokenizer, and nothing of conversations.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from functools import cache
from typing import Any

from scumble.errors import printable

PART = "·"  # stands for a token that holds part of a character
_MARKS = {"\n": "↵\n", "\r": "␍", "\t": "→\t"}
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Pieces:
    """The texts of a tokenizer's tokens.

    Args:
        tokenizer: a fast tokenizer of transformers.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        added = {int(number): str(token) for number, token in tokenizer.added_tokens_decoder.items()}
        named = {int(number): tokenizer.convert_ids_to_tokens(number) for number in tokenizer.all_special_ids}
        self._special: dict[int, str] = {**named, **added}
        self._steps = _decoder_steps(tokenizer)
        self._known: dict[int, bytes] = {}

    def special(self, number: int) -> bool:
        """Whether a token is one of the special or added ones, which no text is cut into by chance."""
        return number in self._special

    def texts(self, numbers: Iterable[int]) -> list[str]:
        """What each token of a text stands for; bytes that make up no character are written `\\xf0`."""
        texts: list[str] = []
        open_ = b""  # the beginning of a character
        for number in numbers:
            if number in self._special:
                if open_:
                    texts[-1] += open_.decode("utf-8", "backslashreplace")
                open_ = b""
                texts.append(self._special[number])
                continue
            held = open_ + self._bytes(number)
            open_ = _unfinished(held)
            texts.append(held[: len(held) - len(open_)].decode("utf-8", "backslashreplace"))
        if open_:
            texts[-1] += open_.decode("utf-8", "backslashreplace")
        return texts

    def _bytes(self, number: int) -> bytes:
        if number not in self._known:
            self._known[number] = self._as_bytes(number)
        return self._known[number]

    def _as_bytes(self, number: int) -> bytes:
        token = self._tokenizer.convert_ids_to_tokens(number)
        if token is None:
            return f"<no token {number}>".encode()
        if "ByteLevel" in self._steps:
            letters = _bytes_of_letters()
            if all(letter in letters for letter in token):
                return bytes(letters[letter] for letter in token)
        elif "ByteFallback" in self._steps and (found := _BYTE.fullmatch(token)):
            return bytes([int(found[1], 16)])
        return str(token).replace("▁", " ").encode("utf-8", "backslashreplace")


def visible(text: str) -> str:
    """A token's text with its line breaks and tabs marked, and what else is not printable escaped."""
    return "".join(_MARKS.get(c) or (c if c == " " else printable(c)) for c in text) or PART


def _unfinished(held: bytes) -> bytes:
    """The end of some bytes, where it is the beginning of a character whose other bytes may follow."""
    for back in range(1, min(3, len(held)) + 1):
        first = held[-back]
        if first & 0b1100_0000 != 0b1000_0000:  # no continuation
            length = 4 if first >= 0xF0 else 3 if first >= 0xE0 else 2 if first >= 0xC0 else 1
            return held[-back:] if back < length else b""
    return b""


def _decoder_steps(tokenizer: Any) -> set[str]:
    """The kinds of steps by which the tokenizer decodes, which say what its tokens' letters stand for."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or backend.decoder is None:
        return set()
    decoder = json.loads(backend.decoder.__getstate__())
    return {str(step.get("type")) for step in [decoder, *decoder.get("decoders", [])]}


@cache
def _bytes_of_letters() -> dict[str, int]:
    """The byte that each letter stands for: GPT-2's table (openai/gpt-2, `encoder.py`, `bytes_to_unicode`)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(b): b for b in plain} | {chr(256 + i): b for i, b in enumerate(others)}
