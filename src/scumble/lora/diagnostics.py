"""What an adapter's update is like, module by module, from its factors alone: norm, spectrum, and what is odd.

For an update U = s B A with singular values d_1 >= d_2 >= ... >= d_r, all of them from QR of the two thin
factors and one small SVD, O((out + in) r^2):

    norm            |U| = sqrt(sum of d_k^2)
    effective rank  exp(-sum of p_k log p_k), p_k = d_k / sum of d      (Roy and Vetterli 2007, EUSIPCO)
    stable rank     |U|^2 / d_1^2                                        (Rudelson and Vershynin 2007)
    energy          (d_1^2 + ... + d_k^2) / |U|^2, the share that the best update of rank k keeps

DoRA's update, (g - 1) W + g s B A, is no low-rank matrix: with W at hand its norm is summed over blocks of
rows, and without it all figures are those of s B A, which is said. The spectrum is always that of s B A.
Knows adapters and, through `Weights`, rows of a base; nothing of files and of how a base is loaded.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from scumble.errors import AdapterError, NotSupportedError
from scumble.lora.adapter import Adapter, Factors
from scumble.lora.lowrank import LowRank, decompose
from scumble.lora.targets import layer_index
from scumble.lora.updates import row_blocks, update_rows

DEAD = 1e-4  # of the adapter's median module norm: what moves nothing beside the others
FLAT = 0.3  # smallest over largest singular value, and
FULL = 0.9  # effective rank over rank, above which the rank is called saturated
NUMERICAL = 1e-7  # of the largest singular value: below it a direction is rounding, for factors in fp32


class Weights(Protocol):
    """The matrices of a base, each as (out, in)."""

    def shape_of(self, path: str) -> tuple[int, int]:
        """(out, in) of the module at `path`."""

    def matrix_rows(self, path: str, start: int, stop: int) -> Tensor:
        """(stop - start, in), those rows."""


@dataclass(frozen=True)
class Spectrum:
    """What the singular values of an update say.

    Attributes:
        values: the singular values, the largest first, as many as the rank.
        effective_rank, stable_rank: 0 for an update of zero.
        energy: from k (powers of two, and the rank) to the share of |U|^2 in the first k.
        rank_99: the smallest rank that keeps 99 % of |U|^2.
    """

    values: tuple[float, ...]
    effective_rank: float
    stable_rank: float
    energy: Mapping[int, float]
    rank_99: int

    @property
    def saturated(self) -> bool:
        """Whether the spectrum is nearly flat to its end, from rank 4 on.

        Where training could choose, the last directions carry less than the first: the best update of rank r
        of a decaying one ends low. An end as high as the beginning says that the next directions would have
        been used as well, so that a higher rank would have. It is a sign and no proof: noise is flat too.
        """
        rank = len(self.values)
        return (
            rank >= 4
            and self.values[0] > 0
            and self.values[-1] > FLAT * self.values[0]
            and self.effective_rank > FULL * rank
        )


@dataclass(frozen=True)
class ModuleFigures:
    """The update of one module.

    Attributes:
        path: of the module.
        layer: its number, None for a module outside the layers.
        shape: (out, in).
        rank, scale: r and s of this module, after patterns.
        norm: the Frobenius norm of the update; None where the factors are not finite.
        weight_norm: that of the base's weight; None where the base was not read.
        exact: False for DoRA without the base, whose norm is that of s B A alone.
        spectrum: of s B A; None where the factors are not finite.
        flags: what is odd, each from its short name to the reason.
    """

    path: str
    layer: int | None
    shape: tuple[int, int]
    rank: int
    scale: float
    norm: float | None
    weight_norm: float | None
    exact: bool
    spectrum: Spectrum | None
    flags: Mapping[str, str]

    @property
    def kind(self) -> str:
        """The last part of the path, such as `q_proj`."""
        return self.path.rpartition(".")[2]

    @property
    def relative_norm(self) -> float | None:
        """|U| / |W|."""
        return self.norm / self.weight_norm if self.norm is not None and self.weight_norm else None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, the spectrum's beside the others."""
        spectrum = self.spectrum
        return {
            "path": self.path,
            "layer": self.layer,
            "kind": self.kind,
            "shape": list(self.shape),
            "rank": self.rank,
            "scale": self.scale,
            "norm": self.norm,
            "weight_norm": self.weight_norm,
            "relative_norm": self.relative_norm,
            "exact": self.exact,
            "effective_rank": spectrum.effective_rank if spectrum else None,
            "stable_rank": spectrum.stable_rank if spectrum else None,
            "energy": {str(k): share for k, share in spectrum.energy.items()} if spectrum else None,
            "rank_99": spectrum.rank_99 if spectrum else None,
            "singular_values": list(spectrum.values) if spectrum else None,
            "flags": dict(self.flags),
        }


@dataclass(frozen=True)
class Diagnosis:
    """Several adapters, measured on the same modules.

    Attributes:
        modules: for each adapter its modules, sorted by layer and path.
        grams: from a module's path to G, (n, n) in fp64: G_ij = <U_i, U_j>, 0 where one lacks the module.
    """

    modules: tuple[tuple[ModuleFigures, ...], ...]
    grams: Mapping[str, Tensor]

    @property
    def gram(self) -> Tensor:
        """The sum of all modules' G, (n, n)."""
        count = len(self.modules)
        return sum(self.grams.values(), torch.zeros(count, count, dtype=torch.float64))


def diagnose(
    adapters: Sequence[Adapter],
    *,
    weights: Weights | None = None,
    broken: Sequence[Mapping[str, str]] = (),
    done: Callable[[int], None] = lambda count: None,
) -> Diagnosis:
    """Measure the updates of one adapter or several.

    Args:
        adapters: one at least.
        weights: of the base, for relative norms and for DoRA's true update.
        broken: for each adapter, from the path of a module whose factors are not finite to what is wrong; its
            figures are None, and it counts as zero beside other adapters.
        done: called with 1 after each module.

    Returns:
        All figures; modules whose shapes differ between adapters have an inner product of 0.

    Raises:
        AdapterError: the base lacks a module, or has it in another shape.
    """
    odd = [dict(each) for each in broken] or [{} for _ in adapters]
    paths = sorted({path for adapter in adapters for path in adapter.factors}, key=_in_order)
    grams: dict[str, Tensor] = {}
    found: list[list[ModuleFigures]] = [[] for _ in adapters]
    for path in paths:
        holders = [i for i, adapter in enumerate(adapters) if path in adapter.factors]
        updates = {
            i: (adapters[i].factors[path], adapters[i].spec.scale_of(path))
            for i in holders
            if path not in odd[i]
        }
        own = _readable(path, weights)
        gram, size = _measured(path, len(adapters), updates, own)
        if size is None and own is not None:
            size = _weight_norm(path, adapters[holders[0]].factors[path], own)
        grams[path] = gram
        for i in holders:
            update = adapters[i].factors[path], adapters[i].spec.scale_of(path)
            norm = float(gram[i, i].clamp(min=0).sqrt()) if i in updates else None
            found[i].append(_figures(path, update, norm, size, own is not None, odd[i].get(path)))
        done(1)
    return Diagnosis(tuple(_with_dead(modules) for modules in found), grams)


def spectrum_of(factors: Factors, scale: float) -> Spectrum:
    """The spectrum of `scale * B A`."""
    svd = decompose(LowRank.of(factors, scale))
    values = svd.S[: factors.rank]
    total = float(values.square().sum())
    if total == 0:
        return Spectrum(tuple(values.tolist()), 0.0, 0.0, {}, 0)
    share = values / values.sum()
    entropy = -float(torch.xlogy(share, share).sum())
    kept = (values.square().cumsum(0) / total).tolist()
    counts = [k for k in (2**i for i in range(factors.rank.bit_length())) if k < len(kept)] + [len(kept)]
    return Spectrum(
        values=tuple(values.tolist()),
        effective_rank=float(torch.tensor(entropy, dtype=torch.float64).exp()),
        stable_rank=total / float(values[0]) ** 2,
        energy={k: kept[k - 1] for k in counts},
        rank_99=replace(svd, S=values).rank_for((0.01 * total) ** 0.5),
    )


def numerical_rank(values: Tensor) -> int:
    """How many singular values are more than the rounding of fp32 factors."""
    return int((values > NUMERICAL * values.max()).sum()) if values.numel() and values.max() > 0 else 0


def gram_of(parts: Mapping[int, LowRank], count: int) -> Tensor:
    """G of low-rank matrices of one shape, (count, count), from two Gram matrices of all factors side by side.

    Args:
        parts: from a matrix's number to the matrix.
        count: how many numbers there are; the others are zero.
    """
    gram = torch.zeros(count, count, dtype=torch.float64)
    if not parts:
        return gram
    left = torch.cat([part.left for part in parts.values()], dim=1)  # (out, R)
    right = torch.cat([part.right for part in parts.values()])  # (R, in)
    products = (left.T @ left) * (right @ right.T)  # (R, R), whose blocks sum to the inner products
    owner = torch.cat([torch.full((part.rank,), i) for i, part in parts.items()])
    select = torch.nn.functional.one_hot(owner, count).double()  # (R, count)
    gram = select.T @ products @ select
    return (gram + gram.T) / 2


def _readable(path: str, weights: Weights | None) -> Weights | None:
    """`weights` where they hold the module as one matrix; fused experts, for one, are stored otherwise."""
    try:
        if weights is not None:
            weights.shape_of(path)
    except NotSupportedError:
        return None
    except KeyError:
        pass  # a module that the base lacks is said by name where the shape is checked
    return weights


def _measured(
    path: str, count: int, updates: Mapping[int, tuple[Factors, float]], weights: Weights | None
) -> tuple[Tensor, float | None]:
    """G of one module and, where its weight had to be read for it, the norm of that."""
    gram = torch.zeros(count, count, dtype=torch.float64)
    size = None
    for shape in {shape_of(factors) for factors, _ in updates.values()}:
        same = {i: update for i, update in updates.items() if shape_of(update[0]) == shape}
        if weights is not None and any(factors.magnitude is not None for factors, _ in same.values()):
            part, size = _streamed(path, count, same, weights)
        else:
            part = gram_of({i: LowRank.of(*update) for i, update in same.items()}, count)
        gram += part
    return gram, size


def _streamed(
    path: str, count: int, updates: Mapping[int, tuple[Factors, float]], weights: Weights
) -> tuple[Tensor, float]:
    """G of one module by blocks of rows of the true updates, and the norm of its weight."""
    gram, total = torch.zeros(count, count, dtype=torch.float64), 0.0
    shape = shape_of(next(iter(updates.values()))[0])
    check_shape(path, shape, weights)
    numbers = list(updates)
    for start, stop in row_blocks(shape):
        rows = weights.matrix_rows(path, start, stop).double()
        total += float(rows.square().sum())
        flat = torch.stack([update_rows(*updates[i], start, stop, rows).flatten() for i in numbers])
        index = torch.tensor(numbers)
        gram[index[:, None], index] += flat @ flat.T
    return gram, total**0.5


def _weight_norm(path: str, factors: Factors, weights: Weights) -> float:
    shape = shape_of(factors)
    check_shape(path, shape, weights)
    blocks = (weights.matrix_rows(path, start, stop) for start, stop in row_blocks(shape))
    return float(sum(float(torch.linalg.vector_norm(rows.double())) ** 2 for rows in blocks)) ** 0.5


def check_shape(path: str, shape: tuple[int, int], weights: Weights) -> None:
    """Raise `AdapterError` where the base lacks the module, or has it in another shape."""
    try:
        own = tuple(weights.shape_of(path))
    except (KeyError, AttributeError):
        own = ()
    if own != shape:
        has = f"is {own[0]} x {own[1]} in the base" if own else "is not in the base"
        raise AdapterError(
            f"{path} {has}, and the adapter's update is {shape[0]} x {shape[1]}",
            "it belongs to another base; name that one with --base",
        )


def shape_of(factors: Factors) -> tuple[int, int]:
    """(out, in) of the update."""
    return int(factors.B.shape[0]), int(factors.A.shape[1])


def _figures(
    path: str,
    update: tuple[Factors, float],
    norm: float | None,
    weight_norm: float | None,
    with_base: bool,
    wrong: str | None,
) -> ModuleFigures:
    factors, scale = update
    spectrum = spectrum_of(factors, scale) if wrong is None else None
    flags = {} if wrong is None else {"not finite": wrong}
    if spectrum is not None and spectrum.saturated:
        end = spectrum.values[-1] / spectrum.values[0]
        flags["saturated"] = (
            f"the smallest singular value is {end:.2f} of the largest and the effective rank "
            f"{spectrum.effective_rank:.1f} of {factors.rank}: a higher rank would have been used"
        )
    exact = factors.magnitude is None or with_base
    layer = layer_index(path, ())
    return ModuleFigures(
        path, layer, shape_of(factors), factors.rank, scale, norm, weight_norm, exact, spectrum, flags
    )


def _with_dead(modules: Collection[ModuleFigures]) -> tuple[ModuleFigures, ...]:
    """The modules with those marked that move nothing beside the others."""
    norms = [module.norm for module in modules if module.norm]
    median = statistics.median(norms) if norms else 0.0
    marked = []
    for module in modules:
        reason = _dead(module, median)
        flags = {**module.flags, "dead": reason} if reason else module.flags
        marked.append(ModuleFigures(**{**vars(module), "flags": flags}))
    return tuple(marked)


def _dead(module: ModuleFigures, median: float) -> str | None:
    if module.norm is None:
        return None
    if module.norm == 0:
        return "the update is exactly zero: B or A is, as before the first step of training"
    if module.norm < DEAD * median:
        return f"its norm {module.norm:.1e} is {module.norm / median:.0e} of the median module's"
    return None


def _in_order(path: str) -> tuple[float, list[Any]]:
    """Modules outside the layers first, then by layer, then by path; numbers in it as numbers."""
    layer = layer_index(path, ())
    return (-1 if layer is None else layer), [(p.isdigit(), p.zfill(9)) for p in path.split(".")]
