"""Resized adapters, against dense weights in fp64."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from scumble.errors import AdapterError, ConfigError
from scumble.lora.adapter import Adapter, Factors
from scumble.lora.resize import resize
from scumble.lora.spec import LoraSpec
from tests.lora.synthetic import dense, made

ADAPTERS = {
    "plain": made(seed=3, rank=8),
    "rslora": made(seed=3, rank=8, rslora=True),
    "patterns": made(seed=3, rank=8, rank_pattern={"layers.1.mlp.up_proj": 5}, alpha_pattern={"q_proj": 1.0}),
    "uneven": made(("q_proj", "down_proj"), seed=4, rank=8, alpha_pattern={"layers.0.mlp.q_proj": 400.0}),
}


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_rank_keeps_the_best_of_each_module(name: str, tmp_path: Path) -> None:
    adapter = ADAPTERS[name]
    found = resize(adapter, rank=3)
    written = Adapter.load(found.adapter.save(tmp_path / "small"))
    for path, update in dense(adapter).items():
        best = float(torch.linalg.svdvals(update)[3:].norm())
        lost = float((dense(written)[path] - update).norm())
        assert lost == pytest.approx(best, rel=1e-5), path
        assert found.missing[path] == pytest.approx(best, rel=1e-9), path
        assert written.factors[path].rank == 3
    assert found.measured(written)[0] == pytest.approx(found.predicted, rel=1e-5)


@pytest.mark.parametrize("energy", [0.5, 0.9, 0.99, 1.0])
@pytest.mark.parametrize("name", ADAPTERS)
def test_an_energy_is_kept_by_the_smallest_rank(name: str, energy: float) -> None:
    adapter = ADAPTERS[name]
    if energy == 1.0:
        with pytest.raises(ConfigError, match="become smaller"):
            resize(adapter, energy=energy)
        return
    found = resize(adapter, energy=energy).adapter
    for path, update in dense(adapter).items():
        squares = torch.linalg.svdvals(update).square()
        rank = found.factors[path].rank
        assert squares[:rank].sum() >= energy * squares.sum() * (1 - 1e-9), path
        assert rank == 1 or squares[: rank - 1].sum() < energy * squares.sum(), path


def test_a_shared_energy_costs_no_more_than_one_for_each_module() -> None:
    adapter = ADAPTERS["uneven"]
    each, together = resize(adapter, energy=0.9), resize(adapter, energy=0.9, shared=True)
    assert 1 - together.predicted**2 >= 0.9 * (1 - 1e-9)
    assert together.adapter.parameters < each.adapter.parameters
    assert together.adapter.spec.rank_pattern


def test_a_shared_rank_misses_no_more_for_the_same_numbers() -> None:
    adapter = ADAPTERS["uneven"]
    each, together = resize(adapter, rank=3), resize(adapter, rank=3, shared=True)
    assert together.adapter.parameters <= each.adapter.parameters
    assert together.predicted < each.predicted


def test_the_rank_pattern_is_read_back(tmp_path: Path) -> None:
    found = resize(ADAPTERS["uneven"], energy=0.9, shared=True)
    written = Adapter.load(found.adapter.save(tmp_path / "small"))
    assert {p: f.rank for p, f in written.factors.items()} == {
        p: f.rank for p, f in found.adapter.factors.items()
    }
    assert len({factors.rank for factors in written.factors.values()}) > 1


def test_what_is_not_a_size_is_refused() -> None:
    with pytest.raises(ConfigError, match="one of --rank and --energy"):
        resize(ADAPTERS["plain"])
    with pytest.raises(ConfigError, match="one of --rank and --energy"):
        resize(ADAPTERS["plain"], rank=2, energy=0.9)
    with pytest.raises(ConfigError, match="its ranks are 8"):
        resize(ADAPTERS["plain"], rank=8)
    with pytest.raises(AdapterError, match="no low-rank updates"):
        resize(Adapter(ADAPTERS["plain"].spec, {}), rank=2)


def uneven(spectra: dict[str, list[float]]) -> Adapter:
    """A large module (40 x 40) and a small one (24 x 8), as q and k are beside each other, with these singular values."""
    shapes, factors = {"m.q": (40, 40), "m.k": (24, 8)}, {}
    generator = torch.Generator().manual_seed(0)
    for name, values in spectra.items():
        out, width = shapes[name]
        left, right = (
            torch.linalg.qr(torch.randn(n, len(values), generator=generator, dtype=torch.float64))[0]
            for n in (out, width)
        )
        factors[name] = Factors(right.T.contiguous(), left * torch.tensor(values, dtype=torch.float64))
    rank = len(next(iter(spectra.values())))
    return Adapter(LoraSpec(rank=rank, alpha=float(rank), targets=tuple(spectra)), factors)


def test_sharing_is_never_worse_than_not() -> None:
    """A large module's next rank may not fit what is left of a budget, which the greedy choice alone would leave unspent."""
    adapter = uneven({"m.q": [10, 9, 1, 0.5], "m.k": [6.2, 6.1, 6.0, 5.9]})
    plain, shared = resize(adapter, rank=2), resize(adapter, rank=2, shared=True)
    assert shared.predicted <= plain.predicted * (1 + 1e-12)
    assert shared.adapter.parameters <= plain.adapter.parameters
    adapter = uneven({"m.q": [10.0, 3.4, 0.1, 0.1], "m.k": [2.0, 1.9, 1.8, 0.1]})
    for energy in (0.88, 0.9, 0.93, 0.97):
        plain, shared = resize(adapter, energy=energy), resize(adapter, energy=energy, shared=True)
        assert shared.adapter.parameters <= plain.adapter.parameters
        assert 1 - shared.predicted**2 >= energy * (1 - 1e-9)


def test_all_the_energy_is_all_of_it() -> None:
    adapter = uneven({"m.q": [1, 5e-7, 0, 0], "m.k": [1, 0.5, 0, 0]})
    assert resize(adapter, energy=1.0, shared=True).predicted <= 1e-9
