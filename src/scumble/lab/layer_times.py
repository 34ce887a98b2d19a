"""`LayerTimes`: when each layer of a model begins in a forward pass, and ends in a backward pass.

A GPU's own clock is read where the model is on one. Knows layers and clocks, and nothing of training.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


class LayerTimes:
    """When each layer began, forward, and ended, backward; layers without a backward pass have no second stamp."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        self.count = len(layers)
        self.forward: dict[int, Any] = {}
        self.backward: dict[int, Any] = {}

    def before(self, number: int, hidden: torch.Tensor) -> None:
        """A layer is about to be computed."""
        self.forward[number] = _now(hidden.device)
        if hidden.requires_grad:
            hidden.register_hook(lambda grad: self.backward.__setitem__(number, _now(grad.device)))

    def spans(self) -> list[float]:
        """Seconds of each layer but the first and the last."""
        found = []
        for number in range(1, self.count - 1):
            span = _between(self.forward[number], self.forward[number + 1])
            if number in self.backward:
                span += _between(self.backward[number + 1], self.backward[number])
            found.append(span)
        return found


@contextmanager
def timed_layers(layers: Sequence[nn.Module]) -> Iterator[LayerTimes]:
    """Stamp the layers' passes in the body of a `with`."""
    stamps = LayerTimes(layers)

    def hook(number: int) -> Any:
        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            stamps.before(number, args[0] if args else kwargs["hidden_states"])

        return before

    handles = [
        layer.register_forward_pre_hook(hook(number), with_kwargs=True) for number, layer in enumerate(layers)
    ]
    try:
        yield stamps
    finally:
        for handle in handles:
            handle.remove()


def _now(device: torch.device) -> Any:
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _between(first: Any, second: Any) -> float:
    return second - first if isinstance(first, float) else first.elapsed_time(second) / 1000
