"""`Installation`: the modules of one model that are wrapped, and the slots and copies inside them.

Puts an adapter's tensors beside the modules they act on, takes them out again, and unwraps a module once
nobody reaches it. Knows slots by key; names, mixtures and whether an adapter fits are the bank's business.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import cast

import torch
from torch import Tensor, nn

from scumble.errors import AdapterError
from scumble.lora.adapter import MAX_VALUE, Adapter, Factors
from scumble.lora.fit import saved_paths, token_paths
from scumble.lora.layer import BankLayer, Slot
from scumble.lora.routing import Routing
from scumble.lora.saved import SavedModule


class Installation:
    """What of a model is wrapped.

    Args:
        model: the model whose modules are replaced by wrapped ones, in place.
        modules: its modules by path, as they were before anything was wrapped.
        routing: handed to every wrapped module.
    """

    def __init__(self, model: nn.Module, modules: Mapping[str, nn.Module], routing: Routing) -> None:
        self.model, self.modules, self.routing = model, modules, routing
        self.wrapped: dict[str, BankLayer | SavedModule] = {}

    def put(self, slot: str, adapter: Adapter) -> None:
        """Put an adapter that fits into a new slot, frozen; on an error everything is as before.

        Raises:
            AdapterError: another adapter replaces whole what this one updates, or the other way round; or DoRA
                cannot rescale a row of W + s B A, since it is zero.
        """
        tied = self._tied(adapter)
        updated = sorted({*adapter.factors, *adapter.biases, *tied})
        replaced = sorted(saved_paths(adapter.spec, self.modules))
        self._check_kinds(updated, replaced)
        try:
            shared: dict[str, nn.Parameter] = {}
            for path in updated:
                layer = cast(BankLayer, self._wrap(path, BankLayer))
                layer.slots[slot] = _slot_of(adapter, path, layer, tied.get(path), shared)
                _check_gain(cast(Slot, layer.slots[slot]), layer)
            for path in replaced:
                inside = path + "."
                tensors = {
                    k.removeprefix(inside): v for k, v in adapter.saved.items() if k.startswith(inside)
                }
                cast(SavedModule, self._wrap(path, SavedModule)).add(slot, tensors)
        except BaseException:
            # out of memory, or interrupted: half an adapter must not stay
            self.drop(slot)
            raise

    def drop(self, slot: str) -> None:
        """Take a slot out everywhere, and unwrap the modules that no slot is left at."""
        for path, layer in list(self.wrapped.items()):
            held = _held(layer)
            if slot in held:
                del held[slot]
            if not held:
                set_module(self.model, path, self.modules[path])
                del self.wrapped[path]

    def rename(self, old: str, new: str) -> None:
        """Give a slot another key."""
        for layer in self.wrapped.values():
            held = _held(layer)
            if old in held:
                held[new] = held.pop(old)

    def of(self, slot: str) -> Iterator[nn.Module]:
        """The slot's modules: a `Slot` beside each layer, and whole copies of saved modules."""
        for layer in self.wrapped.values():
            held = _held(layer)
            if slot in held:
                yield held[slot]

    def reached(self, slot: str) -> list[str]:
        """The paths of the modules that a slot is at."""
        return [path for path, layer in self.wrapped.items() if slot in _held(layer)]

    def live(self, slot: str, adapter: Adapter) -> Adapter:
        """The adapter with the slot's own parameters in place of the tensors it came with."""
        live = Adapter(adapter.spec, {}, base_hash=adapter.base_hash)
        for path, layer in self.wrapped.items():
            if isinstance(layer, SavedModule) and slot in layer.copies:
                for key, tensor in layer.copies[slot].state_dict(keep_vars=True).items():
                    live.saved[f"{path}.{key}"] = tensor
            elif isinstance(layer, BankLayer) and slot in layer.slots:
                held = cast(Slot, layer.slots[slot])
                if held.A is not None:
                    live.factors[path] = Factors(
                        held.A, held.B, held.lora_bias, held.magnitude, layer.embedding
                    )
                if held.base_bias is not None:
                    live.biases[path] = held.base_bias
                if held.tokens is not None and path in adapter.tokens:
                    live.tokens[path] = held.tokens
        return live

    def _check_kinds(self, updated: list[str], replaced: list[str]) -> None:
        for paths, kind in ((updated, BankLayer), (replaced, SavedModule)):
            for path in paths:
                if not isinstance(self.wrapped.get(path), kind | None):
                    raise AdapterError(
                        f"one adapter replaces {path} whole and another updates it; a bank cannot hold both",
                        "keep them in two banks",
                    )

    def _wrap(self, path: str, kind: type[BankLayer] | type[SavedModule]) -> nn.Module:
        if path not in self.wrapped:
            self.wrapped[path] = kind.from_base(self.modules[path], path, self.routing)
            set_module(self.model, path, self.wrapped[path])
        return self.wrapped[path]

    def _tied(self, adapter: Adapter) -> dict[str, tuple[str, tuple[int, ...]]]:
        """The modules with replaced rows, also an output layer tied to one: path -> (its source, rows)."""
        sources = token_paths(adapter.spec, self.modules)
        found = {path: (path, rows) for path, rows in sources.items()}
        for path, rows in sources.items():
            for other, module in self.modules.items():
                if isinstance(module, nn.Linear) and module.weight is self.modules[path].weight:
                    found[other] = (path, rows)
        return found


def set_module(model: nn.Module, path: str, module: nn.Module) -> None:
    """Put `module` at `path`, also where its parent is itself wrapped."""
    parent, _, last = path.rpartition(".")
    holder = model.get_submodule(parent)
    # a parent that is itself wrapped holds its children in its base
    setattr(holder.base if isinstance(holder, SavedModule) else holder, last, module)


def _held(layer: BankLayer | SavedModule) -> nn.ModuleDict:
    return layer.slots if isinstance(layer, BankLayer) else layer.copies


def _check_gain(slot: Slot, layer: BankLayer) -> None:
    """Refuse DoRA where a row is not finite: zero times that, in rows of other adapters, would not be zero."""
    if slot.magnitude is None or layer.weight.is_meta:
        return
    gain = slot.gain(layer.matrix())
    wrong = (~(gain.abs() <= MAX_VALUE)).nonzero()
    if wrong.numel():
        raise AdapterError(
            f"DoRA at {layer.path} cannot rescale row {int(wrong[0])}: W + s B A is zero there, or nearly",
            "it was made for another base, or is damaged",
        )


def _slot_of(
    adapter: Adapter,
    path: str,
    layer: BankLayer,
    rows: tuple[str, tuple[int, ...]] | None,
    shared: dict[str, nn.Parameter],
) -> Slot:
    """An adapter's slot at one module; `shared` keeps the rows of tied modules one parameter."""
    weight = getattr(layer.base, "weight", None)
    device = next(layer.base.parameters()).device

    def own(tensor: Tensor | None) -> Tensor | None:
        # a copy, in fp32 at least: an adapter in half precision is widened without loss, as in PEFT, and
        # so is one in fp32 beside a base in fp64
        if tensor is None:
            return None
        kind = torch.promote_types(tensor.dtype, torch.float32)
        if isinstance(weight, Tensor) and weight.is_floating_point():
            kind = torch.promote_types(kind, weight.dtype)
        return tensor.detach().to(device, kind, copy=True)

    slot = Slot(adapter.spec.scale_of(path))
    slot.fill(base_bias=own(adapter.biases.get(path)))
    factors = adapter.factors.get(path)
    if factors is not None:
        slot.fill(
            A=own(factors.A), B=own(factors.B), lora_bias=own(factors.bias), magnitude=own(factors.magnitude)
        )
    if rows is not None:
        source, numbers = rows
        if source not in shared:
            shared[source] = nn.Parameter(cast(Tensor, own(adapter.tokens[source])), requires_grad=False)
        slot.fill(token_rows=torch.tensor(numbers, device=device))
        slot.tokens = shared[source]
    return slot
