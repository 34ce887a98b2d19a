"""What fits, what is largest, and what to change: held against a plan of its own that is simple enough to check."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scumble.config import ELSEWHERE
from scumble.errors import AdapterError
from scumble.plan import changes, fitting
from scumble.plan.fitting import Fit, fit, largest
from scumble.plan.memory import Memories
from scumble.plan.setup import Setup
from scumble.plan.shape import Shape
from scumble.plan.sharding import per_device
from scumble.plan.states import states_of

LINEAR = {"minimal": 2, "standard": 4, "comprehensive": 7}


@dataclass(frozen=True)
class Held:
    peak: int


@pytest.fixture(scope="module")
def shape() -> Shape:
    config = {
        "model_type": "llama",
        "hidden_size": 256,
        "intermediate_size": 640,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "vocab_size": 1000,
        "max_position_embeddings": 4096,
    }
    return Shape.of_config(config, "small", "a test")


def planner(shape: Shape) -> Callable[[Setup], Held]:
    """States as they are, and activations by a rule of thumb that falls with whatever should make it fall."""

    def peak(setup: Setup) -> Held:
        if setup.targets == "nowhere":
            raise AdapterError("nothing is called nowhere")
        full = setup.method == "full"
        modules = LINEAR[str(setup.targets)] * shape.layers
        trained = shape.parameters if full else modules * setup.rank * 2 * shape.hidden
        shared = per_device(shape, setup, states_of(shape, setup, trained))
        kept = 1 if setup.repeat == "all" else shape.layers
        activations = setup.tokens * shape.hidden * setup.activation_bytes * (2 + 12 * kept)
        logits = setup.losses * shape.vocabulary * 4
        return Held(shared.states.held + shared.gathered + shared.copies + activations + logits)

    return peak


# ways to train, larger and smaller ones
SETUPS = st.builds(
    lambda longest, batch, accumulate, mean, share, **other: Setup(
        longest=longest,
        batch=batch,
        accumulate=accumulate,
        tokens=(tokens := longest + round(mean * longest * (batch - 1))),
        losses=max(1, round(share * tokens)),
        **other,
    ),
    longest=st.integers(8, 4096),
    batch=st.integers(1, 12),
    accumulate=st.integers(1, 8),
    mean=st.floats(0.05, 1),  # length of the others, over the longest
    share=st.floats(0.05, 1),
    method=st.sampled_from(["lora", "qlora", "full"]),
    dtype=st.sampled_from(["fp32", "bf16"]),
    rank=st.integers(1, 64),
    targets=st.sampled_from(list(LINEAR)),
    optimizer=st.sampled_from(["adamw", "adamw8bit"]),
    device=st.sampled_from(["cpu", "cuda"]),
    repeat=st.sampled_from([0, "all"]),
)


def followed(setup: Setup, found: Fit) -> Setup:
    """The setup that the options of the suggestions say, read as the command line would."""
    words = found.options.split()
    assert len(set(words[::2])) == len(words[::2])
    given_ = dict(zip(words[::2], words[1::2], strict=True))
    for option, value in given_.items():
        match option:
            case "--batch":
                setup = changes.with_batch(setup, int(value))
            case "--accumulate":
                assert setup.accumulate == int(value)
            case "--gradient-checkpointing":
                setup = replace(setup, repeat="all")
            case "--max-length":
                setup = changes.with_length(setup, int(value))
            case "--rank":
                setup = replace(setup, rank=int(value))
            case "--alpha":
                setup = replace(setup, alpha=float(value))
            case "--method":
                dtype: Any = "nf4" if value == "qlora" else setup.dtype
                setup = replace(setup, method=value, dtype=dtype)  # type: ignore[arg-type]
            case "--processes":
                setup = replace(setup, processes=int(value))
            case "--optimizer" | "--dtype" | "--targets" | "--sharding":
                setup = replace(setup, **{option.removeprefix("--"): value})  # type: ignore[arg-type]
            case _:
                raise AssertionError(f"an option that nobody knows: {option}")
    return setup


@settings(max_examples=60, deadline=None)
@given(setup=SETUPS, share=st.floats(0.02, 1.2))
def test_suggestions_followed_do_fit(shape: Shape, setup: Setup, share: float) -> None:
    peak = planner(shape)
    limit = round(share * peak(setup).peak)
    found = fit(peak, shape, setup, limit)
    assert found.fits == (peak(setup).peak <= limit)
    assert bool(found.suggestions) <= (not found.fits)
    if found.suggestions:
        left = peak(followed(setup, found)).peak
        assert left == found.suggestions[-1].peak
        assert found.suggestions[-1].fits == (left <= limit)
        assert sum(each.saving for each in found.suggestions) == found.peak - left
        assert all(each.saving > 0 for each in found.alone)


@settings(max_examples=60, deadline=None)
@given(setup=SETUPS, share=st.floats(0.02, 1.2))
def test_no_suggestion_can_be_left_out(shape: Shape, setup: Setup, share: float) -> None:
    peak = planner(shape)
    limit = round(share * peak(setup).peak)
    found = fit(peak, shape, setup, limit)
    if found.fits or not found.suggestions or not found.suggestions[-1].fits:
        return
    for left_out in found.suggestions:
        rest = replace(found, suggestions=tuple(s for s in found.suggestions if s is not left_out))
        assert peak(followed(setup, rest)).peak > limit


@settings(max_examples=60, deadline=None)
@given(setup=SETUPS, share=st.floats(0.02, 3))
def test_one_more_than_the_largest_does_not_fit(shape: Shape, setup: Setup, share: float) -> None:
    peak = planner(shape)
    limit = round(share * peak(setup).peak)
    found = fit(peak, shape, setup, limit).largest
    for value, change, most in (
        (found.batch, changes.with_batch, fitting.MOST_EXAMPLES),
        (found.length, changes.with_length, 4096),
        (found.rank, changes.with_rank, 256),
    ):
        if value is None:
            assert setup.method == "full"
            continue
        assert 0 <= value <= most
        assert not value or peak(change(setup, value)).peak <= limit
        assert value == most or peak(change(setup, value + 1)).peak > limit


@given(setup=SETUPS, batch=st.integers(1, 64))
def test_the_longest_example_is_in_every_batch(setup: Setup, batch: int) -> None:
    other = changes.with_batch(setup, batch)
    assert other.tokens >= other.longest
    assert 1 <= other.losses <= other.tokens
    assert other.batch * other.accumulate >= setup.batch * setup.accumulate
    assert other.batch * (other.accumulate - 1) < setup.batch * setup.accumulate


@given(st.integers(0, 5000), st.integers(1, 5000))
def test_the_largest_number(edge: int, most: int) -> None:
    assert largest(lambda n: n <= edge, most) == min(edge, most)


def _suggested(shape: Shape, setup: Setup, share: float, **more: Any) -> Fit:
    peak = planner(shape)
    return fit(peak, shape, setup, round(share * peak(setup).peak), **more)


LONG = Setup(batch=8, accumulate=2, tokens=16_384, losses=16_384, targets="comprehensive", rank=32)


def test_what_costs_nothing_comes_first_and_keeps_the_mathematics(shape: Shape) -> None:
    found = _suggested(shape, LONG, 0.6)
    (only,) = found.suggestions
    assert only.options == "--batch 4 --accumulate 4"
    assert only.exact
    assert only.cost.startswith("nothing: the same 16 examples")
    assert found.largest.batch in range(4, 8)


def test_time_is_given_before_quality(shape: Shape) -> None:
    states = planner(shape)(replace(LONG, tokens=1, losses=1)).peak
    setup = replace(LONG, batch=1, accumulate=16, tokens=2048, losses=2048)
    whole = planner(shape)(setup).peak
    found = fit(planner(shape), shape, setup, states + (whole - states) // 2)
    (only,) = found.suggestions
    assert only.options == "--gradient-checkpointing all"
    assert "1.5 times" in only.cost


def test_the_cost_of_a_shorter_length_is_counted_on_the_data(shape: Shape) -> None:
    setup = Setup(tokens=2048, losses=2048, repeat="all", device="cpu", targets="minimal")
    known = _suggested(shape, setup, 0.8, lengths=[100, 500, 2000, 2048])
    (only,) = known.suggestions
    assert only.change == "max_length"
    length = int(only.options.split()[1])
    assert 500 < length < 2000
    assert only.cost == "2 of 4 examples (50.0%) are longer, and left out"
    unknown = _suggested(shape, setup, 0.8)
    assert unknown.suggestions[0].cost == "examples that are longer are left out"


def test_full_fine_tuning_is_given_up_for_lora_before_its_rank(shape: Shape) -> None:
    setup = Setup(method="full", dtype="bf16", tokens=64, losses=64, longest=64, device="cpu")
    found = _suggested(shape, setup, 0.5)
    assert [each.options for each in found.suggestions] == ["--method lora"]
    assert not found.suggestions[0].exact


def test_qlora_says_that_it_is_not_trained_here(shape: Shape) -> None:
    setup = Setup(dtype="bf16", tokens=64, losses=64, longest=64, rank=1)
    found = _suggested(shape, setup, 0.7)
    (only,) = found.suggestions
    assert only.options == "--method qlora"
    assert only.here == ("qlora" not in ELSEWHERE)
    assert only.here or "not trained here yet: this method comes with a later version" in only.cost


def test_cards_are_the_last_resort_and_no_more_of_them_than_needed(shape: Shape) -> None:
    setup = Setup(method="qlora", dtype="nf4", tokens=128, losses=1, longest=128, rank=1, repeat="all")
    found = _suggested(shape, setup, 0.9)
    assert found.suggestions[-1].options.startswith("--processes ")
    assert found.suggestions[-1].fits
    assert not found.suggestions[-1].here


def test_a_smaller_base_where_nothing_else_helps(shape: Shape) -> None:
    setup = Setup(method="lora", dtype="bf16", tokens=64, losses=64, longest=64, device="cpu")
    hopeless = fit(planner(shape), shape, setup, 1000)
    assert not any(each.fits for each in hopeless.suggestions)
    peaks = {"half": lambda _: Held(2000), "tiny": lambda _: Held(900), "tinier": lambda _: Held(1)}
    found = fit(planner(shape), shape, setup, 1000, smaller=peaks)
    (only,) = found.suggestions
    assert (only.options, only.peak, only.fits) == ("--base tiny", 900, True)


def test_each_change_alone(shape: Shape) -> None:
    found = _suggested(shape, LONG, 0.6)
    by_name = {each.options: each for each in found.alone}
    assert "--gradient-checkpointing all" in by_name
    assert "--optimizer adamw8bit" in by_name
    for each in found.alone:
        assert each.fits == (each.peak <= found.limit)
        assert each.saving == found.peak - each.peak


def test_targets_that_cannot_be_planned_are_not_suggested(shape: Shape) -> None:
    peak = planner(shape)

    def odd(setup: Setup) -> Held:
        return peak(replace(setup, targets="nowhere" if setup.targets == "minimal" else "comprehensive"))

    setup = replace(LONG, targets=["c_attn"])
    found = fit(odd, shape, setup, odd(setup).peak // 3)
    assert found.suggestions[-1].fits
    assert "targets" not in {each.change for each in (*found.suggestions, *found.alone)}


def test_what_fits_needs_no_change(shape: Shape) -> None:
    found = _suggested(shape, LONG, 1.0)
    assert found.fits
    assert (found.suggestions, found.alone, found.options) == ((), (), "")
    said = found.to_dict()
    assert said["largest"] == {"batch": 8, "length": 2048, "rank": found.largest.rank}
    assert said["limit"] == said["peak"]


@pytest.mark.parametrize("share", [0.9, 0.6, 0.35])
@pytest.mark.parametrize("engine", ["scumble", "script"])
@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_projects_own_plan_is_followed_too(shape: Shape, method: Any, engine: Any, share: float) -> None:
    peak = Memories(shape)
    setup = replace(LONG, method=method, engine=engine, dtype="fp32", device="cpu")
    limit = round(share * peak(setup).peak)
    found = fit(peak, shape, setup, limit)
    assert not found.fits
    assert found.suggestions[-1].fits
    assert peak(followed(setup, found)).peak <= limit
    for value, change in (
        (found.largest.batch, changes.with_batch),
        (found.largest.length, changes.with_length),
    ):
        assert not value or peak(change(setup, value)).peak <= limit < peak(change(setup, value + 1)).peak
