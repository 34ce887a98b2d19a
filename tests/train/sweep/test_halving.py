"""Who goes on after a rung."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scumble.errors import ConfigError
from scumble.train.sweep.halving import going_on, reason, shares, steps_at


@given(settings=st.integers(2, 600), eta=st.integers(2, 8))
def test_the_last_rung_is_the_whole_run_and_few_come_there(settings, eta):
    found = shares(settings, eta)
    assert found[-1] == 1
    assert all(b / a == pytest.approx(eta) for a, b in itertools.pairwise(found))
    left = settings
    for _ in found[:-1]:
        left = math.ceil(left / eta)
    # rounded up at every rung, so that a few more than one may come there
    assert 1 <= left <= eta


@given(
    losses=st.dictionaries(
        st.integers(0, 50), st.one_of(st.none(), st.sampled_from([0.5, 1.0, 1.5, 2.0])), min_size=1
    ),
    eta=st.integers(2, 5),
)
def test_the_best_go_on_and_of_equals_the_first(losses, eta):
    kept = going_on(losses, eta)
    judged = {line: loss for line, loss in losses.items() if loss is not None}
    assert len(kept) == min(len(judged), math.ceil(len(losses) / eta))
    for line in kept:
        for other in set(judged) - set(kept):
            assert (judged[line], line) < (judged[other], other)


def test_a_run_needs_a_step_for_each_rung():
    assert steps_at(30, shares(4, 2), "001") == [8, 15, 30]
    with pytest.raises(ConfigError, match="trial 001 has 1 steps, and halving on 3 rungs needs 4 at least"):
        steps_at(1, shares(4, 2), "001")
    with pytest.raises(ConfigError, match="one setting"):
        shares(1, 2)


def test_the_reason_is_one_line():
    said = "halving: the lowest loss up to step 8, 0.5123, was number 3 of 4, and 2 went on"
    assert reason(8, 0.51234, 3, 4, 2) == said
