"""What is decided for the user, each time with its reason; and the learning rate over a run."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scumble.config import Choice, TrainOptions, make
from scumble.plan.batch import EFFECTIVE, ENOUGH_STEPS, MICRO, SMALLEST
from scumble.plan.rate import default_rate
from scumble.train.schedule import factor
from scumble.train.settings import WARMUP, Settings, settle

LLAMA = SimpleNamespace(model_type="llama", hidden_size=576)
MANY = 10 * EFFECTIVE * max(ENOUGH_STEPS, WARMUP)  # examples for a run in which nothing need adapt


def settled(examples: int = MANY, config: Any = LLAMA, **options: Any) -> Settings:
    return settle(make(TrainOptions, **options), examples, config)


def reasons(found: Settings) -> dict[str, Choice]:
    assert all(choice.reason for choice in found.choices)
    return {choice.option: choice for choice in found.choices}


def test_a_long_run_has_the_lessons_values() -> None:
    found = settled()
    assert (found.effective, found.batch, found.warmup) == (EFFECTIVE, MICRO, WARMUP)
    assert set(reasons(found)) == {"batch", "accumulate", "learning_rate"}


@given(examples=st.integers(1, 5 * MANY), epochs=st.floats(0.1, 10), warmup=st.none() | st.integers(0, 500))
def test_whatever_is_decided_is_said_and_holds(examples: int, epochs: float, warmup: int | None) -> None:
    found = settled(examples, epochs=epochs, warmup=warmup)
    said = reasons(found)
    for option, choice in said.items():
        assert choice.value == getattr(found, option)
    assert SMALLEST <= found.effective <= EFFECTIVE
    assert {"batch", "learning_rate"} <= set(said)
    assert ("accumulate" in said) == (found.accumulate > 1)
    if found.effective < EFFECTIVE:
        assert str(ENOUGH_STEPS) in said["batch"].reason
        assert f"over {examples} examples" in said["batch"].reason
    else:
        assert "fewer" not in said["batch"].reason
    assert found.steps_per_epoch == math.ceil(examples / found.effective)
    assert found.steps == max(1, round(found.steps_per_epoch * epochs))
    # never above a tenth of the run; and where that is not what was asked for, it is said
    assert found.warmup <= found.steps / 10
    wanted = WARMUP if warmup is None else warmup
    assert found.warmup == min(wanted, found.steps // 10)
    assert ("warmup" in said) == (found.warmup != wanted)


def test_a_short_run_gets_a_smaller_batch_and_says_so() -> None:
    assert settled(SMALLEST * 10, epochs=1).effective == SMALLEST
    middle = EFFECTIVE // 2 * ENOUGH_STEPS
    assert settled(middle, epochs=1).effective == EFFECTIVE // 2
    assert settled(2 * middle, epochs=1).effective == EFFECTIVE
    assert settled(2 * middle - 1, epochs=1).effective == EFFECTIVE // 2


def test_what_the_user_says_is_kept_and_not_explained() -> None:
    found = settled(50, batch=3, accumulate=5, learning_rate=0.5, warmup=0, schedule="cosine", clip=2, seed=9)
    assert (found.batch, found.accumulate, found.learning_rate, found.warmup) == (3, 5, 0.5, 0)
    assert (found.schedule, found.clip, found.seed) == ("cosine", 2.0, 9)
    assert found.choices == ()


@pytest.mark.parametrize(
    ("options", "batch", "accumulate", "option"),
    [({"batch": 4}, 4, 4, "accumulate"), ({"batch": 5}, 5, 3, "accumulate"), ({"batch": 40}, 40, 1, "accumulate"),
     ({"accumulate": 8}, 2, 8, "batch"), ({"accumulate": 40}, 1, 40, "batch")],
)  # fmt: skip
def test_the_other_half_follows_and_its_reason_is_true(
    options: dict[str, int], batch: int, accumulate: int, option: str
) -> None:
    found = settled(**options)
    assert (found.batch, found.accumulate) == (batch, accumulate)
    assert reasons(found)[option].reason.startswith(f"{batch * accumulate} examples in an optimizer step")


@pytest.mark.parametrize("steps", [1, 9, 10, 35, 999])
def test_warm_up_is_never_over_a_tenth(steps: int) -> None:
    for asked in (None, 100, 10**6):
        found = settled(max_steps=steps, warmup=asked)
        assert found.steps == steps
        assert found.warmup == min(steps // 10, asked or WARMUP)
        said = reasons(found)["warmup"].reason
        assert ("asked for" in said) == (asked is not None)
        assert f"{steps} steps" in said


def test_a_part_of_an_epoch_and_a_number_of_steps() -> None:
    assert settled(160, epochs=0.5, batch=4, accumulate=4).steps == 5
    assert settled(160, epochs=0.01, batch=4, accumulate=4).steps == 1
    assert settled(160, epochs=3, max_steps=7, batch=4, accumulate=4).steps == 7
    assert settled(160, epochs=3, max_steps=700, batch=4, accumulate=4).steps == 30


# the figures of the contract
@pytest.mark.parametrize(
    ("family", "hidden", "rate", "fit"),
    [("llama", 576, 1.3e-3, "Llama"), ("llama", 4096, 2.9e-4, "Llama"), ("qwen2", 2000, 5e-4, "Qwen"), ("gpt2", 768, 1.1e-3, "Llama")],
)  # fmt: skip
def test_the_rate_follows_the_bases_width(family: str, hidden: int, rate: float, fit: str) -> None:
    found, reason = default_rate(hidden, family)
    assert found == pytest.approx(rate, rel=0.05)
    assert str(hidden) in reason
    assert fit in reason
    assert family in reason
    assert settled(config=SimpleNamespace(model_type=family, hidden_size=hidden)).learning_rate == found


@given(
    total=st.integers(1, 400),
    share=st.floats(0, 0.1),
    kind=st.sampled_from(["linear", "cosine", "constant"]),
)
def test_the_rate_rises_to_its_value_and_falls(total: int, share: float, kind: Any) -> None:
    warmup = int(total * share)
    rates = [factor(step, total, warmup, kind) for step in range(total)]
    assert all(0 < rate <= 1 for rate in rates)
    assert max(rates) == 1.0
    assert rates[max(0, warmup - 1)] == 1.0
    assert rates[:warmup] == sorted(rates[:warmup])
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True)
    assert kind != "constant" or set(rates[warmup:]) <= {1.0}


def test_the_rate_at_known_steps() -> None:
    assert [factor(step, 10, 2, "linear") for step in range(10)] == pytest.approx(
        [0.5, 1, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]
    )
    assert factor(6, 10, 2, "cosine") == pytest.approx(0.5)
    assert factor(9, 10, 2, "constant") == 1.0
