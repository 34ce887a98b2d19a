"""Whether an adapter fits a base: what it reaches there, what is missing, what has no place.

Knows module paths, classes and shapes; computes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sized
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from scumble.errors import AdapterError
from scumble.lora.adapter import Adapter, Factors
from scumble.lora.patterns import bounded_matching, find
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
        open_to_all = LoraSpec(
            targets=r".*", exclude_modules=spec.exclude_modules, modules_to_save=spec.modules_to_save
        )
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


def fit(
    adapter: Adapter,
    modules: Mapping[str, nn.Module],
    head: nn.Module | None,
    title: str,
    weight: Callable[[str], torch.Tensor] | None = None,
) -> Fit:
    """Hold an adapter against a base.

    Args:
        adapter: with its tensors.
        modules: the base's by path; with `weight` they need no data (the `meta` device).
        head: the output layer.
        title: what an error calls the adapter.
        weight: gives a module's weight by path; by default the module's own.

    Raises:
        AdapterError: a partial match, or a shape that differs; the first few names are shown.
    """
    with bounded_matching():
        updated = set(reached(adapter.spec, modules, head))
    replaced, tokens = saved_paths(adapter.spec, modules), token_paths(adapter.spec, modules)
    # what an adapter holds and what it should hold, by module; a bias and an update may stand at one path
    biased = set(adapter.biases), biased_paths(adapter.spec, modules, updated)
    saved = _owners(adapter.saved), _owners(n for path in replaced for n in tensors_inside(modules, path))
    result = _compare((set(adapter.factors), updated), (set(adapter.tokens), set(tokens)), biased, saved)
    if result.missing or result.unexpected:
        raise AdapterError(
            f"{title} fits the base only in part: {len(result.matched)} modules match, "
            f"{len(result.missing)} are missing{_names(result.missing)}, "
            f"{len(result.unexpected)} have no place{_names(result.unexpected)}",
            "it belongs to another base; name that one with --base",
        )
    inner = [p for p in (*updated, *tokens, *biased[1], *replaced) for q in replaced if p.startswith(q + ".")]
    if inner or replaced & (updated | set(tokens) | biased[1]):
        both = sorted({*inner, *(replaced & (updated | set(tokens) | biased[1]))})
        raise AdapterError(
            f"{title} both replaces and updates {', '.join(both[:SHOWN])}", "do one of the two"
        )
    for path, factors in adapter.factors.items():
        _check_shape(path, factors, modules[path], title)
    _check_others(adapter, modules, tokens, title)
    _check_copies(adapter, modules, title, weight)
    return result


def saved_paths(spec: LoraSpec, modules: Mapping[str, nn.Module]) -> set[str]:
    """The modules that `modules_to_save` names. Raises `AdapterError` where a name matches none."""
    found = {name: {p for p in modules if p and p.endswith(name)} for name in spec.modules_to_save}
    for name, paths in found.items():
        if not paths:
            names = nearest_names(name, modules)
            raise AdapterError(
                f"modules_to_save names {name!r}, which the base lacks", f"it has {', '.join(names)}"
            )
    return {path for paths in found.values() for path in paths}


def token_paths(spec: LoraSpec, modules: Mapping[str, nn.Module]) -> dict[str, tuple[int, ...]]:
    """The embeddings of which rows are trained, and the rows. Raises `AdapterError` where one is not there."""
    found: dict[str, tuple[int, ...]] = {}
    for name, rows in spec.trainable_token_indices.items():
        embeddings = [
            p for p, m in modules.items() if isinstance(m, nn.Embedding) and (not name or named_by(p, [name]))
        ]
        if not embeddings:
            raise AdapterError(f"trainable_token_indices names {name!r}, which is no embedding of the base")
        module = modules[embeddings[0]]
        assert isinstance(module, nn.Embedding)
        if any(not 0 <= row < module.num_embeddings for row in rows):
            raise AdapterError(
                f"trainable_token_indices reaches outside the {module.num_embeddings} tokens of the base"
            )
        found[embeddings[0]] = rows
    return found


def biased_paths(spec: LoraSpec, modules: Mapping[str, nn.Module], updated: Collection[str]) -> set[str]:
    """The modules whose own bias a spec trains: all, or those that its updates reach (`updated`), or none."""
    if spec.bias == "none":
        return set()
    has = {
        path for path, module in modules.items() if isinstance(getattr(module, "bias", None), nn.Parameter)
    }
    return has if spec.bias == "all" else has & set(updated)


def refuse_fused_experts(spec: LoraSpec, model: nn.Module) -> None:
    """Raise `AdapterError` where PEFT would read a target as fused experts (parameters, not modules).

    The experts of a mixture are 3-D parameters in transformers 5. PEFT turns targets that named their layers
    before (`gate_proj`, `w1`, also through `all-linear`) into `target_parameters`, so that an adapter written
    with them would mean something else there.
    """
    if not any(parameter.ndim == 3 for parameter in model.parameters()):
        return
    from peft import LoraConfig
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    config = LoraConfig(target_modules=spec.targets if isinstance(spec.targets, str) else list(spec.targets))
    try:
        convert_peft_config_for_transformers(config, model=model, conversions=None)
        fused = sorted(config.target_parameters or ())
    except ValueError as error:
        fused = [str(error)]
    if isinstance(spec.targets, tuple):
        modules = dict(model.named_modules())
        names = {name.rpartition(".")[2] for name, p in model.named_parameters() if p.ndim == 3}
        fused += [n for n in spec.targets if n in names and not any(named_by(path, [n]) for path in modules)]
    if fused:
        raise AdapterError(
            f"the targets {_shown(spec.targets)} reach fused experts ({', '.join(fused)}), for which PEFT uses "
            "target_parameters; they are not computed here",
            "name the attention's layers alone, such as --targets standard",
        )
    if isinstance(spec.targets, str):
        _refuse_narrow_pattern(spec.targets, config.target_modules, model)


def _refuse_narrow_pattern(pattern: str, read: Any, model: nn.Module) -> None:
    """Raise `AdapterError` where PEFT, which reads a pattern as last names here, reaches more than the pattern does."""
    if pattern == ALL_LINEAR or isinstance(read, str) or not read:
        return
    paths = [path for path, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)]
    with bounded_matching():
        more = [path for path in paths if named_by(path, read) and not find(pattern, path)]
    if more:
        raise AdapterError(
            f"on a mixture of experts PEFT reads the pattern {pattern} as {', '.join(sorted(read))} in every layer, and "
            f"reaches {more[0]} too",
            "write a pattern that does not pick layers, or name the modules",
        )


def _owners(names: Iterable[str]) -> set[str]:
    """The modules that tensors belong to."""
    return {name.rpartition(".")[0] for name in names}


def _compare(*pairs: tuple[set[str], set[str]]) -> Fit:
    """Put together, for each kind of tensor, which modules have it and which should."""
    parts = [[have & want, want - have, have - want] for have, want in pairs]
    matched, missing, unexpected = (
        tuple(sorted(set().union(*column))) for column in zip(*parts, strict=True)
    )
    return Fit(matched, missing, unexpected)


def _check_others(
    adapter: Adapter, modules: Mapping[str, nn.Module], tokens: Mapping[str, Sized], title: str
) -> None:
    """The shapes of what is no low-rank update: biases, saved tensors, token rows."""
    own: dict[str, torch.Tensor] = {}
    for path in saved_paths(adapter.spec, modules):
        own |= tensors_inside(modules, path)
    if set(own) != set(adapter.saved):
        odd = sorted(set(own) ^ set(adapter.saved))
        raise AdapterError(
            f"{title} lacks, or has one too many of, {', '.join(odd[:SHOWN])}", "the file is damaged"
        )
    pairs = [(name, tensor.shape, own[name].shape) for name, tensor in adapter.saved.items()]
    for path, bias in adapter.biases.items():
        pairs.append((f"{path}.bias", bias.shape, cast(torch.Tensor, modules[path].bias).shape))
    for path, rows in adapter.tokens.items():
        width = cast(torch.Tensor, modules[path].weight).shape[1]
        pairs.append((f"the token rows of {path}", rows.shape, torch.Size([len(tokens[path]), width])))
    for name, has, wanted in pairs:
        if has != wanted:
            raise AdapterError(
                f"{title}: {name} has shape {tuple(has)}, and the base's is {tuple(wanted)}",
                "it belongs to another base; name that one with --base",
            )


def tensors_inside(modules: Mapping[str, nn.Module], path: str) -> dict[str, torch.Tensor]:
    """What a module's state holds, by whole path: of its own modules, not of what a bank wrapped in it."""
    found: dict[str, torch.Tensor] = {}
    for owner, module in modules.items():
        if owner == path or owner.startswith(path + "."):
            own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
            passing = module._non_persistent_buffers_set
            found |= {f"{owner}.{name}": tensor for name, tensor in own if name not in passing}
    return found


def _check_shape(path: str, factors: Factors, module: nn.Module, title: str) -> None:
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    transposed = isinstance(module, Conv1D | nn.Embedding)
    if factors.embedding != isinstance(module, nn.Embedding):
        raise AdapterError(
            f"{title}: {path} is a {type(module).__name__} in the base, and the adapter has "
            f"{'an embedding' if factors.embedding else 'a linear layer'} there",
            "it belongs to another base; name that one with --base",
        )
    out, width = reversed(weight.shape) if transposed else weight.shape
    if factors.A.shape[1] != width or factors.B.shape[0] != out:
        raise AdapterError(
            f"{title}: {path} is {out} x {width} in the base, and the adapter's update is "
            f"{factors.B.shape[0]} x {factors.A.shape[1]}",
            "it belongs to another base; name that one with --base",
        )


def _check_copies(
    adapter: Adapter,
    modules: Mapping[str, nn.Module],
    title: str,
    weight: Callable[[str], torch.Tensor] | None,
) -> None:
    """PEFT writes the embeddings beside an adapter that targets them; they must be the base's own."""
    for path, tensor in adapter.copies.items():
        own = getattr(modules.get(path), "weight", None)
        if own is not None and weight is not None and own.shape == tensor.shape:
            own = weight(path)
        if (
            own is None
            or own.shape != tensor.shape
            or not torch.equal(own.detach().cpu(), tensor.to(own.dtype).cpu())
        ):
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
