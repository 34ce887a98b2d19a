"""Attention over examples laid end to end, a function registered with transformers.

    with packed(model, segments):
        hidden = model.base_model(input_ids=ids, position_ids=positions, use_cache=False).last_hidden_state

The tokens of a segment see those before them in it, and all of its ancestors'. Where attention is plain (no window that
cuts, no cap, no sinks), each segment is one causal product, and what descends from it one more over its keys; the parts
of a token's attention are put together by their normalisers, as in ring attention (Liu et al. 2023), so that no key is
copied and no mask is made. Otherwise each segment is computed over its whole path, with a mask. Knows segments and
modules of a model, and nothing of data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface

NAME = "scumble_packed"


class Segment(NamedTuple):
    """A run of tokens.

    Attributes:
        start, end: of its own tokens.
        until: end of what descends from it, which follows without a gap.
        depth: position of its first token within its examples.
        parent: number of the segment before it on its path, or -1.
    """

    start: int
    end: int
    until: int
    depth: int
    parent: int


class Product(NamedTuple):
    """Attention of some tokens to some keys: all of them, or causal where both are the same."""

    rows: slice
    keys: slice
    causal: bool


class _Layout(NamedTuple):
    model: Any
    segments: tuple[Segment, ...]
    products: tuple[Product, ...]


_layout: ContextVar[_Layout | None] = ContextVar("layout", default=None)

# The kernel computes the half above the diagonal too; in blocks it is left out. Measured on one core at 9 heads of 64:
# 18 % less time at 216 tokens, 20 % at 432, none at 128.
_BLOCK = 112


@contextmanager
def packed(model: Any, segments: Sequence[tuple[int, int, int, int, int]]) -> Iterator[None]:
    """Let the model's attention stay inside the segments, for forward and backward passes in the body of a `with`.

    Args:
        model: of transformers, whose attention goes through its attention interface (`packable`).
        segments: (start, end, until, depth, parent) of each, parents before their children.
    """
    runs = tuple(Segment(*each) for each in segments)
    with _within(_Layout(model, runs, tuple(products(runs)))):
        yield


def current() -> Callable[[], AbstractContextManager[None]]:
    """The `packed` that is in force, to be entered again later."""
    layout = _layout.get()
    return nullcontext if layout is None else partial(_within, layout)


@contextmanager
def _within(layout: _Layout) -> Iterator[None]:
    token = _layout.set(layout)
    before = layout.model.config._attn_implementation
    layout.model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        layout.model.set_attn_implementation(before)
        _layout.reset(token)


def packed_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """What transformers calls; query (1, heads, T, width), key and value with as many heads or fewer; gives (1, T, heads, width)."""
    layout = _layout.get()
    assert layout is not None, "packed attention outside of `packed`"
    segments = layout.segments
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if attention_mask is not None and sliding_window != int(attention_mask):
        raise ValueError("a window that its attention is not told of")
    longest = max(each.depth + each.end - each.start for each in segments)
    window = sliding_window if sliding_window is not None and sliding_window < longest else None
    plain = window is None and softcap is None and s_aux is None and query.shape[-1] == value.shape[-1]
    if plain and query.device.type == "cpu":
        return cast(Tensor, _TreeAttention.apply(query, key, value, layout.products, scale)), None
    groups = query.shape[1] // key.shape[1]
    key, value = (each.repeat_interleave(groups, dim=1) if groups > 1 else each for each in (key, value))
    return _by_path(query, key, value, segments, scale, window, softcap, s_aux), None


def no_mask(*, local_size: int | None = None, use_vmap: bool = False, **kwargs: Any) -> Tensor | None:
    """What transformers calls for a mask, of which none is made: a window's size alone, to hold against the one told.

    Raises:
        ValueError: the mask is more than causal with a window.
    """
    if use_vmap:
        raise ValueError("a mask of its own")
    return None if local_size is None else torch.tensor(local_size)


def products(segments: Sequence[Segment], block: int = _BLOCK) -> Iterator[Product]:
    """The products of plain attention: the causal ones, which meet every token once, come first."""
    later = []
    for s in segments:
        pieces = max(1, round((s.end - s.start) / block))
        edges = [s.start + (s.end - s.start) * i // pieces for i in range(pieces + 1)]
        for start, end in pairwise(edges):
            yield Product(slice(start, end), slice(start, end), True)
            if end < s.end:
                later.append(Product(slice(end, s.end), slice(start, end), False))
        if s.until > s.end:
            later.append(Product(slice(s.end, s.until), slice(s.start, s.end), False))
    yield from later


class _TreeAttention(torch.autograd.Function):
    """Plain attention on the CPU by PyTorch's flash kernel, which takes fewer key heads than query heads as they are."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, products: Sequence[Product], scale: float
    ) -> Tensor:
        flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
        wide = torch.promote_types(q.dtype, torch.float32)
        # (1, T, heads, width); parts are put together before they are rounded to the model's type
        out = torch.empty_like(q.transpose(1, 2), memory_format=torch.contiguous_format, dtype=wide)
        norm = torch.empty(
            out.shape[:3], dtype=wide, device=q.device
        )  # log of each row's sum of exponentials
        for rows, keys, causal in products:
            part, log = flash(q[:, :, rows], k[:, :, keys], v[:, :, keys], 0.0, causal, scale=scale)
            part, log = part.transpose(1, 2), log.transpose(1, 2)
            if causal:
                out[:, rows], norm[:, rows] = part, log
            else:
                both = torch.logaddexp(norm[:, rows], log)
                share = (log - both).exp().unsqueeze(-1)
                out[:, rows].lerp_(part.to(wide), share)
                norm[:, rows] = both
        out = out.to(q.dtype)
        ctx.save_for_backward(q, k, v, out, norm)
        ctx.products, ctx.scale = products, scale
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default
        q, k, v, out, norm = ctx.saved_tensors
        out, norm, grad = (x.transpose(1, 2) for x in (out, norm, grad))
        groups = _uneven_groups(q, k)
        if groups > 1:
            k, v = (x.repeat_interleave(groups, dim=1) for x in (k, v))
        # laid out as (1, T, heads, width), which the projections' gradients are views of
        found = [
            torch.empty_like(x.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)
            for x in (q, k, v)
        ]
        for rows, keys, causal in ctx.products:
            # given the whole output and normaliser of a row, the kernel gives its gradient through these keys alone
            inner = (k[:, :, keys], v[:, :, keys], out[:, :, rows], norm[:, :, rows])
            parts = flash(grad[:, :, rows], q[:, :, rows], *inner, 0.0, causal, scale=ctx.scale)
            for into, where, part in zip(found, (rows, keys, keys), parts, strict=True):
                if causal:
                    into[:, :, where] = part
                else:
                    into[:, :, where] += part
        if groups > 1:
            found[1:] = [x.unflatten(1, (-1, groups)).sum(2) for x in found[1:]]
        return *found, None, None


def _uneven_groups(q: Tensor, k: Tensor) -> int:
    """How often to repeat key heads in the backward pass; 1 for as they are.

    The kernel gives each thread whole key heads with all that reads them. Three on two threads leave one thread idle
    for half the time: with a head for each query head, measured there, the pass takes a quarter less.
    """
    return q.shape[1] // k.shape[1] if k.shape[1] % torch.get_num_threads() else 1


def _by_path(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    segments: tuple[Segment, ...],
    scale: float,
    window: int | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """Attention of every segment over its whole path; as many key heads as query heads. Gives (1, T, heads, width)."""
    lengths = [s.end - s.start for s in segments]
    # split, whose backward is one `cat`: slices would each make a zero tensor of the whole
    queries, keys, values = (x.split(lengths, dim=2) for x in (q, k, v))
    found = []
    for number, s in enumerate(segments):
        path = [number]
        while segments[path[0]].parent >= 0:
            path.insert(0, segments[path[0]].parent)
        key, value = (
            torch.cat([x[i] for i in path], dim=2) if len(path) > 1 else x[number] for x in (keys, values)
        )
        at = torch.arange(s.depth, s.depth + lengths[number], device=q.device)[:, None]
        seen = torch.arange(key.shape[2], device=q.device)[None]
        mask = seen <= at
        if window is not None:
            mask = mask & (seen > at - window)
        if softcap is None and sinks is None:
            part = functional.scaled_dot_product_attention(
                queries[number],
                key,
                value,
                mask if s.depth or window else None,
                is_causal=not (s.depth or window),
                scale=scale,
            )
        else:
            part = _capped(queries[number], key, value, mask, scale, softcap, sinks)
        found.append(part)
    return torch.cat(found, dim=2).transpose(1, 2).contiguous()


def _capped(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float, softcap: float | None, sinks: Tensor | None
) -> Tensor:
    """Attention with capped scores (Gemma 2) or with a sink for each head (gpt-oss), as transformers' eager one has it."""
    scores = torch.matmul(q, k.transpose(2, 3)) * scale
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    scores = scores.masked_fill(~mask, float("-inf"))
    wide = torch.promote_types(q.dtype, torch.float32)
    if sinks is not None:
        scores = torch.cat([scores, sinks.reshape(1, -1, 1, 1).expand(1, -1, scores.shape[2], 1)], dim=-1)
    shares = functional.softmax(scores, dim=-1, dtype=wide).to(q.dtype)
    return torch.matmul(shares[..., : k.shape[2]], v)


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, no_mask)
