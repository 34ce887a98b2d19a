"""How adapters moved, on walks whose persistence is known and updates whose spectrum is."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from scumble.lora.adapter import Adapter, Factors
from scumble.lora.fresh import fresh_adapter
from scumble.lora.spec import LoraSpec
from scumble.train.advice.spectra import movement_of
from tests.tiny import tiny_llama

RANDOM = torch.Generator().manual_seed(0)
RATES = np.linspace(1e-2, 1e-4, 200)


def adapter(B: torch.Tensor, A: torch.Tensor | None = None) -> Adapter:
    rank = B.shape[1]
    A = torch.randn(rank, 400, generator=RANDOM) if A is None else A
    spec = LoraSpec(rank=rank, alpha=rank, targets=("q_proj",))
    return Adapter(spec, {"model.layers.0.self_attn.q_proj": Factors(A, B)})


def walk(turns: int) -> torch.Tensor:
    """B after steps of size eta whose signs are drawn anew every `turns` steps."""
    B = torch.zeros(400, 4)
    for step, rate in enumerate(RATES):
        if step % turns == 0:
            signs = torch.randint(0, 2, B.shape, generator=RANDOM) * 2 - 1
        B += rate * signs
    return B


@pytest.mark.parametrize("turns", [1, 4, 10])
def test_persistence_counts_the_steps_in_one_direction(turns):
    # 1,600 numbers: the mean of squares of normal numbers has a standard error of 3.5 %; four of them
    assert movement_of(adapter(walk(turns)), {}, RATES).persistence == pytest.approx(turns, rel=0.15)


def test_persistence_of_one_that_never_turned_is_as_high_as_can_be():
    most = RATES.sum() ** 2 / np.square(RATES).sum()
    assert movement_of(adapter(walk(1000)), {}, RATES).persistence == pytest.approx(most, rel=1e-5)


@pytest.mark.parametrize(
    "options", [{"init": "pissa"}, {"from_": "other"}, {"rates": {"q_proj": 1e-3}}, {"init": "olora"}]
)
def test_persistence_is_not_told_where_b_began_elsewhere(options):
    assert movement_of(adapter(walk(1)), options, RATES).persistence is None


def test_persistence_with_another_rate_for_b():
    once = movement_of(adapter(walk(4)), {}, RATES).persistence
    assert movement_of(adapter(walk(4) * 16), {"lora_plus": 16.0}, RATES).persistence == pytest.approx(
        once, rel=0.3
    )


def test_growth_of_a_fresh_adapter_is_one():
    model = tiny_llama(hidden_size=64, intermediate_size=128)
    modules = dict(model.named_modules())
    fresh = fresh_adapter(LoraSpec(rank=8, targets="all-linear"), modules, model.lm_head, seed=1)
    found = movement_of(fresh, {"init": "default"}, RATES)
    # 14 modules of 512 numbers or more, uniform: a standard error of 0.5 % of the root
    assert found.growth == pytest.approx(1, abs=0.02)
    assert found.persistence == 0
    for factors in fresh.factors.values():
        factors.A.mul_(5)
    assert movement_of(fresh, {}, RATES).growth == pytest.approx(5, abs=0.1)
    assert movement_of(fresh, {"init": "gaussian"}, RATES).growth is None


def test_rank_used_to_its_end_and_rank_not_used():
    left, _ = torch.linalg.qr(torch.randn(400, 8, generator=RANDOM))
    right, _ = torch.linalg.qr(torch.randn(400, 8, generator=RANDOM))
    flat = movement_of(adapter(left, right.T.contiguous()), {}, RATES)
    assert flat.full
    assert flat.saturated == 1
    assert flat.stable == pytest.approx(1)
    assert flat.needed == 8
    halving = left * torch.tensor([0.5**k for k in range(8)])
    steep = movement_of(adapter(halving, right.T.contiguous()), {}, RATES)
    assert not steep.full
    # sum of 4^-k = 4/3, over a rank of 8
    assert steep.stable == pytest.approx(4 / 3 / 8, rel=1e-3)
    assert steep.needed == 4  # 1 - 4^-4 = 0.996


def test_of_rank_one_everything_is_used():
    assert movement_of(adapter(torch.ones(400, 1)), {}, RATES).full


def test_factors_that_are_not_finite_are_not_looked_at():
    assert movement_of(adapter(torch.full((400, 2), math.nan)), {}, RATES) is None
