"""How many parameters a base has, how many are trained, and what each target module adds: exact counts.

An adapter of a model's skeleton is made by the code that makes it for training, without data, and its tensors are
counted. So whatever matches there matches here, and what is refused there is refused here in the same words.

Counted as PEFT's `get_nb_trainable_parameters` counts: `total` is the base, tied parameters once, and all that the
adapter brings with it. Knows nothing of memory.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from scumble.lora.adapter import Adapter
from scumble.lora.fit import fit, refuse_fused_experts
from scumble.lora.fresh import fresh_adapter
from scumble.lora.spec import LoraSpec
from scumble.lora.targets import ALL_LINEAR
from scumble.models.weights import DTYPES
from scumble.plan.setup import Setup
from scumble.plan.shape import Shape

_TYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}  # as safetensors calls them
_HASH_DIGITS = 32  # of the base's hash, which an adapter's file names


@dataclass(frozen=True)
class Parameters:
    """A count of parameters.

    Attributes:
        total: of the base and the adapter.
        trainable: those of them that are trained.
        base: of the base alone, tied ones once.
        by_module: the trained ones by the last part of their module's name.
        file_bytes: of the weights' file that training writes: `adapter_model.safetensors`, to the byte; for full
            training the numbers of all weights.
    """

    total: int
    trainable: int
    base: int
    by_module: Mapping[str, int]
    file_bytes: int

    @property
    def percent(self) -> float:
        """The share that is trained, in percent of the total."""
        return 100 * self.trainable / self.total


def count_parameters(shape: Shape, asked: Setup | LoraSpec) -> Parameters:
    """Count what a way to train has and trains.

    Args:
        shape: of the base.
        asked: the setup of a plan, or the configuration of an adapter.

    Raises:
        AdapterError: the targets match nothing, or what cannot be trained; as `scumble train` says it.
    """
    if isinstance(asked, Setup) and asked.method == "full":
        by_module: Counter[str] = Counter()
        for weight in shape.weights:
            by_module[_last(weight.path)] += weight.count
        size = shape.parameters * DTYPES[asked.dtype].itemsize
        return Parameters(shape.parameters, shape.parameters, shape.parameters, dict(by_module), size)
    adapter = adapter_of(shape, asked)
    # biases of the base itself are trained in place: they add nothing to the total
    added = adapter.parameters - sum(bias.numel() for bias in adapter.biases.values())
    return Parameters(
        total=shape.parameters + added,
        trainable=adapter.parameters,
        base=shape.parameters,
        by_module=_by_module(adapter),
        file_bytes=_file_bytes(adapter),
    )


def adapter_of(shape: Shape, asked: Setup | LoraSpec) -> Adapter:
    """The adapter that would be trained, without data (the `meta` device).

    Raises:
        As `count_parameters`.
    """
    skeleton = shape.skeleton
    spec = asked if isinstance(asked, LoraSpec) else spec_of(asked)
    refuse_fused_experts(spec, skeleton.model)
    adapter = fresh_adapter(spec, skeleton.modules, skeleton.head, seed=0)
    fit(adapter, skeleton.modules, skeleton.head, "the adapter")
    return adapter


def spec_of(setup: Setup) -> LoraSpec:
    """The configuration of a setup's adapter."""
    targets = setup.targets if isinstance(setup.targets, str) else tuple(setup.targets)
    return LoraSpec(
        rank=setup.rank,
        alpha=setup.alpha,
        targets=targets,
        dropout=setup.dropout,
        rslora=setup.rslora,
        dora=setup.dora,
    )


def adds(shape: Shape, asked: Setup | LoraSpec) -> dict[str, int]:
    """How many trained parameters each kind of linear layer brings with it, or would, in the model's order.

    Args:
        shape: of the base.
        asked: its rank, patterns and variants are taken, whatever its targets.

    Returns:
        From the last part of the layers' names (`q_proj`, `down_proj`) to parameters in all layers together. The
        output layer is left out, as `all-linear` does.
    """
    spec = asked if isinstance(asked, LoraSpec) else spec_of(asked)
    linear = LoraSpec(
        spec.rank,
        spec.alpha,
        ALL_LINEAR,
        dora=spec.dora,
        lora_bias=spec.lora_bias,
        rank_pattern=spec.rank_pattern,
    )
    return _by_module(fresh_adapter(linear, shape.skeleton.modules, shape.skeleton.head, seed=0))


def _by_module(adapter: Adapter) -> dict[str, int]:
    found: Counter[str] = Counter()
    for path, factors in adapter.factors.items():
        parts = (factors.A, factors.B, factors.bias, factors.magnitude)
        found[_last(path)] += sum(part.numel() for part in parts if part is not None)
    for path, tensor in (*adapter.biases.items(), *adapter.tokens.items()):
        found[_last(path)] += tensor.numel()
    for path, tensor in adapter.saved.items():
        found[_last(path.rpartition(".")[0])] += tensor.numel()
    return dict(found)


def _file_bytes(adapter: Adapter) -> int:
    """The size of `adapter_model.safetensors`: whole copies in the base's type, all else in fp32."""
    saved = {id(tensor) for tensor in adapter.saved.values()}
    kinds = {
        name: (tensor.dtype if id(tensor) in saved else torch.float32, tensor.shape)
        for name, tensor in adapter.tensors().items()
    }
    header: dict[str, object] = {"__metadata__": {"base_hash": "0" * _HASH_DIGITS, "format": "pt"}}
    start = 0
    # the library puts wide types first, and tensors of one type by name
    for name, (kind, shape) in sorted(kinds.items(), key=lambda each: (-each[1][0].itemsize, each[0])):
        end = start + shape.numel() * kind.itemsize
        header[name] = {"dtype": _TYPES[kind], "shape": list(shape), "data_offsets": [start, end]}
        start = end
    text = len(json.dumps(header, separators=(",", ":")))
    return 8 + text + -text % 8 + start


def _last(path: str) -> str:
    return path.rpartition(".")[2]
