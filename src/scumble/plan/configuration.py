"""A model's configuration as a plan reads it: whether it describes a model at all, before one is built of it.

transformers fills what is missing with defaults, mostly those of a 7B model, and builds what it is told, a thousand
million layers too. Both are refused here. Knows nothing of modules.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scumble.errors import BaseModelError, shown

_NEEDED = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "intermediate_size")
# far above any published model's, and still built in seconds
_LIMITS = {
    "hidden_size": 2**18,
    "num_hidden_layers": 2000,
    "num_attention_heads": 2**14,
    "num_key_value_heads": 2**14,
    "head_dim": 2**14,
    "vocab_size": 2**26,
    "intermediate_size": 2**21,
    "moe_intermediate_size": 2**21,
    "num_experts": 4096,
    "num_local_experts": 4096,
    "n_routed_experts": 4096,
}
_HINT = "give the config.json that came with the model"
_LARGEST = 2**40  # of any number: sizes of one matrix stay within 64 bits
# what has nothing to do with a model's shape, and of which transformers makes a table with a row for each number
_IDLE = ("num_labels", "id2label", "label2id")


def text_of(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The text model's part of a configuration; the whole where it has no parts."""
    inner = config.get("text_config") if isinstance(config, Mapping) else None
    if not isinstance(inner, Mapping):
        return config
    outer = {key: config[key] for key in ("dtype", "torch_dtype", "quantization_config") if key in config}
    return {**outer, **inner}


def checked(config: Mapping[str, Any], name: str, *, nested: bool) -> dict[str, Any]:
    """The contents of a config.json, found to have sizes that a model can have.

    Args:
        config: what a plan is made of.
        name: what an error calls the model.
        nested: it is one part of a larger one; such a part may leave out what is as in its class.

    Raises:
        BaseModelError: a size is missing or impossible, with the range.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING, CONFIG_MAPPING_NAMES

    if not isinstance(config, Mapping):
        raise BaseModelError(f"base {name} has a configuration that is no table of names and values", _HINT)
    kind = config.get("model_type")
    if not isinstance(kind, str):
        raise BaseModelError(f"base {name} has no model_type in its configuration", _HINT)
    if kind not in CONFIG_MAPPING_NAMES:
        raise BaseModelError(
            f"base {name} is of the model type {shown(kind)}, which this version of transformers does not know",
            "look at model_type in its config.json, or upgrade transformers",
        )
    known = CONFIG_MAPPING[kind]
    for field, limit in _LIMITS.items():
        given = [key for key in (field, known.attribute_map.get(field, field)) if key in config]
        for key in given:
            _check_size(config[key], key, limit, name, optional=field not in _NEEDED)
        if not given and _lacks(known, field, nested):
            raise BaseModelError(f"base {name} has no {field} in its configuration", _HINT)
    for key, value in config.items():
        if isinstance(value, int) and abs(value) > _LARGEST:
            raise BaseModelError(f"base {name} has {shown(key)} = {shown(value)} in its configuration", _HINT)
    return {key: value for key, value in config.items() if key not in _IDLE}


def _lacks(known: Any, field: str, nested: bool) -> bool:
    """Whether a size must be said: one that models of this class have, and that their class should not guess."""
    needed = _NEEDED[:2] if nested else _NEEDED
    return field in needed and hasattr(known, known.attribute_map.get(field, field))


def _check_size(value: Any, key: str, limit: int, name: str, *, optional: bool) -> None:
    if value is None and optional:
        return
    for size in value if isinstance(value, list) and value else [value]:
        if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= limit:
            raise BaseModelError(
                f"base {name} has {key} = {shown(size)} in its configuration",
                f"it is a whole number from 1 to {limit:,}",
            )
