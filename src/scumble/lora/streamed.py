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
from scumble.lora.updates import row_blocks, update_rows

OVERSAMPLING = 8  # columns of the probe beyond the rank: Halko, Martinsson and Tropp 2011, section 4.3
GAIN = 1e-10  # a pass that captures no more than this share of the energy ends the iteration
PASSES = 100
_BINS = 48  # bits of a double that a bin of the first pass leaves open: sixteen bins to each power of two


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
            # where the sum is zero nothing is elected, and nothing is lost: what is there cancels
            agree = weighted.sign() == weighted.sum(0).sign()
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
    """The k-th largest absolute value of a matrix, exactly, in two passes over its rows.

    The first counts values by exponent and leading bits of the mantissa, the second sorts the one bin in which
    the k-th lies. Positive doubles are ordered as the integers of their bits.
    """
    counts = torch.zeros(2 ** (63 - _BINS), dtype=torch.int64)
    for start, stop in row_blocks(source.shape):
        bins = _bits(source.rows(start, stop)) >> _BINS
        counts += torch.bincount(bins.flatten(), minlength=len(counts))
    above = counts.flip(0).cumsum(0).flip(0)  # of this bin and higher ones
    bin_ = int((above >= k).nonzero().max())
    rest = k - int(above[bin_]) + int(counts[bin_])
    found = []
    for start, stop in row_blocks(source.shape):
        block = source.rows(start, stop).abs()
        found.append(block[_bits(block) >> _BINS == bin_])
    return float(torch.cat(found).sort(descending=True).values[rest - 1])


def _bits(block: Tensor) -> Tensor:
    return block.abs().contiguous().view(torch.int64)


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
    """The best approximation of a rank, by subspace iteration over blocks of rows.

    Halko, Martinsson and Tropp 2011 (doi:10.1137/090771806), algorithm 4.4 with T'T applied in one pass. With an
    orthonormal V the error of T V V' is exactly |T|^2 - |T V|^2, converged or not.
    """
    out, width = source.shape
    size = min(rank + OVERSAMPLING, out, width)
    probe = torch.randn(width, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    before = -1.0
    for _ in range(PASSES):
        probe, _ = torch.linalg.qr(probe)
        image, back, total = torch.empty(out, size, dtype=torch.float64), torch.zeros_like(probe), 0.0
        for start, stop in row_blocks(source.shape):
            block = source.rows(start, stop)
            total += float(block.square().sum())
            image[start:stop] = block @ probe
            back += block.T @ image[start:stop]
        u, s, wh = torch.linalg.svd(image, full_matrices=False)
        energy = float(s[:rank].square().sum())
        if energy - before <= GAIN * total:
            break
        before, probe_used, probe = energy, probe, back
    else:
        probe = probe_used
    root = s[:rank].sqrt()
    matrix = LowRank(u[:, :rank] * root, root[:, None] * (wh[:rank] @ probe.T))
    missing = max(0.0, total - energy) ** 0.5
    if missing**2 < 1e-6 * total:  # the difference of nearly equal numbers has few digits left
        missing = gap(source, matrix)
    return Truncated(matrix, missing, total**0.5)


def gap(first: Rows, second: Rows) -> float:
    """The Frobenius norm of `first - second`, in blocks of rows."""
    total = 0.0
    for start, stop in row_blocks(first.shape):
        total += float((first.rows(start, stop) - second.rows(start, stop)).square().sum())
    return total**0.5
