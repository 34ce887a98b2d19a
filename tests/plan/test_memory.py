"""Memory put together: the parts sum to the peak, and it goes the way that everybody expects when one thing changes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scumble.plan.memory import Memories, Memory, plan_memory
from scumble.plan.setup import Setup
from scumble.plan.shape import Shape, find_shape
from scumble.plan.states import states_of
from scumble.plan.tape import PARTS, Tape

CONFIG = {
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 640,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 1000,
    "max_position_embeddings": 4096,
}
SHAPE = Shape.of_config(CONFIG, "small", "a test")
PLANS = Memories(SHAPE)
TARGETS = ("minimal", "standard", "comprehensive")
LESSON = Setup(rank=16, alpha=32, targets="standard", batch=4, tokens=4 * 2048, longest=2048, losses=4 * 2048)

setups = st.builds(
    Setup,
    method=st.sampled_from(["lora", "qlora", "full"]),
    engine=st.sampled_from(["scumble", "script"]),
    dtype=st.sampled_from(["fp32", "bf16"]),
    rank=st.integers(1, 64),
    targets=st.sampled_from(TARGETS),
    dropout=st.sampled_from([0.0, 0.1]),
    optimizer=st.sampled_from(["adamw", "adamw8bit", "paged_adamw"]),
    tokens=st.just(1024),
    longest=st.sampled_from([256, 1024]),
    batch=st.sampled_from([1, 4]),
    losses=st.integers(1, 1000),
    accumulate=st.sampled_from([1, 4]),
    repeat=st.sampled_from([0, 2, "all"]),
    device=st.sampled_from(["cpu", "cuda"]),
    processes=st.sampled_from([1, 2]),
    sharding=st.sampled_from(["none", "ddp", "fsdp2"]),
)


@given(setups)
@settings(max_examples=60, deadline=None)
def test_parts_sum_to_the_peak(setup: Setup) -> None:
    found = PLANS(setup)
    assert tuple(found.parts) == PARTS
    assert sum(found.parts.values()) == found.peak
    assert all(0 <= found.parts[part] <= found.largest[part] for part in PARTS)
    assert found.at


@given(setups)
@settings(max_examples=40, deadline=None)
def test_the_peak_is_at_least_what_is_always_there(setup: Setup) -> None:
    setup = replace(setup, processes=1)
    found = PLANS(setup)
    held = states_of(SHAPE, setup, SHAPE.parameters if setup.method == "full" else 0)
    assert found.peak >= held.weights + held.optimizer
    if setup.method == "full":
        assert (
            found.largest["gradients"] >= 0.9 * held.gradients
        )  # tied or small ones may come a little later


MORE: dict[str, Any] = {
    "rank": {"rank": 128},
    "tokens": {"tokens": 2048},
    "losses": {"losses": 1024},
    "targets": {"targets": "comprehensive"},
    "type": {"dtype": "fp32"},
}


@given(setups, st.sampled_from(list(MORE)))
@settings(max_examples=60, deadline=None)
def test_more_takes_no_less(setup: Setup, name: str) -> None:
    if name == "losses":
        setup = replace(
            setup, engine="scumble"
        )  # the script has logits of all positions, and reads padding off them
    assert PLANS(replace(setup, **MORE[name])).peak >= PLANS(setup).peak


@given(setups)
@settings(max_examples=40, deadline=None)
def test_layers_computed_twice_keep_less(setup: Setup) -> None:
    setup = replace(setup, tokens=8192, losses=64)
    kept = [PLANS(replace(setup, repeat=repeat)).largest["activations"] for repeat in (0, "all")]
    assert kept[1] < kept[0]


@given(setups)
@settings(max_examples=40, deadline=None)
def test_our_engine_takes_less_than_the_script(setup: Setup) -> None:
    setup = replace(setup, method="lora", repeat=0, tokens=8192, longest=2048, batch=4, optimizer="adamw")
    ours, script = (PLANS(replace(setup, engine=engine)) for engine in ("scumble", "script"))
    assert ours.largest["activations"] < script.largest["activations"]


def test_processes_share_what_fsdp_divides() -> None:
    alone, four = (
        PLANS(replace(LESSON, method="full", optimizer="paged_adamw", processes=n, sharding="fsdp2"))
        for n in (1, 4)
    )
    assert four.parts["optimizer"] == pytest.approx(alone.parts["optimizer"] / 4, rel=0.01)


def test_a_module_below_the_first_adapter_keeps_nothing() -> None:
    setup = Setup(tokens=1024, longest=1024, losses=8, device="cpu", dtype="fp32")
    first, last = (PLANS(replace(setup, targets=rf".*layers\.{n}\.mlp\.down_proj")) for n in (0, 3))
    # four layers keep something, or the last one alone
    assert last.largest["activations"] < 0.5 * first.largest["activations"]


class TestLesson:
    """Llama 3.1 8B by the lesson: batch 4, 2,048 tokens, rank 16 on attention, bf16."""

    @pytest.fixture(scope="class")
    def shape(self) -> Shape:
        return find_shape("meta-llama/Llama-3.1-8B-Instruct")

    @pytest.fixture(scope="class")
    def ours(self, shape: Shape) -> Memory:
        return plan_memory(shape, LESSON)

    def test_weights_and_adapter(self, ours: Memory) -> None:
        assert ours.parts["weights"] == 2 * 8_030_261_248
        assert ours.parts["adapter"] == 4 * 13_631_488
        assert ours.parts["optimizer"] == 8 * 13_631_488

    def test_activations_are_what_is_kept_by_hand(self, ours: Memory) -> None:
        # a token and layer: 2 h + 2 a d + 2 k d + 2 I in bf16, and keys and values as wide as queries on a GPU, a copy
        # of the output that o reads, 4 r and 2 + a normalisers in fp32; what comes and goes is less than a layer more
        h, wide, inner = 4096, 4096, 14336
        kept = 2 * (2 * h + 5 * wide + 2 * inner) + 4 * (4 * 16 + 2 + 32)
        layer = 8192 * kept
        # of the last layer the MLP's part is that of all rows, since each has a loss
        assert 32 * layer == pytest.approx(ours.largest["activations"], abs=layer)

    def test_checkpointing_keeps_two_gigabytes_and_a_layer(self, shape: Shape) -> None:
        found = plan_memory(shape, replace(LESSON, repeat="all"))
        inputs = 32 * 8192 * 4096 * 2
        assert inputs < found.largest["activations"] < inputs + 3.5e9


def test_a_tape_tells_where_most_was_held() -> None:
    tape = Tape()
    with tape.at("first"):
        kept = tape.take(10)
        tape.pulse(5, "logits")
    with tape.at("second"):
        tape.free(kept, None)
        tape.take(12)
        tape.free(kept)  # gone already
    assert (tape.peak, tape.where, tape.now) == (15, "first", 12)
    assert tape.parts["activations"] == 10
    assert tape.largest["activations"] == 12


@given(setups, st.integers(2, 9))
@settings(max_examples=40, deadline=None)
def test_adapters_beside_it_add_what_they_hold_and_nothing_else(setup: Setup, many: int) -> None:
    setup = replace(setup, method="lora", engine="scumble", optimizer="adamw", processes=1, device="cpu")
    one, all_of_them = PLANS(setup), PLANS(replace(setup, adapters=many))
    held = one.largest["adapter"] + states_of(SHAPE, setup, one.largest["adapter"] // 4).optimizer
    assert all_of_them.peak == one.peak + (many - 1) * held
    assert PLANS.at_once([setup] * many).peak == all_of_them.peak
