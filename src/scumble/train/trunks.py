"""`Trunks`: what comes out of the layers that no lane adapts, kept while lanes that see the same examples need it.

Knows groups of examples and how deep the lanes begin; the layers themselves are `scumble.models.trunk`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Tensor

from scumble.data.batches import Batch
from scumble.data.encoding import Encoded
from scumble.data.packing import Packed
from scumble.models.trunk import Trunk, can_be_cut


class Trunks:
    """Hidden states by the examples that they are of.

    Args:
        model: a causal model of transformers.
        depths: for each lane, the number of its first layer that it adapts. Where fewer than two begin above the
            first layer, there is nothing to share.
    """

    def __init__(self, model: Any, depths: Iterable[int]) -> None:
        above = [depth for depth in depths if depth > 0]
        self.depth = min(above) if len(above) > 1 and can_be_cut(model) else 0
        self._trunk = Trunk(model, self.depth)
        self._held: dict[tuple[Any, ...], Tensor] = {}

    def beginning(self, group: Sequence[Encoded], batch: Packed | Batch) -> AbstractContextManager[None]:
        """A forward pass in the body of a `with` begins where the trunk ends.

        Args:
            group: examples, the same objects for all lanes that see them.
            batch: these laid out.
        """
        if not self.depth or not isinstance(batch, Packed):
            return nullcontext()
        return self.beginning_with(self.hidden(group, batch))

    def beginning_with(self, hidden: Tensor) -> AbstractContextManager[None]:
        """The same with what comes out of the trunk already, (1, T, h)."""
        return self._trunk.beginning(hidden)

    def hidden(self, group: Sequence[Encoded], batch: Packed) -> Tensor:
        """What comes out of the trunk, (1, T, h)."""
        # the layout too: with dropout, what examples share is computed for each of them
        key = (*map(id, group), batch.segments)
        if key not in self._held:
            self._held[key] = self._trunk.hidden(batch.ids, batch.positions, batch.segments)
        return self._held[key]

    def forget(self) -> None:
        """Give the memory back: these examples are not seen again soon."""
        self._held.clear()
