"""Resizing: an adapter's updates truncated to smaller ranks, chosen by a rank, or by the energy to keep.

The energy of an update is its squared Frobenius norm, the sum of its squared singular values. Shared between
modules, a rank or an energy is a budget: it goes where a number stored buys the most energy, a singular value
of a module costing `out + in` numbers. Knows one adapter, and of its base what DoRA needs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from scumble.errors import AdapterError, ConfigError, NotSupportedError
from scumble.lora.adapter import Adapter
from scumble.lora.blend import Blended, Part, Recipe, assemble, blend, update_of
from scumble.lora.lowrank import LowRank, Svd, decompose
from scumble.lora.part import BaseTensors


def resize(
    adapter: Adapter,
    *,
    rank: int | None = None,
    energy: float | None = None,
    shared: bool = False,
    base: BaseTensors | None = None,
    title: str = "the adapter",
) -> Blended:
    """An adapter of smaller rank.

    Args:
        adapter: in memory; what it replaces of the base (biases, modules_to_save, token rows) stays as it is.
        rank: of every module, or with `shared` on average (by numbers stored).
        energy: share to keep, above 0 and up to 1, in every module, or with `shared` in all together.
        shared: modules share the budget.
        base: needed by DoRA, whose update becomes a plain one.
        title: what an error calls the adapter.

    Raises:
        ConfigError: not exactly one of rank and energy, or nothing would become smaller.
        AdapterError: DoRA without its base.
    """
    if (rank is None) == (energy is None):
        raise ConfigError("a new size is one of --rank and --energy", "give one of the two")
    part = Part(adapter, 1.0, title)
    if any(factors.magnitude is not None for factors in adapter.factors.values()):
        if rank is None or shared:
            raise NotSupportedError(
                f"{title} is DoRA, whose update has full rank and no spectrum to choose from",
                "resize it with --rank alone",
            )
        return blend([part], Recipe("svd", rank), base)
    targets: dict[str, LowRank] = {}
    for path in sorted(adapter.factors):
        update = update_of(adapter, path)
        assert isinstance(update, LowRank)
        targets[path] = update
    if not targets:
        raise AdapterError(f"{title} has no low-rank updates", "there is nothing to resize")
    svds = {path: decompose(target) for path, target in targets.items()}
    ranks = _chosen(svds, adapter, rank, energy, shared)
    if all(ranks[path] >= adapter.factors[path].rank for path in ranks):
        raise ConfigError(
            f"{title} has no module whose rank would become smaller",
            "its ranks are " + ", ".join(map(str, sorted({f.rank for f in adapter.factors.values()}))),
        )
    found = {path: svd.truncated(ranks[path]) for path, svd in svds.items()}
    missing = {path: svd.tail(ranks[path]) for path, svd in svds.items()}
    norms = {path: svd.tail(0) for path, svd in svds.items()}
    return Blended(assemble([part], found), targets, missing, norms, norms)


def _chosen(
    svds: Mapping[str, Svd], adapter: Adapter, rank: int | None, energy: float | None, shared: bool
) -> dict[str, int]:
    """The rank of each module, its present one at most."""
    most = {path: min(adapter.factors[path].rank, len(svd.S)) for path, svd in svds.items()}
    if energy is not None:
        # the share that may be missing, and what rounding alone makes of it
        allowed = {path: (max(0.0, 1 - energy) ** 0.5 + 1e-12) * svd.tail(0) for path, svd in svds.items()}
        each = {path: min(most[path], svd.rank_for(allowed[path])) for path, svd in svds.items()}
        if not shared or energy >= 1:
            return each
        wanted = energy * sum(svd.tail(0) ** 2 for svd in svds.values()) * (1 - 1e-12)
        together = _without_needless(svds, _greedy(svds, most, math.inf, wanted), wanted)
        return min(together, each, key=lambda ranks: _spent(svds, ranks))
    assert rank is not None
    each = {path: min(most[path], rank) for path in svds}
    if not shared:
        return each
    together = _greedy(svds, most, rank * sum(_cost(svd) for svd in svds.values()), math.inf)
    return max(together, each, key=lambda ranks: _kept(svds, ranks))


def _greedy(svds: Mapping[str, Svd], most: Mapping[str, int], budget: float, wanted: float) -> dict[str, int]:
    """Ranks within a budget of numbers, or up to a wanted energy: always the next that keeps most for what it costs.

    Every module keeps one rank, since the format has no rank 0. Optimal where costs are alike; where they differ, what
    is left of the budget may not hold the next rank (the knapsack problem), and `_chosen` takes the plain choice
    where that is better.
    """
    ranks = dict.fromkeys(svds, 1)
    spent, kept = _spent(svds, ranks), _kept(svds, ranks)
    rest = [(float(svd.S[i]) ** 2, path) for path, svd in svds.items() for i in range(1, most[path])]
    rest.sort(key=lambda each: -each[0] / _cost(svds[each[1]]))
    full: set[str] = set()
    for gained, path in rest:
        if kept >= wanted:
            break
        cost = _cost(svds[path])
        if path in full or spent + cost > budget:
            full.add(path)  # a smaller singular value of the same module may not go before it
            continue
        ranks[path], spent, kept = ranks[path] + 1, spent + cost, kept + gained
    return ranks


def _without_needless(svds: Mapping[str, Svd], ranks: dict[str, int], wanted: float) -> dict[str, int]:
    """The ranks without those that the wanted energy does not need, the dearest first."""
    for path in sorted(svds, key=lambda path: -_cost(svds[path])):
        while ranks[path] > 1 and _kept(svds, {**ranks, path: ranks[path] - 1}) >= wanted:
            ranks = {**ranks, path: ranks[path] - 1}
    return ranks


def _spent(svds: Mapping[str, Svd], ranks: Mapping[str, int]) -> int:
    """Numbers that modules of these ranks store."""
    return sum(ranks[path] * _cost(svd) for path, svd in svds.items())


def _kept(svds: Mapping[str, Svd], ranks: Mapping[str, int]) -> float:
    """Energy that they keep."""
    return sum(float(svd.S[: ranks[path]].square().sum()) for path, svd in svds.items())


def _cost(svd: Svd) -> int:
    """Numbers that one rank of a module stores."""
    return sum(svd.shape)
