"""What becomes of a base's parameters when an adapter is merged into them: exactly what the bank computes.

    W' = W + (the update of W),   b' = b + s b_i  or  b_i' + s b_i,   W'[t] += (row of t) - W[t]

(`scumble.lora.updates` for the update, `scumble.lora.layer` for the sum.) Everything is added in fp64 by
blocks of rows and rounded once, to the nearest, to the type in which it is kept. Knows parameters by name,
and nothing of files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from scumble.lora.adapter import Adapter, Factors
from scumble.lora.fit import token_paths
from scumble.lora.updates import row_blocks, update_rows


@dataclass(frozen=True)
class Change:
    """What an adapter does to one parameter.

    Attributes:
        factors: the update that is added, None where there is none.
        scale: s, of the update.
        transposed: the parameter is kept as (in, out), the other way round than the factors.
        replaced: its whole new value, before anything is added.
        added: (out,), added to a bias.
        tokens: (rows, width), what replaces rows of it.
        rows: their numbers.
    """

    factors: Factors | None = None
    scale: float = 1.0
    transposed: bool = False
    replaced: Tensor | None = None
    added: Tensor | None = None
    tokens: Tensor | None = None
    rows: tuple[int, ...] = ()

    def same(self, other: Change | None) -> bool:
        """Whether two parameters that share one tensor go on sharing it: both are changed in the same way."""
        if other is None or self.factors or other.factors or self.rows != other.rows:
            return False
        pairs = ((self.replaced, other.replaced), (self.added, other.added), (self.tokens, other.tokens))
        return all(
            one is two or (one is not None and two is not None and torch.equal(one, two))
            for one, two in pairs
        )


def parameter_changes(adapter: Adapter, modules: Mapping[str, nn.Module]) -> dict[str, Change]:
    """What an adapter that fits changes, by the name of the parameter.

    Args:
        adapter: one that `scumble.lora.fit.fit` has let pass.
        modules: the base's by path; their parameters need no data. Tied ones share one parameter.

    Returns:
        By parameter name. A bias that the base does not have is among them where `lora_bias` asks for it.
    """
    found = {name: Change(replaced=tensor) for name, tensor in adapter.saved.items()}
    numbers = token_paths(adapter.spec, modules)
    tokens = {path: (adapter.tokens[path], rows) for path, rows in numbers.items()}
    for path in list(tokens):
        # an output layer tied to the embedding follows, as in the bank
        for other, module in modules.items():
            if isinstance(module, nn.Linear) and module.weight is modules[path].weight:
                tokens[other] = tokens[path]
    for path in sorted({*adapter.factors, *tokens}):
        rows, which = tokens.get(path, (None, ()))
        found[f"{path}.weight"] = Change(
            factors=adapter.factors.get(path),
            scale=adapter.spec.scale_of(path),
            transposed=isinstance(modules[path], Conv1D | nn.Embedding),
            tokens=rows,
            rows=which,
        )
    biased = {path for path, factors in adapter.factors.items() if factors.bias is not None}
    for path in sorted({*adapter.biases, *biased}):
        bias = adapter.factors[path].bias if path in biased else None
        found[f"{path}.bias"] = Change(
            replaced=adapter.biases.get(path),
            added=None if bias is None else bias.double() * adapter.spec.scale_of(path),
        )
    return found


def changed(stored: Tensor, change: Change | None, dtype: torch.dtype) -> Tensor:
    """A parameter after a change, in a type of the caller's choice.

    Args:
        stored: as the base keeps it.
        change: None for none.
        dtype: of the result; a tensor that is not floating-point keeps its own.

    Returns:
        A new tensor of the same shape, or `stored` itself where nothing is to be done.
    """
    if change is None:
        return rounded(stored, dtype) if stored.is_floating_point() else stored
    value = stored if change.replaced is None else change.replaced
    if change.added is not None:
        return rounded(value.double() + change.added.double(), dtype)
    result = rounded(value, dtype) if change.factors is None else _updated(value, change, dtype)
    if change.tokens is not None:
        result = _with_rows(result, value, change)
    return result


def merged_rows(rows: Tensor, factors: Factors, scale: float, start: int, dtype: torch.dtype) -> Tensor:
    """Rows of W with the update of an adapter added, rounded once.

    Args:
        rows: (n, in), rows of W as (out, in), from row `start`.
        factors: of the module.
        scale: s.
        start: the number of the first row.
        dtype: of the result.

    Returns:
        (n, in).
    """
    stop = start + rows.shape[0]
    return rounded(rows.double() + update_rows(factors, scale, start, stop, rows), dtype)


def rounded(value: Tensor, dtype: torch.dtype) -> Tensor:
    """`value` in another type, each number rounded to the nearest one, ties to even, and only once.

    torch goes from fp64 to bf16 and fp16 by way of fp32, which rounds twice. Rounding to odd on the way makes
    the second rounding the only one that matters (Boldo and Melquiond 2008, IEEE Trans. Comput. 57(4)).
    """
    if value.dtype != torch.float64 or dtype not in (torch.bfloat16, torch.float16):
        return value.to(dtype)
    near = value.float()
    wide = near.double()
    inexact = (wide != value) & ~value.isnan()
    # towards zero, then odd: the sign lies in a bit of its own, so this holds for negative numbers too
    bits = near.view(torch.int32) - ((wide.abs() > value.abs()) & inexact).int()
    return (bits | inexact.int()).view(torch.float32).to(dtype)


def _updated(value: Tensor, change: Change, dtype: torch.dtype) -> Tensor:
    """`value` with the update added, as `value` is kept."""
    assert change.factors is not None
    result = torch.empty(value.shape, dtype=dtype)
    matrix, goal = (value.T, result.T) if change.transposed else (value, result)  # (out, in) both
    for start, stop in row_blocks((matrix.shape[0], matrix.shape[1])):
        goal[start:stop] = merged_rows(matrix[start:stop], change.factors, change.scale, start, dtype)
    return result


def _with_rows(result: Tensor, value: Tensor, change: Change) -> Tensor:
    """`result` with rows replaced; an update of the same rows is added to what replaces them."""
    assert change.tokens is not None
    which = torch.tensor(change.rows, dtype=torch.long)
    rows = change.tokens.double()  # (rows, width)
    if change.factors is not None:
        rows = rows + _update_at(which, value, change.factors, change.scale, change.transposed)
    result = result.clone() if result is value else result
    result[which] = rounded(rows, result.dtype)
    return result


def _update_at(which: Tensor, value: Tensor, factors: Factors, scale: float, transposed: bool) -> Tensor:
    """The update of some rows of a parameter as it is kept: (len(which), width)."""
    if not transposed:
        m = factors.magnitude
        picked = replace(factors, B=factors.B[which], magnitude=None if m is None else m[which])
        return update_rows(picked, scale, 0, len(which), value[which])
    if factors.magnitude is None:  # columns of W are columns of A
        picked = replace(factors, A=factors.A[:, which])
        return update_rows(picked, scale, 0, factors.B.shape[0]).T
    # DoRA's norms are of whole rows of W, which reach over all tokens
    matrix = value.T
    blocks = row_blocks((matrix.shape[0], matrix.shape[1]))
    return torch.cat([update_rows(factors, scale, a, b, matrix[a:b])[:, which] for a, b in blocks]).T
