"""How the updates of two adapters stand to each other, from small matrices; never a dense one as a whole.

    cosine        <U, V> / (|U| |V|)
    interference  2 <U, V> / (|U|^2 + |V|^2): what the cross term adds to the squared norm of U + V. 0 where
                  they are orthogonal, 1 where they are the same, -1 where they cancel
    overlap       |Q1' Q2|^2 / min(r1, r2), Q the orthonormal bases of what the updates write to (outputs) or
                  read from (inputs): 1 where one contains the other; two random ones give max(r1, r2) / d on
                  average, which is given beside it
    sign conflict the share of entries, of those that are non-zero in both, where the signs differ: plain, and
                  weighted by |u v|; on evenly spread rows, all of them where the module has few
    blend         |w1 U + w2 V| = sqrt(w' G w), G the Gram matrix of both

For DoRA without the base, all of it is that of s B A. Knows two adapters, and nothing of files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scumble.lora.adapter import Adapter, Factors
from scumble.lora.diagnostics import Weights, numerical_rank, shape_of
from scumble.lora.lowrank import LowRank, Svd, decompose
from scumble.lora.updates import update_rows

SIGN_ROWS = 64  # rows of a module that signs are compared on


@dataclass(frozen=True)
class Overlap:
    """How far two subspaces share directions.

    Attributes:
        value: |Q1' Q2|^2 / min(r1, r2), from 0 to 1.
        random: what two random subspaces of these dimensions give on average.
    """

    value: float
    random: float


@dataclass(frozen=True)
class Signs:
    """Sums over entries; rows that were not looked at are counted by those that were.

    Attributes:
        differ, both: entries where the signs differ, and where both are non-zero.
        weight_differ, weight_both: the same, each entry counted |u v| times.
        rows, of: rows looked at, and rows that there are.
    """

    differ: float = 0.0
    both: float = 0.0
    weight_differ: float = 0.0
    weight_both: float = 0.0
    rows: int = 0
    of: int = 0

    def __add__(self, other: Signs) -> Signs:
        return Signs(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))

    @property
    def plain(self) -> float | None:
        """The share of entries; None where there are none."""
        return self.differ / self.both if self.both else None

    @property
    def weighted(self) -> float | None:
        """The share by |u v|."""
        return self.weight_differ / self.weight_both if self.weight_both else None


@dataclass(frozen=True)
class ModulePair:
    """Two updates of one module; None where one of them is zero."""

    path: str
    layer: int | None
    cosine: float | None
    outputs: Overlap | None
    inputs: Overlap | None
    signs: Signs

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "path": self.path,
            "layer": self.layer,
            "cosine": self.cosine,
            "output_overlap": self.outputs.value if self.outputs else None,
            "output_overlap_random": self.outputs.random if self.outputs else None,
            "input_overlap": self.inputs.value if self.inputs else None,
            "input_overlap_random": self.inputs.random if self.inputs else None,
            "sign_conflict": self.signs.plain,
            "sign_conflict_weighted": self.signs.weighted,
        }


@dataclass(frozen=True)
class PairFigures:
    """Two adapters.

    Attributes:
        norms: of their updates, all modules together.
        cosine: of their updates, all modules together (one that an adapter lacks is zero there); None where
            an update is zero.
        interference: see the module.
        outputs, inputs: the means over the shared modules.
        signs: over the shared modules.
        only: how many modules the first and the second have alone.
        differing: paths that both have, in different shapes.
        modules: the shared ones.
        blends: from weights as text, such as `0.5, 0.5`, to the norm of the blend.
    """

    norms: tuple[float, float]
    cosine: float | None
    interference: float | None
    outputs: Overlap | None
    inputs: Overlap | None
    signs: Signs
    only: tuple[int, int]
    differing: tuple[str, ...]
    modules: tuple[ModulePair, ...]
    blends: Mapping[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "norms": list(self.norms),
            "cosine": self.cosine,
            "interference": self.interference,
            "output_overlap": self.outputs.value if self.outputs else None,
            "output_overlap_random": self.outputs.random if self.outputs else None,
            "input_overlap": self.inputs.value if self.inputs else None,
            "input_overlap_random": self.inputs.random if self.inputs else None,
            "sign_conflict": self.signs.plain,
            "sign_conflict_weighted": self.signs.weighted,
            "sign_rows": self.signs.rows,
            "sign_rows_of": self.signs.of,
            "shared_modules": len(self.modules),
            "only": list(self.only),
            "differing_shapes": list(self.differing),
            "blend_norms": dict(self.blends),
            "modules": [module.to_dict() for module in self.modules],
        }


def pair_up(
    first: Adapter,
    second: Adapter,
    grams: Mapping[str, Tensor],
    *,
    layers: Mapping[str, int | None],
    weights: Weights | None = None,
    blends: Sequence[tuple[float, float]] = ((1.0, 1.0), (0.5, 0.5)),
    left_out: frozenset[str] = frozenset(),
) -> PairFigures:
    """Hold two adapters against each other.

    Args:
        first, second: the adapters.
        grams: from a module's path to their Gram matrix, (2, 2), as `diagnose` measures it.
        layers: the number of each module's layer.
        weights: of the base, for DoRA.
        blends: weights whose blend's norm is wanted.
        left_out: modules whose factors are not finite in one of the two; no figure of theirs is given.
    """
    both = [path for path in first.factors if path in second.factors and path not in left_out]
    fits = {path for path in both if shape_of(first.factors[path]) == shape_of(second.factors[path])}
    modules = []
    for path in sorted(fits, key=list(grams).index):
        updates = [(each.factors[path], each.spec.scale_of(path)) for each in (first, second)]
        outputs, inputs = overlaps(*(decompose(LowRank.of(*update)) for update in updates))
        signs = sign_conflict(path, updates[0], updates[1], weights)
        modules.append(ModulePair(path, layers.get(path), cosine_of(grams[path]), outputs, inputs, signs))
    gram = sum(grams.values(), torch.zeros(2, 2, dtype=torch.float64))
    square = float(gram.trace())
    return PairFigures(
        norms=(norm_of_blend(gram, (1, 0)), norm_of_blend(gram, (0, 1))),
        cosine=cosine_of(gram),
        interference=2 * float(gram[0, 1]) / square if square else None,
        outputs=_mean([module.outputs for module in modules]),
        inputs=_mean([module.inputs for module in modules]),
        signs=sum((module.signs for module in modules), Signs()),
        only=(len(first.factors) - _common(first, second), len(second.factors) - _common(first, second)),
        differing=tuple(path for path in both if path not in fits),
        modules=tuple(modules),
        blends={", ".join(f"{w:g}" for w in pair): norm_of_blend(gram, pair) for pair in blends},
    )


def cosine_of(gram: Tensor) -> float | None:
    """The cosine of two vectors from their Gram matrix, (2, 2), within [-1, 1]; None where one is zero."""
    size = float(gram[0, 0].clamp(min=0).sqrt() * gram[1, 1].clamp(min=0).sqrt())
    return min(1.0, max(-1.0, float(gram[0, 1]) / size)) if size else None


def norm_of_blend(gram: Tensor, weights: Sequence[float]) -> float:
    """|sum of w_i U_i| = sqrt(w' G w); G is (n, n)."""
    w = torch.tensor(weights, dtype=torch.float64)
    return max(0.0, float(w @ gram @ w)) ** 0.5


def overlaps(first: Svd, second: Svd) -> tuple[Overlap | None, Overlap | None]:
    """The overlap of what two updates write to, and of what they read from; None where one is zero."""
    ranks = numerical_rank(first.S), numerical_rank(second.S)
    if 0 in ranks:
        return None, None
    found = []
    for q1, q2 in ((first.U, second.U), (first.Vh.T, second.Vh.T)):
        common = q1[:, : ranks[0]].T @ q2[:, : ranks[1]]  # (r1, r2)
        value = float(common.square().sum()) / min(ranks)
        found.append(Overlap(min(1.0, value), max(ranks) / q1.shape[0]))
    return found[0], found[1]


def sign_conflict(
    path: str,
    first: tuple[Factors, float],
    second: tuple[Factors, float],
    weights: Weights | None = None,
    limit: int = SIGN_ROWS,
) -> Signs:
    """Where the signs of two updates of one shape differ, on at most `limit` evenly spread rows."""
    height = shape_of(first[0])[0]
    rows = torch.linspace(0, height - 1, min(limit, height)).round().long()
    dora = any(factors.magnitude is not None for factors, _ in (first, second))
    base = None
    if dora and weights is not None:
        base = torch.cat([weights.matrix_rows(path, row, row + 1) for row in rows.tolist()])
    products = _rows(first, rows, base) * _rows(second, rows, base)
    against, size = products < 0, products.abs()
    times = height / len(rows)  # so that modules of many rows count for as much as they hold
    return Signs(
        times * float(against.sum()),
        times * float((products != 0).sum()),
        times * float(size[against].sum()),
        times * float(size.sum()),
        len(rows),
        height,
    )


def _rows(update: tuple[Factors, float], rows: Tensor, base: Tensor | None) -> Tensor:
    factors, scale = update
    magnitude = factors.magnitude[rows] if factors.magnitude is not None and base is not None else None
    return update_rows(
        Factors(factors.A, factors.B[rows], magnitude=magnitude), scale, 0, len(rows), weight=base
    )


def _common(first: Adapter, second: Adapter) -> int:
    return len(set(first.factors) & set(second.factors))


def _mean(found: Sequence[Overlap | None]) -> Overlap | None:
    there = [each for each in found if each is not None]
    if not there:
        return None
    return Overlap(
        sum(each.value for each in there) / len(there), sum(each.random for each in there) / len(there)
    )
