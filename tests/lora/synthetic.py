"""Adapters made of numbers alone, without a model; and what they should compute, dense, in fp64.

The oracle reads what PEFT's format holds (names, scales by pattern) by itself and shares no code with `scumble`.
"""

from __future__ import annotations

import math
import re
from typing import Any

import torch
from torch import Tensor

from scumble.lora.adapter import Adapter, Factors
from scumble.lora.spec import LoraSpec

SHAPES = {"q_proj": (20, 16), "k_proj": (12, 16), "up_proj": (28, 16), "down_proj": (16, 28)}


def made(
    targets: tuple[str, ...] = ("q_proj", "up_proj"),
    *,
    seed: int = 0,
    layers: int = 2,
    dtype: torch.dtype = torch.float32,
    **spec: Any,
) -> Adapter:
    """An adapter with random factors on `layers` layers of a model that does not exist."""
    generator = torch.Generator().manual_seed(seed)
    full = LoraSpec(targets=targets, **{"rank": 4, "alpha": 8.0, "base_name": "nowhere", **spec})
    factors = {}
    for layer in range(layers):
        for name in targets:
            path = f"model.layers.{layer}.mlp.{name}"
            out, width = SHAPES[name]
            rank = full.rank_of(path)

            def random(*shape: int) -> Tensor:
                return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

            factors[path] = Factors(
                random(rank, width), random(out, rank), random(out) if full.lora_bias else None
            )
    return Adapter(full, factors)


def dense(adapter: Adapter) -> dict[str, Tensor]:
    """`s B A` of each module in fp64, from the format's own names."""
    config, tensors = adapter.spec.to_peft(), adapter.tensors()
    found = {}
    for name, A in tensors.items():
        if not name.endswith(".lora_A.weight"):
            continue
        path = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        B = tensors[name.replace("lora_A", "lora_B")]
        found[path] = _scale(config, path) * B.double() @ A.double()
    return found


def dense_bias(adapter: Adapter) -> dict[str, Tensor]:
    """`s b` of each module that has a lora_bias."""
    config = adapter.spec.to_peft()
    return {
        name.removeprefix("base_model.model.").removesuffix(".lora_B.bias"): _scale(
            config, name.removeprefix("base_model.model.").removesuffix(".lora_B.bias")
        )
        * tensor.double()
        for name, tensor in adapter.tensors().items()
        if name.endswith(".lora_B.bias")
    }


def _scale(config: dict[str, Any], path: str) -> float:
    def valued(patterns: dict[str, Any], default: Any) -> Any:
        return next((v for k, v in patterns.items() if re.match(rf"(.*\.)?({k})$", path)), default)

    rank, alpha = (
        valued(config["rank_pattern"], config["r"]),
        valued(config["alpha_pattern"], config["lora_alpha"]),
    )
    return alpha / math.sqrt(rank) if config["use_rslora"] else alpha / rank


def total(adapters: list[tuple[Adapter, float]]) -> dict[str, Tensor]:
    """The weighted sum of the updates of each module."""
    found: dict[str, Tensor] = {}
    for adapter, weight in adapters:
        for path, update in dense(adapter).items():
            found[path] = found.get(path, torch.zeros_like(update)) + weight * update
    return found


def sizes(adapters: list[tuple[Adapter, float]]) -> dict[str, float]:
    """The sum of |w_i| |update_i| of each module: what an error is measured by."""
    found: dict[str, float] = {}
    for adapter, weight in adapters:
        for path, update in dense(adapter).items():
            found[path] = found.get(path, 0.0) + abs(weight) * float(update.norm())
    return found
