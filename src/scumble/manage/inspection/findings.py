"""What `inspect` gives: findings on each adapter and each pair, as plain values for `--json`.

Knows results, and nothing of how they were measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from scumble.lora.diagnostics import ModuleFigures
from scumble.lora.pairs import PairFigures
from scumble.lora.spec import LoraSpec
from scumble.manage.inspection.origin import Manifest, Origin


@dataclass(frozen=True)
class KindFigures:
    """The modules of one kind, such as all `q_proj`: norms together, ranks as means over finite modules."""

    kind: str
    modules: int
    ranks: tuple[int, ...]
    norm: float | None
    relative_norm: float | None
    effective_rank: float | None
    stable_rank: float | None
    on_data: float | None
    flags: Mapping[str, int]

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {**vars(self), "ranks": list(self.ranks), "flags": dict(self.flags)}


@dataclass(frozen=True)
class AdapterFindings:
    """One adapter.

    Attributes:
        name: what it is called beside others.
        path: its own folder.
        spec: its configuration.
        settings: the same in words, as (name, words).
        parameters, bytes: numbers it holds, and the size of its weights' file.
        base_name, base_hash: of the base it was trained on, where it says so.
        sha256: of its weights' file.
        manifest, origin: see `scumble.manage.inspection.origin`.
        modules: the updates.
        on_data: from a module's path to the norm of the update's outputs over that of the module's own.
        beside: what it holds beside low-rank updates, from its name to how many numbers.
        not_finite: from a tensor's name to how many of its values are NaN or infinite.
        notes: what could not be measured, and what is odd about the whole.
    """

    name: str
    path: str
    spec: LoraSpec
    settings: tuple[tuple[str, str], ...]
    parameters: int
    bytes: int
    base_name: str | None
    base_hash: str | None
    sha256: str
    manifest: Manifest
    origin: Origin
    modules: tuple[ModuleFigures, ...]
    on_data: Mapping[str, float | None] | None
    beside: Mapping[str, int]
    not_finite: Mapping[str, int]
    notes: tuple[str, ...]

    @property
    def norm(self) -> float | None:
        """Of the whole update; None where a part is not finite."""
        return _norm([module.norm for module in self.modules])

    @property
    def relative_norm(self) -> float | None:
        """Of the whole update over that of the weights it reaches."""
        return _relative(self.modules)

    def kinds(self) -> list[KindFigures]:
        """The modules by kind, in the order in which they first come."""
        names = dict.fromkeys(module.kind for module in self.modules)
        return [self._kind(kind, [m for m in self.modules if m.kind == kind]) for kind in names]

    def flagged(self, flag: str) -> list[ModuleFigures]:
        """The modules with a flag."""
        return [module for module in self.modules if flag in module.flags]

    def to_dict(self) -> dict[str, Any]:
        """Plain values; the singular values of each module are among them."""
        spec = self.spec
        return {
            "name": self.name,
            "path": self.path,
            "rank": spec.rank,
            "alpha": spec.alpha,
            "parameters": self.parameters,
            "modules": [
                module.to_dict() | {"on_data": (self.on_data or {}).get(module.path)}
                for module in self.modules
            ],
            "bytes": self.bytes,
            "norm": self.norm,
            "relative_norm": self.relative_norm,
            "kinds": [kind.to_dict() for kind in self.kinds()],
            "base": {"name": self.base_name, "hash": self.base_hash},
            "settings": dict(self.settings),
            "config": spec.to_peft(),
            "rslora": spec.rslora,
            "dora": spec.dora,
            "beside": dict(self.beside),
            "sha256": self.sha256,
            "manifest": vars(self.manifest),
            "run": self.origin.run,
            "run_note": self.origin.note,
            "made_from": self.origin.made_from,
            "dead": [module.path for module in self.flagged("dead")],
            "saturated": [module.path for module in self.flagged("saturated")],
            "not_finite": dict(self.not_finite),
            "notes": list(self.notes),
        }

    def _kind(self, kind: str, modules: Sequence[ModuleFigures]) -> KindFigures:
        spectra = [module.spectrum for module in modules if module.spectrum is not None]
        shares = [(self.on_data or {}).get(module.path) for module in modules]
        there = [share for share in shares if share is not None]
        flags = [flag for module in modules for flag in module.flags]
        return KindFigures(
            kind=kind,
            modules=len(modules),
            ranks=tuple(sorted({module.rank for module in modules})),
            norm=_norm([module.norm for module in modules]),
            relative_norm=_relative(modules),
            effective_rank=fmean(s.effective_rank for s in spectra) if spectra else None,
            stable_rank=fmean(s.stable_rank for s in spectra) if spectra else None,
            on_data=fmean(there) if there else None,
            flags={flag: flags.count(flag) for flag in dict.fromkeys(flags)},
        )


@dataclass(frozen=True)
class DataPair:
    """Two adapters' outputs on real texts: the cosine over all modules, and of each."""

    cosine: float | None
    modules: Mapping[str, float | None]

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"cosine": self.cosine, "modules": dict(self.modules)}


@dataclass(frozen=True)
class PairFindings:
    """Two adapters.

    Attributes:
        first, second: their names.
        figures: see `PairFigures`.
        same_base: False where they name different bases, None where it cannot be told.
        expectation: a sentence on what to expect of their blend.
        on_data: on real texts, where there were some.
    """

    first: str
    second: str
    figures: PairFigures
    same_base: bool | None
    expectation: str
    on_data: DataPair | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "first": self.first,
            "second": self.second,
            "expectation": self.expectation,
            "same_base": self.same_base,
            **self.figures.to_dict(),
            "on_data": self.on_data.to_dict() if self.on_data else None,
        }


@dataclass(frozen=True)
class DataFindings:
    """The texts that outputs were measured on."""

    source: str
    examples: int
    tokens: int


@dataclass(frozen=True)
class Inspection:
    """What was found.

    Attributes:
        adapters: in the order in which they were given.
        pairs: each two of them.
        gram: inner products of the updates, all modules together.
        weights, blend_norm: the blend that was asked for, and its norm.
        data: the texts, where there were some.
    """

    adapters: tuple[AdapterFindings, ...]
    pairs: tuple[PairFindings, ...]
    gram: tuple[tuple[float, ...], ...]
    weights: tuple[float, ...] | None = None
    blend_norm: float | None = None
    data: DataFindings | None = None

    def to_dict(self) -> dict[str, Any]:
        """What `--json` prints."""
        return {
            "adapters": [adapter.to_dict() for adapter in self.adapters],
            "pairs": [pair.to_dict() for pair in self.pairs],
            "gram": [list(row) for row in self.gram],
            "weights": None if self.weights is None else list(self.weights),
            "blend_norm": self.blend_norm,
            "data": None if self.data is None else vars(self.data),
        }


def _norm(norms: Sequence[float | None]) -> float | None:
    there = [norm for norm in norms if norm is not None]
    return float(sum(norm**2 for norm in there)) ** 0.5 if len(there) == len(norms) else None


def _relative(modules: Sequence[ModuleFigures]) -> float | None:
    update, weight = _norm([m.norm for m in modules]), _norm([m.weight_norm for m in modules])
    return update / weight if update is not None and weight else None
