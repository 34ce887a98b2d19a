"""What an adapter replaces rather than updates, when several become one: biases, modules_to_save, token rows.

A replacement r_i of a part of the base, p, is the update r_i - p; a blend of them is p + sum of w_i (r_i - p).
Trained biases are blended so; modules_to_save and token rows only when asked for, since a whole layer halfway
between two others is rarely what was meant. One adapter alone, with weight 1, keeps all of it as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from scumble.errors import AdapterError
from scumble.lora.adapter import Adapter
from scumble.lora.part import BaseTensors, Part


def carry_replaced(
    adapter: Adapter, parts: Sequence[Part], interpolate: bool, base: BaseTensors | None
) -> Adapter:
    """The adapter with what its parts replace.

    Args:
        adapter: the result so far, with updates alone.
        parts: what it is made of.
        interpolate: modules_to_save and token rows may be blended.
        base: the tensors that are replaced.

    Raises:
        AdapterError: parts have what is not blended, or the base is needed and was not given.
    """
    if not any(p.adapter.biases or p.adapter.saved or p.adapter.tokens for p in parts):
        return adapter
    if len(parts) == 1 and not callable(parts[0].weight) and parts[0].weight == 1:
        return _kept(adapter, parts[0].adapter)
    for part in parts:
        if part.adapter.exclusive and not interpolate:
            raise AdapterError(
                f"{part.title} has {part.adapter.exclusive}, which belong to one adapter and are not blended",
                "interpolate them between the base's and the adapters' with --interpolate, or leave it out",
            )
    if base is None:
        raise AdapterError(
            "the adapters replace parts of their base, which a blend of them starts from",
            "name the base with --base",
        )
    return _blended(adapter, parts, base)


def _kept(adapter: Adapter, source: Adapter) -> Adapter:
    spec = replace(
        adapter.spec,
        bias=source.spec.bias,
        modules_to_save=source.spec.modules_to_save,
        trainable_token_indices=source.spec.trainable_token_indices,
    )
    return replace(adapter, spec=spec, biases=source.biases, saved=source.saved, tokens=source.tokens)


def _blended(adapter: Adapter, parts: Sequence[Part], base: BaseTensors) -> Adapter:
    adapters = [part.adapter for part in parts]
    saved_names = tuple(sorted({name for each in adapters for name in each.spec.modules_to_save}))
    rows = _token_rows(adapters)
    kinds = {each.spec.bias for each in adapters}
    bias: Literal["none", "all", "lora_only"] = (
        "all" if "all" in kinds else "lora_only" if "lora_only" in kinds else "none"
    )
    spec = replace(adapter.spec, bias=bias, modules_to_save=saved_names, trainable_token_indices=rows)
    within = [path for path in adapter.factors if spec.replaces(path)]
    if within:
        raise AdapterError(
            f"one adapter replaces {within[0]} whole and another updates it", "they cannot become one"
        )

    def mixed(path: str, start: Tensor, pick: Callable[[Adapter], Tensor | None]) -> Tensor:
        total = start.double()
        for part in parts:
            own = pick(part.adapter)
            if own is not None:
                total = total + part.at(path) * (own.double() - start.double())
        return total.to(torch.promote_types(start.dtype, torch.float32))

    biases = {}
    for path in _biased(adapters, adapter, bias, base):
        name = base.bias_name(path)
        if name is None:
            raise AdapterError(f"an adapter trains a bias of {path}, and the base has none there")
        biases[path] = mixed(path, base.read(name), lambda each, path=path: each.biases.get(path))  # type: ignore[misc]
    saved = {}
    for name in sorted({name for each in adapters for name in each.saved}):
        start = base.read(base.tensor_name(name))
        saved[name] = mixed(name, start, lambda each, name=name: each.saved.get(name))  # type: ignore[misc]
    tokens = {
        path: _mixed_rows(path, parts, rows, base)
        for path in sorted({path for each in adapters for path in each.tokens})
    }
    return replace(adapter, spec=spec, biases=biases, saved=saved, tokens=tokens)


def _biased(adapters: Sequence[Adapter], result: Adapter, bias: str, base: BaseTensors) -> list[str]:
    """The modules whose bias the result must hold, by PEFT's rule for `bias`."""
    named = {path for each in adapters for path in each.biases}
    if bias == "lora_only":
        named |= {path for path in result.factors if base.bias_name(path) is not None}
    return sorted(named)


def _token_rows(adapters: Sequence[Adapter]) -> dict[str, tuple[int, ...]]:
    """The rows that any of them trains, by the name under which it does."""
    rows: dict[str, set[int]] = {}
    for each in adapters:
        for name, numbers in each.spec.trainable_token_indices.items():
            rows.setdefault(name, set()).update(numbers)
    if len(rows) > 1:
        raise AdapterError(
            f"the adapters train token rows under different names ({', '.join(map(repr, rows))})",
            "only rows of one embedding, named alike, can be blended",
        )
    return {name: tuple(sorted(numbers)) for name, numbers in rows.items()}


def _mixed_rows(
    path: str, parts: Sequence[Part], rows: Mapping[str, tuple[int, ...]], base: BaseTensors
) -> Tensor:
    numbers = next(iter(rows.values()))
    start = base.read(base.tensor_name(f"{path}.weight"))[list(numbers)].double()
    total = start.clone()
    for part in parts:
        own = part.adapter.tokens.get(path)
        if own is not None:
            mine = next(iter(part.adapter.spec.trainable_token_indices.values()))
            places = [numbers.index(row) for row in mine]
            total[places] += part.at(path) * (own.double() - start[places])
    return total.float()
