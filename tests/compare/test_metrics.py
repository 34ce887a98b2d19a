"""Metrics, and Wilson's interval against figures that were published."""

from __future__ import annotations

import math

import pytest

from scumble.compare.metrics import (
    METRICS,
    exact_match,
    json_exact_match,
    json_valid,
    mark,
    metric_named,
    wilson_interval,
)
from scumble.errors import ConfigError


# Newcombe 1998, Statistics in Medicine 17, table I, method 3 (score): four digits are printed there
@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_is_newcombes(hits: int, n: int, low: float, high: float) -> None:
    assert wilson_interval(hits / n, n) == pytest.approx((low, high), abs=6e-5)


def test_wilson_stays_within_bounds_and_is_symmetric() -> None:
    assert wilson_interval(0.0, 0) == (0.0, 1.0)
    for n in (1, 3, 50):
        for hits in range(n + 1):
            low, high = wilson_interval(hits / n, n)
            assert 0 <= low <= hits / n <= high <= 1
            mirrored = wilson_interval(1 - hits / n, n)
            assert (1 - mirrored[1], 1 - mirrored[0]) == pytest.approx((low, high), abs=1e-12)


def test_exact_match_looks_at_the_text_between_white_space() -> None:
    assert exact_match(" 0 12 * * *\n", "0 12 * * *") == 1
    assert exact_match("0 12 * * *.", "0 12 * * *") == 0
    assert exact_match("0  12 * * *", "0 12 * * *") == 0


@pytest.mark.parametrize(
    ("answer", "same"),
    [
        ('{"b": [1, 2], "a": null}', 1),
        (' {"a":null,"b":[1.0,2]} ', 1),
        ('{"a": null, "b": [2, 1]}', 0),
        ('{"a": null, "b": [true, 2]}', 0),  # in Python True == 1
        ('{"a": null, "b": [1, 2], "c": 3}', 0),
        ('{"a": null}', 0),
        ('{"a": null, "b": [1, 2]} and more', 0),
        ("", 0),
        ("[" * 100_000, 0),
        ("1" * 5000, 0),
    ],
)
def test_json_exact_match_compares_values(answer: str, same: int) -> None:
    assert json_exact_match(answer, '{"a": null, "b": [1, 2]}') == same


def test_json_valid_looks_at_the_answer_alone() -> None:
    assert json_valid("[1]", "no JSON") == 1
    assert json_valid("{'a': 1}", "{}") == 0
    assert json_valid("[" * 100_000, "{}") == 0


def test_metrics_by_name_and_by_function() -> None:
    for name, function in METRICS.items():
        assert metric_named(name) == (name, function)
    assert metric_named(len)[0] == "len"
    with pytest.raises(ConfigError, match="'rouge' is not known") as caught:
        metric_named("rouge")
    assert "exact_match" in caught.value.hint


@pytest.mark.parametrize("found", [1.5, -0.1, math.nan, None, "1"])
def test_a_metric_that_is_no_share_is_refused(found: object) -> None:
    with pytest.raises(ConfigError, match="a number from 0 to 1"):
        mark("mine", lambda answer, expected: found, "a", "b")  # type: ignore[arg-type, return-value]
    assert mark("mine", lambda answer, expected: True, "a", "b") == 1.0
