"""Intervals, the Pareto front, the best."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from scumble.train.sweep.interval import interval
from scumble.train.sweep.lines import best_of, lines_of, pareto, ranked
from scumble.train.sweep.trials import SweepTrial


def test_the_interval_of_one_seed_is_wilsons():
    marks = [1.0] * 61 + [0.0] * 39
    low, high = interval([marks])
    theirs = stats.binomtest(61, 100).proportion_ci(0.95, method="wilson")
    # 1.96 is the quantile to three digits
    assert (low, high) == pytest.approx((theirs.low, theirs.high), abs=1e-5)


def test_the_interval_over_seeds_holds_the_truth_as_often_as_it_says():
    # seeds whose means differ, on examples of different difficulty: what is estimated is the mean over both
    rng = np.random.default_rng(7)
    held, rounds = 0, 60
    for _ in range(rounds):
        seeds, examples = rng.normal(0, 0.6, size=12), rng.normal(0, 1.5, size=80)
        chance = 1 / (1 + np.exp(-(seeds[:, None] + examples)))
        low, high = interval((rng.random(chance.shape) < chance).astype(float).tolist())
        held += low <= 0.5 <= high  # by symmetry
    # of 60 rounds at 93 %, 49 or fewer have a chance below 1 %
    assert held > 49


def test_seeds_that_differ_make_it_wider_than_examples_alone():
    marks = [[1.0] * 50 + [0.0] * 50, [1.0] * 90 + [0.0] * 10, [1.0] * 10 + [0.0] * 90]
    low, high = interval(marks)
    one_low, one_high = interval([marks[0]])
    assert high - low > 1.5 * (one_high - one_low)
    assert low < 0.5 < high


def test_all_right_in_every_seed_is_not_certain():
    assert interval([[1.0] * 20] * 3) == interval([[1.0] * 20])
    low, high = interval([[0.0] * 20] * 3)
    assert (low, high > 0.1) == (0.0, True)


def test_it_is_the_same_each_time():
    marks = [[1.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0]]
    assert interval(marks) == interval(marks)


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=12))
def test_the_front_is_what_nobody_beats(points):
    front = pareto(points)

    def beaten(point):
        return any(o[0] <= point[0] and o[1] >= point[1] and o != point for o in points)

    assert {points[i] for i in front} == {p for p in points if not beaten(p)}
    assert len({points[i] for i in front}) == len(front)
    assert [points[i][0] for i in front] == sorted(points[i][0] for i in front)


def trial(line, loss=None, *, seed=0, state="finished", parameters=100, metric=None, steps=3):
    settings = {"rank": line, "seed": seed}
    return SweepTrial(
        f"{line}-{seed}", line, settings, settings, 10, state=state, loss=loss, parameters=parameters,
        metric=metric, steps=steps,
    )  # fmt: skip


def test_the_best_has_the_lowest_mean_over_its_seeds():
    trials = [trial(0, 1.0), trial(0, 2.0, seed=1), trial(1, 1.4), trial(1, 1.4, seed=1)]
    lines = lines_of(trials, {})
    assert [line.loss for line in lines] == [1.5, 1.4]
    assert best_of(lines, by_metric=False).number == 1


def test_of_equals_the_smaller_is_best():
    lines = lines_of([trial(0, 1.0, parameters=200), trial(1, 1.0), trial(2, 1.0)], {})
    assert [line.number for line in ranked(lines, by_metric=False)] == [1, 2, 0]


def test_the_metric_decides_where_it_should():
    trials = [trial(0, 1.0), trial(1, 2.0)]
    lines = lines_of(trials, {"0-0": [0.0, 1.0], "1-0": [1.0, 1.0]})
    assert best_of(lines, by_metric=True).number == 1
    assert best_of(lines, by_metric=False).number == 0
    assert lines[0].metric == 0.5


@pytest.mark.parametrize("state", ["paused", "waiting", "failed", "ended"])
def test_only_what_came_to_its_end_in_every_seed_is_best(state):
    trials = [trial(0, 0.1), trial(0, 0.1, seed=1, state=state), trial(1, 2.0), trial(1, 2.0, seed=1)]
    lines = lines_of(trials, {})
    assert lines[0].state == state
    assert best_of(lines, by_metric=False).number == 1
    assert best_of(lines[:1], by_metric=False) is None


def test_marks_of_one_seed_of_two_are_no_metric():
    lines = lines_of([trial(0, 1.0), trial(0, 1.0, seed=1)], {"0-0": [1.0]})
    assert (lines[0].metric, lines[0].interval) == (None, None)
