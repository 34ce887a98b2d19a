"""PEFT's `adapter_config.json`, key by key: what of it is read, within which bounds, and what is refused.

The file may come from a stranger: a value of a wrong type, or out of all proportion, is an `AdapterError` of one
line. What changes the forward pass and is not computed exactly here is refused by name, never ignored. Knows
the keys of the format, and nothing of what is computed with them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from scumble.errors import AdapterError, clipped, shown
from scumble.lora.targets import ALL_LINEAR, expand_targets

MAX_RANK = 2**16
MAX_ALPHA = 1e9
_MAX_NAMES = 2**16  # in a list of modules, or of patterns with a value
_MAX_SAVED = 1000  # in modules_to_save
_MAX_NUMBER = 2**31  # of a layer, or of a token
_MAX_NAME = 500  # characters of a module's name
_MAX_BASE_NAME = 4096  # characters, as of a path
_WRITTEN_BY_PEFT = "it should be what PEFT's save_pretrained writes"

# What PEFT's LoRA can be asked for that changes the forward pass in a way that the bank does not compute.
REFUSED = {
    "alora_invocation_tokens": "aLoRA (alora_invocation_tokens)",
    "target_parameters": "adapters on bare parameters (target_parameters), such as fused experts",
    "layer_replication": "layer replication (layer_replication)",
    "use_qalora": "QALoRA (use_qalora)",
    "use_bdlora": "block-diagonal LoRA (use_bdlora)",
    "arrow_config": "Arrow routing (arrow_config)",
    "kasa_config": "KaSA (kasa_config)",
    "velora_config": "VeLoRA (velora_config)",
    "monteclora_config": "MonteCLoRA (monteclora_config)",
    "ensure_weight_tying": "tied adapters (ensure_weight_tying)",
    "megatron_config": "Megatron layers (megatron_config)",
}
# These change the base's own weights when PEFT makes the adapter, so that the file alone is no adapter
# for the original base.
REFUSED_INITS = ("pissa", "olora", "corda", "lora_ga", "loftq")
# These are in the file, and have no effect on the forward pass of what it holds.
HARMLESS = frozenset(
    [
        "peft_type",
        "task_type",
        "auto_mapping",
        "peft_version",
        "inference_mode",
        "revision",
        "runtime_config",
        "megatron_core",
        "loftq_config",
        "eva_config",
        "corda_config",
        "lora_ga_config",
        "qalora_group_size",
        "init_lora_weights",
    ]
)


def refuse_what_is_not_exact(values: Mapping[str, Any], known: Collection[str]) -> None:
    """Raise `AdapterError` for the first thing in PEFT's configuration that the bank cannot compute.

    Args:
        values: the configuration.
        known: the keys that are computed with.
    """
    kind = getattr(values.get("peft_type"), "value", values.get("peft_type"))
    hint = "load it with PEFT itself, or train a plain LoRA adapter"
    if kind != "LORA":
        title = clipped(kind) if isinstance(kind, str) and kind else "an adapter without peft_type"
        raise AdapterError(f"{title} is not LoRA, and is not computed here", hint)
    for key, title in REFUSED.items():
        # an empty dict is a configuration with its defaults; None, False and [] ask for nothing
        if values.get(key) not in (None, False, []):
            raise AdapterError(f"the adapter uses {title}, which is not computed exactly here", hint)
    init = values.get("init_lora_weights", True)
    if isinstance(init, str) and init.lower().startswith(REFUSED_INITS):
        raise AdapterError(
            f"the adapter was initialised with {clipped(init.lower())}, which changes the base's own weights",
            "save it with PEFT's path_initial_model_for_weight_conversion, which makes it a plain LoRA adapter",
        )
    known = {*known, *HARMLESS, *REFUSED}
    for key, value in values.items():
        if key not in known and value not in (None, False, [], {}):
            raise AdapterError(f"the adapter's configuration has {shown(key)}, which is not known here", hint)


def read_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a `LoraSpec` that PEFT's configuration amounts to; the spec checks what they mean.

    Raises:
        AdapterError: a value is of a wrong type or out of proportion, or there are no target modules.
    """
    layers = values.get("layers_to_transform")
    return {
        "rank": values.get("r", 8),
        "alpha": values.get("lora_alpha", 8),
        "targets": _targets(values),
        "dropout": _number(values, "lora_dropout"),
        "rslora": _flag(values, "use_rslora"),
        "dora": _flag(values, "use_dora"),
        "lora_bias": _flag(values, "lora_bias"),
        "bias": values.get("bias", "none"),
        "rank_pattern": _pattern(values, "rank_pattern"),
        "alpha_pattern": _pattern(values, "alpha_pattern"),
        "layers_to_transform": () if layers is None else _numbers("layers_to_transform", layers),
        # an empty list of layers means every layer, and the pattern has nothing to say
        "layers_pattern": () if layers == [] else _names(values, "layers_pattern", _MAX_SAVED),
        "exclude_modules": _exclusions(values),
        "modules_to_save": _names(values, "modules_to_save", _MAX_SAVED),
        "trainable_token_indices": _tokens(values.get("trainable_token_indices")),
        "fan_in_fan_out": _flag(values, "fan_in_fan_out"),
        "base_name": _base_name(values),
    }


def _wrong(key: str, value: object, wanted: str) -> AdapterError:
    return AdapterError(
        f"the adapter's configuration has a value of a wrong type: {key} is {shown(value)}, not {wanted}",
        _WRITTEN_BY_PEFT,
    )


def _too_many(key: str, limit: int) -> AdapterError:
    return AdapterError(f"{key} has more than {limit:,} entries", _WRITTEN_BY_PEFT)


def _flag(values: Mapping[str, Any], key: str) -> bool:
    value = values.get(key)
    if value is not None and not isinstance(value, bool):
        raise _wrong(key, value, "true or false")
    return bool(value)


def _number(values: Mapping[str, Any], key: str) -> float:
    value = values.get(key)
    if value is None:
        return 0.0
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _wrong(key, value, "a number")
    return value


def _pattern(values: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = values.get(key)
    if value is None:
        return {}
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise _wrong(key, value, "values by pattern")
    if len(value) > _MAX_NAMES:
        raise _too_many(key, _MAX_NAMES)
    return dict(value)


def _strings(key: str, value: Any, limit: int) -> tuple[str, ...]:
    """A list of names, in its own order."""
    if not isinstance(value, list | tuple | set | frozenset):
        raise _wrong(key, value, "a list of names")
    if len(value) > limit:
        raise _too_many(key, limit)
    for name in value:
        if not isinstance(name, str):
            raise _wrong(f"an entry of {key}", name, "a name")
        if len(name) > _MAX_NAME or not name.isprintable():
            raise AdapterError(f"{key} has an entry that names no module: {shown(name)}", _WRITTEN_BY_PEFT)
    return tuple(value)


def _names(values: Mapping[str, Any], key: str, limit: int) -> tuple[str, ...]:
    """What PEFT lets be one name, several, or none."""
    value = values.get(key)
    if value is None or value == "":
        return ()
    return _strings(key, [value] if isinstance(value, str) else value, limit)


def _targets(values: Mapping[str, Any]) -> str | tuple[str, ...]:
    value = values.get("target_modules")
    if value is None:
        raise AdapterError("the adapter's configuration names no target_modules", _WRITTEN_BY_PEFT)
    # in PEFT's format a string is always a regular expression, also where it looks like one name
    if isinstance(value, str):
        if value.lower() == ALL_LINEAR:
            return ALL_LINEAR
        return value if not value or expand_targets(value) == value else f"(?:{value})"
    return tuple(sorted(_strings("target_modules", value, _MAX_NAMES)))


def _exclusions(values: Mapping[str, Any]) -> str | tuple[str, ...]:
    value = values.get("exclude_modules")
    if isinstance(value, str):
        return value
    return () if value is None else tuple(sorted(_strings("exclude_modules", value, _MAX_NAMES)))


def _numbers(key: str, value: Any) -> tuple[int, ...]:
    """What PEFT lets be one number or several, from 0."""
    listed = [value] if isinstance(value, int) else value
    if not isinstance(listed, list | tuple | set | frozenset | range):
        raise _wrong(key, value, "a list of whole numbers")
    for number in listed:
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < _MAX_NUMBER:
            raise _wrong(f"an entry of {key}", number, f"a whole number from 0 to {_MAX_NUMBER - 1}")
    return tuple(listed)


def _tokens(value: Any) -> dict[str, tuple[int, ...]]:
    if value is None or value == [] or value == {}:
        return {}
    key = "trainable_token_indices"
    if not isinstance(value, Mapping):
        return {"": _numbers(key, value)}
    if len(value) > _MAX_SAVED:
        raise _too_many(key, _MAX_SAVED)
    return {
        name: _numbers(key, rows)
        for name, rows in zip(_strings(key, list(value), _MAX_SAVED), value.values(), strict=True)
    }


def _base_name(values: Mapping[str, Any]) -> str | None:
    """The base's name: a text, which is not looked up here."""
    name = values.get("base_model_name_or_path")
    if name is not None and not isinstance(name, str):
        raise _wrong("base_model_name_or_path", name, "a name")
    if name and (len(name) > _MAX_BASE_NAME or not name.isprintable()):
        raise AdapterError(f"base_model_name_or_path is no possible name: {shown(name)}", _WRITTEN_BY_PEFT)
    return name
