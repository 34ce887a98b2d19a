"""Metrics of an answer against the expected one, by name, and the interval of a share.

A metric is a function of (answer, expected) that gives a number from 0 to 1.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import SupportsFloat, TypeAlias

from scumble.errors import ConfigError

Metric: TypeAlias = Callable[[str, str], float]


def exact_match(answer: str, expected: str) -> float:
    """1 where the answer is the expected text, white space at both ends aside."""
    return float(answer.strip() == expected.strip())


def json_exact_match(answer: str, expected: str) -> float:
    """1 where both are the same JSON value, whatever the order of keys and the white space."""
    try:
        return float(_same(json.loads(answer), json.loads(expected)))
    except (ValueError, RecursionError):
        return 0.0


def json_valid(answer: str, expected: str) -> float:
    """1 where the answer is JSON."""
    try:
        json.loads(answer)
    except (ValueError, RecursionError):
        return 0.0
    return 1.0


def _same(one: object, other: object) -> bool:
    """Equality of JSON values, in which true is not 1, as it is in Python, and 1 is 1.0."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    return isinstance(one, bool) == isinstance(other, bool) and one == other


METRICS: dict[str, Metric] = {
    "exact_match": exact_match,
    "json_exact_match": json_exact_match,
    "json_valid": json_valid,
}


def metric_named(metric: str | Metric) -> tuple[str, Metric]:
    """A metric and its name. Raises `ConfigError` where no metric is called that."""
    if callable(metric):
        return getattr(metric, "__name__", "metric"), metric
    if metric not in METRICS:
        raise ConfigError(f"the metric {metric!r} is not known", f"metrics are {', '.join(METRICS)}")
    return metric, METRICS[metric]


def mark(name: str, metric: Metric, answer: str, expected: str) -> float:
    """The metric of one answer. Raises `ConfigError` where it is no number from 0 to 1."""
    found = metric(answer, expected)
    if not isinstance(found, SupportsFloat) or not 0 <= float(found) <= 1:
        raise ConfigError(f"the metric {name} gave {found!r}", "a metric gives a number from 0 to 1")
    return float(found)


def wilson_interval(share: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """The 95 % interval of a share of n (Wilson 1927), which stays within 0 and 1 and is right near them."""
    if n == 0:
        return 0.0, 1.0
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)
