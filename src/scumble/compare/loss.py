"""The loss of a batch: cross-entropy summed over supervised tokens, for evaluation and training alike.

The sum, not a mean: a mean over micro-batches would weigh a token by how many others it was put with.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from scumble.data.batches import IGNORED, Batch, batches_by_length
from scumble.data.encoding import Encoded


def loss_sum(model: Any, batch: Batch) -> Tensor:
    """The summed cross-entropy of a batch's supervised tokens, a scalar in fp32 (fp64 for an fp64 model).

    Args:
        model: a causal model of transformers.
        batch: on the model's device.
    """
    return token_losses(model, batch).sum()


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
    for laid in batches_by_length(examples, batch):
        total += float(loss_sum(model, laid.to(device)))
        targets += laid.targets
    return total / targets
