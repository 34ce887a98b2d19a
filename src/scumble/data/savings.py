"""What lengths are worth: their distribution, and what packing and shared prefixes save of the work.

Padding: in a batch, every example is as long as the longest, so a batch of lengths l_i costs n max(l_i) positions
where sum(l_i) hold a token; packing lays out only these. Shared prefixes: of examples that begin alike (the same
system prompt and tools), the common beginning is computed once; what that leaves is the number of nodes of the
trie of their tokens, which is sum(l_i) less the common prefix of each with its predecessor in sorted order. Knows
token ids, and nothing of text.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from scumble.data.prefixes import common_prefix

BARS = 30  # of a histogram, about at most


@dataclass(frozen=True)
class Lengths:
    """Lengths of examples in tokens; a quantile is the smallest length that so many are not longer than."""

    examples: int
    min: int
    median: int
    mean: float
    p90: int
    p99: int
    max: int


@dataclass(frozen=True)
class Bar:
    """How many examples have at least `low` and below `high` tokens; `high` None is without end."""

    low: int
    high: int | None
    examples: int


@dataclass(frozen=True)
class Savings:
    """What packing and shared prefixes save, as shares of the positions that padded batches have.

    Attributes:
        batch: examples in a batch, drawn at random.
        examples: how many it was measured on.
        padded: positions of the padded batches.
        tokens: of them with a token, which is what packing leaves.
        unshared: tokens that are left where a prefix shared within a batch is computed once.
        distinct: tokens that would be left if all examples were one batch, the least that can be.
    """

    batch: int
    examples: int
    padded: int
    tokens: int
    unshared: int
    distinct: int

    @property
    def packing(self) -> float:
        """The share of the padded positions that packing saves."""
        return 1 - self.tokens / self.padded if self.padded else 0.0

    @property
    def prefixes(self) -> float:
        """The share of the tokens that sharing prefixes within a batch saves further."""
        return 1 - self.unshared / self.tokens if self.tokens else 0.0

    @property
    def prefixes_at_most(self) -> float:
        """The share of the tokens that sharing prefixes over all examples would save."""
        return 1 - self.distinct / self.tokens if self.tokens else 0.0

    def to_dict(self) -> dict[str, Any]:
        """The figures and their shares."""
        shares = {name: getattr(self, name) for name in ("packing", "prefixes", "prefixes_at_most")}
        return {**asdict(self), **shares}


def summarise(lengths: Sequence[int]) -> Lengths:
    """The distribution of lengths, of which there is at least one."""
    ordered = sorted(lengths)

    def quantile(share: float) -> int:
        return ordered[max(0, math.ceil(share * len(ordered)) - 1)]

    mean = sum(ordered) / len(ordered)
    return Lengths(len(ordered), ordered[0], quantile(0.5), mean, quantile(0.9), quantile(0.99), ordered[-1])


def histogram(lengths: Sequence[int]) -> tuple[Bar, ...]:
    """Bars of one width that is 1, 2 or 5 times a power of ten; a long tail stands in a last bar without end."""
    found = summarise(lengths)
    # a few outliers would leave all others in one bar
    longest = found.max if found.max <= 3 * found.p99 else math.ceil(1.2 * found.p99)
    low = 0 if 2 * found.min <= longest else found.min
    width = _nice((longest - low + 1) / BARS)
    low = low // width * width
    count = (longest - low) // width + 1
    held = [0] * (count + 1)
    for length in lengths:
        held[min((length - low) // width, count)] += 1
    bars = [Bar(low + i * width, low + (i + 1) * width, held[i]) for i in range(count)]
    return (*bars, *([Bar(low + count * width, None, held[count])] if held[count] else []))


def measure_savings(sequences: Sequence[Sequence[int]], batch: int, seed: int = 0) -> Savings:
    """What packing and shared prefixes save of batches in a random order.

    Args:
        sequences: the token ids of each example, (length,) each.
        batch: examples in a batch.
        seed: of the order.
    """
    order = list(range(len(sequences)))
    random.Random(seed).shuffle(order)
    padded = unshared = 0
    for start in range(0, len(order), batch):
        held = [sequences[i] for i in order[start : start + batch]]
        padded += len(held) * max(len(each) for each in held)
        unshared += count_distinct(held)
    tokens = sum(len(each) for each in sequences)
    return Savings(batch, len(sequences), padded, tokens, unshared, count_distinct(sequences))


def count_distinct(sequences: Sequence[Sequence[int]]) -> int:
    """The nodes of the trie of the sequences: tokens that remain where each shared prefix counts once."""
    ordered: list[Any] = list(sequences)  # of one type, which compares element by element
    ordered.sort()
    shared = sum(common_prefix(a, b) for a, b in pairwise(ordered))
    return sum(len(each) for each in ordered) - shared


def _nice(width: float) -> int:
    """The smallest of 1, 2, 5, 10, 20, 50, ... that is not below `width`."""
    power = 1
    while True:
        for digit in (1, 2, 5):
            if digit * power >= width:
                return digit * power
        power *= 10
