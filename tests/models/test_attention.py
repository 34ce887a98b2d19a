"""Attention inside segments against a dense mask, at any tree, block, window, cap and sink."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from scumble.models import attention
from scumble.models.attention import NAME, Segment, no_mask, packed, packed_attention, products
from tests.engine import one_thread, trees
from tests.tiny import tiny_ids, tiny_llama, tiny_qwen2_moe
from tests.trees import forest

__all__ = ["one_thread"]


def segments_of(seed: int, most: int) -> tuple[tuple[Segment, ...], list[int]]:
    laid = trees(forest(seed, most, 30))
    return tuple(Segment(*each) for each in laid.segments), laid.positions[0].tolist()


def visible(segments: tuple[Segment, ...], tokens: int) -> Tensor:
    """(T, T), True where the row may see the column: by the words of the docstring, one token at a time."""
    seen = torch.zeros((tokens, tokens), dtype=torch.bool)
    for s in segments:
        above = []
        parent = s.parent
        while parent >= 0:
            above.extend(range(segments[parent].start, segments[parent].end))
            parent = segments[parent].parent
        for row in range(s.start, s.end):
            seen[row, above] = True
            seen[row, s.start : row + 1] = True
    return seen


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**20), most=st.integers(1, 12), block=st.integers(1, 40))
def test_the_products_meet_every_pair_once_and_no_other(seed: int, most: int, block: int) -> None:
    segments, positions = segments_of(seed, most)
    met = torch.zeros((len(positions), len(positions)), dtype=torch.long)
    first = torch.zeros(len(positions), dtype=torch.long)
    for number, (rows, keys, causal) in enumerate(products(segments, block)):
        size = (rows.stop - rows.start, keys.stop - keys.start)
        assert min(size) > 0
        assert not causal or rows == keys
        met[rows, keys] += torch.ones(size, dtype=torch.long).tril() if causal else 1
        if causal:
            first[rows] += 1
            last_causal = number
    assert torch.equal(met, visible(segments, len(positions)).long())
    assert torch.equal(first, torch.ones_like(first))  # a row's first product writes, the others are added
    assert all(causal == (n <= last_causal) for n, (_, _, causal) in enumerate(products(segments, block)))


def dense(
    q: Tensor, k: Tensor, v: Tensor, seen: Tensor, scale: float, softcap: float | None, sinks: Tensor | None
) -> Tensor:
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    scores = q @ k.transpose(2, 3) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~seen, float("-inf"))
    if sinks is not None:
        scores = torch.cat([scores, sinks.view(1, -1, 1, 1).expand(1, -1, scores.shape[2], 1)], -1)
    return (scores.softmax(-1)[..., : k.shape[2]] @ v).transpose(1, 2)


def drawn(tokens: int, dtype: torch.dtype, kv: int = 2, seed: int = 0) -> list[Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return [
        torch.randn((1, heads, tokens, 8), generator=draw, dtype=torch.float64).to(dtype).requires_grad_()
        for heads in (4, kv, kv)
    ]


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "scaled": {"scaling": 0.7},
    "window": {"sliding_window": 5},
    "window of one": {"sliding_window": 1},
    "window that cuts nothing": {"sliding_window": 31},
    "cap": {"softcap": 2.0},
    "cap and window": {"softcap": 2.0, "sliding_window": 4},
    "sinks": {"s_aux": torch.tensor([0.5, -1.0, 2.0, 0.0], dtype=torch.float64)},
}


def run(
    tensors: list[Tensor], segments: tuple[Segment, ...], block: int, **how: Any
) -> tuple[Tensor, list[Tensor]]:
    layout = attention._Layout(None, segments, tuple(products(segments, block)))
    token = attention._layout.set(layout)
    try:
        out, _ = packed_attention(None, *tensors, None, **how)
    finally:
        attention._layout.reset(token)
    draw = torch.Generator().manual_seed(9)
    back = torch.randn(out.shape, generator=draw, dtype=torch.float64).to(out.dtype)
    return out, list(torch.autograd.grad(out, tensors, back))


@pytest.mark.parametrize("kv", [1, 2, 4])
@pytest.mark.parametrize("case", CASES)
def test_forward_and_backward_are_those_of_a_dense_mask(case: str, kv: int) -> None:
    how = CASES[case]
    for seed in range(4):
        segments, positions = segments_of(seed, 1 + 3 * seed)
        at = torch.tensor(positions)
        seen = visible(segments, len(positions))
        if "sliding_window" in how:
            seen &= at[:, None] - at[None] < how["sliding_window"]
        tensors = drawn(len(positions), torch.float64, kv)
        wanted = dense(*tensors, seen, how.get("scaling", 8**-0.5), how.get("softcap"), how.get("s_aux"))
        draw = torch.Generator().manual_seed(9)
        back = torch.randn(wanted.shape, generator=draw, dtype=torch.float64)
        gradients = torch.autograd.grad(wanted, tensors, back)
        for block in (1, 4, 112):
            found, theirs = run(tensors, segments, block, **how)
            assert found.shape == (1, len(positions), 4, 8)
            torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
            for mine, true in zip(theirs, gradients, strict=True):
                torch.testing.assert_close(mine, true, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", ["plain", "window", "cap"])
def test_half_precision_is_near(case: str, dtype: torch.dtype) -> None:
    segments, positions = segments_of(3, 10)
    tensors = drawn(len(positions), dtype)
    exact = [t.detach().double().requires_grad_() for t in tensors]
    found, gradients = run(tensors, segments, 3, **CASES[case])
    wanted, true = run(exact, segments, 3, **CASES[case])
    assert found.dtype == dtype
    # 8 bits of a mantissa, 11 in fp16; parts are put together in fp32, so that it is a few roundings
    near = {torch.bfloat16: 0.03, torch.float16: 0.004}[dtype]
    for mine, theirs in zip([found, *gradients], [wanted, *true], strict=True):
        assert (mine.double() - theirs).norm() <= near * theirs.norm()


def test_large_scores_do_not_overflow() -> None:
    segments, positions = segments_of(3, 10)
    tensors = [(t.detach() * 60).requires_grad_() for t in drawn(len(positions), torch.float32)]
    seen = visible(segments, len(positions))
    wanted = dense(*tensors, seen, 8**-0.5, None, None)
    found, gradients = run(tensors, segments, 3)
    torch.testing.assert_close(
        found, wanted, rtol=1e-3, atol=1e-2
    )  # scores of thousands: 1e-7 of them is 1e-3
    assert all(torch.isfinite(g).all() for g in gradients)


def test_the_model_is_as_it_was_afterwards_and_after_an_error() -> None:
    model = tiny_llama()
    before = model.config._attn_implementation
    with pytest.raises(RuntimeError, match="stop"), packed(model, [(0, 4, 4, 0, -1)]):
        assert model.config._attn_implementation == NAME
        raise RuntimeError("stop")
    assert model.config._attn_implementation == before
    assert attention._layout.get() is None


def test_outside_of_packed_it_is_refused() -> None:
    with pytest.raises(AssertionError, match="outside"):
        packed_attention(None, *drawn(4, torch.float32), None)


def test_a_window_is_believed_only_where_attention_is_told_of_it() -> None:
    assert no_mask(local_size=None) is None
    assert int(no_mask(local_size=12)) == 12  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="mask of its own"):
        no_mask(use_vmap=True)
    model = tiny_qwen2_moe(use_sliding_window=True, sliding_window=12, max_window_layers=2)
    with pytest.raises(ValueError, match="window"), packed(model, [(0, 6, 6, 0, -1)]):
        model(input_ids=tiny_ids(1, 6), use_cache=False)
