"""The arithmetic of an epoch's time: what micro-batches compute, the fit against SciPy's, sums against sums by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from scumble.data.encoding import Encoded
from scumble.data.order import order_of
from scumble.data.packing import pack
from scumble.plan import timing
from scumble.plan.setup import Setup
from scumble.plan.shape import Shape
from scumble.plan.timing import Calibration, Epoch, Layers, Linear, Work, epoch_time, fit, key_of

LLAMA = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "vocab_size": 48,
}


def shape_of(name: str = "a", **changed: Any) -> Shape:
    return Shape.of_config({**LLAMA, **changed}, name, "this test")


def example(number: int, *ids: int, silent: int = 1) -> Encoded:
    return Encoded(ids, tuple(i >= silent for i in range(len(ids))), number, "")


def some(count: int = 11) -> list[Encoded]:
    return [example(n, *range(100 * n, 100 * n + 5 + 3 * n)) for n in range(count)]


def calibration(shape: Shape, setup: Setup, **changed: Any) -> Calibration:
    made = Calibration(
        key=key_of(shape, setup, "here"),
        machine="here",
        made="2026-01-01T00:00:00+00:00",
        threads=2,
        layers=(Layers(3, Linear(0.5, 0.25, 0.0, 0.125)), Layers(1, Linear(1.0))),
        rest=Linear(2.0, 0.5, 4.0, 0.0),
        optimizer=7.0,
        spread=0.02,
        largest=40,
        seconds=9.0,
        steps=12,
        busy=False,
    )
    return replace(made, **changed)


# -- work ------------------------------------------------------------------------------------------


def test_examples_that_share_nothing() -> None:
    work = Work.of(pack([example(0, 1, 2, 3), example(1, 9, 8)]))
    assert work == Work(tokens=5, computed=5, losses=3, pairs=(1 + 2 + 3) + (1 + 2))


def test_what_is_shared_is_computed_once_and_seen_by_all() -> None:
    begin = tuple(range(10))
    both = [example(0, *begin, 20, 21, 22, silent=10), example(1, *begin, 30, 31, silent=10)]
    work = Work.of(pack(both, share=True))
    # each token sees as many as its position says, wherever it is laid out
    assert work == Work(
        tokens=25, computed=15, losses=5, pairs=sum(range(1, 11)) + (11 + 12 + 13) + (11 + 12)
    )
    assert Work.of(pack(both, share=False)).pairs == sum(range(1, 14)) + sum(range(1, 13))


# -- epochs ----------------------------------------------------------------------------------------


def test_an_epoch_has_every_example_once_in_the_order_of_the_seed() -> None:
    examples = some()
    epoch = Epoch.of(examples, Setup(batch=2, accumulate=2), seed=5)
    order = order_of(len(examples), 5, 0)
    of_steps = [sorted(each.number for group in groups for each in group) for groups in epoch.steps]
    assert of_steps == [sorted(order[i : i + 4]) for i in range(0, 11, 4)]
    assert (epoch.count, epoch.tokens) == (3, sum(len(each.ids) for each in examples))
    longest = [max(len(each.ids) for group in groups for each in group) for groups in epoch.steps]
    for groups, most in zip(epoch.steps, longest, strict=True):
        assert all(sum(len(each.ids) for each in group) <= 2 * most for group in groups)


def test_with_dropout_nothing_is_shared() -> None:
    begin = tuple(range(20))
    examples = [example(n, *begin, 30 + n, silent=20) for n in range(4)]
    shared, apart = (Epoch.of(examples, Setup(batch=4, dropout=p)) for p in (0.0, 0.1))
    assert [[work.computed for work in works] for works in shared.works()] == [[24]]
    assert [[work.computed for work in works] for works in apart.works()] == [[84]]


def test_a_long_epoch_goes_by_its_first_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    examples = [example(n, *range(10)) for n in range(40)]
    shape, setup = shape_of(), Setup(batch=2)
    whole = Epoch.of(examples, setup)
    monkeypatch.setattr(timing, "STEPS", 4)
    part = Epoch.of(examples, setup)
    assert (len(whole.steps), len(part.steps), part.count) == (20, 4, 20)
    known = calibration(shape, setup)
    # all examples are alike, so a part says all
    assert epoch_time(known, shape, setup, part) == epoch_time(known, shape, setup, whole)


# -- the fit ---------------------------------------------------------------------------------------

WORKS = [Work(t, t, t // 3 + t % 7, t * t // 5 + 13 * t) for t in (20, 110, 400, 900, 2000)]
NAMES = ("constant", "computed", "losses", "pairs")


def test_coefficients_come_back() -> None:
    wanted = Linear(3e-3, 2e-5, 7e-5, 4e-9)
    found = fit(WORKS, [wanted.of(work) for work in WORKS], *NAMES)
    assert found == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("seed", range(8))
def test_as_good_as_scipy_and_never_below_zero(seed: int) -> None:
    optimize = pytest.importorskip("scipy.optimize")
    draw = np.random.default_rng(seed)
    wanted = Linear(*(draw.random(4) * draw.integers(0, 2, 4) * (1e-2, 1e-4, 1e-4, 1e-8)))
    seconds = [(wanted.of(work) + 1e-3) * (1 + 0.2 * draw.standard_normal()) for work in WORKS]
    found = fit(WORKS, seconds, *NAMES)
    table = np.array(
        [[1, w.computed, w.losses, w.pairs] / np.array(s) for w, s in zip(WORKS, seconds, strict=True)]
    )
    scale = table.max(axis=0)
    _, least = optimize.nnls(table / scale, np.ones(len(WORKS)))
    assert min(found) >= 0
    # SciPy's norm is the oracle; it stops at its own precision
    assert np.linalg.norm(table @ found - 1) <= least + 1e-6


def test_one_measurement_is_met() -> None:
    found = fit(WORKS[:1], [0.5], *NAMES)
    assert found.of(WORKS[0]) == pytest.approx(0.5)
    assert fit(WORKS[:1], [0.0], *NAMES).of(WORKS[0]) == pytest.approx(0.0, abs=1e-9)


# -- the time --------------------------------------------------------------------------------------


def test_an_epochs_time_by_hand() -> None:
    shape, setup = shape_of(), Setup(batch=1)
    examples = [example(0, 1, 2, 3), example(1, 9, 8)]
    found = epoch_time(calibration(shape, setup), shape, setup, Epoch.of(examples, setup))

    def micro(tokens: int) -> float:
        pairs = tokens * (tokens + 1) / 2
        layers = 3 * (0.5 + 0.25 * tokens + 0.125 * pairs) + 1.0
        return layers + 2.0 + 0.5 * tokens + 4.0 * (tokens - 1)

    assert found.seconds == pytest.approx(micro(3) + micro(2) + 2 * 7.0)
    assert (found.steps, found.tokens) == (2, 5)
    assert found.tokens_per_second == pytest.approx(5 / found.seconds)
    assert found.low < found.seconds < found.high
    assert found.spread == pytest.approx(timing.LEAST_SPREAD)


def test_a_calibration_that_spread_more_says_so() -> None:
    shape, setup = shape_of(), Setup(batch=1)
    found = epoch_time(calibration(shape, setup, spread=0.3), shape, setup, Epoch.of(some(), setup))
    assert found.high == pytest.approx(1.3 * found.seconds)
    assert found.low == pytest.approx(found.seconds / 1.3)
    said = replace(found, seconds=250.0, low=200.0, high=280.0)
    assert str(said).replace("\u00a0", " ") == "4 min 10 s, give or take 12 %"
    assert set(found.to_dict()) >= {"seconds", "low", "high", "steps", "tokens", "tokens_per_second"}


@pytest.mark.parametrize(
    "changed",
    [{"rank": 9}, {"targets": "standard"}, {"method": "full"}, {"dtype": "fp32"}, {"dropout": 0.1}, {"dora": True},
     {"repeat": 1}, {"device": "cpu"}, {"optimizer": "adamw8bit"}],
)  # fmt: skip
def test_another_way_to_train_needs_another_calibration(changed: dict[str, Any]) -> None:
    shape, setup = shape_of(), Setup()
    other = replace(setup, **changed)
    assert key_of(shape, setup, "here") != key_of(shape, other, "here")
    with pytest.raises(ValueError, match="another shape or setup"):
        epoch_time(calibration(shape, setup), shape, other, Epoch.of(some(), other))


def test_what_changes_no_time_needs_none() -> None:
    setup = Setup()
    key = key_of(shape_of("a"), setup, "here")
    assert key == key_of(shape_of("b"), replace(setup, alpha=1.0, batch=3, accumulate=5, tokens=7), "here")
    assert key != key_of(shape_of(), setup, "there")
    assert key != key_of(shape_of(hidden_size=24), setup, "here")


def test_a_calibration_is_for_micro_batches_like_those_measured() -> None:
    known, one = calibration(shape_of(), Setup()), Setup(batch=1)
    assert known.covers(Epoch.of([example(0, *range(60))], one))
    assert not known.covers(Epoch.of([*some(3), example(3, *range(61))], one))


def test_a_calibration_is_the_same_after_json() -> None:
    known = calibration(shape_of(), Setup())
    assert Calibration.from_dict(json.loads(json.dumps(known.to_dict()))) == known
    with pytest.raises((KeyError, TypeError)):
        Calibration.from_dict({"key": "x"})
