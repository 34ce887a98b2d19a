"""Ways to compute `sum over i of w_i s_i B_i A_i x`, and the choice between them.

    stacked:  ((x A_stack^T) * M) B_stack^T     two products whatever the number of adapters; M (tokens, sum
              of ranks) holds w_i s_i, so ranks may differ without padding. Every token pays for every rank.
    segments: for each adapter the rows that use it, two products each. Each row pays for its own rank only.

Stacking wins while the products are too small to fill a core, segments once the wasted multiplications
outweigh the calls. One A is never gathered per token. Knows tensors, and nothing of modules or names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeGuard

import torch
from torch import Tensor
from torch.nn import functional

from scumble.lora.routing import Weight

# Segments win from here on, measured as (adapters - 2) * tokens on two cores at width 576 and rank 16
# (docs/bank.md): the multiplications that stacking wastes grow with both, and two adapters never waste enough.
SEGMENTS_FROM = 384


@dataclass(frozen=True)
class Term:
    """One adapter's part of a module's update.

    Attributes:
        A: (rank, in).
        B: (out, rank).
        scale: s, a number.
        weight: w, a number, a tensor without dimensions, or one that broadcasts over (batch, sequence, 1).
    """

    A: Tensor
    B: Tensor
    scale: float
    weight: Weight


def low_rank_update(x: Tensor, terms: Sequence[Term], *, embedding: bool = False) -> Tensor:
    """`sum over i of w_i s_i B_i A_i x`.

    Args:
        x: (..., in) features; for an embedding the token ids, (...).
        terms: the adapters that act, at least one.
        embedding: `A_i x` picks columns of A_i by token id.

    Returns:
        (..., out) in the type of the factors.
    """
    if not embedding and x.ndim == 3 and _segments_pay(terms, x.shape[0], x.shape[1]):
        return segments(x, terms)
    return stacked(x, terms, embedding=embedding)


def stacked(x: Tensor, terms: Sequence[Term], *, embedding: bool = False) -> Tensor:
    """The update by two products over all adapters at once; arguments as `low_rank_update`."""
    alone = len(terms) == 1
    A = terms[0].A if alone else torch.cat([term.A for term in terms])  # (R, in), R the sum of ranks
    B = terms[0].B if alone else torch.cat([term.B for term in terms], dim=1)  # (out, R)
    h = functional.embedding(x, A.T) if embedding else functional.linear(x.to(A.dtype), A)  # (..., R)
    return functional.linear(h * _rank_weights(terms, h), B)


def segments(x: Tensor, terms: Sequence[Term]) -> Tensor:
    """The update adapter by adapter, each over the rows that use it; x is (batch, sequence, in)."""
    out = x.new_zeros((*x.shape[:2], terms[0].B.shape[0]), dtype=terms[0].B.dtype)
    for term in terms:
        if _by_token(term.weight):
            weight = term.weight.to(device=x.device, dtype=term.A.dtype)
            rows = weight.flatten(1).ne(0).any(dim=1).nonzero().squeeze(-1)  # (rows that use it,)
            if rows.numel():
                h = functional.linear(x[rows].to(term.A.dtype), term.A) * (weight[rows] * term.scale)
                out = out.index_add(0, rows, functional.linear(h, term.B))
        else:
            h = functional.linear(x.to(term.A.dtype), term.A) * (term.weight * term.scale)
            out = out + functional.linear(h, term.B)
    return out


def _segments_pay(terms: Sequence[Term], rows: int, length: int) -> bool:
    """Whether stacking would waste more than the calls of segments cost; only where rows differ is there waste."""
    return (len(terms) - 2) * rows * length >= SEGMENTS_FROM and _rows_differ(terms, rows)


def _rows_differ(terms: Sequence[Term], rows: int) -> bool:
    return any(_by_token(term.weight) and term.weight.shape[0] == rows for term in terms)


def _by_token(weight: Weight) -> TypeGuard[Tensor]:
    """Whether tokens may differ in it: a number does not, nor a tensor without dimensions, one being learned."""
    return isinstance(weight, Tensor) and weight.ndim > 0


def _rank_weights(terms: Sequence[Term], h: Tensor) -> Tensor | float:
    """M: w_i s_i for each rank of each adapter, a scalar, (R,) or broadcasting over (..., R)."""
    if len(terms) == 1 and not _by_token(terms[0].weight):
        return terms[0].weight * terms[0].scale
    parts = []
    for term in terms:
        weight = torch.as_tensor(term.weight, dtype=h.dtype, device=h.device) * term.scale
        parts.append(weight.expand(*weight.shape[:-1], term.A.shape[0]))
    lead = max((part.shape[:-1] for part in parts), key=len)
    return torch.cat([part.expand(*lead, part.shape[-1]) for part in parts], dim=-1)
