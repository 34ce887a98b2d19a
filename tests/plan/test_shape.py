"""What is read off a model's skeleton, against the models that the tests build, and which configurations are refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from scumble.errors import BaseModelError, NotSupportedError, ScumbleError
from scumble.plan.published import published_models
from scumble.plan.shape import Shape, find_shape
from tests.tiny import FAMILIES, SIZES, tiny_gemma2, tiny_llama, tiny_qwen3

LLAMA = {**SIZES, "model_type": "llama"}
BUILT = {**FAMILIES, "gemma2": tiny_gemma2, "qwen3": tiny_qwen3}


def shape_of(model: Any, **differs: Any) -> Shape:
    return Shape.of_config(
        {**json.loads(model.config.to_json_string(use_diff=False)), **differs}, "tiny", "test"
    )


@pytest.mark.parametrize("family", BUILT)
def test_a_shape_has_the_parameters_and_sizes_of_the_model_itself(family: str) -> None:
    model = BUILT[family]()
    shape = shape_of(model)
    assert shape.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert sum(weight.count for weight in shape.weights) == shape.parameters
    assert (shape.layers, shape.hidden, shape.heads, shape.vocabulary) == (2, 16, 4, 48)
    assert (shape.positions_limit, shape.dtype) == (64, "fp32")
    assert shape.tied == (model.get_output_embeddings().weight is model.get_input_embeddings().weight)


@pytest.mark.parametrize("family", BUILT)
def test_every_matrix_has_the_sides_that_it_multiplies_with(family: str) -> None:
    model = BUILT[family]()
    modules = dict(model.named_modules())
    for weight in shape_of(model).weights:
        if weight.kind in ("linear", "conv1d"):
            x = torch.zeros(1, weight.in_)
            assert modules[weight.path](x).shape == (1, weight.out)
            assert weight.count == weight.in_ * weight.out
        if weight.kind == "embedding":
            assert modules[weight.path](torch.tensor([weight.out - 1])).shape == (1, weight.in_)


SAID: dict[str, dict[str, Any]] = {
    "llama": {"known": True, "gated": True, "norms_per_layer": 2, "activation": "silu", "intermediate": 24},
    "qwen2": {"known": True, "kv_heads": 2, "head_dim": 4},
    "qwen3": {"known": True, "qk_norm": True},
    "gemma": {"known": True, "tied": True, "norms_per_layer": 2, "head_dim": 4},
    "gemma2": {
        "known": True,
        "softcap": True,
        "head_softcap": True,
        "norms_per_layer": 4,
        "windowed_layers": 1,
    },
    "gemma3": {"known": True, "qk_norm": True, "norms_per_layer": 4, "activation": "gelu_tanh"},
    "mistral": {"known": True, "window": 4096, "windowed_layers": 2},
    "phi3": {"known": True, "fused_qkv": True, "fused_gate_up": True, "gated": True},
    "gpt2": {"known": False, "fused_qkv": True, "gated": False, "intermediate": 24, "kv_heads": 4},
    "mixtral": {"known": False, "experts": 3, "experts_per_token": 2, "intermediate": 24, "gated": True},
    "qwen2_moe": {"known": False, "experts": 3, "experts_per_token": 2, "intermediate": 12},
}


@pytest.mark.parametrize("family", SAID)
def test_what_decides_on_activations_is_seen(family: str) -> None:
    shape = shape_of(BUILT[family]())
    assert {key: getattr(shape, key) for key in SAID[family]} == SAID[family]


def test_experts_are_counted_all_together_and_have_the_sides_of_one() -> None:
    experts = {
        w.path.rpartition(".")[2]: w for w in shape_of(FAMILIES["mixtral"]()).weights if w.kind == "experts"
    }
    assert (experts["gate_up_proj"].out, experts["gate_up_proj"].in_) == (48, 16)
    assert (experts["down_proj"].out, experts["down_proj"].in_) == (16, 24)
    assert experts["down_proj"].count == 3 * 16 * 24


@pytest.mark.parametrize("kind", ["gptj", "cohere", "phi", "falcon"])
def test_attention_and_mlp_that_read_one_norm_are_seen(kind: str) -> None:
    shape = Shape.of_config({**SIZES, "model_type": kind, "rotary_dim": 4}, kind, "test")
    assert shape.parallel
    assert not shape.known


def test_norms_behind_attention_are_no_layer_of_llamas_kin() -> None:
    assert not Shape.of_config({**SIZES, "model_type": "olmo2"}, "olmo2", "test").known


@pytest.mark.parametrize(("said", "expected"), [("bfloat16", "bf16"), ("float16", "fp16"), (None, "fp32")])
@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
def test_the_data_type_is_the_configurations(key: str, said: str | None, expected: str) -> None:
    assert Shape.of_config({**LLAMA, key: said}, "tiny", "test").dtype == expected


def test_of_a_model_that_sees_pictures_the_text_model_is_planned() -> None:
    text = {key: SIZES[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers")}
    config = {
        "model_type": "gemma3",
        "dtype": "bfloat16",
        "text_config": {**text, "model_type": "gemma3_text"},
        "vision_config": {"hidden_size": 8},
    }
    shape = Shape.of_config(config, "pictures", "its folder")
    assert (shape.model_type, shape.dtype, shape.hidden) == ("gemma3_text", "bf16", 16)
    assert shape.source == "its folder, its text model alone"


def test_nothing_is_allocated() -> None:
    shape = find_shape("meta-llama/Llama-3.3-70B-Instruct")
    assert all(tensor.is_meta for tensor in shape.skeleton.model.parameters())
    assert isinstance(shape.skeleton.modules["model.layers.79.mlp.up_proj"], nn.Linear)


@pytest.mark.parametrize(
    ("differs", "said"),
    [
        ({"model_type": None}, "no model_type"),
        ({"model_type": "lama"}, "'lama', which this version of transformers does not know"),
        ({"hidden_size": 0}, "hidden_size = 0"),
        ({"num_attention_heads": 0}, "num_attention_heads = 0"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers = 1000000000"),
        ({"num_hidden_layers": "two"}, "num_hidden_layers = 'two'"),
        ({"vocab_size": 48.0}, "vocab_size = 48.0"),
        ({"num_key_value_heads": 3}, "4 attention heads and 3 key-value heads"),
        ({"intermediate_size": True}, "intermediate_size = True"),
        ({"hidden_act": "sulu"}, "sulu"),
        ({"rope_theta": 10**30}, "rope_theta"),
        ({"dtype": "float64"}, "type float64"),
    ],
)
def test_a_nonsense_configuration_is_refused_in_one_line(differs: dict[str, Any], said: str) -> None:
    with pytest.raises(ScumbleError, match=said) as error:
        Shape.of_config({**LLAMA, **differs}, "mine", "test")
    assert error.value.hint
    assert "mine" in error.value.message


@pytest.mark.parametrize("key", ["hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_size_that_is_missing_is_not_taken_from_another_model(kind: str, key: str) -> None:
    config = {name: value for name, value in LLAMA.items() if name != key}
    with pytest.raises(BaseModelError, match=f"has no {key}"):
        Shape.of_config({**config, "model_type": kind}, "mine", "test")


@pytest.mark.parametrize(
    ("kind", "made"),
    [
        ("bert", "BertForMaskedLM"),
        ("t5", "T5ForConditionalGeneration"),
        ("vit", "ViTModel"),
        ("whisper", "Whisper"),
    ],
)
def test_what_is_no_causal_language_model_is_refused_by_name(kind: str, made: str) -> None:
    config = {**SIZES, "model_type": kind, "architectures": [made], "d_model": 16, "encoder_layers": 2}
    with pytest.raises(NotSupportedError, match=made):
        Shape.of_config(config, "mine", "test")


def test_a_quantised_base_is_refused() -> None:
    with pytest.raises(NotSupportedError, match="quantised"):
        Shape.of_config({**LLAMA, "quantization_config": {"quant_method": "bitsandbytes"}}, "mine", "test")


def test_a_table_of_a_thousand_million_labels_is_not_made() -> None:
    assert Shape.of_config({**LLAMA, "num_labels": 10**9}, "mine", "test").parameters == sum(
        parameter.numel() for parameter in tiny_llama().parameters()
    )


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 70),
    st.sampled_from([10**9, 2**63, 10**30, -(10**12)]),
    st.floats(),
    st.text(max_size=8),
    st.lists(st.integers(-1, 5), max_size=3),
    st.sampled_from(["gpt2", "bert", "mamba", "bfloat16", "sliding_attention", {"rope_type": "yarn"}, {}]),
)
KEYS = [
    *sorted({key for model in published_models() for key in model.config}),
    *("layer_types", "rope_parameters", "rope_scaling", "torch_dtype", "text_config", "quantization_config"),
    *("attn_implementation", "is_encoder_decoder", "architectures", "auto_map", "pad_token_id", "num_labels"),
]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    model=st.sampled_from(published_models()),
    differs=st.dictionaries(st.sampled_from(KEYS), VALUES, min_size=1, max_size=3),
    lost=st.sets(st.sampled_from(KEYS), max_size=1),
)
def test_any_configuration_gives_a_shape_or_one_line(model: Any, differs: Any, lost: Any) -> None:
    config = {**model.config, "num_hidden_layers": 2, **differs}
    config = {key: value for key, value in config.items() if key not in lost}
    said = ""
    try:
        shape = Shape.of_config(config, "mutated", "test")
    except ScumbleError as error:
        said = str(error)
    assert "\n" not in said
    assert said or shape.parameters == sum(weight.count for weight in shape.weights) > 0
