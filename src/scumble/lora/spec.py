"""`LoraSpec`: what an adapter's `adapter_config.json` says, and nothing of its weights.

The scale of a module's update is alpha / rank, or alpha / sqrt(rank) for rsLoRA (Kalajdzievski 2023,
arXiv:2312.03732), with the rank and the alpha that `rank_pattern` and `alpha_pattern` give that module.
What changes the forward pass and is not computed exactly here is refused by name, never ignored.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from scumble.errors import AdapterError
from scumble.lora.targets import (
    ALL_LINEAR,
    TARGET_SETS,
    check_pattern,
    expand_targets,
    layer_index,
    named_by,
    pattern_value,
)

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


@dataclass(frozen=True)
class LoraSpec:
    """The shape of an adapter: ranks, scales, and the modules it reaches.

    Attributes:
        rank: columns of B and rows of A, 1 or more.
        alpha: numerator of the scale, positive.
        targets: module names, or a string: a regular expression over whole paths, or `all-linear`.
        dropout: share of x that is dropped before A while training.
        rslora: scale by alpha / sqrt(rank).
        dora: update by direction and magnitude (Liu et al. 2024, arXiv:2402.09353).
        lora_bias: B has a bias, which is scaled like the update.
        bias: which of the base's own biases are trained: `none`, `all` or `lora_only`.
        rank_pattern, alpha_pattern: from pattern to value, for modules that differ.
        layers_to_transform, layers_pattern, exclude_modules: as in PEFT.
        modules_to_save: modules that the adapter replaces whole.
        trainable_token_indices: rows of embeddings that the adapter replaces, by module name;
            under the name "" those of the input embedding.
        fan_in_fan_out: kept for the file; the layer's own class decides what is computed.
        base_name: hub name or folder of the base.
    """

    rank: int = 8
    alpha: float = 16.0
    targets: str | tuple[str, ...] = TARGET_SETS["minimal"]
    dropout: float = 0.0
    rslora: bool = False
    dora: bool = False
    lora_bias: bool = False
    bias: Literal["none", "all", "lora_only"] = "none"
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    layers_to_transform: tuple[int, ...] = ()
    layers_pattern: tuple[str, ...] = ()
    exclude_modules: str | tuple[str, ...] = ()
    modules_to_save: tuple[str, ...] = ()
    trainable_token_indices: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    fan_in_fan_out: bool = False
    base_name: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "targets", expand_targets(self.targets))
        for rank in (self.rank, *self.rank_pattern.values()):
            if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
                raise AdapterError(
                    f"the rank is {rank!r}", "a rank is a whole number, 1 or more; 8 is a good start"
                )
        for alpha in (self.alpha, *self.alpha_pattern.values()):
            if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 < alpha < math.inf:
                raise AdapterError(
                    f"alpha is {alpha!r}", "alpha is a positive number; twice the rank is usual"
                )
        if not 0 <= self.dropout < 1:
            raise AdapterError(
                f"dropout is {self.dropout!r}", "it is a share from 0 up to, but not including, 1"
            )
        if self.bias not in ("none", "all", "lora_only"):
            raise AdapterError(f"bias is {self.bias!r}", "it is none, all or lora_only")
        if self.dora and self.lora_bias:
            raise AdapterError("DoRA has no lora_bias", "leave one of the two out, as PEFT asks too")
        if isinstance(self.targets, str) and (self.layers_to_transform or self.layers_pattern):
            raise AdapterError(
                "layers_to_transform and layers_pattern need target modules by name",
                "with a regular expression, write the layers into it",
            )
        if self.layers_pattern and not self.layers_to_transform:
            raise AdapterError("layers_pattern is given without layers_to_transform", "say which layers")
        for rows in self.trainable_token_indices.values():
            if len(set(rows)) != len(rows):
                raise AdapterError("trainable_token_indices names a token twice", "name each token once")
        for pattern in (*self.rank_pattern, *self.alpha_pattern):
            check_pattern(pattern)
        if isinstance(self.exclude_modules, str):
            check_pattern(self.exclude_modules)

    def rank_of(self, path: str) -> int:
        """The rank of the module at `path`."""
        return int(pattern_value(self.rank_pattern, path, self.rank))

    def scale_of(self, path: str) -> float:
        """The scale s of the update of the module at `path`: alpha / rank or alpha / sqrt(rank)."""
        rank, alpha = self.rank_of(path), pattern_value(self.alpha_pattern, path, self.alpha)
        return alpha / math.sqrt(rank) if self.rslora else alpha / rank

    def matches(self, path: str) -> bool:
        """Whether the adapter reaches the module at `path` (for `all-linear` the bank decides)."""
        if isinstance(self.exclude_modules, str):
            if re.fullmatch(self.exclude_modules, path):
                return False
        elif named_by(path, self.exclude_modules):
            return False
        if self.replaces(path):
            return False
        if isinstance(self.targets, str):
            return self.targets != ALL_LINEAR and re.fullmatch(self.targets, path) is not None
        if not named_by(path, self.targets):
            return False
        # a whole path in the list is reached whatever its layer, as in PEFT
        return (
            path in self.targets
            or not self.layers_to_transform
            or layer_index(path, self.layers_pattern) in self.layers_to_transform
        )

    def replaces(self, path: str) -> bool:
        """Whether the module at `path` lies in one of `modules_to_save`."""
        return any(re.match(rf"(^|.*\.){re.escape(name)}($|\..*)", path) for name in self.modules_to_save)

    def saves(self, path: str) -> bool:
        """Whether the module at `path` is one of `modules_to_save`: its path ends in a name, as PEFT matches."""
        return any(path.endswith(name) for name in self.modules_to_save)

    def shape(self) -> dict[str, Any]:
        """What decides which tensors an adapter has and what they compute: not its base's name, not dropout."""
        free = ("base_model_name_or_path", "lora_dropout", "fan_in_fan_out")
        return {key: value for key, value in self.to_peft().items() if key not in free}

    def difference(self, other: LoraSpec) -> str:
        """The keys of `shape` in which another spec differs, with both values."""
        mine, theirs = self.shape(), other.shape()
        return ", ".join(
            f"{key} is {mine[key]}, not {theirs[key]}" for key in mine if mine[key] != theirs[key]
        )

    def with_base(self, name: str | None) -> LoraSpec:
        """The same, for a base of another name."""
        return replace(self, base_name=name)

    def to_peft(self) -> dict[str, Any]:
        """The adapter as PEFT's `adapter_config.json` has it, keys in a fixed order."""
        tokens: Any = {name: list(rows) for name, rows in self.trainable_token_indices.items()} or None
        return {
            "alpha_pattern": dict(self.alpha_pattern),
            "base_model_name_or_path": self.base_name,
            "bias": self.bias,
            "exclude_modules": _listed(self.exclude_modules),
            "fan_in_fan_out": self.fan_in_fan_out,
            "inference_mode": True,
            "init_lora_weights": True,
            "layers_pattern": list(self.layers_pattern) or None,
            "layers_to_transform": list(self.layers_to_transform) or None,
            "lora_alpha": int(self.alpha) if float(self.alpha).is_integer() else self.alpha,
            "lora_bias": self.lora_bias,
            "lora_dropout": self.dropout,
            "modules_to_save": list(self.modules_to_save) or None,
            "peft_type": "LORA",
            "r": self.rank,
            "rank_pattern": dict(self.rank_pattern),
            "target_modules": _listed(self.targets),
            "task_type": "CAUSAL_LM",
            "trainable_token_indices": tokens[""] if tokens and set(tokens) == {""} else tokens,
            "use_dora": self.dora,
            "use_rslora": self.rslora,
        }

    @classmethod
    def from_peft(cls, config: Mapping[str, Any] | Any) -> LoraSpec:
        """Read PEFT's configuration: its JSON, or a `peft.LoraConfig`.

        Raises:
            AdapterError: it is no LoRA, or asks for something that is not computed exactly; by name.
        """
        values = dict(config if isinstance(config, Mapping) else config.to_dict())
        refuse_what_is_not_exact(values)
        tokens, layers = values.get("trainable_token_indices"), values.get("layers_to_transform")
        try:
            return cls(
                rank=values.get("r", 8),
                alpha=values.get("lora_alpha", 8),
                targets=_targets(values.get("target_modules")),
                dropout=values.get("lora_dropout", 0.0) or 0.0,
                rslora=bool(values.get("use_rslora")),
                dora=bool(values.get("use_dora")),
                lora_bias=bool(values.get("lora_bias")),
                bias=values.get("bias", "none"),
                rank_pattern=values.get("rank_pattern") or {},
                alpha_pattern=values.get("alpha_pattern") or {},
                layers_to_transform=_tuple(layers, int),
                # an empty list of layers means every layer, and the pattern has nothing to say
                layers_pattern=() if layers == [] else _tuple(values.get("layers_pattern"), str),
                exclude_modules=_exclusions(values.get("exclude_modules")),
                modules_to_save=_tuple(values.get("modules_to_save"), str),
                trainable_token_indices=_tokens(tokens),
                fan_in_fan_out=bool(values.get("fan_in_fan_out")),
                base_name=values.get("base_model_name_or_path"),
            )
        except (TypeError, AttributeError) as error:
            raise AdapterError(
                f"the adapter's configuration has a value of a wrong type: {error}",
                "it should be what PEFT's save_pretrained writes",
            ) from error


def refuse_what_is_not_exact(values: Mapping[str, Any]) -> None:
    """Raise `AdapterError` for the first thing in PEFT's configuration that the bank cannot compute."""
    kind = getattr(values.get("peft_type"), "value", values.get("peft_type"))
    hint = "load it with PEFT itself, or train a plain LoRA adapter"
    if kind != "LORA":
        raise AdapterError(
            f"{kind or 'an adapter without peft_type'} is not LoRA, and is not computed here", hint
        )
    for key, title in REFUSED.items():
        # an empty dict is a configuration with its defaults; None, False and [] ask for nothing
        if values.get(key) not in (None, False, []):
            raise AdapterError(f"the adapter uses {title}, which is not computed exactly here", hint)
    init = str(values.get("init_lora_weights", True)).lower()
    if init.startswith(REFUSED_INITS):
        raise AdapterError(
            f"the adapter was initialised with {init}, which changes the base's own weights",
            "save it with PEFT's path_initial_model_for_weight_conversion, which makes it a plain LoRA adapter",
        )
    known = {*LoraSpec().to_peft(), *HARMLESS, *REFUSED}
    for key, value in values.items():
        if key not in known and value not in (None, False, [], {}):
            raise AdapterError(f"the adapter's configuration has {key!r}, which is not known here", hint)


def _listed(value: str | tuple[str, ...]) -> str | list[str] | None:
    return value if isinstance(value, str) and value else sorted(value) or None


def _tuple(value: Any, kind: type) -> tuple[Any, ...]:
    """A tuple of what PEFT lets be one value, several, or none."""
    if value is None or value == "":
        return ()
    values = [value] if isinstance(value, str | int) else list(value)
    return tuple(kind(item) for item in values)


def _targets(value: Any) -> str | tuple[str, ...]:
    if value is None:
        raise AdapterError(
            "the adapter's configuration names no target_modules", "it should be what PEFT writes"
        )
    # in PEFT's format a string is always a regular expression, also where it looks like one name
    if isinstance(value, str):
        if value.lower() == ALL_LINEAR:
            return ALL_LINEAR
        return value if not value or expand_targets(value) == value else f"(?:{value})"
    return tuple(sorted(str(name) for name in value))


def _exclusions(value: Any) -> str | tuple[str, ...]:
    return value if isinstance(value, str) else tuple(sorted(value or ()))


def _tokens(value: Any) -> dict[str, tuple[int, ...]]:
    if not value:
        return {}
    named: Mapping[str, Iterable[int]] = value if isinstance(value, Mapping) else {"": value}
    return {name: tuple(int(row) for row in rows) for name, rows in named.items()}
