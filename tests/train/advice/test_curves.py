"""The statistics of curves, against scipy and against curves that are made to a measure."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scumble.train.advice.curves import Curve, falling_chance, noise, running_median

RANDOM = np.random.default_rng(3)


def curve(losses, evals=(), rates=None) -> Curve:
    rates = [1.0] * len(losses) if rates is None else rates
    rows = [
        (step, loss, rate, 1.0) for step, (loss, rate) in enumerate(zip(losses, rates, strict=True), start=1)
    ]
    return Curve.of(rows, evals)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-1000, 1000), min_size=11, max_size=60, unique=True))
def test_trend_as_scipy_has_it(values):
    stats = pytest.importorskip("scipy.stats")
    found = falling_chance(np.array(values, dtype=float))
    exact = stats.kendalltau(np.arange(len(values)), values, method="asymptotic", alternative="less").pvalue
    # scipy's has no continuity correction, which moves S by 1: at 11 points by 0.08 standard deviations, 0.03 of p
    assert found == pytest.approx(exact, abs=0.04)


@pytest.mark.parametrize("count", range(8))
def test_trend_without_a_slope_is_found_as_often_as_it_says(count):
    drawn = np.random.default_rng(count)
    chances = [falling_chance(drawn.normal(size=20)) for _ in range(400)]
    # 5 % of 400, and four standard deviations (4.4 each) above
    assert sum(chance < 0.05 for chance in chances) <= 20 + 18


def test_trend_needs_four_points():
    assert falling_chance(np.array([3.0, 2.0, 1.0])) == 1.0
    assert falling_chance(np.arange(10.0)[::-1]) < 1e-4
    assert falling_chance(np.arange(10.0)) > 0.999


def test_trend_of_many_points_is_that_of_their_stretches():
    assert falling_chance(np.linspace(1, 0, 5000)) < 1e-12


@pytest.mark.parametrize("spread", [0.01, 1.0])
def test_noise_is_the_spread_whatever_the_trend_and_the_spikes(spread):
    values = np.linspace(100, 0, 4000) * spread + RANDOM.normal(size=4000) * spread
    values[::97] += 50 * spread
    # the standard error of a MAD of 4000 is 2 %, and 1 % of the values are spikes
    assert noise(values) == pytest.approx(spread, rel=0.1)


def test_running_median_passes_two_spikes_in_five():
    values = np.zeros(30)
    values[[4, 5, 20]] = 9
    assert not running_median(values).any()
    assert len(running_median(np.zeros(3))) == 0


def test_clock_is_the_sum_of_rates():
    found = curve([1.0] * 4, rates=[1.0, 2.0, 3.0, 4.0])
    assert found.clock.tolist() == [1, 3, 6, 10]
    assert (found.clock_at(0), found.clock_at(2), found.clock_at(9)) == (0, 3, 10)


def test_gain_is_by_the_clock_and_not_by_steps():
    # the loss falls by as much as the clock goes, on a linear schedule that ends at zero: half of all is won in the half
    rates = np.linspace(1, 0.01, 100)
    clock = np.cumsum(rates)
    losses = 10 - 9 * clock / clock[-1]
    evals = [(0, 10.0)] + [(step, float(losses[step - 1])) for step in range(5, 101, 5)]
    found = curve(losses, evals, rates)
    assert found.gain() == pytest.approx(0.5, abs=0.01)  # interpolated between evaluations
    # by steps it would be a quarter
    assert (losses[49] - losses[-1]) / 9 == pytest.approx(0.25, abs=0.02)


def test_setback_is_the_share_of_what_was_won():
    losses = np.r_[np.linspace(10, 2, 40), np.full(20, 6.0), np.linspace(6, 2, 40)]
    assert curve(losses).setback() == pytest.approx(0.5, abs=0.02)
    assert curve(np.linspace(10, 2, 100)).setback() == 0
    assert curve([1.0, 2.0]).setback() == 0


def test_noise_alone_is_no_setback():
    for seed in range(20):
        drawn = np.random.default_rng(seed)
        losses = 4 * np.exp(-np.arange(300) / 60) + 1 + 0.3 * drawn.normal(size=300)
        assert curve(losses).setback() < 0.3


def test_rise_since_the_lowest():
    evals = [(0, 4.0), (10, 2.0), (20, 1.0), (30, 1.2), (40, 1.5), (50, 1.6), (60, 1.7)]
    losses = np.r_[np.full(20, 1.0), np.full(40, 0.1)]
    found = curve(losses, evals).rise()
    assert (found.best, found.lowest, found.last, found.after) == (20, 1.0, 1.6, 4)
    assert found.share == pytest.approx(0.6)
    assert found.chance < 0.05
    assert found.trained < 0.5


def test_a_rise_after_the_lowest_is_found_as_often_as_it_says():
    # the lowest of a series stands at its own minimum: counted with it, noise alone seemed to rise four times as often
    drawn = np.random.default_rng(0)
    chances = []
    while len(chances) < 1000:
        found = curve(
            [1.0] * 12, [(step + 1, 9 + loss) for step, loss in enumerate(drawn.normal(size=12))]
        ).rise()
        if found.after >= 5:
            chances.append(found.chance)
    # 5 % of 1000, and four standard deviations (6.9 each) above
    assert sum(chance < 0.05 for chance in chances) <= 50 + 28


def test_noise_does_not_climb_and_what_rises_does():
    drawn = np.random.default_rng(0)
    for steps in (10, 20, 60):
        climbed = [curve(3 * np.exp(0.2 * drawn.normal(size=steps))).climbed() for _ in range(200)]
        # the noise of ten steps is known from nine differences, so that four errors are less sure than they sound
        assert sum(climbed) <= 6
        assert curve(np.linspace(4, 6, steps) * (1 + 0.02 * drawn.normal(size=steps))).climbed()
    # the noise is as large as the rise, and yet nobody would miss it
    assert curve(np.linspace(4, 8, 100) * np.exp(0.2 * drawn.normal(size=100))).climbed()


def test_without_evaluations_there_is_no_rise_and_the_start_is_that_of_training():
    found = curve([4.0, 3.0, 5.0, 1.0])
    assert found.rise() is None
    assert found.start == 4.0


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-1000, 1000), min_size=4, max_size=10, unique=True))
def test_trend_of_few_points_is_counted_as_scipy_counts_it(values):
    stats = pytest.importorskip("scipy.stats")
    exact = stats.kendalltau(np.arange(len(values)), values, method="exact", alternative="less").pvalue
    assert falling_chance(np.array(values, dtype=float)) == pytest.approx(exact, abs=1e-12)


def test_five_falls_in_a_row_are_one_order_of_120():
    assert falling_chance(np.arange(5.0)[::-1]) == pytest.approx(1 / 120)
