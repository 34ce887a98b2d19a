"""`LowRank`: a matrix kept as the product of two thin factors, and what can be computed without forming it.

Sums, norms, inner products and singular values of updates cost O((out + in) R^2) for a rank of R, where the
dense matrix would cost O(out in min(out, in)). Knows matrices, and nothing of adapters' files or models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from scumble.lora.adapter import Factors


@dataclass(frozen=True)
class LowRank:
    """The matrix `left @ right`, (out, in), of rank R at most.

    Attributes:
        left: (out, R).
        right: (R, in), in the same type.
    """

    left: Tensor
    right: Tensor

    @classmethod
    def of(cls, factors: Factors, scale: float, *, dtype: torch.dtype = torch.float64) -> LowRank:
        """`scale * B A`: a plain update as W's (out, in); an embedding's W is (width, tokens)."""
        return cls(factors.B.detach().to(dtype) * scale, factors.A.detach().to(dtype))

    @classmethod
    def total(cls, parts: Sequence[tuple[LowRank, float]]) -> LowRank:
        """`sum over i of w_i M_i`, the factors side by side; the ranks add up. At least one part."""
        return cls(
            torch.cat([part.left * weight for part, weight in parts], dim=1),
            torch.cat([part.right for part, _ in parts]),
        )

    @property
    def rank(self) -> int:
        """R, the number of columns of `left`."""
        return int(self.left.shape[1])

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return int(self.left.shape[0]), int(self.right.shape[1])

    def rows(self, start: int, stop: int) -> Tensor:
        """Those rows of the matrix, (stop - start, in)."""
        return self.left[start:stop] @ self.right

    def norm(self) -> float:
        """The Frobenius norm."""
        return max(0.0, inner(self, self)) ** 0.5

    def scaled(self, weight: float) -> LowRank:
        """`weight * M`."""
        return LowRank(self.left * weight, self.right)


@dataclass(frozen=True)
class Basis:
    """Orthonormal columns `Q V`, Q kept as the reflections of which it is the product.

    Applying the reflections to the few columns that are wanted costs a third of forming Q and multiplying by it,
    and is as exact: Golub and Van Loan, Matrix Computations, 5.1.6.

    Attributes:
        reflections: (n, p), as `torch.geqrf` gives them.
        factors: (p,), likewise.
        inner: V, (p, k).
    """

    reflections: Tensor
    factors: Tensor
    inner: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """(n, k)."""
        return int(self.reflections.shape[0]), int(self.inner.shape[1])

    def times(self, weights: Tensor) -> Tensor:
        """(n, m): the first m columns, each times its weight, for m weights."""
        height, known = self.reflections.shape
        columns = self.inner.new_zeros(height, len(weights))
        columns[:known] = self.inner[:, : len(weights)] * weights
        return torch.ormqr(self.reflections, self.factors, columns)


@dataclass(frozen=True)
class Svd:
    """`U diag(S) Vh`, with as many singular values as the factors could give.

    Attributes:
        left: of U, (out, k).
        S: (k,), the largest first.
        right: of V, (in, k).
    """

    left: Basis
    S: Tensor
    right: Basis

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of the matrix."""
        return self.left.shape[0], self.right.shape[0]

    @cached_property
    def U(self) -> Tensor:  # noqa: N802 - as in the formula
        """(out, k), orthonormal columns; made when first asked for."""
        return self.left.times(torch.ones_like(self.S))

    @cached_property
    def Vh(self) -> Tensor:  # noqa: N802
        """(k, in), orthonormal rows; made when first asked for."""
        return self.right.times(torch.ones_like(self.S)).T

    def tail(self, rank: int) -> float:
        """What the best approximation of that rank misses: the norm of the singular values after it.

        Eckart and Young 1936.
        """
        return float(torch.linalg.vector_norm(self.S[rank:]))

    def rank_for(self, missing: float) -> int:
        """The smallest rank, 1 at least, whose tail has a norm of at most `missing`."""
        tails = self.S.flip(0).square().cumsum(0).flip(0).sqrt()  # tails[k] is what rank k misses
        return max(1, int((tails > missing).sum()))

    def truncated(self, rank: int) -> LowRank:
        """The best approximation of that rank, its two factors of equal weight: U sqrt(S) and sqrt(S) Vh."""
        root = self.S[:rank].sqrt()
        return LowRank(self.left.times(root), self.right.times(root).T)


def inner(first: LowRank, second: LowRank) -> float:
    """The Frobenius inner product, from two small Gram matrices: sum of (L1'L2) * (R1 R2')."""
    return float(((first.left.T @ second.left) * (first.right @ second.right.T)).sum())


def decompose(matrix: LowRank) -> Svd:
    """The singular values and vectors of a product of thin factors.

    QR of both factors, then the SVD of one small R x R matrix: left = Q1 T1, right' = Q2 T2, and
    T1 T2' = U S V' gives (Q1 U) S (Q2 V)'. O((out + in) R^2).
    """
    (q1, f1), (q2, f2) = torch.geqrf(matrix.left), torch.geqrf(matrix.right.T)
    # T1 (p, R) and T2 (q, R) lie above the reflections
    u, s, vh = torch.linalg.svd(_upper(q1) @ _upper(q2).T, full_matrices=False)
    return Svd(_basis(q1, f1, u), s, _basis(q2, f2, vh.T))


def _upper(decomposed: Tensor) -> Tensor:
    """The triangle of what `torch.geqrf` gave: (n, R) to (min(n, R), R)."""
    return decomposed[: min(decomposed.shape)].triu()


def _basis(decomposed: Tensor, factors: Tensor, inner: Tensor) -> Basis:
    return Basis(decomposed[:, : len(factors)], factors, inner)


def distance(first: LowRank, second: LowRank) -> float:
    """The Frobenius norm of `first - second`, exact where they nearly agree: by QR, not by subtracting norms."""
    gap = LowRank.total([(first, 1.0), (second, -1.0)])
    _, t1 = torch.linalg.qr(gap.left, mode="r")
    _, t2 = torch.linalg.qr(gap.right.T, mode="r")
    return float(torch.linalg.matrix_norm(t1 @ t2.T))
