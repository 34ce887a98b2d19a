"""Dropout whose mask is a function of what a number belongs to, never of where it lies in a batch.

The mask of a number of x is decided by a hash of (adapter's seed, optimizer step, module, example,
position, feature), so that packing, accumulation, processes and neighbours do not change it, and it can be
made again in the backward pass. The hash is the finaliser of SplitMix64 (Steele, Lea and Flood 2014).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import xxhash
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15 - 2**64  # as signed 64-bit numbers, which wrap around when multiplied
_M1 = 0xBF58476D1CE4E5B9 - 2**64
_M2 = 0x94D049BB133111EB - 2**64


@dataclass(frozen=True)
class TokenMarks:
    """What each token of the batch belongs to.

    Attributes:
        examples: (batch, sequence) number of the example in the data set.
        positions: (batch, sequence) position within the example.
        step: the optimizer step, so that each step has other masks.
        rows: the tokens of a batch of one row that the last layer computes alone, (n,); None: all of them.
    """

    examples: Tensor
    positions: Tensor
    step: int
    rows: Tensor | None = None

    def of(self, lead: Sequence[int]) -> TokenMarks | None:
        """The marks of tokens of shape `lead`: of all, or of `rows` alone; None where they are neither."""
        if tuple(lead) == tuple(self.examples.shape):
            return self
        if self.rows is None or tuple(lead) != (1, len(self.rows)):
            return None
        return TokenMarks(self.examples[:, self.rows], self.positions[:, self.rows], self.step)


def module_key(seed: int, path: str) -> int:
    """A signed 64-bit number for an adapter's seed and a module's path."""
    return xxhash.xxh3_64_intdigest(f"{seed}:{path}".encode()) - 2**63


def keep_mask(key: int, marks: TokenMarks, features: int, rate: float) -> Tensor:
    """Which numbers of x stay, each with probability 1 - rate.

    Args:
        key: from `module_key`.
        marks: what each token belongs to, (batch, sequence).
        features: width of x.
        rate: share dropped, from 0 to 1.

    Returns:
        (batch, sequence, features), True where x stays, which is `kept_share` of it.
    """
    step = _mix(
        torch.tensor(key, dtype=torch.int64, device=marks.examples.device) + marks.step * _GOLDEN % 2**62
    )
    row = _mix(_mix(marks.examples.to(torch.int64) + step) + marks.positions.to(torch.int64))
    # one hash gives four numbers of 16 bits
    column = torch.arange(-(-features // 4), dtype=torch.int64, device=row.device)
    bits = _mix(row.unsqueeze(-1) + _mix(column * _GOLDEN + step))
    return bits.view(torch.int16)[..., :features] >= _threshold(rate)


def kept_share(rate: float) -> float:
    """The share of x that stays: 1 - rate, in steps of 1 / 65536."""
    return (2**15 - _threshold(rate)) / 2**16


def _threshold(rate: float) -> int:
    """The smallest signed number of 16 bits that stays; some do at any rate below 1."""
    return min(round(rate * 2**16), 2**16 - 1) - 2**15


def _mix(z: Tensor) -> Tensor:
    """SplitMix64's finaliser, elementwise, on int64 with wrap-around."""
    z = (z ^ ((z >> 30) & 0x3FFFFFFFF)) * _M1
    z ^= (z >> 27).bitwise_and_(0x1FFFFFFFFF)
    z *= _M2
    z ^= (z >> 31).bitwise_and_(0x1FFFFFFFF)
    return z
