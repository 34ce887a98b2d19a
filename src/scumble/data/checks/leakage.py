"""Checks of training and validation together: the same example in both, or nearly the same.

Near-duplicates are found by MinHash (Broder 1997) with banded look-up, from the library datasketch: the
smaller part is indexed, the larger one only looked up. Two examples are near where their sets of three
neighbouring words (what users and assistants say, without the system message) have a Jaccard similarity
|a & b| / |a | b| of about 0.8 or more. Knows nothing of tokens.
"""

from __future__ import annotations

import importlib.util
import re
from array import array
from collections.abc import Iterator
from typing import Any

import numpy as np
import xxhash

from scumble.data.checks.check import CHECKS, Source, known
from scumble.data.checks.finding import Finding
from scumble.data.example import Example

NEAR = 0.8
# 64 hashes in 8 bands of 8: a pair of similarity 0.8 is found with probability 0.77, one of 0.9 with 0.99
HASHES, BANDS = 64, 8
WORDS = 3
# letters and digits in a row, a character of a script without spaces, or a sign
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\u0e00-\u0e7f]|[^\W_]+|[^\w\s]")

known(
    "in_both_parts",
    "warning",
    "validation examples that are also trained on",
    "The validation loss says how well they were remembered, and the best checkpoint is chosen by it.",
    "remove them from one of the two; `scumble data split` keeps equal examples together",
)
known(
    "near_duplicates",
    "warning",
    "validation examples nearly the same as one that is trained on",
    "The validation loss is too good: most of the answer was seen in training.",
    "split by what they have in common (`scumble data split --group`), or remove them from one of the two",
)
known(
    "near_duplicates_not_looked_for",
    "warning",
    "near-duplicates between training and validation were not looked for",
    "A validation example may be nearly the same as one that is trained on, and nobody would know.",
    "install what is missing with `pip install datasketch`",
)


def can_look() -> bool:
    """Whether the library for near-duplicates is installed."""
    return importlib.util.find_spec("datasketch") is not None


def said(example: Example) -> str:
    """What users and assistants say: a system message that all share would make all alike."""
    if example.text is not None:
        return example.text
    return "\n".join(
        str(message.get("content") or "")
        for message in example.messages
        if message["role"] not in ("system", "developer")
    )


def shingles(text: str) -> list[bytes]:
    """Each WORDS neighbouring words of a text, once; all words where it has fewer."""
    words = _WORD.findall(text.lower())
    last = max(1, len(words) - WORDS + 1)
    return [each.encode() for each in {" ".join(words[i : i + WORDS]) for i in range(last)}]


class NearIndex:
    """Examples that can be looked up by what they nearly are; 64 hashes and 8 keys of each are kept."""

    def __init__(self) -> None:
        from datasketch import MinHash, MinHashLSH

        self._made = MinHash(HASHES, hashfunc=xxhash.xxh3_64_intdigest, scheme="affine64")
        self._index = MinHashLSH(
            num_perm=HASHES, params=(BANDS, HASHES // BANDS), hashfunc=xxhash.xxh3_64_digest
        )
        self._hashes: list[Any] = []

    def __len__(self) -> int:
        return len(self._hashes)

    def add(self, example: Example) -> None:
        """Index an example under its number, from 0 in the order of adding."""
        made = self._minhash(example)
        self._index.insert(len(self._hashes), made, check_duplication=False)
        self._hashes.append(made.hashvalues)

    def near(self, example: Example) -> list[int]:
        """The numbers of the examples that are near to this one, in order."""
        made = self._minhash(example)
        found = sorted(self._index.query(made))
        return [i for i in found if np.mean(self._hashes[i] == made.hashvalues) >= NEAR]

    def _minhash(self, example: Example) -> Any:
        made = self._made
        made.clear()
        made.update_batch(shingles(said(example)))
        return made.copy()


class Leakage:
    """What training and validation have in common, to be shown both, the smaller of them first.

    Args:
        validation_is_smaller: whether it is shown first, and indexed.
    """

    def __init__(self, *, validation_is_smaller: bool) -> None:
        self.first_is_validation = validation_is_smaller
        self.index = NearIndex() if can_look() else None
        self._first: dict[int, int] = {}  # hash -> line, of the smaller part
        self._lines, self._hashes = array("q"), array("Q")
        self.exact, self.close = Pairs(), Pairs()

    def first(self, example: Example, line: int) -> None:
        """One example of the smaller part."""
        number = example.hash
        self._first.setdefault(number, line)
        if self.index is not None:
            self._lines.append(line)
            self._hashes.append(number)
            self.index.add(example)

    def second(self, example: Example, line: int) -> None:
        """One example of the larger part, after all of the smaller."""
        number = example.hash
        if number in self._first:
            self._pair(self.exact, self._first[number], line)
        for i in self.index.near(example) if self.index is not None else ():
            if self._hashes[i] != number:
                self._pair(self.close, self._lines[i], line)

    def _pair(self, pairs: Pairs, first: int, second: int) -> None:
        pairs.add(*((first, second) if self.first_is_validation else (second, first)))

    def found(self, source: Source) -> Iterator[Finding]:
        """Validation examples that are, or nearly are, trained on."""
        if self.exact.validation:
            yield self.exact.finding("in_both_parts", source)
        for line in self.exact.validation:
            self.close.validation.pop(line, None)
        if self.close.validation:
            yield self.close.finding("near_duplicates", source)
        if self.index is None:
            check = CHECKS["near_duplicates_not_looked_for"]
            yield check.finding(source, f"{check.title}: the package datasketch is not installed")


class Pairs:
    """Lines of validation, each with the first line of training that it was found in."""

    def __init__(self) -> None:
        self.validation: dict[int, int] = {}

    def add(self, validation: int, training: int) -> None:
        """One pair more."""
        self.validation.setdefault(validation, training)

    def finding(self, name: str, source: Source) -> Finding:
        """All of them."""
        lines = sorted(self.validation)
        return CHECKS[name].of_lines(source, lines, f"as {self.validation[lines[0]]} of training")
