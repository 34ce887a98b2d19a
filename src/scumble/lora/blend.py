"""Blending adapters into one: the weighted sum of their updates, as one low-rank update for each module.

    wanted = sum over i of w_i U_i,   U_i = s_i B_i A_i, or DoRA's update

`exact` keeps all of it (the rank is the sum of the ranks, less where adapters overlap), `svd` the best of a rank;
`magnitude`, `ties`, `dare` and `dare_ties` change single weights of the updates first and are then truncated.
Every scale is folded into B, so that one alpha stands for all modules. Knows adapters and, where one of them is
DoRA or trains parts of the base, the base's tensors; nothing of files.
"""

from __future__ import annotations

import math
import re
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias, cast, get_args

import torch
from torch import Tensor

from scumble.errors import AdapterError, ConfigError
from scumble.lora.adapter import Adapter, Factors
from scumble.lora.dropout import module_key
from scumble.lora.lowrank import LowRank, decompose, distance
from scumble.lora.part import BaseTensors, Part
from scumble.lora.replaced import carry_replaced
from scumble.lora.spec import LoraSpec
from scumble.lora.streamed import DoraUpdate, Rows, Sparsified, WeightedSum, gap, truncate

Method: TypeAlias = Literal["exact", "svd", "magnitude", "ties", "dare", "dare_ties"]
MAX_WEIGHT = 1e9  # in size, so that squares of sums stay far from overflow
METHODS: tuple[str, ...] = get_args(Method)
# What `exact` may drop, of the sum of |w_i| |U_i|: what the factors' own type rounds off of them, so that a blend
# of blends does not carry the rounding of the first as ranks of its own; in fp64 what the arithmetic leaves.
LOSSLESS = {torch.float32: 1.2e-7, torch.float64: 1e-12}


@dataclass(frozen=True)
class Recipe:
    """How parts become one adapter.

    Attributes:
        method: see the module.
        rank: of the result; None keeps all of it (`exact`), or takes the sum of the ranks.
        density: share of single weights kept by `magnitude`, `ties` and `dare`.
        seed: of DARE's masks.
        normalize: take the weighted mean of what agrees instead of the sum, as the paper on TIES does.
        interpolate: blend also what replaces parts of the base (modules_to_save, token rows).
    """

    method: Method = "exact"
    rank: int | None = None
    density: float = 0.2
    seed: int = 0
    normalize: bool = False
    interpolate: bool = False


@dataclass(frozen=True)
class Blended:
    """One adapter made of several.

    Attributes:
        adapter: the result.
        targets: the wanted update of each module.
        missing: Frobenius norm of what each module's update should lack of it.
        norms: Frobenius norm of each wanted update.
        sizes: the sum of |w_i| |U_i| of each module, against which a rounding error is none.
    """

    adapter: Adapter
    targets: Mapping[str, Rows] = field(repr=False)
    missing: Mapping[str, float]
    norms: Mapping[str, float]
    sizes: Mapping[str, float]

    @property
    def predicted(self) -> float:
        """The error before anything is rounded: what is missing over what is wanted, all modules together."""
        return self._relative(self.missing)

    def measured(self, written: Adapter) -> tuple[float, dict[str, float]]:
        """The error of an adapter as it was written, all modules together, and the gap of each module."""
        gaps = {path: _gap(target, update_of(written, path)) for path, target in self.targets.items()}
        return self._relative(gaps), gaps

    def _relative(self, missing: Mapping[str, float]) -> float:
        lost, wanted, size = (_together(each) for each in (missing, self.norms, self.sizes))
        nothing = LOSSLESS[_kind([self.adapter])] * size
        if (
            wanted <= nothing
        ):  # parts that cancel each other leave rounding alone, and of nothing nothing is missing
            return 0.0 if lost <= nothing else float("inf")
        return lost / wanted


def blend(parts: Sequence[Part], recipe: Recipe = Recipe(), base: BaseTensors | None = None) -> Blended:
    """Make one adapter of several.

    Args:
        parts: at least one; an adapter may stand twice.
        recipe: how.
        base: needed where an adapter is DoRA, trains the base's biases, or replaces parts of it.

    Raises:
        AdapterError: they do not fit together, or have parts that are not blended.
        ConfigError: the method needs a rank, or has none to choose.
    """
    if not parts:
        raise AdapterError("no adapters were given to blend", "name at least one: PATH=WEIGHT")
    for part in parts:
        for path in part.adapter.factors:
            if not abs(part.at(path)) <= MAX_WEIGHT:
                raise ConfigError(
                    f"the weight of {part.title} is {part.at(path):g}",
                    f"weights are numbers up to {MAX_WEIGHT:g}",
                )
    if recipe.normalize and recipe.method in ("exact", "svd"):
        raise ConfigError(
            f"--normalize has no meaning for --method {recipe.method}",
            "give weights that add up to 1, or use ties, dare or magnitude",
        )
    if recipe.method == "svd" and recipe.rank is None:
        raise ConfigError("--method svd needs a rank", "say how many with --rank, or use --method exact")
    _warn_of_other_bases(parts)
    targets = {path: target_of(path, parts, recipe, base) for path in _paths(parts)}
    found: dict[str, LowRank] = {}
    missing: dict[str, float] = {}
    norms: dict[str, float] = {}
    sizes = {path: _size(path, parts, base) for path in targets}
    lossless = LOSSLESS[_kind([part.adapter for part in parts])]
    for path, target in targets.items():
        most = sum(part.adapter.factors[path].rank for part in parts if path in part.adapter.factors)
        found[path], missing[path], norms[path] = _compress(target, recipe, most, lossless * sizes[path])
    return Blended(assemble(parts, found, recipe.interpolate, base), targets, missing, norms, sizes)


def target_of(path: str, parts: Sequence[Part], recipe: Recipe, base: BaseTensors | None) -> Rows:
    """The update that a module should have; low-rank where it can be."""
    here = [(place, part) for place, part in enumerate(parts) if path in part.adapter.factors]
    factors = [part.adapter.factors[path] for _, part in here]
    shapes = {(each.B.shape[0], each.A.shape[1]) for each in factors}
    if len(shapes) > 1:
        sizes = " and ".join(f"{out} x {width}" for out, width in sorted(shapes))
        raise AdapterError(f"the adapters' updates of {path} are {sizes}", "they belong to different bases")
    updates: list[tuple[Rows, float]] = [
        (update_of(part.adapter, path, base, part.title), part.at(path)) for _, part in here
    ]
    if recipe.method in ("exact", "svd"):
        low = [(update, weight) for update, weight in updates if isinstance(update, LowRank)]
        return LowRank.total(low) if len(low) == len(updates) else WeightedSum(updates)
    # a mask belongs to an adapter and its place among the parts: the same adapter twice is dropped twice
    keys = [module_key(recipe.seed, f"{place}:{path}") for place, _ in here]
    return Sparsified(
        updates,
        "random" if recipe.method.startswith("dare") else "magnitude",
        recipe.density,
        keys,
        elect=recipe.method.endswith("ties"),
        normalize=recipe.normalize,
    )


def update_of(adapter: Adapter, path: str, base: BaseTensors | None = None, title: str = "") -> Rows:
    """An adapter's update of a module, its scale in it.

    Raises:
        AdapterError: DoRA's without a base.
    """
    factors, scale = adapter.factors[path], adapter.spec.scale_of(path)
    if factors.magnitude is None:
        return LowRank.of(factors, scale)
    if base is None:
        raise AdapterError(
            f"{title or 'the adapter'} is DoRA, whose update depends on the base's weights",
            "name its base with --base, so that its update can be computed",
        )
    tensors = base
    return DoraUpdate(factors, scale, lambda start, stop: tensors.matrix_rows(path, start, stop))


def assemble(
    parts: Sequence[Part],
    updates: Mapping[str, LowRank],
    interpolate: bool = False,
    base: BaseTensors | None = None,
) -> Adapter:
    """An adapter with these updates, and with the parts' biases, replaced modules and token rows.

    Args:
        parts: what it comes from.
        updates: of each module, the rank of its factors that which the adapter gets.
        interpolate: blend also what replaces parts of the base.
        base: as in `blend`.
    """
    spec = _spec_of(parts, {path: update.rank for path, update in updates.items()})
    kind = _kind([part.adapter for part in parts])
    factors = {}
    for path, update in updates.items():
        scale = spec.scale_of(path)
        bias = _lora_bias(path, parts, update.shape[0]) if spec.lora_bias else None
        factors[path] = Factors(
            update.right.to(kind).contiguous(),
            (update.left / scale).to(kind).contiguous(),
            None if bias is None else (bias / scale).to(kind),
            embedding=any(p.adapter.factors[path].embedding for p in parts if path in p.adapter.factors),
        )
    hashes = {part.adapter.base_hash for part in parts}
    adapter = Adapter(spec, factors, base_hash=hashes.pop() if len(hashes) == 1 else None)
    return carry_replaced(adapter, parts, interpolate, base)


def _compress(target: Rows, recipe: Recipe, most: int, nothing: float) -> tuple[LowRank, float, float]:
    """The update of a module, what it misses, and the norm of what was wanted."""
    rank = min(recipe.rank or most, *target.shape)
    if not isinstance(target, LowRank):
        found = truncate(target, rank)
        return found.matrix, found.missing, found.norm
    svd = decompose(target)
    # what was there before adapters cancelled each other decides what is nothing
    kept = svd.rank_for(nothing)
    rank = kept if recipe.rank is None else min(kept, rank)
    return svd.truncated(rank), svd.tail(rank), svd.tail(0)


def _size(path: str, parts: Sequence[Part], base: BaseTensors | None) -> float:
    """The sum of |w_i| |U_i| at a module, for DoRA with what its update is a difference of."""
    total = 0.0
    for part in parts:
        if path in part.adapter.factors:
            update = update_of(part.adapter, path, base, part.title)
            size = update.norm() if isinstance(update, LowRank) else cast(DoraUpdate, update).size()
            total += abs(part.at(path)) * size
    return total


def _together(values: Mapping[str, float]) -> float:
    return math.hypot(*values.values())


def _gap(target: Rows, found: Rows) -> float:
    if isinstance(target, LowRank) and isinstance(found, LowRank):
        return distance(target, found)
    return gap(target, found)


def _paths(parts: Sequence[Part]) -> list[str]:
    return sorted({path for part in parts for path in part.adapter.factors})


def _kind(adapters: Sequence[Adapter]) -> torch.dtype:
    """The type of the result: the widest of the adapters', fp32 at least."""
    kind = torch.float32
    for adapter in adapters:
        for factors in adapter.factors.values():
            kind = torch.promote_types(kind, torch.promote_types(factors.A.dtype, factors.B.dtype))
    return kind


def _lora_bias(path: str, parts: Sequence[Part], out: int) -> Tensor:
    """`sum of w_i s_i b_i`, (out,); zeros where no part has one."""
    total = torch.zeros(out, dtype=torch.float64)
    for part in parts:
        factors = part.adapter.factors.get(path)
        if factors is not None and factors.bias is not None:
            total += part.at(path) * part.adapter.spec.scale_of(path) * factors.bias.double()
    return total


def _spec_of(parts: Sequence[Part], ranks: Mapping[str, int]) -> LoraSpec:
    """A spec that reaches exactly those modules with those ranks, with one alpha for all of them.

    Alpha is the commonest rank, so that the scale is 1 where the rank is that, and alpha / rank elsewhere; what
    reads one alpha alone, as llama.cpp does, computes the same.
    """
    first = parts[0].adapter
    default = Counter(ranks.values()).most_common(1)[0][0] if ranks else first.spec.rank
    # a path is a pattern in PEFT's format, and names every path that ends in it too, unless it is anchored
    endings = {ending for path in ranks for ending in _endings(path)}
    differing = {
        _exactly(path) if path in endings else path: rank for path, rank in ranks.items() if rank != default
    }
    spec = LoraSpec(
        rank=default,
        alpha=float(default),
        targets=tuple(sorted(ranks)) or first.spec.targets,
        lora_bias=any(part.adapter.spec.lora_bias for part in parts),
        rank_pattern=differing,
        fan_in_fan_out=any(part.adapter.spec.fan_in_fan_out for part in parts),
        base_name=first.spec.base_name,
    )
    # the names that users know stay where they mean the same modules
    named = {(p.adapter.spec.targets, p.adapter.spec.exclude_modules) for p in parts}
    same = all(set(part.adapter.factors) == set(ranks) for part in parts) and len(named) == 1
    layers = {(p.adapter.spec.layers_to_transform, p.adapter.spec.layers_pattern) for p in parts}
    if same and len(layers) == 1:
        (targets, excluded), (chosen, pattern) = named.pop(), layers.pop()
        spec = replace(
            spec,
            targets=targets,
            exclude_modules=excluded,
            layers_to_transform=chosen,
            layers_pattern=pattern,
        )
    return spec


def _endings(path: str) -> list[str]:
    """What a path ends in, by whole components, itself left out."""
    parts = path.split(".")
    return [".".join(parts[start:]) for start in range(1, len(parts))]


def _exactly(path: str) -> str:
    """A pattern that means one path alone, whatever stands before others that end like it."""
    return "^" + re.escape(path)


def _base_of(adapter: Adapter) -> str:
    known = f", hash {adapter.base_hash}" if adapter.base_hash else ""
    return f"{adapter.spec.base_name or 'no name'}{known}"


def _warn_of_other_bases(parts: Sequence[Part]) -> None:
    """Warn where the adapters say that they belong to different bases."""
    hashes = {part.adapter.base_hash for part in parts} - {None}
    names = {part.adapter.spec.base_name for part in parts} - {None}
    if len(hashes) > 1 or (not hashes and len(names) > 1):
        told = ", ".join(dict.fromkeys(f"{part.title}: {_base_of(part.adapter)}" for part in parts))
        warnings.warn(
            f"the adapters were trained on different bases ({told}); their sum may mean nothing on either",
            stacklevel=3,
        )
