"""Products of thin factors against the dense matrices, in fp64 and by numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scumble.lora.lowrank import LowRank, decompose, distance, inner

# fp64 rounds by 1e-16; the sums have at most a few hundred terms, and each bound is relative to the product of the
# factors' norms, which is what the rounding of a product grows with
ROUNDING = 1e-13
SEEDS = st.integers(0, 2**32 - 1)


def factors(seed: int, out: int, width: int, rank: int, kind: str = "plain") -> LowRank:
    """Random factors; `ill` has columns from 1e-8 to 1e8, `twins` every column twice, `zero` nothing."""
    made = np.random.default_rng(seed)
    left, right = made.standard_normal((out, rank)), made.standard_normal((rank, width))
    if kind == "ill":
        left *= np.logspace(-8, 8, rank)
        right *= np.logspace(6, -6, rank)[:, None]
    if kind == "twins":
        left[:, rank // 2 :] = left[:, : rank - rank // 2]
        right[rank // 2 :] = right[: rank - rank // 2]
    if kind == "cancelling":
        left[:, rank // 2 :] = -left[:, : rank - rank // 2]
        right[rank // 2 :] = right[: rank - rank // 2]
    if kind == "zero":
        left[:] = 0
    return LowRank(torch.from_numpy(left), torch.from_numpy(right))


KINDS = ["plain", "ill", "twins", "cancelling", "zero"]
sizes = st.tuples(st.integers(1, 30), st.integers(1, 30), st.integers(1, 40))  # R may exceed both


@st.composite
def low_ranks(draw: Any, count: int = 1) -> list[LowRank]:
    out, width, _ = draw(sizes)
    return [
        factors(draw(SEEDS), out, width, draw(st.integers(1, 40)), draw(st.sampled_from(KINDS)))
        for _ in range(count)
    ]


def dense(matrix: LowRank) -> np.ndarray[Any, Any]:
    return matrix.left.numpy() @ matrix.right.numpy()


def size(matrix: LowRank) -> float:
    """The sum of the norms of what the product adds up: rounding is relative to this, not to the result."""
    return float((matrix.left.norm(dim=0) * matrix.right.norm(dim=1)).sum())


@given(low_ranks())
def test_the_norm_is_that_of_the_dense_matrix(found: list[LowRank]) -> None:
    [matrix] = found
    # by its square, for a norm that cancels to nothing keeps the square root of the rounding
    assert abs(matrix.norm() ** 2 - np.linalg.norm(dense(matrix)) ** 2) <= ROUNDING * size(matrix) ** 2


@given(low_ranks(2))
def test_inner_and_distance_are_those_of_the_dense_matrices(found: list[LowRank]) -> None:
    first, second = found
    both = size(first) * size(second)
    assert abs(inner(first, second) - float((dense(first) * dense(second)).sum())) <= ROUNDING * both
    gap = np.linalg.norm(dense(first) - dense(second))
    assert abs(distance(first, second) - gap) <= ROUNDING * (size(first) + size(second))


@given(low_ranks(2), st.floats(-3, 3), st.floats(-3, 3))
def test_a_total_is_the_weighted_sum(found: list[LowRank], one: float, other: float) -> None:
    total = LowRank.total([(found[0], one), (found[1], other)])
    wanted = one * dense(found[0]) + other * dense(found[1])
    assert total.rank == found[0].rank + found[1].rank
    bound = ROUNDING * (abs(one) * size(found[0]) + abs(other) * size(found[1]))
    assert np.linalg.norm(dense(total) - wanted) <= bound


@settings(max_examples=300)
@given(low_ranks())
def test_singular_values_and_vectors_are_those_of_the_dense_matrix(found: list[LowRank]) -> None:
    [matrix] = found
    svd, bound = decompose(matrix), ROUNDING * size(matrix)
    count = min(*matrix.shape, matrix.rank)
    assert svd.shape == matrix.shape
    assert svd.S.shape == (count,)
    right = np.linalg.svd(dense(matrix), compute_uv=False)
    assert np.abs(svd.S.numpy() - right[:count]).max() <= bound
    assert np.linalg.norm((svd.U * svd.S) @ svd.Vh - dense(matrix)) <= bound
    # orthonormal whatever the columns were: the reflections do not know how ill-conditioned they are
    eye = torch.eye(count, dtype=torch.float64)
    assert float((svd.U.T @ svd.U - eye).abs().max()) <= ROUNDING
    assert float((svd.Vh @ svd.Vh.T - eye).abs().max()) <= ROUNDING


@given(low_ranks(), st.integers(1, 40))
def test_truncation_is_the_best_of_its_rank(found: list[LowRank], rank: int) -> None:
    [matrix] = found
    svd, bound = decompose(matrix), ROUNDING * size(matrix)
    kept = svd.truncated(rank)
    best = float(np.linalg.norm(np.linalg.svd(dense(matrix), compute_uv=False)[rank:]))
    assert kept.rank == min(rank, len(svd.S))
    assert abs(svd.tail(rank) - best) <= bound
    assert abs(float(np.linalg.norm(dense(kept) - dense(matrix))) - best) <= bound


@pytest.mark.parametrize("kind", KINDS)
def test_a_distance_to_itself_is_rounding(kind: str) -> None:
    matrix = factors(3, 40, 30, 12, kind)
    assert distance(matrix, matrix) <= ROUNDING * size(matrix)


def test_a_small_distance_between_large_matrices_keeps_its_digits() -> None:
    first = factors(1, 60, 50, 4)
    nudge = factors(2, 60, 50, 2).scaled(1e-9)
    second = LowRank.total([(first, 1.0), (nudge, 1.0)])
    wanted = float(np.linalg.norm(dense(nudge)))
    # the difference of squared norms would have none left below 1e-8
    assert distance(first, second) == pytest.approx(wanted, rel=1e-5)


def test_single_precision_is_kept() -> None:
    matrix = factors(1, 20, 16, 4)
    single = LowRank(matrix.left.float(), matrix.right.float())
    kept = decompose(single).truncated(2)
    assert kept.left.dtype == kept.right.dtype == torch.float32
    # fp32 rounds by 6e-8, over the product of 4 columns
    assert torch.linalg.matrix_norm(kept.left @ kept.right).item() == pytest.approx(
        float(decompose(matrix).S[:2].norm()), rel=1e-6
    )


@pytest.mark.parametrize(("missing", "rank"), [(0.0, 4), (1.5, 3), (2.9, 2), (100.0, 1)])
def test_the_rank_for_what_may_be_missing(missing: float, rank: int) -> None:
    left = torch.eye(6, dtype=torch.float64)[:, :4] * torch.tensor([4.0, 3.0, 2.0, 1.0])
    assert decompose(LowRank(left, torch.eye(4, 5, dtype=torch.float64))).rank_for(missing) == rank
