"""The loss scale of a base in fp16, whose gradients would otherwise vanish or overflow on their way.

The loss is multiplied by a power of two before the backward pass and the adapter's gradients, which are fp32, divided
by it afterwards: exactly undone, unless something overflowed or fell to zero in between. Where something overflowed the
step is made again with half the scale, so that no step and no example is lost; after `GROW` steps without one the
scale is doubled (Micikevicius et al. 2018, arXiv:1710.03740). bf16 and fp32 need none: their scale is 1 and stays.

Knows gradients, and nothing of models, data and optimizers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import torch
from torch import nn

from scumble.progress import Reporter

START, HIGHEST, GROW = 2.0**16, 2.0**24, 2000

Found = TypeVar("Found")


class LossScale:
    """A scale that follows what the gradients bear.

    Args:
        active: the base is fp16; otherwise the scale is 1.
        reporter: is told of the first overflow of a row.

    Attributes:
        value: a power of two.
        good: steps in a row without an overflow.
    """

    def __init__(self, active: bool, reporter: Reporter) -> None:
        self.active, self.reporter = active, reporter
        self.value = START if active else 1.0
        self.good = 0

    @classmethod
    def of(cls, model: nn.Module, reporter: Reporter) -> LossScale:
        """The scale that a model's weights need."""
        return cls(any(each.dtype == torch.float16 for each in model.parameters()), reporter)

    def step(self, gradient: Callable[[float], Found], parameters: Iterable[nn.Parameter]) -> Found:
        """The gradient of one step, unscaled.

        Args:
            gradient: adds the gradient of a loss times the scale that it is given to the parameters, and gives the loss.
            parameters: whose gradients are None before.

        Returns:
            What `gradient` gave. Where even a scale of 1 overflows, the gradients are not finite, for the loop to say so.
        """
        parameters = list(parameters)
        if not self.active:
            return gradient(1.0)
        before = self.value
        while True:
            found = gradient(self.value)
            grads = [each.grad for each in parameters if each.grad is not None]
            for each in grads:
                each.div_(self.value)
            if _finite(grads):
                self._went_well()
                break
            if self.value <= 1.0:
                break
            self.value, self.good = self.value / 2, 0
            for parameter in parameters:
                parameter.grad = None
        if self.value < before:
            self.reporter.note(
                f"fp16 overflowed: the step was made again, with a loss scale of {self.value:g}"
            )
        return found

    def to_dict(self) -> dict[str, Any]:
        """What a run needs to go on with it."""
        return {"value": self.value, "good": self.good}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on where `to_dict` left it."""
        self.value, self.good = float(state["value"]), int(state["good"])

    def _went_well(self) -> None:
        self.good += 1
        if self.good >= GROW:
            self.value, self.good = min(HIGHEST, 2 * self.value), 0


def _finite(grads: list[torch.Tensor]) -> bool:
    """Whether all numbers are finite, in one transfer from the device."""
    if not grads:
        return True
    return bool(torch.stack([torch.isfinite(each).all() for each in grads]).all())
