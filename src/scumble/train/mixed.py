"""The gradients of several adapters' steps from micro-batches in which each has rows of its own.

    row:   | examples of adapter 1 | examples of adapter 2 | ...     one product with the base's weights for all
    loss = sum over adapters of (sum over its supervised tokens / supervised tokens of its step)

Each adapter's gradient comes from its own rows and is divided by its own tokens alone, so it is what it would be by
itself but for the order of sums. Only adapters that are A and B alone can be laid so. Knows engines and examples.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import accumulate, pairwise, zip_longest

import torch
from torch import Tensor

from scumble.compare.loss import loss_sums
from scumble.data.encoding import Encoded
from scumble.data.packing import Packed, end_to_end, pack
from scumble.lora.routing import Span
from scumble.train.engine import Ask, Engine, StepLoss, marks_of, targets_of
from scumble.train.subject import AdapterSubject
from scumble.train.trunks import Trunks


def can_mix(engine: Engine) -> bool:
    """Whether an engine's rows can stand beside others'."""
    return isinstance(engine.subject, AdapterSubject) and engine.subject.plain and engine.alone


def mixed_gradients(asks: Sequence[Ask]) -> list[StepLoss]:
    """Add the gradient of one optimizer step of each adapter to its parameters.

    Args:
        asks: at least one; all of one bank, and `can_mix` says yes of each.
    """
    device = asks[0].engine.device
    targets = [max(targets_of(ask.examples), 1) for ask in asks]
    totals = [torch.zeros((), dtype=torch.float64, device=device) for _ in asks]
    tokens, computed = [0] * len(asks), [0] * len(asks)
    # the k-th micro-batches of all side by side; a step that has fewer is done before others are
    for groups in zip_longest(*(ask.engine.groups(ask.examples) for ask in asks)):
        members = [number for number, group in enumerate(groups) if group]
        packs = [pack(groups[number], share=asks[number].engine.share).to(device) for number in members]
        weights = [asks[number].engine.scale / targets[number] for number in members]
        sums = _micro_batch(
            [asks[number] for number in members], [groups[number] for number in members], packs, weights
        )
        for number, one, packed in zip(members, sums, packs, strict=True):
            totals[number] += one / targets[number]
            tokens[number] += packed.tokens
            computed[number] += packed.computed
    found = []
    for number, ask in enumerate(asks):
        ask.engine.note(tokens[number], computed[number])
        loss = float(totals[number])
        found.append(StepLoss(loss, targets_of(ask.examples), tokens[number], computed[number]))
    return found


def _micro_batch(
    asks: Sequence[Ask],
    groups: Sequence[Sequence[Encoded]],
    packs: Sequence[Packed],
    weights: Sequence[float],
) -> Tensor:
    """One forward and backward pass; the summed cross-entropy of each adapter's tokens, (adapters,)."""
    subject = asks[0].engine.subject
    assert isinstance(subject, AdapterSubject)
    whole = end_to_end(packs)
    model = subject.model
    begun = _beginning([ask.engine.trunks for ask in asks], groups, packs)
    with subject.bank.using_spans(_spans(asks, packs)), begun:
        sums = loss_sums(model, whole, [packed.targets for packed in packs])
        (sums * sums.new_tensor(weights)).sum().backward()
    return sums.detach()


def _spans(asks: Sequence[Ask], packs: Sequence[Packed]) -> list[Span]:
    tokens = pairwise(accumulate((packed.computed for packed in packs), initial=0))
    rows = pairwise(accumulate((len(packed.read) for packed in packs), initial=0))
    found = []
    for ask, packed, of_tokens, of_rows in zip(asks, packs, tokens, rows, strict=True):
        subject = ask.engine.subject
        assert isinstance(subject, AdapterSubject)
        marks = marks_of(packed, ask.step) if subject.drops else None
        found.append(Span(subject.name, slice(*of_tokens), slice(*of_rows), marks))
    return found


def _beginning(
    trunks: Sequence[Trunks | None], groups: Sequence[Sequence[Encoded]], packs: Sequence[Packed]
) -> AbstractContextManager[None]:
    """Where all of them begin above the same layers, what those give, end to end."""
    first = trunks[0]
    if first is None or not first.depth or any(each is not first for each in trunks):
        return nullcontext()
    hidden = [first.hidden(group, packed) for group, packed in zip(groups, packs, strict=True)]
    return first.beginning_with(torch.cat(hidden, dim=1))
