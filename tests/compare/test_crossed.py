"""The quantile and the width of the mean of a table, against scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scumble.compare.crossed import half_width, t_quantile

stats = pytest.importorskip("scipy.stats")


@given(st.floats(0.6, 0.9995), st.floats(1.0, 3000.0))
def test_the_quantile_is_that_of_scipy(probability: float, freedom: float) -> None:
    # both are found by halving: 1e-6 is far below any figure that is shown
    assert t_quantile(probability, freedom) == pytest.approx(stats.t.ppf(probability, freedom), rel=1e-6)


@pytest.mark.parametrize("shape", [(1, 30), (4, 1)])
def test_of_one_row_or_column_it_is_that_of_the_t_interval(shape: tuple[int, int]) -> None:
    table = np.random.default_rng(0).normal(size=shape)
    wanted = stats.ttest_1samp(table.ravel(), 0).confidence_interval(0.9)
    assert half_width(table, 0.9) == pytest.approx((wanted.high - wanted.low) / 2, rel=1e-6)


def test_a_single_number_may_be_off_by_anything() -> None:
    assert half_width(np.array([[0.4]])) == math.inf
