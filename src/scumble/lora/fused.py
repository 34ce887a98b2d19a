"""A frozen linear layer and the updates of adapters that train, in one step of the graph.

    y = x W^T + b,    and in the rows of each adapter    + s (x A^T) B^T

Forward, x and h = x A^T are kept for the backward pass, and nothing else: not the update, not a dropped-out copy of x,
whose mask is made again (`dropout`), and no copy of x in the adapter's own type. Where several layers read the same x
(q, k and v; gate and up), what each keeps is the same tensor; an x that comes with a recipe is not kept but made again.
Backward, with g the gradient of y, in the rows of each adapter:

    dx = g W + s (g B) A        dA = s (g B)^T x        dB = s g^T h

The base's products are over all rows at once. No adapter sees another's rows: whatever is in them, zero or infinite.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.nn import functional

from scumble.lora.dropout import TokenMarks, keep_mask, kept_share
from scumble.lora.recipe import Recipe


class Dropping:
    """Which numbers of x the update does not see.

    Args:
        key: of the adapter's seed and the module (`module_key`).
        marks: what each token belongs to, (batch, sequence).
        rate: share dropped.
    """

    def __init__(self, key: int, marks: TokenMarks, rate: float) -> None:
        self.key, self.marks, self.rate = key, marks, rate

    def keep(self, features: int) -> Tensor:
        """Where x stays, (batch x sequence, features)."""
        return keep_mask(self.key, self.marks, features, self.rate).flatten(0, 1)

    def apply(self, keep: Tensor, x: Tensor) -> Tensor:
        """What is left of x, scaled up; linear, and its own transpose."""
        return torch.where(keep, x, 0).mul_(1 / kept_share(self.rate))


class Piece(NamedTuple):
    """One adapter, and the rows that are its own.

    Attributes:
        A: (rank, in), in fp32 at least.
        B: (out, rank), likewise.
        scale: s.
        rows: which of all rows; no row belongs to two adapters.
        drop: dropout on what A reads, or None.
    """

    A: Tensor
    B: Tensor
    scale: float
    rows: slice
    drop: Dropping | None


def fused_linear(x: Tensor, W: Tensor, bias: Tensor | None, pieces: Sequence[Piece]) -> Tensor:
    """`x W^T + b`, and in the rows of each piece `s (x A^T) B^T`.

    Args:
        x: (..., in).
        W: (out, in), frozen.
        bias: (out,), frozen, or None.
        pieces: at least one.

    Returns:
        (..., out) in the type of x.
    """
    factors = [factor for piece in pieces for factor in (piece.A, piece.B)]
    how = [_How(piece.scale, piece.rows, piece.drop) for piece in pieces]
    return cast(Tensor, _FusedLinear.apply(x, W, bias, how, Recipe.of(x), *factors))


class _How(NamedTuple):
    scale: float
    rows: slice
    drop: Dropping | None


class _FusedLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        W: Tensor,
        bias: Tensor | None,
        pieces: Sequence[_How],
        recipe: Recipe | None,
        *factors: Tensor,
    ) -> Tensor:
        flat = x.flatten(0, -2)
        y = functional.linear(flat, W, bias)
        inner = []
        for piece, A, B in zip(pieces, factors[::2], factors[1::2], strict=True):
            own = flat[piece.rows]
            seen = own if piece.drop is None else piece.drop.apply(piece.drop.keep(own.shape[1]), own)
            h = seen.to(A.dtype) @ A.T  # (rows, rank)
            if y.dtype == B.dtype:
                y[piece.rows].addmm_(h, B.T, alpha=piece.scale)
            else:
                y[piece.rows] += ((h * piece.scale) @ B.T).to(y.dtype)
            inner.append(h)
        # x is needed for the gradients of A alone
        needed = any(ctx.needs_input_grad[_FACTORS::2])
        kept = (x,) if recipe is None else recipe.inputs
        ctx.making = None if recipe is None or not needed else recipe.making.join()
        ctx.save_for_backward(W, *factors, *inner, *(kept if needed else ()))
        ctx.pieces = pieces
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        pieces, saved = ctx.pieces, ctx.saved_tensors
        W, factors, inner, kept = saved[0], *_cut(saved[1:], 2 * len(pieces), len(pieces))
        needs = ctx.needs_input_grad
        lead, grad = grad.shape[:-1], grad.flatten(0, -2)
        dx = grad @ W if needs[0] else None
        flat = None
        found: list[Tensor | None] = []
        for number, (piece, h) in enumerate(zip(pieces, inner, strict=True)):
            A, B = factors[2 * number : 2 * number + 2]
            needs_A, needs_B = needs[_FACTORS + 2 * number : _FACTORS + 2 * number + 2]
            wide = grad[piece.rows].to(B.dtype)
            dh = (wide @ B) * piece.scale  # (rows, rank)
            keep = None if piece.drop is None else piece.drop.keep(A.shape[1])
            if dx is not None:
                own = dx[piece.rows]
                if keep is not None:
                    own += piece.drop.apply(keep, dh @ A).to(dx.dtype)
                elif dx.dtype == A.dtype:
                    own.addmm_(dh, A)
                else:
                    own += (dh @ A).to(dx.dtype)
            dA = None
            if needs_A:
                if flat is None:
                    flat = (kept[0] if ctx.making is None else ctx.making.again(kept)).flatten(0, -2)
                seen = flat[piece.rows]
                seen = seen if keep is None else piece.drop.apply(keep, seen)
                dA = dh.T @ seen.to(A.dtype)
            found += [dA, (wide.T @ h).mul_(piece.scale) if needs_B else None]
        return None if dx is None else dx.view(*lead, -1), None, None, None, None, *found


_FACTORS = 5  # arguments of `_FusedLinear.forward` before the factors


def _cut(tensors: Sequence[Tensor], *sizes: int) -> Iterator[Sequence[Tensor]]:
    """The tensors in runs of these sizes, and what is left."""
    for size in sizes:
        yield tensors[:size]
        tensors = tensors[size:]
    yield tensors
