"""What every system of `scumble bench train` is given: one `TrainJob`, the same for all, as a file that each reads.

The examples of one optimizer step stand in it as tokens and as chats: a library that is handed tokens trains on just
those that Scumble makes of the chats. Knows nothing of the systems.
"""

from __future__ import annotations

import json
import random
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from scumble.data.encoding import Encoded
from scumble.data.packing import shared_tree


@dataclass(frozen=True)
class TrainJob:
    """One training, to be done by every system.

    Attributes:
        base: what `load_base` takes, None for the default.
        start: folder of the adapter that all begin with.
        chats: the examples of an optimizer step, as `scumble.train` reads them.
        ids: token ids of each example of an optimizer step.
        labels: the token id where it has a loss, else -100.
        steps: optimizer steps in a round; each sees all examples.
        batch: examples in a micro-batch of Scumble; the others have their own.
        learning_rate: the same in all steps.
        rank, alpha, dropout: of the adapter, on q, k, v and o.
        seed: of the adapter, of the order within a step, and of dropout.
    """

    base: str | None
    start: str
    chats: tuple[Any, ...]
    ids: tuple[tuple[int, ...], ...]
    labels: tuple[tuple[int, ...], ...]
    steps: int
    batch: int = 4
    learning_rate: float = 2e-4
    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.05
    seed: int = 0

    @property
    def tokens(self) -> int:
        """Tokens of an optimizer step: those of every example in full, padding never."""
        return sum(len(each) for each in self.ids)

    @property
    def targets(self) -> int:
        """Tokens of an optimizer step that have a loss."""
        return sum(label != -100 for each in self.labels for label in each[1:])

    @property
    def distinct(self) -> int:
        """Tokens of an optimizer step with the prefixes that examples share counted once."""
        examples = [
            Encoded(ids, tuple(label != -100 for label in labels), number, "")
            for number, (ids, labels) in enumerate(zip(self.ids, self.labels, strict=True))
        ]
        return shared_tree(examples, least=1).tokens

    def order(self, step: int, *, by_length: bool = False) -> list[int]:
        """The order of the examples within a step: at random by the seed, or the shortest first.

        Which it is changes which of them share a micro-batch, and so the padding; the step's mean loss and its
        gradient stay what they are.
        """
        numbers = list(range(len(self.ids)))
        if by_length:
            return sorted(numbers, key=lambda number: len(self.ids[number]))
        random.Random(self.seed * 1_000_003 + step).shuffle(numbers)
        return numbers

    def part(self, numbers: list[int]) -> TrainJob:
        """The same with some of the examples, and one step, to try something out."""
        chats, ids, labels = (
            tuple(rows[number] for number in numbers) for rows in (self.chats, self.ids, self.labels)
        )
        return replace(self, chats=chats, ids=ids, labels=labels, steps=1)

    def halved(self) -> TrainJob:
        """Every second example by length, the longest among them, to try layouts on."""
        return self.part(self.order(0, by_length=True)[1::2])

    def one_step(self) -> TrainJob:
        """All the examples once, to warm up with."""
        return self.part(list(range(len(self.ids))))

    def write(self, file: Path) -> Path:
        """Write it for another process."""
        file.write_text(json.dumps(asdict(self)), encoding="utf-8")
        return file

    @classmethod
    def read(cls, file: Path) -> TrainJob:
        """Read what `write` wrote."""
        held: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        for name in ("ids", "labels"):
            held[name] = tuple(tuple(each) for each in held[name])
        return cls(**{**held, "chats": tuple(held["chats"])})
