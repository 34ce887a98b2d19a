"""Examples end to end: each predicted token has before it what its example has, and nothing else."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scumble.data import packing
from scumble.data.batches import collate
from scumble.data.encoding import Encoded
from scumble.data.packing import Packed, micro_batches, pack, shared_tree
from tests.trees import conversations, example, forests


def seen(laid: Packed, row: int) -> list[int]:
    """Places of the layout that a token may look at: of its segment what comes before it and itself, and its ancestors."""
    number = next(i for i, (start, end, *_) in enumerate(laid.segments) if start <= row < end)
    found = list(range(laid.segments[number][0], row + 1))
    above = laid.segments[number][4]
    while above >= 0:
        start, end, _, _, parent = laid.segments[above]
        found = [*range(start, end), *found]
        above = parent
    return found


def check(laid: Packed, examples: list[Encoded]) -> None:
    wanted = [
        (list(each.ids[:i]), each.ids[i])
        for each in examples
        for i, s in enumerate(each.supervised)
        if s and i
    ]
    assert laid.targets == len(wanted) == len(laid.rows)
    ids, positions = laid.ids[0].tolist(), laid.positions[0].tolist()
    for row, label, (before, token) in zip(laid.rows.tolist(), laid.labels.tolist(), wanted, strict=True):
        places = seen(laid, row)
        assert [ids[i] for i in places] == before
        assert [positions[i] for i in places] == list(range(len(before)))
        assert label == token
    assert laid.tokens == sum(len(each.ids) for each in examples)
    assert laid.computed == len(ids) == laid.segments[-1][1]
    assert laid.ids.shape == laid.positions.shape == laid.examples.shape
    assert [each[3] for each in laid.segments] == [positions[each[0]] for each in laid.segments]


@settings(max_examples=80, deadline=None)
@given(examples=forests(most=20))
def test_unshared_every_example_lies_there_whole(examples: list[Encoded]) -> None:
    laid = pack(examples)
    check(laid, examples)
    assert laid.ids[0].tolist() == [i for each in examples for i in each.ids]
    assert laid.positions[0].tolist() == [i for each in examples for i in range(len(each.ids))]
    assert laid.examples[0].tolist() == [each.number for each in examples for _ in each.ids]
    assert laid.computed == laid.tokens


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(examples=forests(), least=st.sampled_from([1, 3, 8]))
def test_shared_every_token_has_its_own_past(
    examples: list[Encoded], least: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "shared_tree", partial(shared_tree, least=least))
    monkeypatch.setattr(packing, "WORTH", 0.0)
    laid = pack(examples, share=True)
    check(laid, examples)
    assert laid.computed == shared_tree(examples, least).tokens <= laid.tokens


@settings(max_examples=40, deadline=None)
@given(examples=forests(most=20))
def test_sharing_as_it_is_set_is_used_where_it_saves_enough(examples: list[Encoded]) -> None:
    laid = pack(examples, share=True)
    check(laid, examples)
    small = shared_tree(examples).tokens
    assert laid.computed == (small if small <= (1 - packing.WORTH) * laid.tokens else laid.tokens)


@settings(max_examples=40, deadline=None)
@given(examples=forests(most=15))
def test_as_many_tokens_have_a_loss_as_in_a_padded_batch(examples: list[Encoded]) -> None:
    padded = collate(examples)
    laid = pack(examples, share=True)
    assert (laid.targets, laid.tokens) == (padded.targets, padded.tokens)
    assert sorted(laid.labels.tolist()) == sorted(padded.labels[padded.labels >= 0].tolist())


@settings(max_examples=40, deadline=None)
@given(
    examples=forests(), size=st.integers(1, 9), share=st.booleans(), draw=st.randoms(use_true_random=False)
)
def test_micro_batches_hold_every_example_once_whatever_their_order(
    examples: list[Encoded], size: int, share: bool, draw: object
) -> None:
    groups = micro_batches(examples, size, share=share)
    numbers = [each.number for group in groups for each in group]
    assert sorted(numbers) == list(range(len(examples)))
    assert all(groups)
    most = size * max(len(each.ids) for each in examples)
    if not share:
        assert all(pack(group).computed <= most for group in groups)
    again = list(examples)
    draw.shuffle(again)  # type: ignore[attr-defined]
    assert micro_batches(again, size, share=share) == groups


@pytest.mark.parametrize("processes", [1, 2, 3, 4])
@pytest.mark.parametrize("each", [1, 4, 7])
def test_every_process_has_as_much_to_do(each: int, processes: int) -> None:
    alike = [example([3] * 9 + [4], [False] * 9 + [True], n) for n in range(each * processes)]
    groups = micro_batches(alike, 100, share=False, processes=processes)
    assert [len(group) for group in groups] == [each] * processes


def test_those_that_begin_alike_are_put_together() -> None:
    rows = [[tag] * 12 + [3 + n] for n in range(4) for tag in (40, 41)]
    examples = [example(ids, [False] * 12 + [True], n) for n, ids in enumerate(rows)]
    # two of them side by side are 26 positions: with what is shared, the four of a kind are 16
    groups = micro_batches(examples, 2, share=True)
    assert [{each.ids[0] for each in group} for group in groups] == [{40}, {41}]
    assert [pack(group, share=True).computed for group in groups] == [12 + 4, 12 + 4]


def test_a_shared_row_stands_once_for_each_token_predicted_from_it() -> None:
    examples = [example([*range(3, 13), end], [False] * 10 + [True], end) for end in (20, 21, 22)]
    laid = pack(examples, share=True)
    assert laid.rows.tolist() == [9, 9, 9]
    assert laid.labels.tolist() == [20, 21, 22]
    assert laid.computed == 10 + 3


def test_nothing_comes_before_the_first_token_to_predict_it_from() -> None:
    laid = pack([example([5, 6], [True, True], 0), example([5], [True], 1)], share=True)
    assert laid.labels.tolist() == [6]
    assert laid.targets == 1
    alone = pack([example([5], [True], 1)])
    assert (alone.targets, alone.rows.dtype, alone.labels.dtype) == (0, torch.long, torch.long)


def test_a_conversation_after_each_of_its_turns_costs_about_one() -> None:
    examples = conversations(system=30, turns=12, length=20)
    laid = pack(examples, share=True)
    check(laid, examples)
    # the prompt and each question once; the answers, which have a loss, once where they are predicted and once as past
    assert laid.computed <= 30 + 12 * (20 + 2)
    assert laid.tokens == sum(30 + 20 * (turn + 1) for turn in range(12))


def test_moving_to_a_device_keeps_all(monkeypatch: pytest.MonkeyPatch) -> None:
    laid = pack(conversations(system=10, turns=3), share=True)
    moved = laid.to(torch.device("meta"))
    for name in ("ids", "positions", "examples", "rows", "labels"):
        assert getattr(moved, name).device.type == "meta"
        assert getattr(moved, name).shape == getattr(laid, name).shape
    assert (moved.segments, moved.tokens, moved.targets) == (laid.segments, laid.tokens, laid.targets)
