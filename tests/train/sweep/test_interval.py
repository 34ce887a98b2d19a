"""The interval of a metric over seeds and examples: how often it holds the truth, and what it says near 0 and 1."""

import numpy as np
import pytest

from scumble.compare.crossed import half_width
from scumble.compare.metrics import wilson_interval
from scumble.train.sweep.interval import interval


@pytest.mark.parametrize(("seeds", "least"), [(2, 0.89), (3, 0.94)])
def test_few_seeds_hold_the_truth_nearly_as_often_as_it_says(seeds, least):
    # examples of different difficulty, and seeds that are 8 points apart (one deviation): by symmetry the truth is 0.5.
    # Satterthwaite's degrees of freedom are rough with two seeds: 92 %, and 96 % of three. A bootstrap had 85 % and 91 %
    rng = np.random.default_rng(1)
    held, rounds = 0, 400
    for _ in range(rounds):
        chance = 0.5 + rng.normal(0, 0.08, (seeds, 1)) + rng.normal(0, 0.25, 200)
        low, high = interval((rng.random(chance.shape) < chance).astype(float))
        held += low <= 0.5 <= high
    assert held >= least * rounds


def right(count, seeds=3, examples=40):
    table = np.zeros((seeds, examples))
    table.flat[:count] = 1
    return table


def test_one_right_answer_more_never_makes_the_upper_end_lower():
    ends = [interval(right(count))[1] for count in range(40)]
    assert ends[0] == pytest.approx(wilson_interval(0.0, 40)[1])
    assert ends == sorted(ends)


@pytest.mark.parametrize("count", [0, 1, 7, 60, 113, 119, 120])
def test_it_is_a_share_and_never_narrower_than_wilsons_over_the_examples(count):
    low, high = interval(right(count))
    theirs = wilson_interval(count / 120, 40)
    assert 0 <= low <= theirs[0]
    assert theirs[1] <= high <= 1


def test_where_seeds_differ_it_is_that_of_the_crossed_analysis():
    table = np.r_[right(50, 1, 100), right(56, 1, 100), right(44, 1, 100), right(58, 1, 100)]
    low, high = interval(table)
    assert (high - low) / 2 == pytest.approx(half_width(table))
    assert (low + high) / 2 == pytest.approx(0.52)
