"""`LoraSpec`: what an adapter's `adapter_config.json` says, and nothing of its weights.

The scale of a module's update is alpha / rank, or alpha / sqrt(rank) for rsLoRA (Kalajdzievski 2023,
arXiv:2312.03732), with the rank and the alpha that `rank_pattern` and `alpha_pattern` give that module.
What changes the forward pass and is not computed exactly here is refused by name, never ignored.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

from scumble.errors import AdapterError, shown
from scumble.lora.patterns import PatternTable, check_patterns, check_time, find
from scumble.lora.peft_config import MAX_ALPHA, MAX_RANK, read_fields, refuse_what_is_not_exact
from scumble.lora.targets import ALL_LINEAR, TARGET_SETS, expand_targets, layer_index, named_by


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
            if isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= MAX_RANK:
                raise AdapterError(
                    f"the rank is {shown(rank)}",
                    f"a rank is a whole number from 1 to {MAX_RANK}; 8 is a good start",
                )
        for alpha in (self.alpha, *self.alpha_pattern.values()):
            if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 < alpha <= MAX_ALPHA:
                raise AdapterError(
                    f"alpha is {shown(alpha)}",
                    f"alpha is a positive number up to {MAX_ALPHA:g}; twice the rank is usual",
                )
        if not 0 <= self.dropout < 1:
            raise AdapterError(
                f"dropout is {shown(self.dropout)}", "it is a share from 0 up to, but not including, 1"
            )
        if self.bias not in ("none", "all", "lora_only"):
            raise AdapterError(f"bias is {shown(self.bias)}", "it is none, all or lora_only")
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
        check_patterns([*self.rank_pattern, *self.alpha_pattern], "suffix")
        check_patterns(self.layers_pattern, "layer")
        if isinstance(self.exclude_modules, str):
            check_patterns([self.exclude_modules])

    def rank_of(self, path: str) -> int:
        """The rank of the module at `path`."""
        return int(self._ranks.value(path, self.rank))

    def scale_of(self, path: str) -> float:
        """The scale s of the update of the module at `path`: alpha / rank or alpha / sqrt(rank)."""
        rank, alpha = self.rank_of(path), self._alphas.value(path, self.alpha)
        return alpha / math.sqrt(rank) if self.rslora else alpha / rank

    def matches(self, path: str) -> bool:
        """Whether the adapter reaches the module at `path` (for `all-linear` the bank decides)."""
        check_time()
        if isinstance(self.exclude_modules, str):
            if find(self.exclude_modules, path):
                return False
        elif named_by(path, self._excluded):
            return False
        if self.replaces(path):
            return False
        if isinstance(self.targets, str):
            return self.targets != ALL_LINEAR and find(self.targets, path) is not None
        if not named_by(path, self._named):
            return False
        # a whole path in the list is reached whatever its layer, as in PEFT
        return (
            path in self._named
            or not self.layers_to_transform
            or layer_index(path, self.layers_pattern) in self._layers
        )

    def replaces(self, path: str) -> bool:
        """Whether the module at `path` lies in one of `modules_to_save`."""
        return any(f".{name}." in f".{path}." for name in self.modules_to_save)

    def saves(self, path: str) -> bool:
        """Whether the module at `path` is one of `modules_to_save`: its path ends in a name, as PEFT matches."""
        check_time()
        return path.endswith(tuple(self.modules_to_save))

    # what does not change is put in order once, for a configuration may name thousands of modules
    @cached_property
    def _ranks(self) -> PatternTable:
        return PatternTable(self.rank_pattern)

    @cached_property
    def _alphas(self) -> PatternTable:
        return PatternTable(self.alpha_pattern)

    @cached_property
    def _named(self) -> frozenset[str]:
        return frozenset() if isinstance(self.targets, str) else frozenset(self.targets)

    @cached_property
    def _excluded(self) -> frozenset[str]:
        return frozenset() if isinstance(self.exclude_modules, str) else frozenset(self.exclude_modules)

    @cached_property
    def _layers(self) -> frozenset[int]:
        return frozenset(self.layers_to_transform)

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
        refuse_what_is_not_exact(values, known=set(LoraSpec().to_peft()))
        return cls(**read_fields(values))


def _listed(value: str | tuple[str, ...]) -> str | list[str] | None:
    return value if isinstance(value, str) and value else sorted(value) or None
