"""`BankLayer`: one module of the base, and beside it the slots of every adapter that reaches it.

    y = W x + b + sum over i of w_i (s_i (B_i A_i x + b_i) + d_i)

with d_i the change of the base's own bias. DoRA (arXiv:2402.09353) rescales the rows of W + s B A to the
magnitude m; with g = m / |W + s B A| (norm by rows, no gradient through it, as in the paper's section 4.3)
its update of y is `(g - 1) * (W x) + g * s B A x`, which is again a sum over adapters. An embedding is the
same with x one-hot: W is (width, tokens). The layer knows one module; which adapter acts on which token is
the routing's to say.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from scumble.errors import AdapterError
from scumble.lora.dropout import TokenMarks, keep_mask, kept_share, module_key
from scumble.lora.fused import Dropping, Piece, fused_linear
from scumble.lora.kernels import Term, low_rank_update
from scumble.lora.routing import Routing, Weight


class Slot(nn.Module):
    """What one adapter has at one module; parts that it lacks are None.

    Attributes:
        A, B: (rank, in) and (out, rank).
        lora_bias: (out,) b_i.
        magnitude: (out,) DoRA's m.
        base_bias: (out,) the trained value of the base's own bias.
        tokens: (rows, width) replaced rows of an embedding, or of an output layer tied to one.
        token_rows: (rows,) their numbers.
        scale: s_i.
        dropout: share of x dropped before A in training, under `seed`.
    """

    # A and B are there together or not at all, which is asked of A where it matters
    A: Tensor
    B: Tensor
    lora_bias: Tensor | None
    magnitude: Tensor | None
    base_bias: Tensor | None
    tokens: Tensor | None
    token_rows: Tensor | None

    def __init__(self, scale: float = 1.0, dropout: float = 0.0, seed: int = 0) -> None:
        super().__init__()
        self.scale, self.dropout, self.seed = scale, dropout, seed
        for name in ("A", "B", "lora_bias", "magnitude", "base_bias", "tokens"):
            self.register_parameter(name, None)
        self.register_buffer("token_rows", None)
        self._norm: tuple[tuple[int, ...], Tensor] | None = None

    def fill(self, **tensors: Tensor | None) -> Slot:
        """Set tensors by name; the slot trains nothing until told to."""
        for name, tensor in tensors.items():
            if tensor is not None:
                setattr(
                    self, name, tensor if name == "token_rows" else nn.Parameter(tensor, requires_grad=False)
                )
        return self

    @property
    def plain(self) -> bool:
        """Whether it trains, and is A and B alone."""
        more = (self.lora_bias, self.magnitude, self.base_bias, self.tokens)
        return self.A is not None and self.A.requires_grad and all(part is None for part in more)

    def gain(self, weight: Tensor) -> Tensor:
        """DoRA's g = m / |W + s B A|, (out,); `weight` is W as (out, in)."""
        norm = None
        tensors = (self.A, self.B, weight)
        # a tensor that trains is not trusted to count its changes: `.data` and kernels of some optimizers do not
        stamp = None
        if not (self.A.requires_grad or self.B.requires_grad or any(t.is_inference() for t in tensors)):
            stamp = tuple(number for t in tensors for number in (t._version, t.data_ptr()))
        if stamp is not None and self._norm is not None and self._norm[0] == stamp:
            norm = self._norm[1]
        if norm is None:
            with torch.no_grad():
                # the sum in full rather than by its expansion, in which nearly equal terms would cancel
                full = torch.addmm(weight.to(self.B.dtype), self.B, self.A, alpha=self.scale)
                norm = torch.linalg.vector_norm(full, dim=1)
            self._norm = None if stamp is None else (stamp, norm)
        return cast(Tensor, self.magnitude) / norm


class BankLayer(nn.Module):
    """A linear layer, a Conv1D, an embedding, or any module with a bias, with the slots of a bank."""

    def __init__(self, base: nn.Module, path: str, routing: Routing) -> None:
        super().__init__()
        self.base, self.path, self.routing = base, path, routing
        self.slots = nn.ModuleDict()
        self.embedding = isinstance(base, nn.Embedding)

    @classmethod
    def from_base(cls, base: nn.Module, path: str, routing: Routing) -> BankLayer:
        """Wrap a module of the base; `layer.base` gives it back untouched."""
        layer = cls(base, path, routing)
        layer.train(base.training)
        return layer

    @property
    def weight(self) -> Tensor:
        """The base's own weight, for code that looks at it from outside."""
        return cast(Tensor, self.base.weight)

    @property
    def bias(self) -> Tensor | None:
        """The base's own bias, likewise."""
        return cast("Tensor | None", getattr(self.base, "bias", None))

    def __getattr__(self, name: str) -> Any:
        # what code outside asks of the module it knew (`in_features`, `padding_idx`) is the base's to answer
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base"), name)

    def forward(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        """The base's output and the update of every adapter that acts; shapes are the base's own."""
        active = self.routing.active(self.slots.keys())
        fused = self._fused(active, x) if active else None
        if fused is not None:
            return fused
        y = cast(Tensor, self.base(x, *args, **kwargs))
        if not active:
            return y
        kind = torch.promote_types(y.dtype, torch.float32)  # a weight of 0.7 is not rounded to bf16
        terms: list[Term] = []
        extra: Tensor | float = 0.0
        for name in active:
            slot = cast(Slot, self.slots[name])
            weight = self.routing.weight(name, y.shape[:-1], self.path, device=y.device, dtype=kind)
            if slot.A is not None and slot.dropout and self.routing.marks is not None and not self.embedding:
                # an embedding reads token ids, of which nothing is dropped, as in PEFT
                extra = extra + self._dropped(slot, x, weight)
            elif slot.A is not None:
                B, magnified = self._magnified(slot, y)
                terms.append(Term(slot.A, B, slot.scale, weight))
                extra = extra + weight * magnified
            extra = extra + weight * self._constant(slot)
            extra = extra + self._token_rows(slot, x, y, weight)
        if terms:
            extra = extra + low_rank_update(x, terms, embedding=self.embedding) * self._embed_scale()
        return y + extra.to(y.dtype) if isinstance(extra, Tensor) else y

    def matrix(self) -> Tensor:
        """W as (out, in), whatever way round the base keeps it."""
        transposed = self.embedding or isinstance(self.base, Conv1D)
        return self.weight.T if transposed else self.weight

    def shape(self) -> tuple[int, int]:
        """(out, in) of W."""
        rows, columns = self.matrix().shape
        return int(rows), int(columns)

    def _fused(self, active: Sequence[str], x: Tensor) -> Tensor | None:
        """The output where plain adapters train beside a frozen linear layer, each in rows of its own; else None."""
        if (
            not torch.is_grad_enabled()
            or type(self.base) not in (nn.Linear, Conv1D)
            or self.weight.requires_grad
        ):
            return None
        pieces = self._pieces(active, x)
        return fused_linear(x, self.matrix(), self.bias, pieces) if pieces else None

    def _pieces(self, active: Sequence[str], x: Tensor) -> list[Piece]:
        """The adapters that act, with their rows; none where one is not plain, or shares its rows with another."""
        count = x.shape[:-1].numel()
        spans = self.routing.spans(count)
        if not spans:
            share = self.routing.number(active[0])
            if len(active) > 1 or share is None:
                return []
            return self._piece(active[0], share, slice(0, count), self.routing.marks, x.shape[:-1])
        pieces: list[Piece] = []
        for span, rows in spans:
            if span.slot in active:
                found = self._piece(span.slot, 1.0, rows, span.marks, (1, rows.stop - rows.start))
                if not found:
                    return []
                pieces += found
        return pieces

    def _piece(
        self, name: str, share: float, rows: slice, marks: TokenMarks | None, lead: Sequence[int]
    ) -> list[Piece]:
        """One adapter in its rows, which have the shape `lead`; none where it is not plain."""
        slot = cast(Slot, self.slots[name])
        if not slot.plain:
            return []
        drop = None
        if slot.dropout and marks is not None:
            marks = marks.of(lead)
            if marks is None:
                return []
            drop = Dropping(module_key(slot.seed, self.path), marks, slot.dropout)
        return [Piece(slot.A, slot.B, slot.scale * share, rows, drop)]

    def _embed_scale(self) -> Tensor | float:
        """Some embeddings scale what they look up (Gemma 3), and an update of theirs with it."""
        return cast("Tensor | float", getattr(self.base, "embed_scale", 1.0)) if self.embedding else 1.0

    def _magnified(self, slot: Slot, y: Tensor) -> tuple[Tensor, Tensor | float]:
        """B with DoRA's gain in its rows, and `(g - 1) * (W x)`; B and 0 where the slot is no DoRA."""
        if slot.magnitude is None:
            return slot.B, 0.0
        gain = slot.gain(self.matrix())
        plain = y if self.bias is None else y - self.bias
        return gain[:, None] * slot.B, (gain - 1) * plain

    def _constant(self, slot: Slot) -> Tensor | float:
        """What a slot adds whatever x is: `s b_i + d_i`, (out,)."""
        total: Tensor | float = 0.0
        if slot.lora_bias is not None:
            total = total + slot.scale * slot.lora_bias
        if slot.base_bias is not None:
            total = total + (slot.base_bias - cast(Tensor, self.bias))
        return total

    def _dropped(self, slot: Slot, x: Tensor, weight: Weight) -> Tensor:
        """One slot's update with dropout on what A reads (and, for DoRA as in PEFT, on what W reads)."""
        marks = self.routing.marks
        marks = None if marks is None else marks.of(x.shape[:-1])
        if marks is None:
            raise AdapterError(
                f"dropout cannot be computed at {self.path}: it does not see the batch as (rows, sequence, features)",
                "train with dropout 0",
            )
        keep = keep_mask(module_key(slot.seed, self.path), marks, x.shape[-1], slot.dropout)
        dropped = torch.where(keep, x, 0) / kept_share(slot.dropout)
        B, magnified = slot.B, 0.0
        if slot.magnitude is not None:
            B, magnified = self._magnified(slot, cast(Tensor, self.base(dropped)))  # type: ignore[assignment]
        update = low_rank_update(dropped, [Term(slot.A, B, slot.scale, weight)])
        return update + weight * magnified

    def _token_rows(self, slot: Slot, x: Tensor, y: Tensor, weight: Weight) -> Tensor | float:
        """The change that replaced rows of an embedding, or of an output layer tied to it, make to y."""
        if slot.tokens is None:
            return 0.0
        rows = cast(Tensor, slot.token_rows)
        change = slot.tokens - self.weight[rows]  # (rows, width)
        if self.embedding:
            hit = (x.unsqueeze(-1) == rows).to(change.dtype)  # (..., rows): one-hot of the row, or zeros
            return (hit @ change) * self._embed_scale() * weight
        logits = functional.linear(x.to(change.dtype), change)  # (..., rows)
        return torch.zeros_like(y, dtype=change.dtype).index_add(-1, rows, logits * weight)
