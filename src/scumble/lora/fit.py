"""Whether an adapter fits a base: what it reaches there, what is missing, what has no place.

Knows module paths, classes and shapes; computes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from scumble.errors import AdapterError
from scumble.lora.adapter import Adapter, Factors
from scumble.lora.spec import LoraSpec
from scumble.lora.targets import ALL_LINEAR, named_by, nearest_names

SHOWN = 4  # how many names an error lists


@dataclass(frozen=True)
class Fit:
    """What of an adapter was found in a base.

    Attributes:
        matched: module paths that the adapter reaches and has tensors for.
        missing: module paths that its configuration reaches, and for which it has none.
        unexpected: module paths it has tensors for, and that the base or the configuration does not know.
    """

    matched: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]

    def to_dict(self) -> dict[str, list[str]]:
        """The three lists."""
        return {name: list(getattr(self, name)) for name in ("matched", "missing", "unexpected")}


def wrappable(module: nn.Module) -> bool:
    """Whether a low-rank update can stand beside the module."""
    return isinstance(module, nn.Linear | Conv1D | nn.Embedding)


def reached(spec: LoraSpec, modules: Mapping[str, nn.Module], head: nn.Module | None) -> list[str]:
    """The paths of the modules that a spec's low-rank updates reach.

    Args:
        spec: the adapter's configuration.
        modules: the base's modules by path.
        head: the output layer, which `all-linear` leaves out as PEFT does.

    Raises:
        AdapterError: it reaches nothing, or a module that has no weight matrix.
    """
    if spec.targets == ALL_LINEAR:
        linear = [p for p, m in modules.items() if isinstance(m, nn.Linear | Conv1D) and m is not head]
        open_to_all = LoraSpec(targets=r".*", exclude_modules=spec.exclude_modules, modules_to_save=spec.modules_to_save)
        found = [path for path in linear if open_to_all.matches(path)]
    else:
        found = [path for path in modules if path and spec.matches(path)]
    if not found:
        names = nearest_names(spec.targets, (p for p, m in modules.items() if wrappable(m)))
        raise AdapterError(
            f"the target modules {_shown(spec.targets)} match nothing in this base",
            f"its modules are called {', '.join(names)}" if names else "it has no linear layers",
        )
    for path in found:
        if not wrappable(modules[path]):
            kind = type(modules[path]).__name__
            raise AdapterError(
                f"the target {path} is a {kind}, which has no weight matrix of its own to update",
                "fused experts and containers are not supported; name linear layers or embeddings",
            )
    return found


def fit(adapter: Adapter, modules: Mapping[str, nn.Module], head: nn.Module | None, title: str) -> Fit:
    """Hold an adapter against a base.

    Raises:
        AdapterError: a partial match, or a shape that differs; the first few names are shown.
    """
    wanted = set(reached(adapter.spec, modules, head)) if adapter.factors or not _has_others(adapter) else set()
    wanted |= saved_paths(adapter.spec, modules)
    wanted |= {path for path, _ in token_paths(adapter.spec, modules).items()}
    have = set(adapter.factors) | set(adapter.tokens) | {_owner(name, wanted) for name in adapter.saved}
    biased = {path for path in adapter.biases if getattr(modules.get(path), "bias", None) is not None}
    unexpected = (have - wanted) | (set(adapter.biases) - biased)
    result = Fit(tuple(sorted(have & wanted)), tuple(sorted(wanted - have)), tuple(sorted(unexpected)))
    if result.missing or result.unexpected:
        raise AdapterError(
            f"{title} fits the base only in part: {len(result.matched)} modules match, "
            f"{len(result.missing)} are missing{_names(result.missing)}, "
            f"{len(result.unexpected)} have no place{_names(result.unexpected)}",
            "it belongs to another base; name that one with --base",
        )
    for path, factors in adapter.factors.items():
        _check_shape(path, factors, modules[path], title)
    _check_copies(adapter, modules, title)
    return result


def saved_paths(spec: LoraSpec, modules: Mapping[str, nn.Module]) -> set[str]:
    """The modules that `modules_to_save` names. Raises `AdapterError` where a name matches none."""
    found = {name: {p for p in modules if named_by(p, [name])} for name in spec.modules_to_save}
    for name, paths in found.items():
        if not paths:
            names = nearest_names(name, modules)
            raise AdapterError(f"modules_to_save names {name!r}, which the base lacks", f"it has {', '.join(names)}")
    return {path for paths in found.values() for path in paths}


def token_paths(spec: LoraSpec, modules: Mapping[str, nn.Module]) -> dict[str, tuple[int, ...]]:
    """The embeddings of which rows are trained, and the rows. Raises `AdapterError` where one is not there."""
    found: dict[str, tuple[int, ...]] = {}
    for name, rows in spec.trainable_token_indices.items():
        embeddings = [p for p, m in modules.items() if isinstance(m, nn.Embedding) and (not name or named_by(p, [name]))]
        if not embeddings:
            raise AdapterError(f"trainable_token_indices names {name!r}, which is no embedding of the base")
        module = modules[embeddings[0]]
        assert isinstance(module, nn.Embedding)
        if any(not 0 <= row < module.num_embeddings for row in rows):
            raise AdapterError(f"trainable_token_indices reaches outside the {module.num_embeddings} tokens of the base")
        found[embeddings[0]] = rows
    return found


def _owner(parameter: str, wanted: set[str]) -> str:
    """The module to save that a parameter belongs to, or the parameter's own path where none does."""
    owners = [path for path in wanted if parameter.startswith(path + ".")]
    return max(owners, key=len) if owners else parameter


def _has_others(adapter: Adapter) -> bool:
    return bool(adapter.biases or adapter.saved or adapter.tokens)


def _check_shape(path: str, factors: Factors, module: nn.Module, title: str) -> None:
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    transposed = isinstance(module, Conv1D | nn.Embedding)
    out, width = reversed(weight.shape) if transposed else weight.shape
    if factors.A.shape[1] != width or factors.B.shape[0] != out:
        raise AdapterError(
            f"{title}: {path} is {out} x {width} in the base, and the adapter's update is "
            f"{factors.B.shape[0]} x {factors.A.shape[1]}",
            "it belongs to another base; name that one with --base",
        )


def _check_copies(adapter: Adapter, modules: Mapping[str, nn.Module], title: str) -> None:
    """PEFT writes the embeddings beside an adapter that targets them; they must be the base's own."""
    for path, tensor in adapter.copies.items():
        own = getattr(modules.get(path), "weight", None)
        if own is None or own.shape != tensor.shape or not torch.equal(own.detach().cpu(), tensor.to(own.dtype).cpu()):
            raise AdapterError(
                f"{title} carries a weight of {path} that differs from the base's",
                "its vocabulary was resized or retrained; that is not supported, except through modules_to_save",
            )


def _shown(targets: str | tuple[str, ...]) -> str:
    return targets if isinstance(targets, str) else ", ".join(targets)


def _names(paths: tuple[str, ...]) -> str:
    if not paths:
        return ""
    more = f" and {len(paths) - SHOWN} more" if len(paths) > SHOWN else ""
    return f" ({', '.join(paths[:SHOWN])}{more})"
