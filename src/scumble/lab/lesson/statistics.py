"""Differences between ways to train, over seeds and examples: a mean, its interval, and tests that assume less.

A difference is a table d of shape (seeds, examples): both ways to train were run with every seed and asked every
example, so that d is paired over both. Its interval is that of `scumble.compare.crossed`; with one seed it is the paired
t interval over examples, and says nothing of other seeds. Answers that hardly ever differ have hardly any variance,
however few they are: an interval of right and wrong answers is never narrower than what Clopper and Pearson (1934) leave
open where none of so many examples differs. Knows tables of numbers, and nothing of where they come from.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from scumble.compare.crossed import Table, half_width

FLIPS = 20_000  # random changes of signs of the permutation test


@dataclass(frozen=True)
class Estimate:
    """A mean with its interval.

    Attributes:
        mean: over seeds and examples.
        low, high: the interval's ends.
        level: of the interval, such as 0.95.
        seeds: it was taken over.
    """

    mean: float
    low: float
    high: float
    level: float
    seeds: int

    def to_dict(self) -> dict[str, float | int]:
        """The same by name."""
        return {
            "mean": self.mean,
            "low": self.low,
            "high": self.high,
            "level": self.level,
            "seeds": self.seeds,
        }


def estimate(table: Table, level: float = 0.95, most: float = 0.0) -> Estimate:
    """The mean of a table of differences with its interval.

    Args:
        table: (seeds, examples); one of both may be 1, and with both 1 there is no interval but all numbers.
        level: of the interval.
        most: what one example of right and wrong answers can differ by at most; 0 where a table has no such bound.
    """
    table = np.asarray(table, dtype=float)
    mean = float(table.mean())
    unseen = 1 - ((1 - level) / 2) ** (1 / table.shape[1])  # share of examples that may differ where none did
    half = max(half_width(table, level), most * unseen)
    return Estimate(mean, mean - half, mean + half, level, len(table))


def sign_flip(table: Table, seed: int = 0) -> float:
    """The two-sided p of a permutation test: were the two ways exchangeable for each example, all seeds held as they are.

    Args:
        table: (seeds, examples).
        seed: of the random changes of signs.
    """
    sums = np.asarray(table, dtype=float).sum(axis=0)
    sums = sums[sums != 0]
    if not len(sums):
        return 1.0
    draw = np.random.default_rng(seed)
    seen = abs(float(sums.sum()))
    beyond = 0
    for _ in range(FLIPS // 1000):
        signs = draw.integers(0, 2, size=(1000, len(sums)), dtype=np.int8) * 2 - 1
        beyond += int((np.abs(signs @ sums) >= seen - 1e-9).sum())
    return (beyond + 1) / (FLIPS + 1)


def mcnemar(first_only: int, second_only: int) -> float:
    """The exact two-sided p of McNemar's test: of the examples that one of two alone has right, how many are whose.

    Args:
        first_only: examples that the first has right and the second wrong.
        second_only: the other way round.
    """
    n, few = first_only + second_only, min(first_only, second_only)
    tail = sum(math.comb(n, k) for k in range(few + 1)) / 2**n
    return min(1.0, 2 * tail)
