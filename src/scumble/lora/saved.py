"""`SavedModule`: a module of the base, and whole copies of it that adapters trained (`modules_to_save`).

A row is computed by the base's module or by one adapter's copy. Copies are no updates, so they are not
blended: the bank refuses weights other than 0 and 1 for the adapters that have one.
"""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from torch import Tensor, nn

from scumble.lora.routing import Routing


class SavedModule(nn.Module):
    """A module and the copies that replace it for the rows of their adapters."""

    def __init__(self, base: nn.Module, path: str, routing: Routing) -> None:
        super().__init__()
        self.base, self.path, self.routing = base, path, routing
        self.copies = nn.ModuleDict()
        self.train(base.training)

    def add(self, slot: str, tensors: dict[str, Tensor] | None = None) -> nn.Module:
        """A copy for a slot, holding `tensors` (by parameter name) where given, else the base's values."""
        # a deep copy of the module has parameters of its own, so that what was tied is tied no longer
        module = copy.deepcopy(self.base).requires_grad_(False)
        if tensors is not None:
            with torch.no_grad():
                for name, parameter in module.named_parameters():
                    parameter.data = tensors[name].to(parameter.device).clone()
        self.copies[slot] = module
        return module

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base"), name)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The base's output, with the rows of each active copy computed by it instead."""
        active = self.routing.active(self.copies)
        y: Tensor | None = None
        for slot in active:
            weight = self.routing.weight(slot, x.shape[:2] if x.ndim > 1 else x.shape, self.path)
            replaced = cast(Tensor, self.copies[slot](x, *args, **kwargs))
            if not isinstance(weight, Tensor):
                return replaced  # one adapter for all rows: the base need not run
            y = cast(Tensor, self.base(x, *args, **kwargs)) if y is None else y
            y = torch.where(weight.to(y.device).ne(0), replaced.to(y.dtype), y)
        return cast(Tensor, self.base(x, *args, **kwargs)) if y is None else y
