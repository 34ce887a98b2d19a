"""A frozen linear layer and one adapter's update in one step of the graph.

    y = x W^T + b + s (x A^T) B^T

Forward, x and h = x A^T are kept for the backward pass, and nothing else: not the update, not a dropped-out copy of x,
whose mask is made again (`dropout`), and no copy of x in the adapter's own type. Where several layers read the same x
(q, k and v; gate and up), what each keeps is the same tensor; an x that comes with a recipe is not kept but made again.
Backward, with g the gradient of y:

    dx = g W + s (g B) A        dA = s (g B)^T x        dB = s g^T h
"""

from __future__ import annotations

from typing import Any, cast

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


def fused_linear(
    x: Tensor,
    W: Tensor,
    bias: Tensor | None,
    A: Tensor,
    B: Tensor,
    scale: float,
    drop: Dropping | None = None,
) -> Tensor:
    """`x W^T + b + s (x A^T) B^T`.

    Args:
        x: (..., in).
        W: (out, in), frozen.
        bias: (out,), frozen, or None.
        A: (rank, in), in fp32 at least.
        B: (out, rank), likewise.
        scale: s.
        drop: dropout on what A reads.

    Returns:
        (..., out) in the type of x.
    """
    return cast(Tensor, _FusedLinear.apply(x, W, bias, A, B, scale, drop, Recipe.of(x)))


class _FusedLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        W: Tensor,
        bias: Tensor | None,
        A: Tensor,
        B: Tensor,
        scale: float,
        drop: Dropping | None,
        recipe: Recipe | None,
    ) -> Tensor:
        rows = x.flatten(0, -2)
        y = functional.linear(rows, W, bias)
        seen = rows if drop is None else drop.apply(drop.keep(rows.shape[1]), rows)
        h = seen.to(A.dtype) @ A.T  # (rows, rank)
        if y.dtype == B.dtype:
            y.addmm_(h, B.T, alpha=scale)
        else:
            y += ((h * scale) @ B.T).to(y.dtype)
        # x is needed for the gradient of A alone
        kept = (x,) if recipe is None else recipe.inputs
        ctx.making = None if recipe is None or not ctx.needs_input_grad[3] else recipe.making.join()
        ctx.save_for_backward(W, A, B, h, *(kept if ctx.needs_input_grad[3] else ()))
        ctx.scale, ctx.drop = scale, drop
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        W, A, B, h, *kept = ctx.saved_tensors
        lead, grad = grad.shape[:-1], grad.flatten(0, -2)
        wide = grad.to(B.dtype)
        dh = (wide @ B) * ctx.scale  # (rows, rank)
        dx = dA = dB = None
        keep = None if ctx.drop is None else ctx.drop.keep(A.shape[1])
        if ctx.needs_input_grad[0]:
            dx = grad @ W
            if keep is not None:
                dx += ctx.drop.apply(keep, dh @ A).to(dx.dtype)
            elif dx.dtype == A.dtype:
                dx.addmm_(dh, A)
            else:
                dx += (dh @ A).to(dx.dtype)
            dx = dx.view(*lead, -1)
        if ctx.needs_input_grad[3]:
            x = kept[0] if ctx.making is None else ctx.making.again(kept)
            rows = x.flatten(0, -2)
            seen = rows if keep is None else ctx.drop.apply(keep, rows)
            dA = dh.T @ seen.to(A.dtype)
        if ctx.needs_input_grad[4]:
            dB = (wide.T @ h).mul_(ctx.scale)
        return dx, None, None, dA, dB, None, None, None
