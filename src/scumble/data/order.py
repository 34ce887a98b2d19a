"""The order in which examples are trained on: a new one for each epoch, decided by the seed alone. Knows only numbers."""

from __future__ import annotations

import torch


def order_of(count: int, seed: int, epoch: int) -> list[int]:
    """The numbers from 0 to `count` - 1 in the order of an epoch."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
    order: list[int] = torch.randperm(count, generator=generator).tolist()
    return order
