"""A fresh adapter: A random and B zero, so that training starts from the base itself.

A is uniform in +-1/sqrt(in), which is PEFT's Kaiming rule with a = sqrt(5); for embeddings A is zero and B
standard normal, as in PEFT. Every module has a generator of its own, seeded by the adapter's seed and the
module's path: neither the order of modules nor other adapters change what it draws.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from scumble.errors import AdapterError
from scumble.lora.adapter import Adapter, Factors
from scumble.lora.dropout import module_key
from scumble.lora.fit import biased_paths, reached, saved_paths, tensors_inside, token_paths, wrappable
from scumble.lora.layer import BankLayer
from scumble.lora.routing import Routing
from scumble.lora.spec import LoraSpec
from scumble.lora.targets import named_by, nearest_names


def fresh_adapter(
    spec: LoraSpec, modules: Mapping[str, nn.Module], head: nn.Module | None, seed: int
) -> Adapter:
    """An adapter of `spec` for the base whose modules are given, in fp32 on the CPU.

    Of modules without data (the `meta` device) it is an adapter without data: its shapes alone.

    Args:
        spec: ranks, targets and variants.
        modules: the base's modules by path.
        head: the output layer, which `all-linear` leaves out.
        seed: decides A.

    Raises:
        AdapterError: the targets match nothing, or one of several names matches none.
    """
    _check_names(spec, modules)
    adapter = Adapter(
        spec, {path: _factors(spec, path, modules[path], seed) for path in reached(spec, modules, head)}
    )
    for path in saved_paths(spec, modules):
        for name, tensor in tensors_inside(modules, path).items():
            adapter.saved[name] = _copy(tensor)
    for path, rows in token_paths(spec, modules).items():
        adapter.tokens[path] = _copy(cast(Tensor, modules[path].weight)[list(rows)])
    for path in biased_paths(spec, modules, adapter.factors):
        adapter.biases[path] = _copy(cast(Tensor, modules[path].bias))
    return adapter


def _copy(tensor: Tensor) -> Tensor:
    """A copy on the CPU; without data where there is none."""
    return tensor.detach().to("meta" if tensor.is_meta else "cpu", copy=True)


def _factors(spec: LoraSpec, path: str, module: nn.Module, seed: int) -> Factors:
    layer = BankLayer(module, path, Routing())
    out, width = layer.shape()
    rank = spec.rank_of(path)
    generator = torch.Generator().manual_seed(module_key(seed, path) % 2**63)
    device = "meta" if layer.weight.is_meta else "cpu"
    A, B = torch.zeros(rank, width, device=device), torch.zeros(out, rank, device=device)
    if layer.embedding:
        B.normal_(generator=generator)
    else:
        A.uniform_(-1 / math.sqrt(width), 1 / math.sqrt(width), generator=generator)
    bias = torch.zeros(out, device=device) if spec.lora_bias else None
    magnitude = None
    if spec.dora:
        magnitude = torch.linalg.vector_norm(layer.matrix().detach().float().to(device), dim=1)
    return Factors(A, B, bias, magnitude, layer.embedding)


def _check_names(spec: LoraSpec, modules: Mapping[str, nn.Module]) -> None:
    """Refuse a target name that matches nothing beside others that do: a typing mistake would train less, in silence."""
    if isinstance(spec.targets, str):
        return
    lost = [name for name in spec.targets if not any(named_by(path, [name]) for path in modules)]
    if lost and len(lost) < len(spec.targets):  # where all are lost, `reached` says so
        near = nearest_names(lost, (path for path, module in modules.items() if wrappable(module)))
        raise AdapterError(
            f"the target modules {', '.join(lost)} match nothing in this base",
            f"its modules are called {', '.join(near)}" if near else "it has no linear layers",
        )
