"""Singular values of an update against torch's own decomposition."""

from __future__ import annotations

import pytest
import torch

from scumble.lab.lesson.spectrum import RANKS, squared_singular_values, update_spectrum

LINEAR = ["layers.0.q_proj.weight", "layers.1.q_proj.weight", "layers.0.down_proj.weight"]


def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    shapes = [(80, 96), (80, 96), (96, 70)]
    return {name: torch.randn(shape) for name, shape in zip(LINEAR, shapes, strict=True)} | {
        "embed.weight": torch.randn(50, 8)
    }


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (7, 7)])
def test_they_are_those_of_torch(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, dtype=torch.float64)
    wanted = torch.linalg.svdvals(matrix) ** 2
    # the Gram matrix squares the rounding of fp64, 1e-16, relative to the largest
    assert squared_singular_values(matrix) == pytest.approx(wanted, abs=1e-12 * float(wanted[0]))


def test_an_update_of_rank_8_is_held_by_rank_8() -> None:
    before = weights()
    torch.manual_seed(1)
    after = {
        name: old + torch.randn(len(old), 8) @ torch.randn(8, old.shape[1]) if name in LINEAR else old
        for name, old in before.items()
    }
    found = update_spectrum(before, after, LINEAR)
    assert found.held[8] == pytest.approx(1, abs=1e-6)  # the sum old + update rounds to fp32
    assert found.held[4] < 0.95
    assert found.outside == pytest.approx(0, abs=1e-9)


def test_shares_are_those_of_truncated_decompositions() -> None:
    before = weights()
    torch.manual_seed(2)
    after = {name: old + 0.1 * torch.randn_like(old) for name, old in before.items()}
    found = update_spectrum(before, after, LINEAR)
    changes = {name: (after[name] - before[name]).double() for name in before}
    whole = sum(float(changes[name].square().sum()) for name in LINEAR)
    for rank in RANKS:
        kept = 0.0
        for name in LINEAR:
            u, s, v = torch.linalg.svd(changes[name], full_matrices=False)
            kept += float((u[:, :rank] * s[:rank] @ v[:rank]).square().sum())
        assert found.held[rank] == pytest.approx(kept / whole, rel=1e-6)
    all_of_it = sum(float(change.square().sum()) for change in changes.values())
    assert found.outside == pytest.approx(1 - whole / all_of_it, rel=1e-6)
    assert found.kinds["q_proj"].modules == 2
    assert found.kinds["q_proj"].values[0] == pytest.approx(1)
    assert set(found.to_dict()["held"]) == {str(rank) for rank in RANKS}


def test_no_change_is_no_error() -> None:
    before = weights()
    found = update_spectrum(before, before, LINEAR)
    assert found.held[4] == 0
    assert found.relative == 0
