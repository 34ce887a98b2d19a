"""Bytes of weights, adapters, gradients and optimizers, against counts on paper and against torch's own allocations."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from scumble.errors import ConfigError
from scumble.plan import states
from scumble.plan.setup import Setup

EIGHT = 8_030_261_248  # numbers in Llama 3.1 8B


def _weight(path: str, kind: str, out: int, in_: int = 1) -> Any:
    return SimpleNamespace(path=path, kind=kind, out=out, in_=in_, count=out * in_)


def _llama(layers: int = 32, tied: bool = False) -> Any:
    """What the states read of Llama 3.1 8B's shape, or of one with another number of layers."""
    weights = [_weight("model.embed_tokens", "embedding", 128_256, 4096)]
    for n in range(layers):
        at = f"model.layers.{n}"
        for name, out, in_ in (
            ("self_attn.q_proj", 4096, 4096),
            ("self_attn.k_proj", 1024, 4096),
            ("self_attn.v_proj", 1024, 4096),
            ("self_attn.o_proj", 4096, 4096),
            ("mlp.gate_proj", 14_336, 4096),
            ("mlp.up_proj", 14_336, 4096),
            ("mlp.down_proj", 4096, 14_336),
        ):
            weights.append(_weight(f"{at}.{name}", "linear", out, in_))
        weights += [_weight(f"{at}.{name}", "norm", 4096) for name in ("input_layernorm", "post_attention")]
    weights.append(_weight("model.norm", "norm", 4096))
    if not tied:
        weights.append(_weight("lm_head", "linear", 128_256, 4096))
    return SimpleNamespace(
        weights=tuple(weights), parameters=sum(w.count for w in weights), vocabulary=128_256, tied=tied
    )


def test_the_stand_in_has_the_size_that_is_published() -> None:
    assert _llama().parameters == EIGHT


@pytest.mark.parametrize(("dtype", "size"), [("fp32", 4), ("bf16", 2), ("fp16", 2)])
def test_weights_by_type(dtype: Any, size: int) -> None:
    assert states.weight_bytes(_llama(), Setup(dtype=dtype)) == size * EIGHT


def test_nf4_takes_what_the_qlora_paper_says_for_linear_layers_alone() -> None:
    shape = _llama()
    linear = sum(w.count for w in shape.weights if w.kind == "linear" and w.path != "lm_head")
    held = states.weight_bytes(shape, Setup(method="qlora"))
    of_linear = held - 2 * (EIGHT - linear)
    assert of_linear * 8 / linear == pytest.approx(4.127, abs=5e-4)  # given with three decimals
    assert held == states.weight_bytes(shape, Setup(dtype="nf4"))


def test_what_nf4_takes_of_one_matrix() -> None:
    # 100 x 100: 5,000 bytes, 157 blocks of 64 with a byte each, one fp32 for all of them
    assert states.nf4_bytes(_weight("x", "linear", 100, 100)) == 5000 + 157 + 4


def test_int8_takes_a_byte_and_a_scale_a_row() -> None:
    shape = _llama(layers=1)
    linear = [w for w in shape.weights if w.kind == "linear" and w.path != "lm_head"]
    numbers, rows = sum(w.count for w in linear), sum(w.out for w in linear)
    held = states.weight_bytes(shape, Setup(dtype="int8"))
    assert held == numbers + 4 * rows + 2 * (shape.parameters - numbers)


def test_a_layer_as_wide_as_the_vocabulary_is_quantised_where_it_is_not_the_output() -> None:
    shape = _llama(layers=1)
    wide = _weight("model.layers.0.mlp.up_proj", "linear", shape.vocabulary, 8)
    assert states.is_quantised(wide, shape)
    assert not states.is_quantised(_weight("lm_head", "linear", shape.vocabulary, 8), shape)
    assert states.is_quantised(_weight("transformer.h.0.attn.c_attn", "conv1d", 24, 8), shape)
    assert not states.is_quantised(_weight("model.embed_tokens", "embedding", shape.vocabulary, 8), shape)


def test_experts_in_one_parameter_are_not_quantised() -> None:
    shape = _llama(layers=1)
    experts = SimpleNamespace(
        path="model.layers.0.mlp.experts", kind="experts", out=64, in_=64, count=8 * 64 * 64
    )
    more: Any = SimpleNamespace(**{**vars(shape), "weights": (*shape.weights, experts)})
    more.parameters += experts.count
    plain, wider = (states.weight_bytes(each, Setup(dtype="nf4")) for each in (shape, more))
    assert wider - plain == 2 * experts.count


def test_the_lessons_adapter() -> None:
    held = states.states_of(_llama(), Setup(rank=16), 13_631_488)
    assert held.adapter == held.gradients == 4 * 13_631_488
    assert held.optimizer == 8 * 13_631_488


@pytest.mark.parametrize(
    ("dtype", "optimizer", "copies"),
    # bytes of weights, gradients and moments for each number
    [
        ("bf16", "adamw", 2 + 2 + 4),
        ("bf16", "paged_adamw", 2 + 2 + 8),
        ("fp32", "adamw", 4 + 4 + 8),
        ("fp32", "paged_adamw", 4 + 4 + 8),
    ],
)
def test_full_fine_tuning_takes_64_or_96_or_128_gb_not_72(dtype: Any, optimizer: Any, copies: int) -> None:
    held = states.states_of(_llama(), Setup(method="full", dtype=dtype, optimizer=optimizer), EIGHT)
    assert held.held == copies * EIGHT
    assert round(held.held / 8e9) * 8 in (64, 96, 128)
    assert held.adapter == 0


def test_moments_of_8_bits() -> None:
    setup = Setup(optimizer="adamw8bit")
    shape = _llama(layers=1)
    sizes = [4096, 4095, 8193]
    # 4,096 numbers are 16 blocks of 256, 8,193 are 33; 4,095 stay in fp32
    expected = 2 * (4096 + 4 * 16) + 8 * 4095 + 2 * (8193 + 4 * 33)
    assert states.optimizer_bytes(shape, setup, sum(sizes), sizes) == expected
    assert states.step_bytes(shape, setup, sum(sizes), sizes) == 0


def test_paged_moments_count_in_full_and_say_what_may_move() -> None:
    shape, sizes = _llama(layers=1), [99_999, 100_000]
    for paged, plain, bits in (("paged_adamw", "adamw", 4), ("paged_adamw8bit", "adamw8bit", 1)):
        setup = Setup(optimizer=paged)  # type: ignore[arg-type]
        same = replace(setup, optimizer=plain)  # type: ignore[arg-type]
        of = [states.optimizer_bytes(shape, each, sum(sizes), sizes) for each in (setup, same)]
        assert of[0] == of[1]
        assert states.pageable_bytes(shape, setup, sum(sizes), sizes) == 2 * bits * 100_000
        assert states.pageable_bytes(shape, same, sum(sizes), sizes) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "sizes", [[50_000] * 3, [200_000, 500, 500], [500, 200_000], [90_000, 60_000, 120_000]]
)
def test_a_step_on_the_cpu_takes_what_torch_allocates(sizes: list[int], dtype: torch.dtype) -> None:
    shape = SimpleNamespace(weights=tuple(_weight(str(n), "other", size) for n, size in enumerate(sizes)))
    name: Any = {torch.float32: "fp32", torch.bfloat16: "bf16"}[dtype]
    setup = Setup(method="full", dtype=name, device="cpu")
    planned = states.step_bytes(shape, setup, sum(sizes))  # type: ignore[arg-type]
    # one number for each of a handful of tensors: the count of steps
    assert _allocated(sizes, dtype, fused=False) == pytest.approx(planned, abs=100)
    script = replace(setup, engine="script")
    planned = states.step_bytes(shape, script, sum(sizes))  # type: ignore[arg-type]
    assert _allocated(sizes, dtype, fused=True) == pytest.approx(planned, abs=100)


def test_moments_take_what_torch_keeps() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1000, dtype=torch.bfloat16))
    parameter.grad = torch.ones_like(parameter)
    optimizer = torch.optim.AdamW([parameter])
    optimizer.step()
    kept = [t.nbytes for name, t in optimizer.state[parameter].items() if name != "step"]
    setup = Setup(method="full", dtype="bf16")
    assert states.optimizer_bytes(_llama(layers=1), setup, 1000) == sum(kept)


def test_a_step_on_a_gpu_takes_a_copy_of_all_that_is_trained() -> None:
    assert states.step_bytes(_llama(layers=1), Setup(), 1000, [400, 600]) == 4000


def test_a_quantised_base_is_not_trained_in_full() -> None:
    with pytest.raises(ConfigError, match="nf4 are not trained with --method full"):
        states.states_of(_llama(layers=1), Setup(method="full", dtype="nf4"), 1000)


def _allocated(sizes: list[int], dtype: torch.dtype, *, fused: bool) -> int:
    """The most that a second step of AdamW holds beside what was there before it."""
    parameters = [torch.nn.Parameter(torch.ones(size, dtype=dtype)) for size in sizes]
    optimizer = torch.optim.AdamW(parameters, fused=fused or None)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        optimizer.step()
    now = most = 0
    for event in seen.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most
