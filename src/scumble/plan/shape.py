"""`Shape`: what of a causal model decides on memory and time, read off a skeleton without weights.

    shape = Shape.of_config(json.loads(text), "my-model", "models/my-model/config.json")
    shape.parameters, shape.layers, shape.window

The configuration says what cannot be seen in the modules (heads, windows, activation); the modules say the rest, so
that any model that transformers builds is known by its parameters at least. Knows nothing of adapters, of setups, and
of where configurations are found, which `configuration` knows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from scumble.errors import NotSupportedError, ScumbleError, clipped
from scumble.models.hub import explain
from scumble.models.resolve import Source
from scumble.models.skeleton import Skeleton, skeleton_of
from scumble.models.weights import DTYPES
from scumble.plan.configuration import checked, find_configuration, text_of

Kind = Literal["linear", "conv1d", "embedding", "experts", "norm", "bias", "other"]
_ACTIVATIONS = {
    "swish": "silu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
}
# the modules of a layer of Llama and its kin, whose activations are known by formula
_ATTENTION = ({"q_proj", "k_proj", "v_proj", "o_proj"}, {"qkv_proj", "o_proj"})
_MLP = ({"gate_proj", "up_proj", "down_proj"}, {"gate_up_proj", "down_proj"})


@dataclass(frozen=True)
class Weight:
    """One parameter.

    Attributes:
        path: of its module; of the parameter itself for `experts` and `other`.
        kind: what it is; `linear` also of a fused projection, `norm` also of a norm's bias.
        out, in_: of the matrix y = W x, of one expert's for `experts`, of (tokens, width) for an embedding; a vector
            has in_ = 1.
        count: numbers in it, all experts together.
    """

    path: str
    kind: Kind
    out: int
    in_: int
    count: int


@dataclass(frozen=True)
class Shape:
    """What of a causal model decides on memory and time.

    Attributes:
        name: as asked for.
        model_type: transformers' (`llama`, `qwen3`, ...).
        dtype: of the configuration: bf16, fp16 or fp32.
        layers, hidden, heads, kv_heads, head_dim, vocabulary: sizes, as the configuration has them.
        intermediate: width of a dense MLP, of one expert where there are experts.
        tied: the output layer shares the embedding.
        window: tokens that a layer with a sliding window looks back, None where no layer has one.
        windowed_layers: how many layers have it.
        softcap: attention's logits are capped (Gemma 2).
        head_softcap: the output layer's logits are capped.
        experts, experts_per_token: 0 for a dense model.
        norms_per_layer: norms over `hidden` in a layer.
        qk_norm: queries and keys are normalised by head (Qwen3, Gemma 3).
        activation: silu, gelu_tanh, ...
        gated: the MLP has a gate.
        fused_qkv, fused_gate_up: projections that share one matrix (Phi-3).
        parallel: attention and MLP read the same norm (GPT-J, Cohere).
        positions_limit: positions that the configuration allows, None where it says nothing.
        parameters: all of them, tied ones once.
        weights: each of them, tied ones once, in the model's order.
        known: activations of such a layer are known by formula (Llama and its kin); else they are an estimate.
        source: where the configuration comes from, in words.
        skeleton: the model without weights, for what is asked of module paths.
    """

    name: str
    model_type: str
    dtype: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool
    window: int | None
    windowed_layers: int
    softcap: bool
    head_softcap: bool
    experts: int
    experts_per_token: int
    norms_per_layer: int
    qk_norm: bool
    activation: str
    gated: bool
    fused_qkv: bool
    fused_gate_up: bool
    parallel: bool
    positions_limit: int | None
    parameters: int
    weights: tuple[Weight, ...] = field(repr=False)
    known: bool
    source: str
    skeleton: Skeleton = field(repr=False, compare=False)

    @classmethod
    def of_config(cls, config: Mapping[str, Any], name: str, source: str) -> Shape:
        """Read the shape of the model that the contents of a config.json describe.

        Of a model that also sees pictures, the text model is taken, and `source` says so.

        Raises:
            BaseModelError: it describes no model.
            NotSupportedError: it is no causal language model, or a quantised one.
        """
        text = text_of(config)
        nested = text is not config
        text = checked(text, name, nested=nested)
        try:
            skeleton = skeleton_of(text, name)
        except ScumbleError:
            raise
        except Exception as error:
            raise explain(error, Source("folder", name)) from error
        said = f"{source}, its text model alone" if nested else source
        return cls(name=name, source=said, skeleton=skeleton, **_read(skeleton, name))


def _read(skeleton: Skeleton, name: str) -> dict[str, Any]:
    """What a skeleton and its configuration say, by the fields of `Shape`."""
    config = skeleton.model.config
    named = {full: _weight(full, p, skeleton.modules) for full, p in skeleton.model.named_parameters()}
    layers = _by_layer(skeleton, named, _size(config, "num_hidden_layers"))
    hidden, heads = _size(config, "hidden_size"), _size(config, "num_attention_heads") or 1
    head_dim = _size(config, "head_dim") or hidden // heads
    window, windowed = _window(config, len(layers))
    return {
        "model_type": str(config.model_type),
        "dtype": _dtype(config, name),
        "layers": len(layers),
        "hidden": hidden,
        "heads": heads,
        "kv_heads": _size(config, "num_key_value_heads") or heads,
        "head_dim": head_dim,
        "vocabulary": _size(config, "vocab_size"),
        "tied": _tied(skeleton),
        "window": window,
        "windowed_layers": windowed,
        "softcap": bool(getattr(config, "attn_logit_softcapping", None)),
        "head_softcap": bool(getattr(config, "final_logit_softcapping", None)),
        "activation": _activation(config),
        "positions_limit": _size(config, "max_position_embeddings") or None,
        "parameters": sum(weight.count for weight in named.values()),
        "weights": tuple(named.values()),
        "known": _known(skeleton, layers, head_dim),
        # in a mixture whose first layers are dense the last one is the usual one
        **_of_layer(config, layers[-1] if layers else {}, hidden),
    }


def _of_layer(config: Any, layer: Mapping[str, Weight], hidden: int) -> dict[str, Any]:
    """What one layer says, by the fields of `Shape`."""
    matrices = {path: w for path, w in layer.items() if w.kind in ("linear", "conv1d", "experts")}
    mlp = {path: w for path, w in matrices.items() if not _attends(path)}
    norms = [p for p, w in layer.items() if w.kind == "norm" and w.out == hidden and p.endswith("weight")]
    norms = [path for path in norms if not _attends(path)]
    mixed = any("experts" in path for path in mlp)
    parts = {_part(path) for path in matrices}
    return {
        # where the configuration says nothing (GPT-2), the MLP is as wide as its widest matrix
        "intermediate": (_size(config, "moe_intermediate_size") if mixed else 0)
        or _size(config, "intermediate_size", "n_inner", "ffn_dim")
        or max((w.out for w in mlp.values()), default=0),
        "experts": _size(config, "num_experts", "num_local_experts", "n_routed_experts") if mixed else 0,
        "experts_per_token": _size(config, "num_experts_per_tok", "moe_topk") if mixed else 0,
        "norms_per_layer": len(norms),
        "qk_norm": any(_part(path) == "q_norm" for path in layer),
        "gated": bool(parts & {"gate_proj", "gate_up_proj", "w3"}),
        "fused_qkv": bool(parts & {"qkv_proj", "query_key_value", "c_attn", "Wqkv"}),
        "fused_gate_up": "gate_up_proj" in parts,
        "parallel": len(norms) == 1 and bool(mlp) and len(mlp) < len(matrices),
    }


def _weight(name: str, parameter: nn.Parameter, modules: Mapping[str, nn.Module]) -> Weight:
    path, _, last = name.rpartition(".")
    module, count = modules[path], parameter.numel()
    out, in_ = (parameter.shape[-2:] if parameter.ndim > 1 else (count, 1)) if parameter.ndim else (1, 1)
    if isinstance(module, Conv1D) and last == "weight":
        return Weight(path, "conv1d", in_, out, count)
    if isinstance(module, nn.Linear) and last == "weight":
        return Weight(path, "linear", out, in_, count)
    if isinstance(module, nn.Embedding):
        return Weight(path, "embedding", out, in_, count)
    if parameter.ndim == 3:
        turned = bool(getattr(module, "is_transposed", False))
        return Weight(name, "experts", in_ if turned else out, out if turned else in_, count)
    if "norm" in type(module).__name__.lower():
        return Weight(path, "norm", out, in_, count)
    return Weight(path, "bias", out, in_, count) if last == "bias" else Weight(name, "other", out, in_, count)


def _by_layer(skeleton: Skeleton, named: Mapping[str, Weight], count: int) -> list[dict[str, Weight]]:
    """The parameters of every layer by their names in it; the layers are the first list of `count` modules."""
    lists = (path for path, m in skeleton.modules.items() if isinstance(m, nn.ModuleList) and len(m) == count)
    stack = next(lists, None)
    if not count or stack is None:
        return []
    found: list[dict[str, Weight]] = [{} for _ in range(count)]
    for name, weight in named.items():
        if name.startswith(stack + "."):
            number, _, inside = name[len(stack) + 1 :].partition(".")
            found[int(number)][inside] = weight
    return found


def _attends(path: str) -> bool:
    """Whether a module of a layer lies in its attention, by the names that transformers gives those."""
    return any("attn" in part or "attention" in part for part in path.split(".")[:-2])


def _part(path: str) -> str:
    """The name of a parameter's module in a layer, and the parameter's own name where it is no weight or bias."""
    above, _, last = path.rpartition(".")
    return above.rpartition(".")[2] if last in ("weight", "bias") else last


def _known(skeleton: Skeleton, layers: list[dict[str, Weight]], head_dim: int) -> bool:
    """Whether every layer is Llama's or its kin's: the same matrices in each, RMSNorms, and nothing besides."""
    if not layers:
        return False
    shapes = [{path: (w.kind, w.out, w.in_) for path, w in layer.items()} for layer in layers]
    matrices = [w for w in layers[0].values() if w.kind in ("linear", "conv1d", "experts", "other")]
    names = {w.path.rpartition(".")[2] for w in matrices}
    norms = {path: w for path, w in layers[0].items() if w.kind == "norm"}
    return (
        all(shape == shapes[0] for shape in shapes)
        and all(w.kind == "linear" for w in matrices)
        and len(names) == len(matrices)
        and any(names == attention | mlp for attention in _ATTENTION for mlp in _MLP)
        and all(type(skeleton.modules[w.path]).__name__.endswith("RMSNorm") for w in norms.values())
        # 2 or 4 over the residual stream, the first of them before attention; those of queries and keys are by head
        and sum(not _attends(path) for path in norms) in (2, 4)
        and "input_layernorm.weight" in norms
        and all(w.out <= head_dim for path, w in norms.items() if _attends(path))
    )


def _tied(skeleton: Skeleton) -> bool:
    embedding = skeleton.model.get_input_embeddings()
    return skeleton.head is not None and skeleton.head.weight is embedding.weight


def _window(config: Any, layers: int) -> tuple[int | None, int]:
    """The tokens that windowed layers look back, and how many layers do."""
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * layers
    for kind, name in (
        ("sliding_attention", "sliding_window"),
        ("chunked_attention", "attention_chunk_size"),
    ):
        window, windowed = _size(config, name), sum(each == kind for each in kinds)
        if window and windowed:
            return window, windowed
    return None, 0


def _activation(config: Any) -> str:
    names = ("hidden_activation", "hidden_act", "activation_function", "activation")
    said = next((value for name in names if isinstance(value := getattr(config, name, None), str)), "unknown")
    return _ACTIVATIONS.get(said, said)


def _dtype(config: Any, name: str) -> str:
    """The data type of a configuration; fp32 where it says none, as transformers has it."""
    kind = getattr(config, "dtype", None) or torch.float32
    for short, dtype in DTYPES.items():
        if kind in (dtype, str(dtype).removeprefix("torch.")):
            return short
    raise NotSupportedError(
        f"base {name} has weights of type {clipped(str(kind).removeprefix('torch.'))}",
        f"planned are {', '.join(DTYPES)}; change dtype in its config.json",
    )


def _size(config: Any, *names: str) -> int:
    """The first of a configuration's sizes that is there, of a list by layer the largest; 0 where none is."""
    for name in names:
        value = getattr(config, name, None)
        if isinstance(value, list | tuple) and value and all(isinstance(each, int) for each in value):
            value = max(value)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return 0


def find_shape(base: str | None) -> Shape:
    """The shape of a base by what a user calls it; see `find_configuration`.

    Raises:
        ScumbleError: there is no such base, or it is none that can be trained.
    """
    found = find_configuration(base)
    return Shape.of_config(found.config, found.name, found.source)
