"""A bank with an adapter that changes what its base says."""

from __future__ import annotations

import torch

from scumble.lora.bank import Bank
from scumble.lora.spec import LoraSpec
from scumble.models.base import Base
from tests.bases import make_letters_base


def moved_bank(base: Base | None = None, name: str = "adapter", seed: int = 5) -> Bank:
    """A bank whose one adapter has a random B."""
    bank = Bank(base or make_letters_base())
    bank.trainable(name, LoraSpec(rank=4, alpha=8.0), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, tensor in bank.parameters(name).items():
            if "lora_B" in key:
                tensor.copy_(torch.randn(tensor.shape, generator=generator))
    return bank
