"""The gradient of examples laid end to end, shared and in blocks, against PEFT's of the same examples padded.

What differs is the order of sums: 4e-14 in fp64 at most. An fp32 engine is held against PEFT in fp64 with the same
numbers, since PEFT in fp32 is not the nearer of the two where a token is nearly certain, and on models that are gentler
than others of `tests.tiny`: at their spread of 0.3, PEFT in fp32 is up to 4e-5 from PEFT in fp64, and so is the engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from scumble.data.encoding import Encoded
from scumble.data.packing import pack
from scumble.models.packable import ways_of
from scumble.progress import Reporter
from scumble.train.engine import Engine
from scumble.train.subject import AdapterSubject
from tests import tiny
from tests.engine import EXACT, SLOT, Pair, off, one_thread, right_padded, sharing, trees
from tests.trees import conversations, example, forest, forests

__all__ = ["one_thread"]

SHAPES = {"llama": tiny.tiny_llama, "qwen2": tiny.tiny_qwen2, "gemma": tiny.tiny_gemma}
EVERYWHERE: Any = {"target_modules": "all-linear", "spread": 0.1}
GENTLE = {torch.float64: 0.3, torch.float32: 0.2}


@cache
def pair(family: str, dtype: torch.dtype) -> Pair:
    with mock.patch.object(tiny, "SPREAD", GENTLE[dtype]):
        made = Pair(SHAPES[family](dtype=dtype), **EVERYWHERE)
        if dtype == torch.float32:
            made.against_fp64(SHAPES[family](dtype=torch.float64), **EVERYWHERE)
    return made


def check(family: str, dtype: torch.dtype, examples: list[Encoded], **how: Any) -> float:
    assume(any(any(each.supervised[1:]) for each in examples))
    made = pair(family, dtype)
    loss, wanted = made.wanted(examples)
    with sharing(how["least"], how["block"]):
        found, gradients = made.found(
            [pack(examples, share=how["share"])], lean_too=how["lean"], repeat=how["repeat"]
        )
    assert found == pytest.approx(loss, rel=EXACT[dtype])
    far = off(gradients, wanted)
    assert far <= EXACT[dtype]
    return far


def drawn(most: int, longest: int) -> dict[str, Any]:
    return {
        "examples": forests(most=most, longest=longest, vocabulary=tiny.VOCABULARY),
        "share": st.booleans(),
        "least": st.sampled_from([1, 4]),
        "block": st.sampled_from([3, 112]),
        "lean": st.booleans(),
        "repeat": st.sampled_from([0, 0, 1, 2]),
    }


@pytest.mark.parametrize("dtype", EXACT, ids=str)
@pytest.mark.parametrize("family", SHAPES)
@settings(max_examples=25, deadline=None)
@given(how=st.fixed_dictionaries(drawn(8, 40)))
def test_the_gradient_is_that_of_peft(family: str, dtype: torch.dtype, how: dict[str, Any]) -> None:
    check(family, dtype, **how)


@pytest.mark.parametrize("family", SHAPES)
def test_fp32_is_near_pefts_fp32(family: str) -> None:
    with mock.patch.object(tiny, "SPREAD", GENTLE[torch.float32]):
        made = Pair(SHAPES[family](), **EVERYWHERE)
    for seed in range(4):
        examples = forest(seed, 8, 40)
        assert off(made.found([trees(examples)], lean_too=True)[1], made.wanted(examples)[1]) <= 1e-5


@pytest.mark.soak
@pytest.mark.parametrize("dtype", EXACT, ids=str)
@pytest.mark.parametrize("family", SHAPES)
def test_the_gradient_is_that_of_peft_over_many_forests(family: str, dtype: torch.dtype) -> None:
    worst = [0.0]

    @settings(max_examples=1000, deadline=None, suppress_health_check=list(HealthCheck))
    @given(how=st.fixed_dictionaries(drawn(40, 60)))
    def each(how: dict[str, Any]) -> None:
        worst[0] = max(worst[0], check(family, dtype, **how))

    each()
    print(f"worst of {family} in {dtype}: {worst[0]:.1e}")
    assert worst[0] <= EXACT[dtype]


# transformers rounds to fp32 inside: the softmax of eager attention, and the router's
FP32_INSIDE = 1e-5
OTHERS: dict[str, tuple[Any, dict[str, Any], float]] = {
    "mistral with a window": (tiny.tiny_mistral, {"sliding_window": 5}, 1e-10),
    "qwen3": (tiny.tiny_qwen3, {}, 1e-10),
    "phi3": (tiny.tiny_phi3, {}, 1e-10),
    "gpt2": (tiny.tiny_gpt2, {}, 1e-10),
    "gemma3 with a window": (tiny.tiny_gemma3, {"sliding_window": 5}, 1e-10),
    "gemma2 with a window and caps": (
        tiny.tiny_gemma2,
        {
            "sliding_window": 5,
            "attn_logit_softcapping": 4.0,
            "final_logit_softcapping": 3.0,
            "attn_implementation": "eager",
        },
        FP32_INSIDE,
    ),
    "mixtral": (tiny.tiny_mixtral, {}, FP32_INSIDE),
    "qwen2_moe": (tiny.tiny_qwen2_moe, {}, FP32_INSIDE),
}


@pytest.mark.parametrize("name", OTHERS)
def test_so_it_is_for_other_families(name: str) -> None:
    build, overrides, near = OTHERS[name]
    config: dict[str, Any] = {"target_modules": "all-linear", "spread": 0.1}
    if name == "gpt2":
        config |= {"fan_in_fan_out": True}
    if near == FP32_INSIDE and "gemma" not in name:
        config |= {"target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]}  # experts are one tensor
    # eager attention's masks in fp64 are beyond fp32, in which it takes the softmax
    dtype = torch.float32 if "attn_implementation" in overrides else torch.float64
    with mock.patch.object(tiny, "SPREAD", GENTLE[dtype]):
        made = Pair(build(dtype=dtype, **overrides), **config)
    assert ways_of(made.bank.model).packed
    assert ways_of(made.bank.model).head
    for seed in range(3):
        examples = forest(seed, 6, 40)
        loss, wanted = made.wanted(examples)
        for laid in (pack(examples), trees(examples)):
            for lean in (False, True):
                found, gradients = made.found([laid], lean_too=lean)
                assert found == pytest.approx(loss, rel=near)
                assert off(gradients, wanted) <= near
        assert trees(examples).computed < pack(examples).computed


def test_long_examples_as_they_are_shared_in_truth() -> None:
    with mock.patch.object(tiny, "SPREAD", 0.2):
        made = Pair(tiny.tiny_llama(dtype=torch.float64, max_position_embeddings=1024), **EVERYWHERE)
    examples = conversations(system=300, turns=4, length=130)
    laid = pack(examples, share=True)
    assert laid.computed < 0.5 * laid.tokens  # with nothing set otherwise than in training
    loss, wanted = made.wanted(examples)
    found, gradients = made.found([laid], lean_too=True)
    assert found == pytest.approx(loss, rel=1e-12)
    assert off(gradients, wanted) <= 1e-10


def test_rotations_are_the_same_numbers_wherever_an_example_lies() -> None:
    # transformers makes them in fp32: were they other numbers, fp64 would agree to 1e-7 only
    model = tiny.tiny_llama(dtype=torch.float64)
    examples = forest(0, 6, 40)
    laid = trees(examples)
    hidden = torch.zeros((1, 1, 16), dtype=torch.float64)
    wanted = model.model.rotary_emb(hidden, torch.arange(64)[None])
    for packed, plain in zip(model.model.rotary_emb(hidden, laid.positions), wanted, strict=True):
        assert torch.equal(packed[0], plain[0, laid.positions[0]])


# -- accumulation ----------------------------------------------------------------------------------


def of_engine(made: Pair, examples: Sequence[Encoded], batch: int, dropout: float, repeat: int = 0) -> Any:
    subject = AdapterSubject(made.bank, SLOT)
    assert subject.drops == (dropout > 0)
    engine = Engine(subject, batch, repeat=repeat, reporter=Reporter(quiet=True))
    parameters = made.bank.parameters(SLOT)
    for parameter in parameters.values():
        parameter.grad = None
    with engine.running(examples):
        done = engine.step(3, examples)
    return done, {name: p.grad.clone() for name, p in parameters.items()}


def with_dropout(rate: float) -> Pair:
    made = Pair(tiny.tiny_llama(dtype=torch.float64), lora_dropout=rate, **EVERYWHERE)
    return made


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_accumulation_changes_no_gradient(dropout: float) -> None:
    made = with_dropout(dropout)
    examples = forest(1, 16, 40)
    whole, wanted = of_engine(made, examples, 16, dropout)
    for batch, repeat in ((4, 0), (1, 0), (5, 0), (4, 1), (16, 2)):
        done, found = of_engine(made, examples, batch, dropout, repeat)
        assert (done.targets, done.tokens) == (whole.targets, whole.tokens)
        assert done.loss == pytest.approx(whole.loss, rel=1e-12)
        assert off(found, wanted) <= 1e-12  # the order of sums; 1e-14 was measured
    if dropout:
        assert whole.computed == whole.tokens
        assert off(of_engine(with_dropout(0.0), examples, 16, 0.0)[1], wanted) > 1e-2
    else:
        loss, peft = made.wanted(examples)
        assert whole.loss == pytest.approx(loss, rel=1e-12)
        assert off(wanted, peft) <= 1e-10
        assert whole.computed < whole.tokens


def test_the_order_of_a_steps_examples_changes_nothing_at_all() -> None:
    made = with_dropout(0.1)
    examples = forest(1, 16, 40)
    _, one = of_engine(made, examples, 4, 0.1)
    _, other = of_engine(made, examples[::-1], 4, 0.1)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_examples_that_predict_nothing_change_nothing() -> None:
    made = pair("llama", torch.float64)
    examples = forest(2, 5, 30)
    silent = [
        example([7], [True], 90),
        example([8, 9], [False, False], 91),
        example([9, 4], [True, False], 92),
    ]
    _, wanted = of_engine(made, examples, 2, 0.0)
    for batch in (1, 2, 8):
        done, found = of_engine(made, [*silent, *examples], batch, 0.0)
        assert done.targets == sum(sum(each.supervised[1:]) for each in examples)
        assert off(found, wanted) <= 1e-12


# -- bf16 ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", SHAPES)
def test_a_bf16_base_is_laid_end_to_end_and_near_fp32(family: str) -> None:
    full = pair(family, torch.float32)
    with mock.patch.object(tiny, "SPREAD", GENTLE[torch.float32]):
        half = Pair(SHAPES[family](dtype=torch.bfloat16), trained=torch.float32, **EVERYWHERE)
    assert ways_of(half.bank.model).packed, ways_of(half.bank.model).reason
    examples = forest(3, 8, 40)
    loss, wanted = full.found([trees(examples)])
    theirs, of_peft = half.wanted(examples)
    limit = 2 * max(off(of_peft, wanted), 0.02)
    for lean in (False, True):
        with sharing(1, 3):
            found, gradients = half.found([pack(examples, share=True)], lean_too=lean)
        assert found == pytest.approx(loss, rel=0.03)
        assert all(torch.isfinite(g).all() for g in gradients.values())
        # 8 bits of a mantissa: no further from fp32 than twice as far as PEFT's own bf16
        assert off(gradients, wanted) <= limit
    assert theirs == pytest.approx(loss, rel=0.03)


def test_the_padded_side_of_these_tests_pads() -> None:
    inputs = right_padded(forest(0, 6, 40))
    assert inputs["attention_mask"].min() == 0
    assert (inputs["labels"] >= 0).any()
