"""Differences between ways to train, over seeds and examples: a mean, its interval, and tests that assume less.

A difference is a table d of shape (seeds, examples): both ways to train were run with every seed and asked every
example, so that d is paired over both. Seeds and examples are drawn at random, and neither repeats the other:

    d[s, e] = mean + seed[s] + example[e] + rest[s, e]
    variance of the mean = (MS_seeds + MS_examples - MS_rest) / (seeds * examples)

with the mean squares of an analysis of variance by two crossed factors without replication, and the degrees of freedom
of that sum after Satterthwaite (1946). With one seed it is the paired t interval over examples, and says nothing of
other seeds. Answers that hardly ever differ have hardly any variance, however few they are: an interval of right and
wrong answers is never narrower than what Clopper and Pearson (1934) leave open where none of so many examples differs.
Knows tables of numbers, and nothing of where they come from.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

Table = np.ndarray  # (seeds, examples)
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
    seeds = len(table)
    mean = float(table.mean())
    variance, freedom = _variance(table)
    if freedom <= 0:
        return Estimate(mean, -math.inf, math.inf, level, seeds)
    unseen = 1 - ((1 - level) / 2) ** (1 / table.shape[1])  # share of examples that may differ where none did
    half = max(t_quantile((1 + level) / 2, freedom) * math.sqrt(variance), most * unseen)
    return Estimate(mean, mean - half, mean + half, level, seeds)


def _variance(table: Table) -> tuple[float, float]:
    """The variance of the mean, and its degrees of freedom; 0 of them where there is nothing to take it from."""
    seeds, examples = table.shape
    if seeds == 1 or examples == 1:
        values = table.ravel()
        return (float(values.var(ddof=1) / len(values)), len(values) - 1) if len(values) > 1 else (0.0, 0)
    by_seed = table.mean(axis=1, keepdims=True)
    by_example = table.mean(axis=0, keepdims=True)
    rest = table - by_seed - by_example + table.mean()
    squares = [
        (examples * float(by_seed.var(ddof=1)), seeds - 1, 1),
        (seeds * float(by_example.var(ddof=1)), examples - 1, 1),
        (float((rest**2).sum()) / ((seeds - 1) * (examples - 1)), (seeds - 1) * (examples - 1), -1),
    ]
    # no component is negative: the sum is at least each of the first two, and as free as the less free of them
    total = max(sum(sign * square for square, _, sign in squares), squares[0][0], squares[1][0])
    spread = sum(square**2 / freedom for square, freedom, _ in squares)
    least = float(min(seeds, examples) - 1)
    return total / table.size, max(least, total**2 / spread) if spread else least


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


def t_quantile(probability: float, freedom: float) -> float:
    """The quantile of Student's t for a probability from 0.5 to below 1, found by halving.

    Args:
        probability: that a value is below.
        freedom: degrees of it, above 0; may be no whole number.
    """
    low, high = 0.0, 1.0
    while _t_share(high, freedom) < probability and high < 1e12:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_share(middle, freedom) < probability else (low, middle)
    return (low + high) / 2


_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(200)


def _t_share(t: float, freedom: float) -> float:
    """The probability of a value below t >= 0: half, and the density from 0 to t, over the angle atan(t / sqrt(freedom)).

    With x = sqrt(freedom) tan(a) the density becomes a constant times cos(a) ** (freedom - 1).
    """
    angle = math.atan(t / math.sqrt(freedom))
    # beyond 12 widths of the bell that the cosine's power is, nothing is left to add up
    upper = min(angle, 12 / math.sqrt(max(freedom, 1.0))) if freedom > 60 else angle
    places = (_NODES + 1) / 2 * upper
    constant = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(math.pi)
    return 0.5 + constant * float((_WEIGHTS * np.cos(places) ** (freedom - 1)).sum()) * upper / 2
