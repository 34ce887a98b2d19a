"""Examples that begin alike as a tree, of which every shared part stands once.

    system prompt --+-- question 1, answer 1
                    +-- question 2, answer 2

A node holds the tokens that its examples share beyond those of its parent, and nodes are laid end to end in depth-first
order, so that all that descends from a node follows it without a gap. What a token's attention may see are its
ancestors and, of its own node, what comes before it. A part is worth a node of its own only from a few tokens on,
since every node costs calls. Knows token ids, and nothing of tensors and models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple


class Node(NamedTuple):
    """One run of tokens in the layout.

    Attributes:
        start: where it begins in the layout.
        end: where it ends.
        until: where the last of what descends from it ends; `end` for a leaf.
        depth: position of its first token within the examples it belongs to.
        parent: its parent's number in the list of nodes, or -1.
        example: the number of one of its examples in the list that the tree was made of.
    """

    start: int
    end: int
    until: int
    depth: int
    parent: int
    example: int


@dataclass(frozen=True)
class Tree:
    """Examples laid out as a forest.

    Attributes:
        nodes: in the order of the layout, parents before their children.
        leaves: for each example the number of the node that holds its end.
    """

    nodes: tuple[Node, ...]
    leaves: tuple[int, ...]

    @property
    def tokens(self) -> int:
        """Tokens of the layout."""
        return self.nodes[-1].end if self.nodes else 0

    def path(self, example: int) -> list[Node]:
        """The nodes of an example, from its beginning to its end."""
        number, found = self.leaves[example], []
        while number >= 0:
            found.append(self.nodes[number])
            number = self.nodes[number].parent
        return found[::-1]


def row_of_trees(lengths: Sequence[int]) -> Tree:
    """Every example for itself, in the order given; (length,) of each."""
    nodes, start = [], 0
    for number, length in enumerate(lengths):
        nodes.append(Node(start, start + length, start + length, 0, -1, number))
        start += length
    return Tree(tuple(nodes), tuple(range(len(lengths))))


def prefix_tree(sequences: Sequence[Sequence[int]], shareable: Sequence[int], least: int) -> Tree:
    """Lay examples out with what they share once.

    Args:
        sequences: token ids of each example, at least one each.
        shareable: how many first tokens of each may be shared: those before its first with a loss.
        least: tokens that a shared part must have to become a node.
    """
    # the last token of an example is its own, so that no node is empty
    own = [min(share, len(ids) - 1) for share, ids in zip(shareable, sequences, strict=True)]
    order = sorted(range(len(sequences)), key=lambda i: tuple(sequences[i]))
    # two neighbours share this much; of a sorted run, first and last share the least of it
    shared = [min(common_prefix(sequences[a], sequences[b]), own[a], own[b]) for a, b in pairwise(order)]
    nodes: list[Node] = []
    leaves = [0] * len(sequences)
    size = 0
    # (first, last + 1, depth, parent) of a run of `order`; or the number of a node whose descendants are laid out
    todo: list[tuple[int, int, int, int] | int] = [(0, len(order), 0, -1)]
    while todo:
        work = todo.pop()
        if isinstance(work, int):
            nodes[work] = nodes[work]._replace(until=size)
            continue
        first, last, depth, parent = work
        if last - first == 1:
            example = order[first]
            leaves[example] = len(nodes)
            length = len(sequences[example]) - depth
            nodes.append(Node(size, size + length, size + length, depth, parent, example))
            size += length
            continue
        common = min(shared[first : last - 1])
        cuts = [i + 1 for i in range(first, last - 1) if shared[i] == common]
        if common - depth >= least:
            todo.append(len(nodes))
            parent = len(nodes)
            nodes.append(Node(size, size + common - depth, -1, depth, work[3], order[first]))
            size += common - depth
            depth = common
        edges = [first, *cuts, last]
        todo.extend((a, b, depth, parent) for a, b in list(pairwise(edges))[::-1])
    return Tree(tuple(nodes), tuple(leaves))


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many first elements are the same, by halving: slices are compared in C."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
