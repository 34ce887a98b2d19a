"""`Layout`: which tensors a merged folder holds, in which shard, and what its config.json must say for them.

Decides whether tied tensors stay one, which biases come to be, and in which type each tensor is kept. Knows
names, types and shapes; reads and writes no weights.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from scumble.errors import BaseModelError, NotSupportedError
from scumble.lora.adapter import Adapter
from scumble.lora.merging import Change, parameter_changes
from scumble.models.checkpoint import INDEX_NAME, Checkpoint, TensorFact
from scumble.models.shards import bytes_of
from scumble.models.skeleton import Skeleton, skeleton_of

CONFIG_NAME = "config.json"


@dataclass(frozen=True)
class Entry:
    """A tensor to be written.

    Attributes:
        source: the base's tensor that it starts from; None for a new bias, which starts from zeros.
        change: what the adapter does to it.
        fact: its shard, type and shape.
    """

    source: str | None
    change: Change | None
    fact: TensorFact


@dataclass
class Layout:
    """What a merged folder consists of.

    Attributes:
        entries: its tensors, by name.
        config: its config.json.
        untied: parameters that shared a tensor in the base, and have one of their own now.
        switches: settings of config.json that were turned on for new biases.
    """

    entries: dict[str, Entry] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    untied: list[str] = field(default_factory=list)
    switches: list[str] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        """Size of all tensors."""
        return sum(bytes_of(entry.fact) for entry in self.entries.values())

    def of(self, file: str) -> dict[str, TensorFact]:
        """The tensors of one shard."""
        return {name: entry.fact for name, entry in self.entries.items() if entry.fact.file == file}

    def index(self, base: Mapping[str, Any] | None) -> dict[str, Any] | None:
        """The index, from that of the base; None where the base is a single file."""
        if base is None:
            return None
        old = base.get("metadata")
        metadata: dict[str, Any] = dict(old) if isinstance(old, dict) else {}
        metadata["total_size"] = self.bytes
        if "total_parameters" in metadata:
            metadata["total_parameters"] = sum(
                torch.Size(entry.fact.shape).numel() for entry in self.entries.values()
            )
        names = {name: self.entries[name].fact.file for name in sorted(self.entries)}
        return {"metadata": metadata, "weight_map": names}


def plan_layout(base: Checkpoint, adapter: Adapter, dtype: torch.dtype | None) -> Layout:
    """Lay out the merged folder.

    Args:
        base: the base.
        adapter: one that fits it.
        dtype: of every floating-point tensor; None to keep what each is stored in.

    Raises:
        NotSupportedError: a tensor that the adapter changes is stored in another form, or a new bias or an
            untied tensor has no place in this architecture.
    """
    changes = parameter_changes(adapter, base.modules)
    layout = Layout(config=_read_config(base))
    for name, fact in base.tensors.items():
        layout.entries[name] = Entry(name, None, fact)
    new = [name for name in changes if not _exists(base, name)]
    shapes = _turn_on(base, layout, new) if new else {}
    for name, shape in shapes.items():
        weight = base.tensors[base.tensor_name(name.removesuffix("bias") + "weight")]
        stored = _stored_name(base, name)
        layout.entries[stored] = Entry(None, changes.get(name), TensorFact(weight.file, weight.dtype, shape))
    for name in sorted(set(changes) - set(new)):
        _place(base, layout, changes, name)
    if layout.untied:
        layout.config["tie_word_embeddings"] = False
        _check_untied(base, layout)
    if dtype is not None:
        _set_dtype(layout, dtype)
    return layout


def _exists(base: Checkpoint, parameter: str) -> bool:
    path, _, last = parameter.rpartition(".")
    return getattr(base.modules[path], last, None) is not None


def _place(base: Checkpoint, layout: Layout, changes: Mapping[str, Change], name: str) -> None:
    """Note a change of a parameter; one that shares its tensor gets its own where the others change otherwise."""
    shared = base.ties.get(name, ())
    source = base.tensor_name(name)
    if all(changes[name].same(changes.get(other)) for other in shared):
        for stored in {source} | {found for n in (name, *shared) if (found := base.own_tensor(n))}:
            layout.entries[stored] = replace(layout.entries[stored], change=changes[name])
        return
    for each in (name, *shared):
        stored = base.own_tensor(each) or each
        layout.entries[stored] = Entry(source, changes.get(each), base.tensors[source])
        if each not in layout.untied:
            layout.untied.append(each)


def _turn_on(base: Checkpoint, layout: Layout, wanted: Iterable[str]) -> dict[str, tuple[int, ...]]:
    """Turn on the settings of config.json that give modules the biases that are wanted.

    A setting is looked for among those that are false and speak of a bias (`attention_bias`, `mlp_bias`,
    `use_bias`); it counts where the model built with it differs from the base's in new biases alone.

    Returns:
        The shape of every new bias, by parameter name; those that nobody asked for are zeros.
    """
    missing = set(wanted)
    shapes: dict[str, tuple[int, ...]] = {}
    own = _shapes(base.skeleton)
    config = base.skeleton.model.config.to_dict()
    for switch in sorted(key for key, value in config.items() if value is False and "bias" in key):
        if not missing:
            break
        built = _shapes(skeleton_of({**layout.config, switch: True}, base.name))
        added = {name: shape for name, shape in built.items() if name not in own}
        biases_alone = all(name.endswith(".bias") for name in added)
        if missing & added.keys() and biases_alone and {n: built.get(n) for n in own} == own:
            layout.config[switch] = True
            layout.switches.append(switch)
            shapes |= added
            missing -= added.keys()
    if missing:
        first = min(missing)
        raise NotSupportedError(
            f"the adapter adds a bias to {first.removesuffix('.bias')} (lora_bias), which has none in "
            f"{base.name}, and no setting of its architecture gives it one",
            "such an adapter cannot be merged into a standard model; use it beside its base",
        )
    return shapes


def _shapes(skeleton: Skeleton) -> dict[str, tuple[int, ...]]:
    named = skeleton.model.named_parameters(remove_duplicate=False)
    return {name: tuple(parameter.shape) for name, parameter in named}


def _stored_name(base: Checkpoint, bias: str) -> str:
    """A new bias's tensor name, with the decoder's name left out where its weight has it left out."""
    weight = bias.removesuffix("bias") + "weight"
    stored = base.own_tensor(weight) or weight
    return stored.removesuffix("weight") + "bias"


def _check_untied(base: Checkpoint, layout: Layout) -> None:
    """The model must come apart by its configuration, or transformers would tie it again."""
    if skeleton_of(layout.config, base.name).ties().keys() & set(layout.untied):
        raise NotSupportedError(
            f"the adapter changes only some of {', '.join(layout.untied)}, which are one tensor in {base.name}, "
            "and its architecture cannot keep them apart",
            "such an adapter cannot be merged into a standard model; use it beside its base",
        )


def _set_dtype(layout: Layout, dtype: torch.dtype) -> None:
    for name, entry in layout.entries.items():
        if entry.fact.dtype.is_floating_point:
            layout.entries[name] = replace(entry, fact=replace(entry.fact, dtype=dtype))
    text = str(dtype).removeprefix("torch.")
    holders = [layout.config, *(v for v in layout.config.values() if isinstance(v, dict))]
    for holder in holders:  # a part of the model, such as text_config, may name a type of its own
        for key in ("dtype", "torch_dtype"):
            if key in holder:
                holder[key] = text
    if "torch_dtype" not in layout.config:
        layout.config["dtype"] = text


def _read_config(base: Checkpoint) -> dict[str, Any]:
    try:
        config = json.loads((base.folder / CONFIG_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BaseModelError(f"base {base.name} has a config.json that cannot be read", str(error)) from error
    assert isinstance(config, dict)  # the skeleton was built from it
    return config


def write_documents(layout: Layout, base: Checkpoint, folder: Path) -> None:
    """Write config.json and the index."""
    _write_json(folder / CONFIG_NAME, layout.config)
    index = layout.index(base.index)
    if index is not None:
        _write_json(folder / INDEX_NAME, index)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")
