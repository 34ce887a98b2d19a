"""What is computed at once in given data: held against laying out every step of the run."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scumble.config import PlanOptions, make
from scumble.data.encoding import Encoded
from scumble.data.order import order_of
from scumble.data.packing import micro_batches, pack
from scumble.plan.portion import largest_of, steps_of_run, worst_case


def examples_of(lengths: list[int], shared: int = 0) -> list[Encoded]:
    """Of given lengths, the first `shared` tokens alike, the second half with a loss."""
    return [
        Encoded(
            tuple(range(min(shared, length)))
            + tuple(1000 * (n + 1) + i for i in range(length - min(shared, length))),
            tuple(i >= max(1, length // 2) for i in range(length)),
            n,
            "",
        )
        for n, length in enumerate(lengths)
    ]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(2, 60), min_size=1, max_size=60),
    st.integers(1, 4),
    st.integers(1, 3),
    st.sampled_from([0, 16]),
    st.sampled_from([0.0, 0.1]),
)
def test_no_micro_batch_of_the_run_is_larger(lengths, batch, accumulate, shared, dropout):
    examples = examples_of(lengths, shared)
    options = make(PlanOptions, epochs=2, seed=3, dropout=dropout)
    found = largest_of(examples, options, batch, accumulate)
    tokens = []
    size = batch * accumulate
    for epoch in range(2):
        order = order_of(len(examples), 3, epoch)
        for first in range(0, len(order), size):
            step = [examples[number] for number in order[first : first + size]]
            groups = micro_batches(step, batch, share=not dropout)
            tokens += [pack(group, share=not dropout).computed for group in groups]
    assert max(portion.tokens for portion in found.ours) == max(tokens)


def test_the_script_pads_to_the_longest_of_a_batch():
    found = largest_of(examples_of([10, 10, 10, 50]), make(PlanOptions), batch=2, accumulate=1)
    assert (found.script.tokens, found.script.longest) == (100, 50)
    assert found.padding == pytest.approx(1 - 80 / 120)


def test_what_is_too_long_is_cut_by_the_script():
    found = largest_of(examples_of([10, 10]), make(PlanOptions), batch=2, accumulate=1, cut=64)
    assert (found.script.tokens, found.script.longest) == (128, 64)
    assert max(portion.longest for portion in found.ours) == 10


def test_the_worst_case_is_full():
    found = worst_case(4, 100, 0.5)
    assert [(p.tokens, p.longest, p.losses) for p in found.ours] == [(400, 100, 200)]
    assert found.script.losses == 400


@pytest.mark.parametrize(("epochs", "most", "steps"), [(3, None, 30), (0.5, None, 5), (3, 7, 7)])
def test_steps_are_counted_as_training_counts_them(epochs, most, steps):
    options = make(PlanOptions, epochs=epochs, max_steps=most)
    assert steps_of_run(160, options, 4, 4) == (10, steps)
