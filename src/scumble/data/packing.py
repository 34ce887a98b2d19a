"""`Packed`: examples laid end to end in one row, without padding, and what they share once.

Every position holds a token that is needed. Attention stays inside an example (`segments` say how), positions begin
anew with each, and the loss is taken at `rows` only. A row may stand several times: two examples that part after the
same token predict different ones from it. How examples are laid out changes no figure but the time and the memory.
Knows encoded examples, and nothing of models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, chain, pairwise
from typing import Any, TypeAlias

import torch
from torch import Tensor

from scumble.data.encoding import Encoded
from scumble.data.prefixes import Tree, common_prefix, prefix_tree, row_of_trees

# (start, end, until, depth, parent) of a node of the tree, as `models.attention` takes it
Segments: TypeAlias = tuple[tuple[int, int, int, int, int], ...]

LEAST = 8  # tokens that a shared part must have to stand alone; docs/engine.md has the measurement
WORTH = 0.05  # share of the tokens that sharing must save, or every example is laid out for itself


@dataclass(frozen=True)
class Packed:
    """Examples in one row of T tokens.

    Attributes:
        ids: token ids, (1, T).
        positions: position within the example, (1, T).
        examples: the example's number in its data set, (1, T); of a shared part that of one of them.
        rows: index into the layout of each token that a supervised one is predicted from, (targets,).
        labels: the supervised tokens, (targets,).
        segments: which tokens see which.
        tokens: tokens of the examples, shared ones in full.
    """

    ids: Tensor
    positions: Tensor
    examples: Tensor
    rows: Tensor
    labels: Tensor
    segments: Segments
    tokens: int

    @property
    def targets(self) -> int:
        """How many tokens have a loss."""
        return len(self.labels)

    @cached_property
    def read(self) -> Tensor:
        """`rows` without repeats, in order: the tokens whose last hidden state is read."""
        return self.rows.unique()

    @property
    def computed(self) -> int:
        """T, the tokens that are computed."""
        return int(self.ids.shape[1])

    def to(self, device: torch.device) -> Packed:
        """The same on another device."""
        names = ("ids", "positions", "examples", "rows", "labels")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})


def pack(examples: Sequence[Encoded], *, share: bool = False) -> Packed:
    """Lay examples end to end.

    Args:
        examples: at least one.
        share: compute what several begin with once, where that saves enough. Not with dropout, whose masks differ
            from example to example.
    """
    tree = _tree(examples, share=share)
    ids: list[int] = []
    numbers: list[int] = []
    for node in tree.nodes:
        example = examples[node.example]
        ids.extend(example.ids[node.depth : node.depth + node.end - node.start])
        numbers.extend([example.number] * (node.end - node.start))
    places = [range(node.depth, node.depth + node.end - node.start) for node in tree.nodes]
    rows, labels = _losses(examples, tree)
    return Packed(
        ids=torch.tensor([ids]),
        positions=torch.tensor([list(chain.from_iterable(places))]),
        examples=torch.tensor([numbers]),
        rows=torch.tensor(rows, dtype=torch.long),
        labels=torch.tensor(labels, dtype=torch.long),
        segments=tuple((node.start, node.end, node.until, node.depth, node.parent) for node in tree.nodes),
        tokens=sum(len(example.ids) for example in examples),
    )


def end_to_end(packs: Sequence[Packed]) -> Packed:
    """Several layouts as one, in their order; none sees another."""
    starts = list(accumulate((pack.computed for pack in packs), initial=0))
    nodes = list(accumulate((len(pack.segments) for pack in packs), initial=0))
    segments = tuple(
        (start + a, end + a, until + a, depth, parent if parent < 0 else parent + node)
        for pack, a, node in zip(packs, starts, nodes, strict=False)
        for start, end, until, depth, parent in pack.segments
    )
    return Packed(
        ids=torch.cat([pack.ids for pack in packs], dim=1),
        positions=torch.cat([pack.positions for pack in packs], dim=1),
        examples=torch.cat([pack.examples for pack in packs], dim=1),
        rows=torch.cat([pack.rows + a for pack, a in zip(packs, starts, strict=False)]),
        labels=torch.cat([pack.labels for pack in packs]),
        segments=segments,
        tokens=sum(pack.tokens for pack in packs),
    )


def _tree(examples: Sequence[Encoded], *, share: bool) -> Tree:
    """The tree that they are laid out as."""
    apart = row_of_trees([len(example.ids) for example in examples])
    if not share or len(examples) == 1:
        return apart
    shared = shared_tree(examples)
    return shared if shared.tokens <= (1 - WORTH) * apart.tokens else apart


def shared_tree(examples: Sequence[Encoded], least: int = LEAST) -> Tree:
    """The tree of what examples share before their first supervised token."""
    first = [_first_supervised(example) for example in examples]
    return prefix_tree([example.ids for example in examples], first, least)


def micro_batches(
    step: Sequence[Encoded], size: int, *, share: bool, processes: int = 1
) -> list[list[Encoded]]:
    """The examples of one optimizer step in groups that are computed one after the other.

    A group has no more positions than `size` of the examples would have side by side, padded to the longest. Laid end to
    end, and with what they share once, more of them fit: the fewer groups there are, the more is shared.

    Args:
        step: all of it, at least one.
        size: examples in a micro-step.
        share: those that begin alike are put together, and what they share counts once.
        processes: the work of the groups is about the same where there are several, with a group for each.
    """
    by: Any = (lambda e: (e.ids, e.number)) if share else (lambda e: (len(e.ids), e.number))
    ordered = sorted(step, key=by)
    cost = [len(example.ids) for example in ordered]
    most = size * max(cost)
    if share:
        for i, (a, b) in enumerate(pairwise(ordered), start=1):
            common = common_prefix(a.ids[: _first_supervised(a)], b.ids[: _first_supervised(b)])
            cost[i] -= common if common >= LEAST else 0
    count = max(-(-sum(cost) // most), min(processes, len(ordered)))
    groups: list[list[Encoded]] = [[] for _ in range(count)]
    before = 0
    for example, added in zip(ordered, cost, strict=True):
        groups[before * count // sum(cost)].append(example)
        before += added
    return [part for group in groups if group for part in _within(group, most, share=share)]


def _within(group: list[Encoded], most: int, *, share: bool) -> list[list[Encoded]]:
    """A group cut in halves until none has more than `most` positions, or is one example."""
    if len(group) == 1 or _tree(group, share=share).tokens <= most:
        return [group]
    half = len(group) // 2
    return [*_within(group[:half], most, share=share), *_within(group[half:], most, share=share)]


def _first_supervised(example: Encoded) -> int:
    return example.supervised.index(True) if True in example.supervised else len(example.ids)


def _losses(examples: Sequence[Encoded], tree: Tree) -> tuple[list[int], list[int]]:
    """Where each supervised token is predicted from, and the token; the first token of all is predicted from nowhere."""
    rows, labels = [], []
    for number, example in enumerate(examples):
        path = iter(tree.path(number))
        node = next(path)
        for position, (token, supervised) in enumerate(zip(example.ids, example.supervised, strict=True)):
            if not supervised or position == 0:
                continue
            before = position - 1
            while before - node.depth >= node.end - node.start:
                node = next(path)
            rows.append(node.start + before - node.depth)
            labels.append(token)
    return rows, labels
