"""The prefix tree over random forests of examples: what it spells, how it lies, what it shares and what that saves."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scumble.data.encoding import Encoded
from scumble.data.packing import shared_tree
from scumble.data.prefixes import Tree, common_prefix, prefix_tree, row_of_trees
from tests.trees import conversations, example, forests


def first_with_a_loss(each: Encoded) -> int:
    return next((i for i, s in enumerate(each.supervised) if s), len(each.ids))


def passed(tree: Tree) -> list[list[int]]:
    """For each node the examples whose path goes through it."""
    found: list[list[int]] = [[] for _ in tree.nodes]
    for number, leaf in enumerate(tree.leaves):
        node = leaf
        while node >= 0:
            found[node].append(number)
            node = tree.nodes[node].parent
    return found


def check_shape(tree: Tree) -> None:
    """Nodes lie end to end, none is empty, parents come first, and all that descends from a node follows it."""
    end = 0
    for number, node in enumerate(tree.nodes):
        assert node.start == end < node.end
        assert node.parent < number
        end = node.end
        above = tree.nodes[node.parent] if node.parent >= 0 else None
        assert node.depth == (0 if above is None else above.depth + above.end - above.start)
        below = {number}
        for other in range(number + 1, len(tree.nodes)):
            if tree.nodes[other].parent in below:
                below.add(other)
        last = max(below)
        assert below == set(range(number, last + 1))  # without a gap
        assert node.until == tree.nodes[last].end
    assert tree.tokens == end


def check_paths(tree: Tree, sequences: Sequence[Sequence[int]]) -> None:
    """Every example is spelled by its path, and a node by any of its examples."""
    for number, ids in enumerate(sequences):
        spelled: list[int] = []
        for node in tree.path(number):
            assert node.depth == len(spelled)
            spelled.extend(sequences[node.example][node.depth : node.depth + node.end - node.start])
        assert spelled == list(ids)


@pytest.mark.parametrize("least", [1, 2, 8])
@settings(max_examples=60, deadline=None)
@given(examples=forests())
def test_a_tree_spells_its_examples_and_shares_nothing_with_a_loss(
    least: int, examples: list[Encoded]
) -> None:
    tree = shared_tree(examples, least)
    check_shape(tree)
    check_paths(tree, [each.ids for each in examples])
    through = passed(tree)
    lengths = [node.end - node.start for node in tree.nodes]
    for node, length, members in zip(tree.nodes, lengths, through, strict=True):
        assert node.example in members
        if len(members) > 1:
            assert length >= least
            assert node.depth + length <= min(first_with_a_loss(examples[i]) for i in members)
            # the end of an example is never shared, so each has a leaf of its own
            assert node.depth + length < min(len(examples[i].ids) for i in members)
    assert sorted(tree.leaves) == [i for i, node in enumerate(tree.nodes) if node.until == node.end]
    whole = sum(len(each.ids) for each in examples)
    saved = sum(length * (len(members) - 1) for length, members in zip(lengths, through, strict=True))
    assert tree.tokens == whole - saved <= whole


@settings(max_examples=60, deadline=None)
@given(examples=forests())
def test_with_no_loss_before_the_end_all_that_can_be_shared_is(examples: list[Encoded]) -> None:
    sequences = [each.ids for each in examples]
    tree = prefix_tree(sequences, [len(ids) for ids in sequences], 1)
    # the distinct beginnings, an example's last token not counted among those shared
    inner = {ids[:i] for ids in sequences for i in range(1, len(ids))}
    assert tree.tokens == len(inner) + len(sequences)


@settings(max_examples=60, deadline=None)
@given(examples=forests(most=12), draw=st.randoms(use_true_random=False))
def test_the_order_of_the_examples_changes_no_size(examples: list[Encoded], draw: object) -> None:
    again = list(examples)
    draw.shuffle(again)  # type: ignore[attr-defined]
    one, other = shared_tree(examples, 1), shared_tree(again, 1)
    assert sum(len(each.ids) for each in examples) >= one.tokens
    check_paths(other, [each.ids for each in again])
    if len({each.ids for each in examples}) == len(
        examples
    ):  # equal ones with other masks lie in either order
        assert one.tokens == other.tokens


def test_a_long_conversation_is_a_chain_as_deep_as_its_turns() -> None:
    examples = conversations(system=20, turns=300)
    tree = shared_tree(examples, 1)
    check_paths(tree, [each.ids for each in examples])
    # each turn is computed once without its answer of two tokens, and the end of each once more
    assert tree.tokens <= 20 + 300 * (5 + 2)
    assert len(tree.path(299)) >= 298
    depths = [len(tree.path(i)) for i in range(300)]
    assert depths == sorted(depths)


def test_a_part_shorter_than_is_worth_it_is_computed_by_each() -> None:
    twins = [example([3, 4, 5, 6, 7, end], [False] * 5 + [True], end) for end in (8, 9)]
    assert shared_tree(twins, 5).tokens == 7
    assert shared_tree(twins, 6).tokens == 12
    assert shared_tree(twins, 6) == row_of_trees([6, 6])


def test_a_short_part_is_taken_together_with_the_one_below_it() -> None:
    start = [3, 4]
    rows = [[*start, *middle, end] for middle in ([5, 5, 5], [6, 6, 6]) for end in (7, 8)]
    examples = [example(ids, [False] * 5 + [True], n) for n, ids in enumerate(rows)]
    tree = shared_tree(examples, 5)
    # the two tokens that all four share are too few, so each pair shares five
    assert tree.tokens == 2 * (5 + 2)
    assert [node.depth for node in tree.nodes] == [0, 5, 5, 0, 5, 5]


def test_one_token_examples_and_equal_ones_have_nodes_of_their_own() -> None:
    examples = [example([3], [True], n) for n in range(3)]
    tree = shared_tree(examples, 1)
    check_shape(tree)
    assert tree.tokens == 3
    same = [example([3, 4, 5], [False, False, False], n) for n in range(3)]
    assert shared_tree(same, 1).tokens == 2 + 3


@settings(max_examples=200, deadline=None)
@given(a=st.lists(st.integers(0, 1)), b=st.lists(st.integers(0, 1)), same=st.lists(st.integers(0, 1)))
def test_the_common_prefix_is_that_of_counting(a: list[int], b: list[int], same: list[int]) -> None:
    one, other = [*same, *a], [*same, *b]
    count = 0
    while count < min(len(one), len(other)) and one[count] == other[count]:
        count += 1
    assert common_prefix(one, other) == common_prefix(tuple(other), tuple(one)) == count
