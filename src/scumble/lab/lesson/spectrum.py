"""What a full fine-tuning changed, and how much of that an update of low rank would hold.

For a weight W of shape (out, in) that became W', the singular values s of W' - W: by Eckart and Young (1936) the best
update of rank r holds `sum of the first r s^2` of the squared norm `sum of all s^2`. Knows two sets of weights, and
nothing of how one became the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

RANKS = (4, 8, 16, 32, 64)
POINTS = 64  # singular values that are kept of each kind of module


@dataclass(frozen=True)
class Kind:
    """The updates of all modules of one kind, such as `q_proj`.

    Attributes:
        modules: how many there are.
        squared: their squared norm, all together.
        held: the share of it that each rank would hold, by rank.
        values: the singular values relative to the largest, root of the mean square over modules.
    """

    modules: int
    squared: float
    held: dict[int, float]
    values: tuple[float, ...]


@dataclass(frozen=True)
class UpdateSpectrum:
    """The update of a full fine-tuning.

    Attributes:
        kinds: by the last part of the modules' names.
        held: the share of the squared norm of all linear modules that each rank would hold in every module.
        outside: the share of the squared norm of the whole update that lies in no linear module of a layer (embeddings,
            norms), where an adapter on linear modules does not reach.
        relative: the Frobenius norm of the update of the linear modules over that of their weights.
    """

    kinds: dict[str, Kind]
    held: dict[int, float]
    outside: float
    relative: float

    def to_dict(self) -> dict[str, Any]:
        """What `lab.json` holds of it."""
        return {
            "held": {str(rank): share for rank, share in self.held.items()},
            "outside": self.outside,
            "relative": self.relative,
            "kinds": {
                name: {**vars(kind), "held": {str(rank): share for rank, share in kind.held.items()}}
                for name, kind in self.kinds.items()
            },
        }


def update_spectrum(
    before: Mapping[str, Tensor], after: Mapping[str, Tensor], linear: Sequence[str]
) -> UpdateSpectrum:
    """The spectrum of an update.

    Args:
        before, after: all weights by name.
        linear: names of those among them that are matrices of linear modules, (out, in) each.
    """
    squares: dict[str, list[Tensor]] = {}
    total = weights = 0.0
    for name, old in before.items():
        change = after[name].double() - old.double()
        total += float(change.square().sum())
        if name in linear:
            weights += float(old.double().square().sum())
            kind = name.removesuffix(".weight").rpartition(".")[2]
            squares.setdefault(kind, []).append(squared_singular_values(change))
    inside = sum(float(each.sum()) for found in squares.values() for each in found)
    every = [each for found in squares.values() for each in found]
    return UpdateSpectrum(
        {name: _kind(found) for name, found in sorted(squares.items())},
        _held(every),
        1 - inside / total if total else 0.0,
        (inside / weights) ** 0.5 if weights else 0.0,
    )


def squared_singular_values(matrix: Tensor) -> Tensor:
    """The squared singular values of a matrix in fp64, the largest first: eigenvalues of the smaller Gram matrix.

    Squaring costs digits of the small ones, of which a share of the squared norm has no need.
    """
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    return torch.linalg.eigvalsh(wide @ wide.T).clamp(min=0).flip(0)


def _kind(found: Sequence[Tensor]) -> Kind:
    most = min(POINTS, *(len(each) for each in found))
    relative = torch.stack([each[:most] / each[0].clamp(min=1e-300) for each in found])
    return Kind(
        len(found),
        sum(float(each.sum()) for each in found),
        _held(found),
        tuple(relative.mean(0).sqrt().tolist()),
    )


def _held(found: Sequence[Tensor]) -> dict[int, float]:
    total = sum(float(each.sum()) for each in found)
    return {rank: sum(float(each[:rank].sum()) for each in found) / total if total else 0.0 for rank in RANKS}
