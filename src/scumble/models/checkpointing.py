"""Layers that keep only their input and are computed again in the backward pass, as few of them as memory asks for.

A step costs 4 N operations a token where the base is frozen, 6 N with every layer computed twice. The first layers are
chosen: when the backward pass reaches them, what the others kept is gone already. Knows modules and bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from scumble.models import attention, lean


def layers_of(model: Any) -> list[nn.Module]:
    """The model's layers, in the order of the forward pass; none where its shape is not known."""
    layers = getattr(getattr(model, "base_model", model), "layers", None)
    return list(layers) if isinstance(layers, nn.ModuleList) else []


@contextmanager
def checkpointed(model: Any, count: int) -> Iterator[None]:
    """Let the first `count` layers be computed again in backward passes, in the body of a `with`."""
    with ExitStack() as stack:
        for layer in layers_of(model)[:count]:
            stack.enter_context(lean.replaced(layer, partial(_again, layer.forward)))
        yield


def _again(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    # the second pass comes after the body of `packed` and `only_rows`, and must see what the first one saw
    inside = [attention.current(), lean.current()]

    @contextmanager
    def second() -> Iterator[None]:
        with ExitStack() as stack:
            for each in inside:
                stack.enter_context(each())
            yield

    return checkpoint(
        forward,
        *args,
        use_reentrant=False,
        preserve_rng_state=False,  # nothing here draws random numbers: dropout is a function of places
        context_fn=lambda: (nullcontext(), second()),
        **kwargs,
    )


def layers_to_repeat(kept: int, inputs: int, layers: int, room: int) -> int:
    """How many layers must be computed again so that what is kept fits.

    Args:
        kept: bytes that all layers keep together without any repeated.
        inputs: bytes of one layer's input, which a repeated layer keeps.
        layers: how many there are.
        room: bytes that there are.

    Returns:
        From 0 to `layers`: the fewest k with `(layers - k) kept / layers + k inputs + kept / layers <= room`, the last
        term for the layer that is being computed again; `layers` where none is enough.
    """
    if kept <= room or not layers:
        return 0
    each = kept / layers
    if each <= inputs:
        return layers
    return min(layers, max(1, math.ceil((kept + each - room) / (each - inputs))))


class Kept:
    """Counts the bytes that a forward pass keeps for the backward pass, each storage once, weights not."""

    def __init__(self, model: nn.Module) -> None:
        self._seen = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        self._held: list[Tensor] = []  # so that no storage is counted under an address that was used before
        self.bytes = 0

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count in the body of a `with`."""
        with torch.autograd.graph.saved_tensors_hooks(self._count, lambda tensor: tensor):
            yield
        self._held.clear()

    def _count(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._seen:
            self._seen.add(storage.data_ptr())
            self._held.append(tensor)
            self.bytes += storage.nbytes()
        # an output that a step of the graph keeps of itself would keep that step in turn, and neither would ever go
        return tensor.detach()
