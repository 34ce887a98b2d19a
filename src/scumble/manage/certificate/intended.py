"""`Wanted`: what one tensor of a merged model should hold, by the base and the adapter alone, in fp64.

    plain:  W + s B A        DoRA:  g (W + s B A),  g = m / |W + s B A|  (arXiv:2402.09353, norm by rows of W)

with trained token rows in place of W's own, a bias `b + s b_i`, and saved copies as they are. W is written
out here as (out, in); a Conv1D and an embedding store its transpose. This is what a certificate judges by:
plain and dense, and on purpose not the code that merges.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from scumble.lora.adapter import Adapter, Factors
from scumble.lora.fit import fit, token_paths
from scumble.models.checkpoint import Checkpoint

BLOCK = 2**21  # numbers held at once, 16 MB in fp64
Kind = Literal["update", "rows", "bias", "saved"]
Rows = Callable[[int, int], Tensor]  # rows of a stored tensor, by start and stop


@dataclass(frozen=True)
class Wanted:
    """What one tensor that the adapter reaches should hold.

    Attributes:
        parameter: its name in the model.
        kind: what the adapter does to it: a low-rank update, replaced rows alone, a bias, or a saved copy.
        factors, scale: of a low-rank update.
        transposed: the tensor is stored as (in, out).
        rows, values: numbers of replaced rows, and what they hold, (rows, width).
        whole: a value that replaces all of it, of a bias or a saved copy.
        added: what is added to a bias, (out,).
    """

    parameter: str
    kind: Kind
    factors: Factors | None = None
    scale: float = 1.0
    transposed: bool = False
    rows: tuple[int, ...] = ()
    values: Tensor | None = None
    whole: Tensor | None = None
    added: Tensor | None = None

    def low(self, start: int, stop: int) -> Tensor | float:
        """Rows of `s B A` as it is stored, (stop - start, ...)."""
        if self.factors is None:
            return 0.0
        A, B = self.factors.A.detach().double().cpu(), self.factors.B.detach().double().cpu()
        if self.transposed:
            return A[:, start:stop].T @ (B.T * self.scale)
        return (B[start:stop] * self.scale) @ A

    def gain(self, weight: Rows, shape: tuple[int, ...]) -> Tensor | None:
        """DoRA's g, (out,) in fp64; None where the tensor has no magnitude. Reads the tensor once."""
        if self.factors is None or self.factors.magnitude is None:
            return None
        squares = torch.zeros(shape[1] if self.transposed else shape[0], dtype=torch.float64)
        for start, stop in blocks(shape):
            full = (weight(start, stop).double() + self.low(start, stop)).square()
            if self.transposed:
                squares += full.sum(dim=0)
            else:
                squares[start:stop] = full.sum(dim=1)
        return self.factors.magnitude.detach().double().cpu() / squares.sqrt()

    def block(self, start: int, stop: int, weight: Tensor, gain: Tensor | None) -> Tensor:
        """Those rows of what the tensor should hold, in fp64.

        Args:
            start, stop: rows as stored.
            weight: those rows of the base, in any type.
            gain: what `gain` gave.
        """
        base = weight.double()
        wanted = base if self.whole is None else self.whole.detach()[start:stop].double().cpu()
        if self.added is not None:
            wanted = wanted + self.added[start:stop]
        if self.factors is not None:
            wanted = wanted + self.low(start, stop)
        if gain is not None:
            wanted = wanted * (gain[None, :] if self.transposed else gain[start:stop, None])
        inside = [i for i, row in enumerate(self.rows) if start <= row < stop]
        if inside and self.values is not None:
            local = torch.tensor([self.rows[i] - start for i in inside])
            # what an update does to a row stays beside the row's replacement, as in the bank
            change = self.values.detach().double().cpu()[inside] - base[local]
            wanted = wanted.clone()
            if self.factors is None:
                wanted[local] = self.values.detach().double().cpu()[inside]
            else:
                wanted[local] += change
        return wanted

    def noise(self, gain: Tensor | None) -> float:
        """A bound on the fp64 rounding of `s B A`, which a sum in another order may differ by.

        Each product of a row of B and a column of A is at most the product of their norms; a sum of r terms
        errs by r units of 2^-53 of that, DoRA's norms by a little more.
        """
        if self.factors is None:
            return 0.0
        A, B = self.factors.A.detach().double().cpu(), self.factors.B.detach().double().cpu()
        largest = float(A.norm(dim=0).max() * B.norm(dim=1).max()) * abs(self.scale)
        grown = 1.0 if gain is None else max(1.0, float(gain.abs().max()))
        return (self.factors.rank + 64) * 2.0**-52 * largest * grown


def blocks(shape: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """(start, stop) of blocks of rows, each of about `BLOCK` numbers."""
    width = 1
    for size in shape[1:]:
        width *= size
    height = max(1, BLOCK // max(1, width))
    for start in range(0, shape[0], height):
        yield start, min(start + height, shape[0])


def wanted_of(adapter: Adapter, base: Checkpoint) -> dict[str, Wanted]:
    """Everything that the adapter reaches, by the parameter's name in the model.

    Raises:
        AdapterError: the adapter does not fit the base whole.
    """
    fit(adapter, base.modules, base.head, "the adapter", lambda path: base.read(base.weight_name(path)))
    found: dict[str, Wanted] = {}
    numbers = token_paths(adapter.spec, base.modules)
    tokens = {path: (numbers[path], values) for path, values in adapter.tokens.items()}
    for path, replaced in list(tokens.items()):
        # the rows of an embedding are those of an output layer tied to it, too
        for twin in base.ties.get(f"{path}.weight", ()):
            owner = twin.removesuffix(".weight")
            if isinstance(base.modules.get(owner), nn.Linear):
                tokens.setdefault(owner, replaced)
    for path in sorted({*adapter.factors, *tokens}):
        factors = adapter.factors.get(path)
        rows, values = tokens.get(path, ((), None))
        name = f"{path}.weight"
        found[name] = Wanted(
            name,
            "rows" if factors is None else "update",
            factors,
            adapter.spec.scale_of(path),
            base.transposed(path),
            tuple(rows),
            values,
        )
    for path in sorted({*adapter.biases, *(p for p, f in adapter.factors.items() if f.bias is not None)}):
        factors = adapter.factors.get(path)
        added = None if factors is None else factors.bias
        if added is not None:
            added = added.detach().double().cpu() * adapter.spec.scale_of(path)
        found[f"{path}.bias"] = Wanted(f"{path}.bias", "bias", whole=adapter.biases.get(path), added=added)
    for name, value in adapter.saved.items():
        found[name] = Wanted(name, "saved", whole=value)
    return found
