"""`Recipe`: how a tensor is made again from others that are kept anyway, so that it need not be kept itself.

The output of a normalisation is read by the projections beside an adapter, which need it in the backward pass; so is the
gated product of an MLP. Each comes with its recipe, and `fused_linear` keeps the recipe's inputs in place of it. Readers
of one tensor share one making: it is let go once the last of them had it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, cast

from torch import Tensor


class Making:
    """What the readers of one tensor share.

    Args:
        make: from the recipe's inputs to the tensor; called without a graph.
    """

    def __init__(self, make: Callable[..., Tensor]) -> None:
        self._make = make
        self._readers = 0
        self._made: Tensor | None = None

    def join(self) -> Making:
        """Count one more reader, who will need the tensor again."""
        self._readers += 1
        return self

    def again(self, inputs: Sequence[Tensor]) -> Tensor:
        """The tensor, for one reader."""
        made = self._make(*inputs) if self._made is None else self._made
        self._readers -= 1
        self._made = made if self._readers > 0 else None
        return made


class Recipe(NamedTuple):
    """How one tensor is made.

    Attributes:
        making: shared by its readers.
        inputs: what it is made of; whoever needs the tensor again keeps these.
    """

    making: Making
    inputs: tuple[Tensor, ...]

    @classmethod
    def of(cls, tensor: Tensor) -> Recipe | None:
        """The recipe that a tensor came with."""
        return cast("Recipe | None", getattr(tensor, "_scumble_recipe", None))


def with_recipe(tensor: Tensor, make: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """Let a tensor come with its recipe; gives the tensor."""
    tensor._scumble_recipe = Recipe(Making(make), inputs)  # type: ignore[attr-defined]
    return tensor
