"""The loss scale of fp16: overflow halves it and makes the step again; the same gradient; runs in fp16 that go on."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from scumble.progress import Reporter
from scumble.train import scaling
from scumble.train.scaling import LossScale
from tests.bases import encoded, make_letters_base, sums
from tests.train.trainers import Memory, bank_of, make_trainer, only_gradients, parameters

LARGEST = 65504.0  # of fp16


class Emulated:
    """A gradient that passes through fp16 times the scale, as activations' do."""

    def __init__(self, true: list[float]) -> None:
        self.true = torch.tensor(true)
        self.parameter = nn.Parameter(torch.zeros(len(true)))
        self.asked: list[float] = []

    def gradient(self, scale: float) -> str:
        assert self.parameter.grad is None
        self.asked.append(scale)
        self.parameter.grad = (self.true * scale).half().float()
        return "loss"

    def found(self) -> torch.Tensor:
        assert self.parameter.grad is not None
        return self.parameter.grad


def test_an_overflow_halves_the_scale_and_makes_the_step_again() -> None:
    run = Emulated([3.0, -0.5, 1e-7])
    scale = LossScale(True, Reporter(quiet=True))
    assert scale.step(run.gradient, [run.parameter]) == "loss"
    assert run.asked == [2.0**16, 2.0**15, 2.0**14]
    assert scale.value == 2.0**14
    # a power of two is undone exactly, and what would be lost in fp16 (1e-7) is there
    torch.testing.assert_close(run.found(), run.true, rtol=2**-10, atol=0)
    assert float(run.true[2].half()) != pytest.approx(1e-7, rel=0.05)


def test_the_scale_grows_again_after_so_many_good_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "GROW", 3)
    run = Emulated([1e-5])
    scale = LossScale(True, Reporter(quiet=True))
    seen = []
    for _ in range(7):
        run.parameter.grad = None
        scale.step(run.gradient, [run.parameter])
        seen.append(scale.value / 2.0**16)
    assert seen == [1, 1, 2, 2, 2, 4, 4]
    again = LossScale(True, Reporter(quiet=True))
    again.restore(scale.to_dict())
    assert (again.value, again.good) == (scale.value, 1)


def test_what_no_scale_helps_is_left_for_the_loop_to_say() -> None:
    run = Emulated([float("nan")])
    scale = LossScale(True, Reporter(quiet=True))
    scale.step(run.gradient, [run.parameter])
    assert run.asked[-1] == 1.0
    assert len(run.asked) == 17
    assert not torch.isfinite(run.found()).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_types_need_none(dtype: torch.dtype) -> None:
    scale = LossScale.of(nn.Linear(2, 2).to(dtype), Reporter(quiet=True))
    run = Emulated([float("inf")])
    scale.step(run.gradient, [run.parameter])
    assert run.asked == [1.0]
    assert LossScale.of(nn.Linear(2, 2).half(), Reporter(quiet=True)).active


def test_a_run_in_fp16_overflows_and_goes_on_to_what_fp32_comes_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "START", 2.0**24)  # far more than the gradients bear
    half = make_trainer(make_letters_base(dtype=torch.float16), steps=12)
    whole = make_trainer(make_letters_base(), steps=12)
    outcome, wanted = half.run(), whole.run()
    assert outcome.stopped is None
    assert outcome.steps == 12
    assert half.scale.value < 2.0**24
    assert all(tensor.dtype == torch.float32 for tensor in parameters(bank_of(half)).values())
    # fp16 has three digits, and a run adds up
    assert outcome.losses[-1] == pytest.approx(wanted.losses[-1], rel=0.05)
    memory: Memory = half.record  # type: ignore[assignment]
    assert memory.states[-1]["scale"] == half.scale.to_dict()


def test_the_gradient_of_fp16_is_that_of_fp32_to_its_digits() -> None:
    found = only_gradients(
        make_trainer(make_letters_base(dtype=torch.float16), encoded(sums(8)), spread=0.3, steps=1)
    )
    wanted = only_gradients(make_trainer(make_letters_base(), encoded(sums(8)), spread=0.3, steps=1))
    for key, tensor in wanted.items():
        assert float((found[key] - tensor).norm() / tensor.norm()) < 0.02
