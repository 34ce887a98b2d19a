"""How far the mean of a table may be off, where its rows and its columns are both drawn at random.

A row is a seed, a column an example: every seed was asked every example, and neither repeats the other.

    d[s, e] = mean + seed[s] + example[e] + rest[s, e]
    variance of the mean = (MS_seeds + MS_examples - MS_rest) / (seeds * examples)

with the mean squares of an analysis of variance by two crossed factors without replication, and the degrees of freedom
of that sum after Satterthwaite (1946). Knows tables of numbers, and nothing of where they come from.
"""

from __future__ import annotations

import math

import numpy as np

Table = np.ndarray  # (seeds, examples)


def half_width(table: Table, level: float = 0.95) -> float:
    """By how much the interval of the mean reaches to either side; infinite for a single number.

    Args:
        table: (seeds, examples); with one of either it is the t interval over the other.
        level: of the interval.
    """
    variance, freedom = _variance(table)
    return t_quantile((1 + level) / 2, freedom) * math.sqrt(variance) if freedom > 0 else math.inf


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
