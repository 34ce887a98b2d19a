"""The prompts that a certificate judges a merge on: a fixed list of plain ones in different forms, or token ids.

They need not be what the adapter was trained for: a merge has to agree with the unmerged model everywhere.
Knows text and a tokenizer, and nothing of models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

PROMPTS = (
    "Why is the sky blue in the day and red in the evening?",
    "def largest(numbers):\n    # return the largest number, or None for an empty list\n",
    "Every Tuesday and Friday at 6:45 in the morning",
    "Hello, my order #4821 arrived yesterday with a broken lid. Can you send a new one, or refund me? - Ana",
    "- milk\n- two onions\n- rice\n- ",
    "Schreibe in zwei Sätzen, was ein Leuchtturm tut.",
    "¿Cuál es la capital de Perú, y qué se come allí?",
    '{"name": "Ida", "age": 31, "city": "Oslo"} -> write this record as one English sentence.',
)
LONGEST = 128  # tokens of a prompt that are used
_ROWS, _LENGTH = 8, 24  # of made-up token ids
Form = Literal["chat template", "plain text", "token ids"]


@dataclass(frozen=True)
class EncodedPrompts:
    """Prompts as a model reads them.

    Attributes:
        form: how they became token ids.
        texts: the prompts; empty where token ids were made up.
        ids: for each prompt its token ids.
        shortened: how many were cut to the longest that is used.
    """

    form: Form
    texts: tuple[str, ...]
    ids: tuple[tuple[int, ...], ...]
    shortened: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Without the ids of texts, which the tokenizer gives again."""
        made_up = {"ids": [list(row) for row in self.ids]} if not self.texts else {}
        return {
            "form": self.form,
            "texts": list(self.texts),
            "tokens": sum(map(len, self.ids)),
            "shortened": self.shortened,
            **made_up,
        }


def encode_prompts(tokenizer: Any, texts: Sequence[str], longest: int = LONGEST) -> EncodedPrompts:
    """Prompts as token ids, through the tokenizer's chat template where it has one.

    Args:
        tokenizer: of the base.
        texts: the prompts; those that give no token at all are left out.
        longest: tokens of a prompt that are used, from its start.
    """
    form: Form = "chat template" if getattr(tokenizer, "chat_template", None) else "plain text"
    kept, rows, shortened = [], [], 0
    for text in texts:
        ids = _encode(tokenizer, text, form)
        if ids:
            kept.append(text)
            rows.append(tuple(ids[:longest]))
            shortened += len(ids) > longest
    return EncodedPrompts(form, tuple(kept), tuple(rows), shortened)


def made_up_ids(vocabulary: int, longest: int = LONGEST) -> EncodedPrompts:
    """Fixed token ids for a base without a tokenizer: the n-th is a hash of n, within the vocabulary."""
    length = min(_LENGTH, longest)
    rows = tuple(
        tuple(_mixed(row * _LENGTH + column) % vocabulary for column in range(length)) for row in range(_ROWS)
    )
    return EncodedPrompts("token ids", (), rows)


def _encode(tokenizer: Any, text: str, form: Form) -> list[int]:
    if form == "chat template":
        turn = [{"role": "user", "content": text}]
        made = tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_dict=True)
        return [int(token) for token in made["input_ids"]]
    return [int(token) for token in tokenizer(text)["input_ids"]]


def _mixed(number: int) -> int:
    """SplitMix64's finaliser (Steele, Lea and Flood 2014): a counter's bits, well mixed."""
    mask = 2**64 - 1
    number = (number + 1) * 0x9E3779B97F4A7C15 & mask
    number = (number ^ number >> 30) * 0xBF58476D1CE4E5B9 & mask
    number = (number ^ number >> 27) * 0x94D049BB133111EB & mask
    return number ^ number >> 31
