"""PEFT as the oracle: adapters that it makes, random and non-zero, and what it computes with them."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn


@pytest.fixture(autouse=True)
def _quiet():
    """PEFT warns of tied embeddings and of embeddings saved; the tests mean both."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="peft")
        warnings.filterwarnings("ignore", module="transformers")
        yield


def peft_model(base: nn.Module, seed: int = 7, spread: float = 0.3, **config: Any) -> PeftModel:
    """PEFT's model on a copy of `base`, everything that it trains moved by random numbers."""
    defaults = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
    torch.manual_seed(seed)  # PEFT draws A from torch's own generator
    model = get_peft_model(copy.deepcopy(base), LoraConfig(**{**defaults, **config}))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.add_((noise * spread).to(parameter.dtype))
    return model.eval()


def peft_load(base: nn.Module, folder: Path | str) -> PeftModel:
    """What PEFT makes of a folder, on a copy of `base`."""
    return PeftModel.from_pretrained(copy.deepcopy(base), str(folder)).eval()


@pytest.fixture
def made(tmp_path) -> Callable[..., Path]:
    """Write an adapter that PEFT makes, and give its folder: `made(base, name, **LoraConfig's arguments)`."""

    def make(base: nn.Module, name: str = "adapter", **config: Any) -> Path:
        peft_model(base, **config).save_pretrained(tmp_path / name)
        return tmp_path / name

    return make
