"""Pieces: a token as text that people can read, whatever kind of tokenizer wrote it.

Byte-level tokenizers write every byte as a letter (`Ġ` is a space), SentencePiece a space as `▁`: both are
turned back. A token that holds part of a character is shown as its bytes, `\\xf0\\x9f`. Knows a tokenizer, and
nothing of conversations.
"""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from scumble.errors import printable

_MARKS = {"\n": "↵\n", "\r": "␍", "\t": "→\t"}


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
        self._bytes = _is_byte_level(tokenizer)
        self._known: dict[int, str] = {}

    def special(self, number: int) -> bool:
        """Whether a token is one of the special or added ones, which no text is cut into by chance."""
        return number in self._special

    def text(self, number: int) -> str:
        """What a token stands for."""
        if number not in self._known:
            self._known[number] = self._text(number)
        return self._known[number]

    def _text(self, number: int) -> str:
        if number in self._special:
            return self._special[number]
        token = self._tokenizer.convert_ids_to_tokens(number)
        if token is None:
            return f"<no token {number}>"
        if not self._bytes:
            return str(token).replace("▁", " ")
        letters = _bytes_of_letters()
        if any(letter not in letters for letter in token):
            return str(token)
        held = bytes(letters[letter] for letter in token)
        try:
            return held.decode("utf-8")
        except UnicodeDecodeError:
            return "".join(chr(byte) if 32 <= byte < 127 else f"\\x{byte:02x}" for byte in held)


def visible(text: str) -> str:
    """A token's text with its line breaks and tabs marked, and what else is not printable escaped."""
    return "".join(_MARKS.get(c) or (c if c == " " else printable(c)) for c in text)


def _is_byte_level(tokenizer: Any) -> bool:
    """Whether the tokenizer's letters stand for bytes, as GPT-2's do; told by how it decodes."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or backend.decoder is None:
        return False
    decoder = json.loads(backend.decoder.__getstate__())
    return any(part.get("type") == "ByteLevel" for part in [decoder, *decoder.get("decoders", [])])


@cache
def _bytes_of_letters() -> dict[str, int]:
    """The byte that each letter stands for: GPT-2's table (openai/gpt-2, `encoder.py`, `bytes_to_unicode`)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(b): b for b in plain} | {chr(256 + i): b for i, b in enumerate(others)}
