"""Batches: encoded examples side by side as tensors.

Padded on the left, so that the answers end together and logits are needed for the last few positions only;
padding is never attended to and never has a loss. How examples are laid out changes no figure but the time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scumble.data.encoding import Encoded

IGNORED = -100


@dataclass(frozen=True)
class Batch:
    """Examples as tensors of shape (batch, sequence).

    Attributes:
        ids: token ids.
        mask: 1 where there is a token, 0 where there is padding.
        positions: position within the example.
        labels: the token id where it has a loss, else -100.
        examples: the example's number in its data set.
        targets: how many tokens have a loss.
        tokens: how many tokens there are, padding not counted.
    """

    ids: Tensor
    mask: Tensor
    positions: Tensor
    labels: Tensor
    examples: Tensor
    targets: int
    tokens: int

    @property
    def keep(self) -> int:
        """How many last positions the logits are needed for: from the first that predicts a supervised token."""
        predicted = (self.labels != IGNORED).any(dim=0).nonzero()
        length = int(self.ids.shape[1])
        first = int(predicted[0]) if len(predicted) else length
        return length - max(first - 1, 0)

    def to(self, device: torch.device) -> Batch:
        """The same on another device."""
        moved = {
            name: getattr(self, name).to(device)
            for name in ("ids", "mask", "positions", "labels", "examples")
        }
        return Batch(**moved, targets=self.targets, tokens=self.tokens)


def collate(examples: Sequence[Encoded]) -> Batch:
    """Lay examples side by side, padded on the left."""
    longest = max(len(example.ids) for example in examples)
    shape = (len(examples), longest)
    ids, mask, positions = (torch.zeros(shape, dtype=torch.long) for _ in range(3))
    labels = torch.full(shape, IGNORED)
    for row, example in enumerate(examples):
        start = longest - len(example.ids)
        ids[row, start:] = torch.tensor(example.ids)
        mask[row, start:] = 1
        positions[row, start:] = torch.arange(len(example.ids))
        supervised = torch.tensor(example.supervised)
        supervised[0] = False  # nothing comes before the first token to predict it from
        labels[row, start:][supervised] = ids[row, start:][supervised]
    numbers = torch.tensor([example.number for example in examples])
    return Batch(
        ids,
        mask,
        positions,
        labels,
        numbers[:, None].expand(shape).contiguous(),
        targets=int((labels != IGNORED).sum()),
        tokens=int(mask.sum()),
    )
