"""Updates of full rank in blocks of rows: thresholds, truncation, DARE's masks, and what has no answer."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from scumble.errors import AdapterError, ConfigError
from scumble.lora import streamed
from scumble.lora.adapter import Adapter, Factors
from scumble.lora.blend import Recipe, blend
from scumble.lora.part import Part
from scumble.lora.spec import LoraSpec
from tests.lora.synthetic import dense, made


@dataclass
class Dense:
    """A matrix that is there already, given in rows."""

    matrix: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        return int(self.matrix.shape[0]), int(self.matrix.shape[1])

    def rows(self, start: int, stop: int) -> Tensor:
        return self.matrix[start:stop]


@dataclass
class Weights:
    """A base of one module."""

    weight: Tensor

    def matrix_rows(self, path: str, start: int, stop: int) -> Tensor:
        return self.weight[start:stop]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def with_spectrum(values: Tensor, out: int, width: int) -> Tensor:
    left, right = (torch.linalg.qr(random(n, len(values), seed=n))[0] for n in (out, width))
    return left * values @ right.T


SPECTRA = {
    "slow decay": (0.995 ** torch.arange(200, dtype=torch.float64), 16),
    "a cluster at the cut": (torch.cat([torch.full((8,), 1.001), torch.ones(192)]).double(), 8),
    "a head and a small tail": (torch.cat([torch.ones(8), 1e-5 * 0.97 ** torch.arange(192)]).double(), 32),
    "flat": (torch.ones(200, dtype=torch.float64), 4),
    "of low rank": (torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64), 8),
    "nothing": (torch.zeros(5, dtype=torch.float64), 3),
}


@pytest.mark.parametrize("shape", [(240, 210), (210, 1000), (1000, 210)], ids=str)
@pytest.mark.parametrize("name", SPECTRA)
def test_truncating_finds_the_best_of_the_rank(name: str, shape: tuple[int, int]) -> None:
    values, rank = SPECTRA[name]
    matrix = with_spectrum(values, *shape)
    found = streamed.truncate(Dense(matrix), rank)
    best, norm = float(values[rank:].norm()), float(values.norm())
    true = float((matrix - found.matrix.left @ found.matrix.right).norm())
    # the limit, and in terms of the optimum itself, which a small tail would hide in the first
    assert true <= best + 1e-6 * norm
    assert true <= best * (1 + 1e-5) + 1e-12 * norm
    assert found.missing == pytest.approx(true, rel=1e-9, abs=1e-12 * norm)
    assert found.norm == pytest.approx(norm, rel=1e-12)


def test_truncating_needs_few_passes() -> None:
    """Each pass makes the whole update again: a hundred of them was what subspace iteration took."""
    passes = []

    class Counted(Dense):
        def rows(self, start: int, stop: int) -> Tensor:
            passes.append(start)
            return super().rows(start, stop)

    streamed.truncate(Counted(random(300, 300)), 16)
    assert len(passes) <= 20


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(
        st.one_of(
            st.floats(allow_nan=False, allow_infinity=False, width=64),
            st.sampled_from([0.0, -0.0, 5e-324, -1.0, 1.0, 1e307]),
        ),
        min_size=1,
        max_size=40,
    ),
    data=st.data(),
)
def test_the_kth_largest_is_exact(values: list[float], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(values)))
    found = streamed.kth_largest(Dense(torch.tensor([values], dtype=torch.float64)), k)
    assert found == sorted(map(abs, values), reverse=True)[k - 1]


def test_equal_values_are_not_gathered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streamed, "BLOCK", 10)
    held: list[int] = []
    gathered = torch.cat
    monkeypatch.setattr(
        torch, "cat", lambda parts, *a: held.append(sum(p.numel() for p in parts)) or gathered(parts, *a)
    )
    assert streamed.kth_largest(Dense(torch.full((20, 30), -0.25, dtype=torch.float64)), 7) == 0.25
    assert streamed.kth_largest(Dense(torch.zeros(20, 30, dtype=torch.float64)), 7) == 0.0
    assert max(held, default=0) <= 10


def test_dare_is_right_on_average_and_whatever_the_blocks() -> None:
    one = made(("q_proj",), seed=1, layers=1)
    path, update = next(iter(dense(one).items()))
    total, n = torch.zeros_like(update), 400
    for seed in range(n):
        target = blend([Part(one)], Recipe("dare", density=0.5, seed=seed)).targets[path]
        whole = target.rows(0, update.shape[0])
        assert torch.equal(whole[3:9], target.rows(3, 9))
        total += whole / n
    # each entry is u or -u about its mean with probability a half: a deviation of |u| / sqrt(n); five of them
    assert bool(((total - update).abs() <= 5 * update.abs() / n**0.5).all())


@pytest.mark.parametrize("weights", [(0.7, 0.3, -1.0), (0.1, 0.2, -0.3)])
def test_what_cancels_elects_nobody(weights: tuple[float, ...]) -> None:
    one = made(seed=1)
    found = blend([Part(one, weight) for weight in weights], Recipe("ties", density=1.0))
    for path, update in dense(one).items():
        assert found.norms[path] <= 1e-12 * float(update.norm())


def dora(weight: Tensor, B: Tensor | None = None) -> Adapter:
    spec = LoraSpec(rank=4, alpha=8.0, targets=("q_proj",), dora=True)
    A, B = random(4, 48, seed=5).float(), torch.zeros(64, 4) if B is None else B
    return Adapter(spec, {"m.q_proj": Factors(A, B, magnitude=weight.float().norm(dim=1))})


def test_an_untrained_dora_is_no_update() -> None:
    weight = random(64, 48).float()
    found = blend([Part(dora(weight))], Recipe("svd", 4), Weights(weight))
    assert found.predicted == 0.0


def test_dora_on_a_row_of_zeros_is_refused() -> None:
    weight = random(64, 48).float()
    weight[3] = 0
    with pytest.raises(AdapterError, match="not defined in row 3"):
        blend([Part(dora(weight))], Recipe("svd", 4), Weights(weight))


def test_what_a_method_has_no_use_for_is_refused() -> None:
    parts = [Part(made(seed=1), 2.0), Part(made(seed=2), 2.0)]
    for method in ("exact", "svd"):
        with pytest.raises(ConfigError, match="no meaning"):
            blend(parts, Recipe(method, rank=4, normalize=True))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="the weight of"):
        blend([Part(made(seed=1), 1e160)])


def test_a_path_that_ends_another_has_its_own_rank() -> None:
    names = ("self_attn.q_proj", "mlp.up_proj")
    ranks = {f"model.layers.{layer}.{name}": 1 + layer % 7 for layer in range(80) for name in names}
    ranks |= {"mlp.up_proj": 3, "layers.3.mlp.up_proj": 5}
    factors = {
        path: Factors(random(rank, 9, seed=rank).float(), random(8, rank, seed=9).float())
        for path, rank in ranks.items()
    }
    # an adapter that knows each rank by an anchored pattern
    spec = LoraSpec(targets=tuple(ranks), rank_pattern={"^" + path: rank for path, rank in ranks.items()})
    found = blend([Part(Adapter(spec, factors))]).adapter
    for path, rank in ranks.items():
        assert found.factors[path].rank == rank
        assert LoraSpec.from_peft(dict(sorted(found.spec.to_peft().items()))).rank_of(path) == rank
