"""Intervals and tests against scipy, and by what must hold of them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scumble.lab.lesson.statistics import estimate, mcnemar, sign_flip

stats = pytest.importorskip("scipy.stats")


@pytest.mark.parametrize("shape", [(1, 40), (3, 1)])
@pytest.mark.parametrize("level", [0.95, 0.99])
def test_of_one_factor_it_is_the_paired_t_interval(shape: tuple[int, int], level: float) -> None:
    table = np.random.default_rng(0).normal(0.3, 1, shape)
    found = estimate(table, level)
    wanted = stats.ttest_1samp(table.ravel(), 0).confidence_interval(level)
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high), rel=1e-6)


def test_one_number_has_no_interval() -> None:
    found = estimate(np.array([[0.4]]))
    assert (found.mean, found.low, found.high) == (0.4, -math.inf, math.inf)


def test_it_covers_the_truth_as_often_as_it_says() -> None:
    """Seeds and examples drawn anew 400 times: an interval of the mean over examples alone would cover far less."""
    draw = np.random.default_rng(1)
    covered = alone = 0
    for _ in range(400):
        table = draw.normal(0, 0.05, (3, 1)) + draw.normal(0, 0.2, (1, 60)) + draw.normal(0, 0.3, (3, 60))
        found, blind = estimate(table), estimate(table.mean(axis=0, keepdims=True))
        covered += found.low <= 0 <= found.high
        alone += blind.low <= 0 <= blind.high
    # Satterthwaite is an approximation, and with 3 seeds a rough one; 400 draws add a point of chance
    assert covered >= 368  # of 400
    assert alone < 360


@given(
    st.lists(st.lists(st.sampled_from([-1.0, 0.0, 1.0]), min_size=5, max_size=5), min_size=1, max_size=4),
    st.floats(-1, 1),
)
def test_shift_and_sign(rows: list[list[float]], shift: float) -> None:
    table = np.array(rows)
    found, moved, turned = estimate(table), estimate(table + shift), estimate(-table)
    assert found.low <= found.mean <= found.high
    assert moved.low == pytest.approx(found.low + shift, abs=1e-6)
    assert turned.low == pytest.approx(-found.high, abs=1e-9)
    assert estimate(table, 0.99).high >= found.high


def test_seeds_that_disagree_make_it_wide() -> None:
    one_seed = np.tile(np.array([[1.0, 0.0] * 50]), (3, 1))
    apart = one_seed + np.array([[-0.3], [0.0], [0.3]])
    assert estimate(apart).high - estimate(apart).low > 5 * (estimate(one_seed).high - estimate(one_seed).low)


@pytest.mark.parametrize("level", [0.95, 0.975])
def test_where_no_example_differs_the_interval_is_that_of_none_of_so_many(level: float) -> None:
    found = estimate(np.zeros((3, 400)), level, most=1.0)
    wanted = stats.binomtest(0, 400).proportion_ci(level, method="exact")
    assert (found.mean, found.low, found.high) == pytest.approx((0, -wanted.high, wanted.high), rel=1e-6)
    # a slope of a sum of several ways can differ by less or more than 1
    assert estimate(np.zeros((3, 400)), level, most=0.3).high == pytest.approx(0.3 * wanted.high, rel=1e-6)


def test_an_example_that_differs_makes_no_narrower_interval_than_none() -> None:
    none, one = np.zeros((3, 400)), np.zeros((3, 400))
    one[0, 0] = 1.0
    width = [found.high - found.low for found in (estimate(none, most=1.0), estimate(one, most=1.0))]
    assert width[1] >= width[0] * (1 - 1e-9)
    wide = np.random.default_rng(0).choice([-1.0, 0.0, 1.0], (3, 400))
    assert estimate(wide, most=1.0) == estimate(wide)


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_the_exact_binomial(first: int, second: int) -> None:
    wanted = stats.binomtest(first, first + second).pvalue if first + second else 1.0
    assert mcnemar(first, second) == pytest.approx(wanted, rel=1e-9)


def test_flips_of_signs_agree_with_mcnemar() -> None:
    # of 0, 1 and -1 alone both test the same; 20,000 flips leave an error of about 0.003
    table = np.array([[1.0] * 14 + [-1.0] * 5 + [0.0] * 21])
    assert sign_flip(table) == pytest.approx(mcnemar(14, 5), abs=0.01)
    assert sign_flip(np.zeros((2, 5))) == 1.0
    assert sign_flip(np.ones((1, 30))) < 1e-3
