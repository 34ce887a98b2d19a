"""Updates of full rank, made in blocks of rows: DoRA's, and those whose single weights were dropped or outvoted.

    magnitude  t_i = the largest `density` of |u_i|, by module       (the trimming of TIES)
    random     t_i = m_i * u_i / density, m_i a mask of that density  (DARE, Yu et al. 2024, arXiv:2311.03099)
    elected    sum of w_i t_i over those i whose w_i t_i has the sign of the whole sum
               (TIES, Yadav et al. 2023, arXiv:2306.01708)

Nothing larger than a block of rows is held, whatever the module's size. Knows one module, and no files.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from torch import Tensor

from scumble.lora.adapter import Factors
from scumble.lora.dropout import TokenMarks, keep_mask
from scumble.lora.lowrank import LowRank
from scumble.lora.updates import BLOCK, row_blocks, update_rows

OVERSAMPLING = 8  # columns of the probe beyond the rank: Halko, Martinsson and Tropp 2011, section 4.3
GAIN = 1e-8  # a pass that captures no more than this share of the energy still missing ends the iteration
PASSES = 60
_NOISE = 1e-13  # of a block's norm: a thousand times what fp64 rounds off, and far below what any energy is
_CANCELLED = (
    4 * 2**-52
)  # of the absolute sum, for each part: what adding up in fp64 leaves of a sum that is zero


class Rows(Protocol):
    """A matrix of which any rows can be asked for, in fp64."""

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""

    def rows(self, start: int, stop: int) -> Tensor:
        """(stop - start, in)."""


@dataclass(frozen=True)
class DoraUpdate:
    """DoRA's update of a module.

    Attributes:
        factors: with a magnitude.
        scale: s.
        weight: gives rows of W as (out, in).
    """

    factors: Factors
    scale: float
    weight: Callable[[int, int], Tensor]

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return int(self.factors.B.shape[0]), int(self.factors.A.shape[1])

    def rows(self, start: int, stop: int) -> Tensor:
        """(stop - start, in)."""
        return update_rows(self.factors, self.scale, start, stop, self.weight(start, stop))

    def size(self) -> float:
        """|W| + |s B A|: what the update is a difference of, and its rounding a share of."""
        total = 0.0
        for start, stop in row_blocks(self.shape):
            total += float(self.weight(start, stop).double().square().sum())
        return total**0.5 + LowRank.of(self.factors, self.scale).norm()


@dataclass(frozen=True)
class WeightedSum:
    """`sum over i of w_i U_i`; at least one part."""

    parts: Sequence[tuple[Rows, float]]

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return self.parts[0][0].shape

    def rows(self, start: int, stop: int) -> Tensor:
        """(stop - start, in)."""
        return torch.stack([weight * part.rows(start, stop) for part, weight in self.parts]).sum(0)


@dataclass(frozen=True)
class Sparsified:
    """A sum of updates of which single weights were dropped, and outvoted ones left out.

    Attributes:
        parts: updates and their weights.
        keep: which weights of each update stay.
        density: the share of them that does, above 0 and up to 1.
        keys: what decides each part's random mask (see `dropout.module_key`).
        elect: leave out what has another sign than the sum.
        normalize: divide by the absolute weights of what was added up, so that it is their mean.
    """

    parts: Sequence[tuple[Rows, float]]
    keep: Literal["magnitude", "random"]
    density: float
    keys: Sequence[int]
    elect: bool = False
    normalize: bool = False
    _thresholds: list[float] = field(default_factory=list)

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return self.parts[0][0].shape

    def rows(self, start: int, stop: int) -> Tensor:
        """(stop - start, in)."""
        kept = torch.stack([self._kept(i, start, stop) for i in range(len(self.parts))])  # (parts, n, in)
        weights = torch.tensor([weight for _, weight in self.parts], dtype=torch.float64)[:, None, None]
        weighted = kept * weights
        agree = torch.ones_like(weighted, dtype=torch.bool)
        if self.elect:
            # where the sum is zero, to rounding, nothing is elected: what is there cancels
            whole, noise = weighted.sum(0), _CANCELLED * len(self.parts) * weighted.abs().sum(0)
            agree = weighted.sign() == torch.where(whole.abs() <= noise, 0.0, whole).sign()
        total = (weighted * agree).sum(0)
        if not self.normalize:
            return total
        shares = weights.abs() * (agree & kept.ne(0) if self.elect else agree)
        divisor = shares.sum(0)
        return total / torch.where(divisor == 0, 1.0, divisor)

    def _kept(self, part: int, start: int, stop: int) -> Tensor:
        block = self.parts[part][0].rows(start, stop)
        if self.density >= 1:
            return block
        if self.keep == "random":
            rows = torch.arange(start, stop)[None]
            marks = TokenMarks(rows, torch.zeros_like(rows), 0)
            mask = keep_mask(self.keys[part], marks, block.shape[1], 1 - self.density)[0]
            return torch.where(mask, block / self.density, 0.0)
        return torch.where(block.abs() >= self._threshold(part), block, 0.0)

    def _threshold(self, part: int) -> float:
        if not self._thresholds:
            size = self.shape[0] * self.shape[1]
            count = max(1, int(self.density * size))
            self._thresholds.extend(kth_largest(update, count) for update, _ in self.parts)
        return self._thresholds[part]


def kth_largest(source: Rows, k: int) -> float:
    """The k-th largest absolute value of a matrix, exactly: in two passes over its rows, or where many are equal more.

    Positive doubles are ordered as the integers of their bits. Each pass counts the values that share the bits
    known so far by their next sixteen; once few enough are left they are sorted.
    """
    prefix, rest = 0, k
    for shift in (48, 32, 16, 0):
        counts = torch.zeros(2**16, dtype=torch.int64)
        for start, stop in row_blocks(source.shape):
            bits = _bits(source.rows(start, stop))
            known = bits if shift == 48 else bits[bits >> (shift + 16) == prefix]
            counts += torch.bincount((known >> shift) & 0xFFFF, minlength=2**16)
        above = counts.flip(0).cumsum(0).flip(0)  # with these bits or higher ones
        found = int((above >= rest).nonzero().max())
        rest -= int(above[found]) - int(counts[found])
        prefix = prefix << 16 | found
        if counts[found] <= BLOCK:
            return _sorted_out(source, prefix, shift, rest)
    # all bits are known, and that many values are equal
    return float(torch.tensor(prefix, dtype=torch.int64).view(torch.float64))


def _sorted_out(source: Rows, prefix: int, shift: int, k: int) -> float:
    """The k-th largest of the values whose leading bits are `prefix`."""
    found = []
    for start, stop in row_blocks(source.shape):
        bits = _bits(source.rows(start, stop))
        found.append(bits[bits >> shift == prefix])
    return float(torch.cat(found).sort(descending=True).values[k - 1].view(torch.float64))


def _bits(block: Tensor) -> Tensor:
    return block.abs().contiguous().view(torch.int64).flatten()


@dataclass(frozen=True)
class Truncated:
    """The best low-rank matrix found for one of full rank.

    Attributes:
        matrix: of the rank asked for.
        missing: Frobenius norm of what it misses.
        norm: Frobenius norm of the whole.
    """

    matrix: LowRank
    missing: float
    norm: float


def truncate(source: Rows, rank: int) -> Truncated:
    """The best approximation of a rank, from a block Krylov space of T'T; each of its blocks costs one pass.

    Musco and Musco 2015 (arXiv:1504.05477): all blocks are kept, orthogonal to each other, and the best of the space
    they span is taken, so that flat and clustered spectra converge too. With an orthonormal V the error of T V V' is
    exactly |T|^2 - |T V|^2, converged or not.
    """
    out, width = source.shape
    most = min(out, width)
    size = min(rank + OVERSAMPLING, most)
    # begun among the rows, so that as many columns as the smaller side has span all of it
    block = _begun(source, size)
    basis, image = block, torch.empty(out, 0, dtype=torch.float64)
    before = -1.0
    for _ in range(PASSES):
        part, back, total = _applied(source, block)
        image = torch.cat([image, part], dim=1)
        u, s, wh = torch.linalg.svd(image, full_matrices=False)
        energy = float(s[:rank].square().sum())
        gained, before = energy - before, energy
        room = most - basis.shape[1]
        if gained <= GAIN * max(0.0, total - energy) + 1e-16 * total or room <= 0:
            break
        block = _orthogonal(back[:, : min(size, room)], basis)
        if not block.shape[1]:
            break  # the basis spans all rows
        basis = torch.cat([basis, block], dim=1)
    root = s[:rank].sqrt()
    matrix = LowRank(u[:, :rank] * root, root[:, None] * (wh[:rank] @ basis[:, : image.shape[1]].T))
    missing = max(0.0, total - energy) ** 0.5
    if missing**2 < 1e-6 * total:  # the difference of nearly equal numbers has few digits left
        missing = gap(source, matrix)
    return Truncated(matrix, missing, total**0.5)


def _begun(source: Rows, size: int) -> Tensor:
    """Orthonormal columns (in, size) that span random combinations of the rows."""
    generator = torch.Generator().manual_seed(0)
    mixed = torch.zeros(source.shape[1], size, dtype=torch.float64)
    for start, stop in row_blocks(source.shape):
        mixed += source.rows(start, stop).T @ torch.randn(
            stop - start, size, dtype=torch.float64, generator=generator
        )
    return torch.linalg.qr(mixed)[0]


def _applied(source: Rows, block: Tensor) -> tuple[Tensor, Tensor, float]:
    """T V and T' T V for V (in, k), and the squared norm of T, in one pass over its rows."""
    image = torch.empty(source.shape[0], block.shape[1], dtype=torch.float64)
    back, total = torch.zeros_like(block), 0.0
    for start, stop in row_blocks(source.shape):
        rows = source.rows(start, stop)
        total += float(rows.square().sum())
        image[start:stop] = rows @ block
        back += rows.T @ image[start:stop]
    return image, back, total


def _orthogonal(block: Tensor, basis: Tensor) -> Tensor:
    """Orthonormal columns, as many as the block has beyond the basis, that span it less the basis.

    What is left of a column that lies in the basis is rounding, and is no direction: it is left out. Projecting
    twice is enough (Kahan, in Parlett 1998, 6.9).
    """
    size = torch.linalg.matrix_norm(block)
    u, s, _ = torch.linalg.svd(block - basis @ (basis.T @ block), full_matrices=False)
    u = u[:, s > _NOISE * size]
    return torch.linalg.qr(u - basis @ (basis.T @ u))[0]


def gap(first: Rows, second: Rows) -> float:
    """The Frobenius norm of `first - second`, in blocks of rows."""
    total = 0.0
    for start, stop in row_blocks(first.shape):
        total += float((first.rows(start, stop) - second.rows(start, stop)).square().sum())
    return total**0.5
