"""`Routing`: the weight that each token of a batch gives each adapter.

One object is shared by all layers of a bank. Weights are the same for all tokens (`uniform`), one set for
each row, or one for each token. A weight for all tokens may also be a function that gives each module a
scalar tensor, which is how weights are learned. Knows slots by number, and nothing of factors.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from scumble.errors import AdapterError
from scumble.lora.dropout import TokenMarks

Weight: TypeAlias = float | Tensor
# from a module's path to a tensor without dimensions
ByModule: TypeAlias = Callable[[str], Tensor]


class Span(NamedTuple):
    """A run of tokens, in a batch of one row, that one slot alone acts on, with weight 1.

    Attributes:
        slot: the slot.
        tokens: which of all tokens.
        rows: which of those that the last layer computes, where it leaves some out.
        marks: what each of its tokens belongs to, for dropout; None where nothing is dropped.
    """

    slot: str
    tokens: slice
    rows: slice
    marks: TokenMarks | None


class RoutingState(NamedTuple):
    """The weights at one moment: `uniform` for all tokens, a matrix with a column for each slot, or spans."""

    uniform: dict[str, float | ByModule]
    matrix: Tensor | None
    columns: list[str]
    rows: int | None
    spans: tuple[Span, ...] = ()

    def uses(self, slot: str) -> bool:
        """Whether any token gives the slot a weight."""
        return slot in self.uniform or slot in self.columns or any(span.slot == slot for span in self.spans)

    def blends(self, slot: str) -> bool:
        """Whether any token gives the slot another weight than 1, or another slot a weight beside it."""
        if self.matrix is None:
            return slot in self.uniform and self.uniform != {slot: 1.0}
        if slot not in self.columns:
            return False
        mine = self.matrix[..., self.columns.index(slot)]
        alone = mine.eq(1) & self.matrix.ne(0).sum(dim=-1).eq(1)
        return bool((mine.ne(0) & ~alone).any())


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
        self._state = RoutingState({}, None, [], None)
        self._moved: dict[tuple[torch.device | None, torch.dtype | None], Tensor] = {}

    def set_uniform(self, weights: Mapping[str, float | ByModule], rows: int | None = None) -> None:
        """Give every token the same weights, by slot; with `rows`, batches must have so many rows.

        A function is asked for its tensor in every forward pass, by every module that the slot reaches.
        """
        self.restore(RoutingState(dict(weights), None, [], rows))

    def set_rows(self, rows: Sequence[Mapping[str, float]]) -> None:
        """Give each row of the batch its own weights, by slot."""
        if all(row == rows[0] for row in rows):
            self.set_uniform(rows[0], len(rows))
            return
        columns = sorted({slot for row in rows for slot in row})
        weights = [[row.get(slot, 0.0) for slot in columns] for row in rows]
        self.set_matrix(torch.tensor(weights, dtype=torch.float64), columns)

    def set_matrix(self, matrix: Tensor, columns: Sequence[str]) -> None:
        """Give weights by row, (rows, slots), or by token, (rows, sequence, slots)."""
        self.restore(RoutingState({}, matrix, list(columns), int(matrix.shape[0])))

    def set_spans(self, spans: Sequence[Span]) -> None:
        """Give every token one slot of its own, in a batch of one row."""
        self.restore(RoutingState({}, None, [], 1, tuple(spans)))

    def spans(self, count: int) -> list[tuple[Span, slice]]:
        """Each span and its place among `count` tokens: all of them, or those that the last layer computes.

        Where it computes all, both are the same.
        """
        spans = self._state.spans
        whole = spans and count == spans[-1].tokens.stop
        return [(span, span.tokens if whole else span.rows) for span in spans]

    def state(self) -> RoutingState:
        """What `restore` takes back."""
        return self._state

    def restore(self, state: RoutingState) -> None:
        """Go back to an earlier state."""
        self._state = state
        self._moved.clear()

    def uses(self, slot: str) -> bool:
        """Whether any token gives the slot a weight."""
        return self._state.uses(slot)

    def active(self, slots: Container[str]) -> list[str]:
        """Those of `slots` that act on some token, in a fixed order."""
        state = self._state
        if state.spans:
            return [span.slot for span in state.spans if span.slot in slots]
        return [slot for slot in (state.uniform if state.matrix is None else state.columns) if slot in slots]

    def number(self, slot: str) -> float | None:
        """The weight of a slot where it is one number for all tokens, else None."""
        weight = self._state.uniform.get(slot) if self._state.matrix is None else None
        return None if weight is None or callable(weight) else weight

    def check(self) -> None:
        """Raise `AdapterError` where the weights were set for another number of rows than the batch has."""
        state = self._state
        if state.rows is None:
            return
        wanted = (state.rows,) if state.matrix is None else tuple(state.matrix.shape[:-1])
        if wanted != self.shape[: len(wanted)]:
            raise AdapterError(
                f"weights were set for {'x'.join(map(str, wanted))} rows and the batch is {self.shape[0]}x{self.shape[1]}",
                "call use_rows with one mixture for each row of the batch, or use() for all of them",
            )

    def weight(
        self,
        slot: str,
        lead: Sequence[int],
        path: str,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> Weight:
        """The weight of one slot for the output of one module.

        Args:
            slot: the slot.
            lead: the module's output shape without its features: (batch, sequence'), (batch x sequence,).
            path: the module, for the error.
            device, dtype: of the tensor, where it has a dimension; one without takes the type of what it scales.

        Returns:
            A number, or a tensor that broadcasts over `lead` and the features.
        """
        state = self._state
        if state.spans:
            return self._span_weight(slot, lead, device, dtype)
        if state.matrix is None:
            weight = state.uniform[slot]
            return weight(path).to(device) if callable(weight) else weight
        # moved once for all layers, not once for each
        matrix = self._moved.get((device, dtype))
        if matrix is None:
            matrix = self._moved[device, dtype] = state.matrix.to(dtype=dtype).to(device=device)
        column = matrix[..., state.columns.index(slot)]  # (rows,) or (rows, sequence)
        rows, length = self.shape
        by_token = column.ndim == 2
        if len(lead) == 2 and lead[0] == rows and (not by_token or lead[1] == length):
            return column.reshape(rows, -1, 1)
        if len(lead) == 2 and lead[0] == 1 and lead[1] == length:
            # computed once for all rows, as position embeddings are: from here on each row has its own
            return column.reshape(rows, -1, 1)
        if len(lead) == 1 and lead[0] == rows * length:
            return column.reshape(rows, -1).expand(rows, length).reshape(-1, 1)
        raise AdapterError(
            f"{path} sees tokens of shape {tuple(lead)} in a batch of {rows}x{length}, and cannot tell its rows",
            "use one mixture for all rows: this module mixes the tokens of several",
        )

    def _span_weight(
        self, slot: str, lead: Sequence[int], device: torch.device | None, dtype: torch.dtype | None
    ) -> Tensor:
        """1 in the slot's own tokens and 0 elsewhere, (*lead, 1)."""
        weight = torch.zeros(*lead, 1, device=device, dtype=dtype)
        for span, rows in self.spans(lead[-1]):
            if span.slot == slot:
                weight[..., rows, :] = 1
        return weight
