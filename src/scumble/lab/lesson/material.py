"""What the lesson's runs learn from and are asked: parts of a shipped set, larger than it comes where that is needed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from scumble.data.encoding import Encoded, encode_all
from scumble.data.example import Example
from scumble.data.examples import read_examples
from scumble.data.shipped import SHIPPED
from scumble.errors import DataError
from scumble.lab.lesson.plan import Configuration, Scope
from scumble.models.base import Base

DATA = "cron"
LONGEST = 2048  # tokens, far more than any example has


@dataclass(frozen=True)
class Material:
    """Examples.

    Attributes:
        all, few: what is trained on, as chats: each example seen once, or a few of them seen often.
        all_encoded, few_encoded: the same as tokens.
        validation: what rates are chosen by, as tokens.
        test: what is scored, as tokens; no run and no choice saw any of it.
        asked: the same to be answered by generation.
    """

    all: list[dict[str, Any]]
    few: list[dict[str, Any]]
    all_encoded: list[Encoded]
    few_encoded: list[Encoded]
    validation: list[Encoded]
    test: list[Encoded]
    asked: list[Example]

    @classmethod
    def of(cls, base: Base, scope: Scope) -> Material:
        """Make it.

        Raises:
            DataError: the base has no tokenizer, or a part has fewer examples than are asked for.
        """
        if base.tokenizer is None:
            raise DataError(f"the base {base.name} has no tokenizer", "the lesson needs one")
        generate = SHIPPED[DATA].generate
        rows = [dict(row) for row in generate("train", scope.examples)]
        small = rows[: scope.few]
        validation = [dict(row) for row in generate("validation", scope.validated)]
        test = [dict(row) for row in generate("test", scope.scored)]

        def encoded(given: list[dict[str, Any]]) -> list[Encoded]:
            return encode_all(read_examples(given), base.tokenizer, LONGEST).examples

        return cls(
            rows,
            small,
            encoded(rows),
            encoded(small),
            encoded(validation),
            encoded(test),
            read_examples(test),
        )

    @property
    def tokens(self) -> float:
        """Of a training example, on average."""
        return sum(len(each.ids) for each in self.all_encoded) / len(self.all_encoded)

    def seen_by(self, way: Configuration) -> list[dict[str, Any]]:
        """What a way to train learns from; the same list each time, so that it is read once for all."""
        return self.few if way.data == "few" else self.all
