"""`Achieved`: what a written tensor holds, against what it should: cosine, ratio, what is lost, rounding.

    intended = wanted - W      achieved = written - W      W as the base stores it, all in fp64

A written tensor is right when every element is the wanted one rounded once to the tensor's type. Tensors are
read in blocks of rows. Knows tensors, and nothing of prompts or of verdicts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scumble.manage.certificate.intended import Kind, Rows, Wanted, blocks

# Bits after the point, and the smallest exponent of a normal number (IEEE 754; bfloat16 has fp32's range).
_FORMATS = {
    torch.float64: (52, -1022),
    torch.float32: (23, -126),
    torch.bfloat16: (7, -126),
    torch.float16: (10, -14),
}
# torch rounds fp64 to these by way of fp32.
_DETOUR = (torch.bfloat16, torch.float16)
# Shares of W's norm below which an intended change may be arithmetic and no change at all. W is known exactly,
# as it is stored, and what is wanted is computed in fp64, whose sums err by a few 2^-53. DoRA without an update
# (A or B is zero, as before training) scales W by m / |W| with m rounded to fp32, and with |W| summed in fp32:
# 2^-20 is 16 times that type's rounding.
NOISE, DORA_NOISE = 2.0**-48, 2.0**-20


@dataclass(frozen=True)
class Sums:
    """Sums over elements, which add up over tensors: a is achieved, i intended, w the base's weight.

    `ww` is over the rows that the adapter replaces, where it replaces rows alone. `floor` is what `ii` may come
    to by arithmetic noise.
    """

    ai: float = 0.0
    aa: float = 0.0
    ii: float = 0.0
    gap: float = 0.0
    ww: float = 0.0
    floor: float = 0.0

    def __add__(self, other: Sums) -> Sums:
        return Sums(*(a + b for a, b in zip(self.values, other.values, strict=True)))

    @property
    def values(self) -> tuple[float, ...]:
        """In the order of the fields."""
        return self.ai, self.aa, self.ii, self.gap, self.ww, self.floor

    @property
    def negligible(self) -> bool:
        """Whether nothing was intended that could be told from arithmetic noise."""
        return self.ii <= self.floor

    @property
    def cosine(self) -> float | None:
        """Of achieved and intended; 0 where nothing was achieved, None where the intended is negligible."""
        if self.negligible:
            return None
        return self.ai / math.sqrt(self.aa * self.ii) if self.aa else 0.0

    @property
    def ratio(self) -> float | None:
        """|achieved| / |intended|, or None."""
        return None if self.negligible else math.sqrt(self.aa / self.ii)

    @property
    def lost(self) -> float | None:
        """|achieved - intended| / |intended|, or None."""
        return None if self.negligible else math.sqrt(self.gap / self.ii)

    @property
    def relative(self) -> float:
        """|intended| / |W|; 0 where W is zero."""
        return math.sqrt(self.ii / self.ww) if self.ww else 0.0

    def to_dict(self) -> dict[str, Any]:
        """The three figures, and the norms they come from."""
        return {
            "cosine": self.cosine,
            "ratio": self.ratio,
            "lost": self.lost,
            "intended": math.sqrt(self.ii),
            "achieved": math.sqrt(self.aa),
            "weight": math.sqrt(self.ww),
        }


@dataclass(frozen=True)
class Achieved:
    """One tensor that the adapter reaches.

    Attributes:
        kind: what the adapter does to it.
        sums: from which cosine, ratio and lost share come.
        elements: how many numbers it has.
        misrounded: how many are not the wanted value rounded once.
        worst: the largest distance of a misrounded one from the wanted value, in units in the last place.
        not_finite: how many are infinite or not a number, though the base's are finite.
    """

    kind: Kind
    sums: Sums
    elements: int
    misrounded: int
    worst: float
    not_finite: int

    def to_dict(self) -> dict[str, Any]:
        """Figures and counts."""
        return {
            "kind": self.kind,
            **self.sums.to_dict(),
            "elements": self.elements,
            "misrounded": self.misrounded,
            "worst_ulps": self.worst,
            "not_finite": self.not_finite,
        }


def achieved(wanted: Wanted, base: Rows, written: Rows, shape: tuple[int, ...]) -> Achieved:
    """Hold a written tensor against what it should be.

    Args:
        wanted: what it should be.
        base: rows of the base's tensor, as it is stored.
        written: rows of the written one, as it is stored.
        shape: of both.
    """
    gain = wanted.gain(base, shape)
    noise = wanted.noise(gain)
    sums, elements, misrounded, worst, not_finite = Sums(), 0, 0, 0.0, 0
    for start, stop in blocks(shape):
        original, found = base(start, stop), written(start, stop)
        want = wanted.block(start, stop, original, gain)
        weight, got = original.double(), found.double()
        local = [row - start for row in wanted.rows if start <= row < stop]
        part = _sums(weight, want, got, weight[local] if wanted.kind == "rows" else weight)
        sums += part
        distances = _misrounded(want, got, found.dtype, noise)
        elements, misrounded = elements + want.numel(), misrounded + distances.numel()
        worst = max(worst, float(distances.max()) if distances.numel() else 0.0)
        if not math.isfinite(part.aa):  # it is finite where all that was written and all of the base is
            not_finite += _overflowed(weight, got)
    sums += Sums(floor=_noise_share(wanted) ** 2 * sums.ww)
    return Achieved(wanted.kind, sums, elements, misrounded, worst, not_finite)


def _noise_share(wanted: Wanted) -> float:
    """The share of W's norm that the intended change of a tensor may come to by arithmetic alone."""
    factors = wanted.factors
    if factors is None or factors.magnitude is None:
        return NOISE
    return NOISE if bool(factors.A.any()) and bool(factors.B.any()) else DORA_NOISE


def changed(base: Rows, written: Rows, shape: tuple[int, ...]) -> int:
    """How many elements of an untouched tensor are not, bit for bit, the base's in the written type."""
    count = 0
    for start, stop in blocks(shape):
        count += _different(base(start, stop), written(start, stop))
    return count


def untouched(base: Rows, written: Rows, shape: tuple[int, ...]) -> tuple[int, int]:
    """Of an untouched tensor: what `changed` gives, and how many elements overflowed. Reads each once."""
    count, lost = 0, 0
    for start, stop in blocks(shape):
        original, found = base(start, stop), written(start, stop)
        different = _different(original, found)
        count += different
        # the same bits of the same type are as finite as the base's
        if found.is_floating_point() and (different or found.dtype != original.dtype):
            lost += _overflowed(original, found)
    return count, lost


def _different(original: Tensor, found: Tensor) -> int:
    """How many elements are not the original's in the type of `found`."""
    if original.dtype == torch.float64 and found.dtype in _DETOUR:
        # torch rounds fp64 to these twice; the nearest value is as good, and better
        return _misrounded(original, found.double(), found.dtype, 0.0).numel()
    # by bits, so that -0 is not 0 and a NaN equals itself
    cast, same = _bits(original.to(found.dtype)), _bits(found)
    return 0 if torch.equal(cast, same) else int((cast != same).sum())


def _overflowed(original: Tensor, found: Tensor) -> int:
    """How many elements are not finite although the original's are."""
    return int((~torch.isfinite(found) & torch.isfinite(original)).sum())


def _sums(weight: Tensor, want: Tensor, got: Tensor, touched: Tensor) -> Sums:
    """The sums of a block; `touched` is what of W the adapter reaches."""
    a, i, gap, w = ((got - weight), (want - weight), (got - want), touched)
    pairs = ((a, i), (a, a), (i, i), (gap, gap), (w, w))
    return Sums(*(float(torch.dot(one.reshape(-1), two.reshape(-1))) for one, two in pairs))


def _misrounded(want: Tensor, got: Tensor, kind: torch.dtype, noise: float) -> Tensor:
    """For every element that is not `want` rounded once, its distance from it in units in the last place.

    Rounded once means within half a unit. What is allowed beside that: `noise`, the fp64 rounding of sums in
    another order; and for half precision 2^-24 of the value, as torch rounds fp64 to it by way of fp32, which
    may break a near tie the other way.
    """
    off = torch.nonzero(got != want.to(kind).double(), as_tuple=True)
    want, got = want[off], got[off]
    unit = ulp(want, kind)
    distance = (got - want).abs()
    detour = 2.0**-24 if kind in _DETOUR else 2.0**-50
    wrong = ~(distance <= unit / 2 + detour * want.abs() + noise)  # not <=, so that a NaN is wrong
    return torch.nan_to_num(distance[wrong] / unit[wrong], nan=math.inf, posinf=math.inf)


def ulp(values: Tensor, kind: torch.dtype) -> Tensor:
    """The unit in the last place of `kind` at each value, in fp64: 2^(exponent - bits after the point)."""
    bits, least = _FORMATS[kind]
    _, exponent = torch.frexp(values.double())  # value = m 2^e with m in [0.5, 1)
    exponent = torch.where(values == 0, least, exponent - 1).clamp(min=least)
    return torch.ldexp(torch.ones_like(values, dtype=torch.float64), exponent - bits)


def rounded(values: Tensor, kind: torch.dtype) -> Tensor:
    """fp64 values in another type, each rounded once to the nearest; torch takes a detour by fp32 to some."""
    near = values.to(kind)
    if kind not in _DETOUR:
        return near
    gap = values - near.double()
    unit = ulp(values, kind)
    # infinity minus infinity is NaN, which is not above anything
    return torch.where(gap.abs() > unit / 2, (near.double() + gap.sign() * unit).to(kind), near)


def _bits(tensor: Tensor) -> Tensor:
    """The same bits as whole numbers."""
    sizes = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.contiguous().view(sizes[tensor.dtype.itemsize])
