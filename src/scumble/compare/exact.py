"""Exact match by one forward pass: an answer is right where each of its tokens is the likeliest after those before it.

    right = all over supervised t of (argmax logits[t - 1] == ids[t])

Greedy decoding writes exactly the expected tokens if and only if each of them, the end of the turn included, is the
likeliest given the expected ones before it. So one pass over prompt and answer marks an example, where generation takes
one for each token. A text that is spelled in other tokens than the tokenizer's own would count as wrong here.
Where two tokens are as likely to the last digit, the two ways may part.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from scumble.compare.loss import groups_of, lay_out
from scumble.data.batches import IGNORED, Batch
from scumble.data.encoding import Encoded
from scumble.data.packing import Packed
from scumble.models.attention import packed
from scumble.models.packable import capped, hidden_of, ways_of

_CHUNK_BYTES = 64 * 2**20  # of logits that are there at once


@torch.no_grad()
def exact_by_forward(
    model: Any,
    examples: Sequence[Encoded],
    *,
    batch: int = 16,
    done: Callable[[int], None] = lambda count: None,
) -> list[bool]:
    """Whether greedy decoding would write each example's supervised tokens.

    Args:
        model: a causal model in evaluation mode; in a bank, within `bank.using`.
        examples: with one run of supervised tokens each (`train_on="last"`): of several, all would have to be right.
        batch: examples at once.
        done: called with the number of examples marked since the last call.

    Returns:
        A mark for each, in their order; False for one without a supervised token.
    """
    device = next(model.parameters()).device
    places = {id(example): number for number, example in enumerate(examples)}
    marks = [False] * len(examples)
    for group in groups_of(model, examples, batch) if examples else []:
        laid = lay_out(model, group).to(device)
        found = _packed(model, laid, group) if isinstance(laid, Packed) else _padded(model, laid)
        for example, right in zip(group, found, strict=True):
            marks[places[id(example)]] = right
        done(len(group))
    return marks


def _packed(model: Any, laid: Packed, group: Sequence[Encoded]) -> list[bool]:
    """Of examples laid end to end, whose supervised tokens stand one example after the other."""
    right = _likeliest(model, laid).eq(laid.labels).cpu()  # (targets,)
    # nothing comes before the first token to predict it from
    counts = [example.targets - bool(example.supervised[0]) for example in group]
    return [bool(len(part)) and bool(part.all()) for part in right.split(counts)]


def _likeliest(model: Any, laid: Packed) -> Tensor:
    """The likeliest token at each of the rows that one is predicted from, (targets,)."""
    if not ways_of(model).head:
        with packed(model, laid.segments):
            given = {"input_ids": laid.ids, "position_ids": laid.positions}
            logits = model(**given, use_cache=False, logits_to_keep=laid.rows).logits[0]
        return torch.as_tensor(logits.argmax(dim=-1))
    head = model.get_output_embeddings()
    hidden = hidden_of(model, laid.ids, laid.positions, laid.segments, laid.read)[
        0, laid.rows
    ]  # (targets, h)
    size = max(1, _CHUNK_BYTES // (4 * head.weight.shape[0]))
    return torch.cat([capped(head(rows), model).argmax(dim=-1) for rows in hidden.split(size)])


def _padded(model: Any, laid: Batch) -> list[bool]:
    """Of examples side by side."""
    keep = laid.keep
    logits = model(
        input_ids=laid.ids,
        attention_mask=laid.mask,
        position_ids=laid.positions,
        use_cache=False,
        logits_to_keep=keep,
    ).logits[:, -keep:]  # (batch, keep, vocabulary)
    labels = laid.labels[:, -keep:][:, 1:]  # the token after each position
    asked = labels.ne(IGNORED)
    right = logits[:, :-1].argmax(dim=-1).eq(labels) | ~asked
    return [bool(each) for each in right.all(dim=1) & asked.any(dim=1)]
