"""Lengths and savings, held against counting by hand and by brute force."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scumble.data.savings import Bar, count_distinct, histogram, measure_savings, summarise

SEQUENCES = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=12).map(tuple), min_size=1, max_size=15)


@given(SEQUENCES)
def test_distinct_tokens_are_the_nodes_of_the_trie(sequences: list[tuple[int, ...]]) -> None:
    prefixes = {each[:end] for each in sequences for end in range(1, len(each) + 1)}
    assert count_distinct(sequences) == len(prefixes)


@given(SEQUENCES, st.integers(1, 5))
def test_savings_are_ordered(sequences: list[tuple[int, ...]], batch: int) -> None:
    saved = measure_savings(sequences, batch)
    assert saved.padded >= saved.tokens >= saved.unshared >= saved.distinct
    assert saved.tokens == sum(map(len, sequences))


def test_savings_of_one_batch_by_hand() -> None:
    saved = measure_savings([(1, 2, 3, 4), (1, 2, 5), (1, 2)], batch=8)
    assert (saved.padded, saved.tokens, saved.unshared, saved.distinct) == (12, 9, 5, 5)
    assert saved.packing == pytest.approx(0.25)
    assert saved.prefixes == pytest.approx(4 / 9)


def test_batches_of_one_have_no_padding_and_share_nothing() -> None:
    saved = measure_savings([(1, 2, 3)] * 4, batch=1)
    assert (saved.padded, saved.unshared, saved.distinct) == (12, 12, 3)
    assert saved.packing == saved.prefixes == 0
    assert saved.prefixes_at_most == 0.75


def test_the_same_seed_gives_the_same_figures() -> None:
    sequences = [tuple(range(random.Random(i).randrange(1, 30))) for i in range(100)]
    assert measure_savings(sequences, 8) == measure_savings(sequences, 8)


def test_quantiles_are_lengths_that_occur() -> None:
    found = summarise(list(range(1, 101)))
    assert (found.min, found.median, found.p90, found.p99, found.max) == (1, 50, 90, 99, 100)
    assert summarise([7]).p99 == 7


@given(st.lists(st.integers(1, 10_000), min_size=1, max_size=60))
def test_every_length_is_in_one_bar(lengths: list[int]) -> None:
    bars = histogram(lengths)
    assert sum(bar.examples for bar in bars) == len(lengths)
    assert len(bars) <= 33  # about 30 of one width, one more at each end, and one without end
    for bar in bars:
        inside = [n for n in lengths if n >= bar.low and (bar.high is None or n < bar.high)]
        assert len(inside) == bar.examples
    assert all(a.high == b.low for a, b in pairwise(bars))


def test_one_long_example_does_not_flatten_the_others() -> None:
    bars = histogram([*range(100, 300), 50_000])
    assert bars[-1] == Bar(bars[-2].high or 0, None, 1)
    assert sum(bar.examples > 0 for bar in bars) > 8
