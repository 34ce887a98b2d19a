"""`Routing`: the weight that each token of a batch gives each adapter.

One object is shared by all layers of a bank. Weights are the same for all tokens (`uniform`), one set for
each row, or one for each token. Knows slots by number, and nothing of factors.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from scumble.errors import AdapterError
from scumble.lora.dropout import TokenMarks

Weight: TypeAlias = float | Tensor


class Routing:
    """Who acts on which token.

    Attributes:
        shape: (batch, sequence) of the input of the forward pass under way; the bank's hook sets it, and the
            layers check against it, so that weights never land on the wrong token.
        marks: what each token belongs to, for dropout; None outside training.
    """

    def __init__(self) -> None:
        self.shape: tuple[int, int] = (1, 1)
        self.marks: TokenMarks | None = None
        self._uniform: dict[str, float] = {}
        self._matrix: Tensor | None = None  # (rows, slots) or (rows, sequence, slots)
        self._columns: list[str] = []

    def set_uniform(self, weights: Mapping[str, float]) -> None:
        """Give every token the same weights, by slot."""
        self._uniform, self._matrix, self._columns = dict(weights), None, []

    def set_rows(self, rows: Sequence[Mapping[str, float]]) -> None:
        """Give each row of the batch its own weights, by slot."""
        if all(row == rows[0] for row in rows):
            self.set_uniform(rows[0])
            return
        columns = sorted({slot for row in rows for slot in row})
        self.set_matrix(torch.tensor([[row.get(slot, 0.0) for slot in columns] for row in rows]), columns)

    def set_matrix(self, matrix: Tensor, columns: Sequence[str]) -> None:
        """Give weights by row, (rows, slots), or by token, (rows, sequence, slots)."""
        self._uniform, self._matrix, self._columns = {}, matrix, list(columns)

    def state(self) -> tuple[dict[str, float], Tensor | None, list[str]]:
        """What `restore` takes back."""
        return self._uniform, self._matrix, self._columns

    def restore(self, state: tuple[dict[str, float], Tensor | None, list[str]]) -> None:
        """Go back to an earlier state."""
        self._uniform, self._matrix, self._columns = state

    def uses(self, slot: str) -> bool:
        """Whether any token gives the slot a weight."""
        return slot in self._uniform or slot in self._columns

    def active(self, slots: Container[str]) -> list[str]:
        """Those of `slots` that act on some token, in a fixed order."""
        return [slot for slot in (self._uniform if self._matrix is None else self._columns) if slot in slots]

    def check(self) -> None:
        """Raise `AdapterError` where the weights were set for another number of rows than the batch has."""
        if self._matrix is None:
            return
        wanted = tuple(self._matrix.shape[:-1])
        if wanted != self.shape[: len(wanted)]:
            raise AdapterError(
                f"weights were set for {'x'.join(map(str, wanted))} rows and the batch is {self.shape[0]}x{self.shape[1]}",
                "call use_rows with one mixture for each row of the batch, or use() for all of them",
            )

    def weight(self, slot: str, lead: Sequence[int], path: str) -> Weight:
        """The weight of one slot for the output of one module.

        Args:
            slot: the slot.
            lead: the module's output shape without its features: (batch, sequence'), (batch x sequence,).
            path: the module, for the error.

        Returns:
            A number, or a tensor that broadcasts over `lead` and the features.
        """
        if self._matrix is None:
            return self._uniform[slot]
        column = self._matrix[..., self._columns.index(slot)]  # (rows,) or (rows, sequence)
        rows, length = self.shape
        by_token = column.ndim == 2
        if len(lead) == 2 and lead[0] == rows and (not by_token or lead[1] == length):
            return column.reshape(rows, -1, 1)
        if len(lead) == 1 and lead[0] == rows * length:
            return column.reshape(rows, -1).expand(rows, length).reshape(-1, 1)
        raise AdapterError(
            f"{path} sees tokens of shape {tuple(lead)} in a batch of {rows}x{length}, and cannot tell its rows",
            "use one mixture for all rows: this module mixes the tokens of several",
        )
