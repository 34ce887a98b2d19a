"""The loss of examples: cross-entropy summed over supervised tokens, for evaluation and training alike.

The sum, not a mean: a mean over micro-batches would weigh a token by how many others it was put with. Logits are made
only where there is a loss, in chunks, so that memory never holds tokens x vocabulary; where the output layer is frozen,
a chunk's gradient is made with it (as in Liger Kernel, arXiv:2410.10989), and its logits are not made a second time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from scumble.data.batches import IGNORED, Batch, collate
from scumble.data.encoding import Encoded
from scumble.data.packing import Packed, micro_batches, pack
from scumble.models.attention import packed
from scumble.models.packable import capped, hidden_of, softcap_of, ways_of

_CHUNK_BYTES = 64 * 2**20  # of logits that are there at once


def lay_out(model: Any, examples: Sequence[Encoded], *, share: bool = True) -> Packed | Batch:
    """Examples as the model takes them: end to end, or side by side where it mixes tokens by more than attention.

    Args:
        model: a causal model of transformers.
        examples: of one micro-batch.
        share: compute what several begin with once, where that pays; not with dropout.
    """
    return pack(examples, share=share) if ways_of(model).packed else collate(examples)


def groups_of(
    model: Any, examples: Sequence[Encoded], size: int, *, share: bool = True, processes: int = 1
) -> list[list[Encoded]]:
    """Examples in groups for `lay_out`, none larger in memory than `size` of the longest side by side.

    Args:
        model: a causal model of transformers.
        examples: at least one.
        size: examples at once, where they are padded.
        share: as for `lay_out`.
        processes: among which the groups are shared out; there is one for each where there are enough examples.
    """
    if ways_of(model).packed:
        return micro_batches(examples, size, share=share, processes=processes)
    ordered = sorted(examples, key=lambda example: (len(example.ids), example.number))
    size = min(size, -(-len(ordered) // processes))
    return [ordered[i : i + size] for i in range(0, len(ordered), size)]


def loss_sum(model: Any, batch: Packed | Batch) -> Tensor:
    """The summed cross-entropy of a batch's supervised tokens, a scalar in fp32 (fp64 for an fp64 model).

    Args:
        model: a causal model of transformers.
        batch: on the model's device.
    """
    if isinstance(batch, Batch):
        return token_losses(model, batch).sum()
    return loss_sums(model, batch, [batch.targets])[0]


def loss_sums(model: Any, batch: Packed, counts: Sequence[int]) -> Tensor:
    """The summed cross-entropy of runs of a batch's supervised tokens, (runs,), in fp32 (fp64 for an fp64 model).

    Args:
        model: a causal model of transformers.
        batch: on the model's device.
        counts: supervised tokens of each run, in their order, together all of them.
    """
    if not ways_of(model).head:
        return _sums(_own_logits_losses(model, batch), counts)
    head, cap = model.get_output_embeddings(), softcap_of(model)
    hidden = hidden_of(model, batch.ids, batch.positions, batch.segments, batch.read)[
        0, batch.rows
    ]  # (targets, h)
    size = max(1, _CHUNK_BYTES // (4 * head.weight.shape[0]))
    if type(head) is nn.Linear and head.bias is None and cap is None and not head.weight.requires_grad:
        return cast(Tensor, _FrozenHead.apply(hidden, head.weight, batch.labels, size, counts))
    losses = [
        checkpoint(_chunk_losses, model, rows, labels, use_reentrant=False)
        for rows, labels in zip(hidden.split(size), batch.labels.split(size), strict=True)
    ]
    return _sums(torch.cat(losses), counts)


def _sums(losses: Tensor, counts: Sequence[int]) -> Tensor:
    """The sum of each run."""
    return torch.stack([part.sum() for part in losses.split(list(counts))])


def token_losses(model: Any, batch: Batch) -> Tensor:
    """The cross-entropy at each position that logits are needed for, (batch, keep - 1), 0 where none is."""
    keep = batch.keep
    logits = model(
        input_ids=batch.ids,
        attention_mask=batch.mask,
        position_ids=batch.positions,
        use_cache=False,
        logits_to_keep=keep,
    ).logits[:, -keep:]  # (batch, keep, vocabulary); a model without logits_to_keep gives all positions
    wide = torch.promote_types(logits.dtype, torch.float32)
    labels = batch.labels[:, -keep:][:, 1:]  # the token after each position
    losses = functional.cross_entropy(
        logits[:, :-1].to(wide).flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="none"
    )
    return losses.view_as(labels)


@torch.no_grad()
def mean_loss(model: Any, examples: Sequence[Encoded], batch: int, device: torch.device) -> float:
    """The mean cross-entropy over all supervised tokens of `examples`, in nats.

    Args:
        model: in evaluation mode.
        examples: at least one.
        batch: examples at once.
        device: of the model.
    """
    total, targets = 0.0, 0
    for group in groups_of(model, examples, batch):
        laid = lay_out(model, group)
        total += float(loss_sum(model, laid.to(device)))
        targets += laid.targets
    return total / targets


class _FrozenHead(torch.autograd.Function):
    """Summed cross-entropies of `softmax(h W^T)`, whose gradient with respect to h is made in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, size: int, counts: Sequence[int]
    ) -> Tensor:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        losses = torch.empty(len(labels), dtype=wide, device=hidden.device)
        grad = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        for start in range(0, len(labels), size):
            part = slice(start, start + size)
            scores = functional.linear(hidden[part], weight).to(wide)
            scores -= scores.amax(dim=-1, keepdim=True)
            own = labels[part, None]
            right = scores.gather(1, own)
            # the label by itself: where it is nearly certain, p - 1 would be rounding; the others' sum is not
            others = scores.exp_().scatter_(1, own, 0).sum(dim=-1, keepdim=True)
            sums = others + right.exp()
            losses[part] = (sums.log() - right)[:, 0]
            if grad is not None:
                # softmax W - the label's row of W; the division is by rows, so it can wait for the narrower product
                rest = (scores.to(weight.dtype) @ weight).to(wide) - others * weight[own[:, 0]]
                grad[part] = (rest / sums).to(grad.dtype)
            del scores  # or the next chunk is made beside it
        ctx.save_for_backward(grad)
        ctx.counts = counts
        return _sums(losses, counts)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (kept,) = ctx.saved_tensors
        if len(ctx.counts) == 1:
            return kept * grad.to(kept.dtype), None, None, None, None
        counts = torch.tensor(ctx.counts, device=grad.device)
        each = grad.repeat_interleave(counts, output_size=len(kept))
        return kept * each[:, None].to(kept.dtype), None, None, None, None


def _own_logits_losses(model: Any, batch: Packed) -> Tensor:
    """The losses from the model's own logits, of all supervised tokens at once: it scales them in a way of its own."""
    with packed(model, batch.segments):
        given = {"input_ids": batch.ids, "position_ids": batch.positions}
        logits = model(**given, use_cache=False, logits_to_keep=batch.rows).logits[0]
    return functional.cross_entropy(
        logits.to(torch.promote_types(logits.dtype, torch.float32)), batch.labels, reduction="none"
    )


def _chunk_losses(model: Any, hidden: Tensor, labels: Tensor) -> Tensor:
    logits = capped(model.get_output_embeddings()(hidden), model)
    return functional.cross_entropy(
        logits.to(torch.promote_types(logits.dtype, torch.float32)), labels, reduction="none"
    )
