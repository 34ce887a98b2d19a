"""Advice: each piece where it should be and nowhere else, with figures that are counted here a second time."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest

from scumble.config import TrainOptions
from scumble.plan.advice import Advice, Facts, advise_configuration
from scumble.plan.rate import default_rate
from scumble.plan.setup import Setup
from scumble.plan.shape import Shape
from tests.tiny import tiny_gemma2

WIDTH, INNER, KEYS, LAYERS = 64, 160, 32, 3
ALL_AT_1 = LAYERS * (2 * 2 * WIDTH + 2 * (WIDTH + KEYS) + 3 * (WIDTH + INNER))
ATTENTION_AT_1 = LAYERS * (2 * 2 * WIDTH + 2 * (WIDTH + KEYS))
# nothing is amiss with it
SOUND = Setup(rank=8, alpha=16.0, targets="comprehensive", batch=4, accumulate=4)
DATA = Facts(examples=16_000, supervised=1000)


@dataclass(frozen=True)
class Held:
    peak: int


@pytest.fixture(scope="module")
def shape() -> Shape:
    config = {
        "model_type": "llama",
        "hidden_size": WIDTH,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 96,
    }
    return Shape.of_config(config, "small", "a test")


def topics(shape: Shape, setup: Setup = SOUND, facts: Facts | None = DATA, **options: Any) -> list[str]:
    return [each.topic for each in advise(shape, setup, facts, **options)]


def advise(shape: Shape, setup: Setup, facts: Facts | None = DATA, **options: Any) -> list[Advice]:
    return advise_configuration(shape, setup, TrainOptions(**options), facts)


def only(shape: Shape, setup: Setup, topic: str, facts: Facts | None = DATA, **options: Any) -> Advice:
    (found,) = [each for each in advise(shape, setup, facts, **options) if each.topic == topic]
    assert found.evidence
    assert found.source
    return found


def test_a_sound_configuration_hears_nothing(shape: Shape) -> None:
    assert topics(shape) == []
    assert topics(shape, facts=None) == []
    assert topics(shape, warmup=100, learning_rate=7.3e-3) == []


@pytest.mark.parametrize(
    ("rank", "alpha", "heard"),
    [
        (8, 8, False),
        (8, 32, False),
        (8, 33, True),
        (4, 32, False),  # alpha 32 at every rank, as in the experiments
        (8, 4, False),
        (8, 3.9, True),
        (32, 8, True),
        (64, 16, False),  # rsLoRA's matter
    ],
)
def test_alpha_outside_of_what_is_usual(shape: Shape, rank: int, alpha: float, heard: bool) -> None:
    setup = replace(SOUND, rank=rank, alpha=alpha)
    assert ("alpha" in topics(shape, setup)) == heard
    assert "alpha" not in topics(shape, replace(setup, rslora=True))
    if heard:
        assert f"alpha / rank is {alpha / rank:g};" in only(shape, setup, "alpha").message
        assert f"--alpha {2 * rank}" in only(shape, setup, "alpha").message


def test_rslora_at_high_ranks(shape: Shape) -> None:
    high = replace(SOUND, rank=64, alpha=16.0)
    assert topics(shape, replace(high, rank=63, alpha=32.0)) == []
    assert topics(shape, replace(high, rslora=True)) == []
    said = only(shape, high, "rslora")
    assert "which is 0.25: try --rslora, with which alpha 16 scales by 2" in said.message
    assert "2312.03732" in said.source


def test_attention_alone(shape: Shape) -> None:
    for targets in ("minimal", "standard", ["o_proj"]):
        assert "targets" in topics(shape, replace(SOUND, targets=targets))
    for aside in (["q_proj", "down_proj"], "all-linear", ["up_proj"]):
        assert "targets" not in topics(shape, replace(SOUND, targets=aside))
    said = only(shape, replace(SOUND, targets="minimal"), "targets")
    assert "(q_proj, v_proj)" in said.message
    assert "2405.09673" in said.source


def test_the_lessons_rank_32_on_attention_against_8_on_all(shape: Shape) -> None:
    setup = replace(SOUND, targets="standard", rank=32, alpha=64.0)
    now = 32 * ATTENTION_AT_1
    rank = now // ALL_AT_1
    assert 1 < rank < 32
    said = only(shape, setup, "rank").message
    assert f"rank 32 here is {now:,} numbers; rank {rank} on all layers is {rank * ALL_AT_1:,}" in said
    assert f"--rank {rank} --alpha {2 * rank} --targets all-linear" in said
    assert rank * ALL_AT_1 <= now < (rank + 1) * ALL_AT_1
    # too few numbers for even rank 1 on all layers
    assert "rank" not in topics(shape, replace(SOUND, targets="minimal", rank=1, alpha=2.0))
    assert "rank" not in topics(shape, replace(SOUND, rank=32))


def test_what_a_further_module_takes_is_planned(shape: Shape) -> None:
    def peak(setup: Setup) -> Held:
        names = {"minimal": ("q_proj", "v_proj")}.get(str(setup.targets), setup.targets)
        return Held(1000 + sum(70 if name == "down_proj" else 10 for name in names))

    def said(setup: Setup) -> list[Advice]:
        found = advise_configuration(shape, setup, TrainOptions(), DATA, peak=peak)
        return [each for each in found if each.topic == "module"]

    (one,) = said(replace(SOUND, targets="minimal"))
    assert one.message == "a further target module adds 1.0 to 6.9 % of memory here"
    assert "down_proj 6.9 %" in one.evidence
    assert "k_proj 1.0 %" in one.evidence
    assert "15 to 20 %" in one.evidence
    assert said(SOUND) == []


def test_a_rate_far_from_the_usual_one(shape: Shape) -> None:
    usual = default_rate(WIDTH, "llama")[0]
    for times, heard in ((1, False), (2.9, False), (3.1, True), (0.34, False), (0.33, True)):
        assert ("rate" in topics(shape, learning_rate=times * usual)) == heard
    said = only(shape, SOUND, "rate", learning_rate=10 * usual)
    assert f"the learning rate {10 * usual:g} is 10 times the {usual:g}" in said.message
    whole = replace(SOUND, method="full")
    assert topics(shape, whole, learning_rate=usual / 10) == []
    full = only(shape, whole, "rate", learning_rate=usual)
    assert f"is 10 times the {usual / 10:g}" in full.message
    assert "a tenth of LoRA's" in full.evidence


def test_big_batches(shape: Shape) -> None:
    assert topics(shape, replace(SOUND, batch=8, accumulate=4)) == []
    said = only(shape, replace(SOUND, batch=11, accumulate=3), "batch")
    assert said.message.startswith("33 examples in an optimizer step: at most 32")


def test_more_to_learn_than_there_is_room_for(shape: Shape) -> None:
    trained = 8 * ALL_AT_1
    fits = Facts(examples=16_000, supervised=2 * trained)
    assert topics(shape, facts=fits) == []
    more = replace(fits, supervised=6 * trained + 1)
    said = only(shape, SOUND, "capacity", more).message
    assert f"{6 * trained + 1:,} tokens" in said
    assert f"{trained:,} numbers keep" in said
    assert said.endswith("that would take rank 25")
    few = only(shape, replace(SOUND, targets="minimal"), "capacity", more).message
    assert f"--targets all-linear has {trained:,} numbers" in few


def test_dropout_in_a_short_run(shape: Shape) -> None:
    setup = replace(SOUND, dropout=0.05)
    # 16 in a step, one pass: 299 and 300 steps
    short, long = (Facts(examples=16 * steps, supervised=1000) for steps in (299, 300))
    assert topics(shape, setup, long, epochs=1) == []
    assert "run of 299 steps" in only(shape, setup, "dropout", short, epochs=1).message
    assert topics(shape, setup, short, epochs=2) == []
    assert topics(shape, SOUND, short, epochs=1) == []
    assert topics(shape, setup, None) == []
    assert topics(shape, setup, None, max_steps=100) == ["dropout"]
    assert topics(shape, setup, long, max_steps=100) == ["dropout"]


def test_a_warm_up_that_the_run_is_too_short_for(shape: Shape) -> None:
    facts = Facts(examples=16 * 60, supervised=1000)
    assert topics(shape, facts=facts, epochs=1) == []
    assert topics(shape, facts=facts, epochs=1, warmup=6) == []
    said = only(shape, SOUND, "warmup", facts, epochs=1, warmup=100)
    assert "a warm-up of 100 steps in a run of 60: training cuts it to 6" in said.message
    assert "never reached" in said.evidence
    late = only(shape, SOUND, "warmup", facts, epochs=1, warmup=60)
    assert "reached in step 60" in late.evidence


def test_full_fine_tuning_hears_nothing_of_adapters(shape: Shape) -> None:
    setup = replace(SOUND, method="full", targets="minimal", rank=64, alpha=1000.0, dropout=0.5, batch=64)
    assert topics(shape, setup, Facts(examples=100, supervised=10**9)) == []


def test_other_families_are_told_the_same(shape: Shape) -> None:
    model = tiny_gemma2()
    config = model.config.to_dict()
    other = Shape.of_config({**config, "dtype": "float32"}, "gemma", "a test")
    assert "targets" in topics(other, replace(SOUND, targets="minimal"))
    assert topics(other) == []


def test_gpt2s_names_that_stand_in_attention_and_mlp() -> None:
    config = {"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 96}
    gpt2 = Shape.of_config(config, "gpt2", "a test")
    assert "targets" in topics(gpt2, replace(SOUND, targets=["c_attn"]))
    assert "targets" not in topics(gpt2, replace(SOUND, targets=["c_attn", "c_proj"]))


def test_as_a_document(shape: Shape) -> None:
    (one,) = advise(shape, replace(SOUND, batch=64))
    assert set(one.to_dict()) == {"topic", "message", "evidence", "source"}
