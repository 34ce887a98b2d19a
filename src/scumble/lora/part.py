"""`Part`: an adapter and its weight in a blend; and what is asked of a base where the adapters alone do not decide.

Knows nothing of how parts are put together, and nothing of files.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from scumble.lora.adapter import Adapter


class BaseTensors(Protocol):
    """What is asked of a base: `models.checkpoint.Checkpoint` answers it."""

    def matrix_rows(self, path: str, start: int, stop: int) -> Tensor:
        """(stop - start, in), rows of W as (out, in)."""

    def tensor_name(self, parameter: str) -> str:
        """The name under which a parameter is stored."""

    def bias_name(self, path: str) -> str | None:
        """The name of a module's bias, None where it has none."""

    def read(self, name: str) -> Tensor:
        """A tensor, whole."""


@dataclass(frozen=True)
class Part:
    """An adapter and its weight.

    Attributes:
        adapter: in memory.
        weight: a number for all modules, or what gives one by module path.
        title: what an error calls it.
    """

    adapter: Adapter
    weight: float | Callable[[str], float] = 1.0
    title: str = "the adapter"

    def at(self, path: str) -> float:
        """The weight at a module."""
        return self.weight(path) if callable(self.weight) else self.weight
