"""`SavedModule`: a module of the base, and whole copies of it that adapters trained (`modules_to_save`).

A row is computed by the base's module or by one adapter's copy. Copies are no updates, so they are not
blended: the bank refuses weights other than 0 and 1 for the adapters that have one.
"""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from torch import Tensor, nn

from scumble.errors import AdapterError
from scumble.lora.layer import BankLayer
from scumble.lora.routing import Routing


class SavedModule(nn.Module):
    """A module and the copies that replace it for the rows of their adapters."""

    def __init__(self, base: nn.Module, path: str, routing: Routing) -> None:
        super().__init__()
        self.base, self.path, self.routing = base, path, routing
        self.copies = nn.ModuleDict()
        self.train(base.training)

    @classmethod
    def from_base(cls, base: nn.Module, path: str, routing: Routing) -> SavedModule:
        """Wrap a module of the base; `.base` gives it back untouched."""
        return cls(base, path, routing)

    def add(self, slot: str, tensors: dict[str, Tensor]) -> nn.Module:
        """A copy for a slot, holding `tensors`, by name within the module, in the base's own type as in PEFT."""
        # a deep copy of the module has parameters of its own, so that what was tied is tied no longer
        module = _bare(copy.deepcopy(self.base)).requires_grad_(False)
        module.load_state_dict(tensors)
        self.copies[slot] = module
        return module

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base"), name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The base's output, with the rows of each active copy computed by it instead.

        Raises:
            AdapterError: rows differ, and the module's output is not one tensor with a row for each.
        """
        y: Tensor | None = None
        for slot in self.routing.active(self.copies.keys()):
            replaced = self.copies[slot](*args, **kwargs)
            if self.routing.state().matrix is None:
                return replaced  # one adapter for all rows: the base need not run
            if not isinstance(replaced, Tensor):
                raise AdapterError(
                    f"{self.path} is replaced whole and its output is not one tensor, so rows cannot differ in it",
                    "use one mixture for all rows",
                )
            weight = self.routing.weight(slot, replaced.shape[:-1], self.path, device=replaced.device)
            y = cast(Tensor, self.base(*args, **kwargs)) if y is None else y
            y = torch.where(cast(Tensor, weight).ne(0), replaced.to(y.dtype), y)
        return self.base(*args, **kwargs) if y is None else y


def _bare(module: nn.Module) -> nn.Module:
    """The module without what a bank wrapped inside it for other adapters."""
    for name, child in list(module.named_children()):
        while isinstance(child, SavedModule | BankLayer):
            child = child.base
            setattr(module, name, child)
        _bare(child)
    return module
