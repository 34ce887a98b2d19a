"""Counts of parameters: equal to what PEFT counts on the same model, and refused where training refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from scumble.errors import AdapterError
from scumble.lora.fresh import fresh_adapter
from scumble.lora.spec import LoraSpec
from scumble.lora.targets import TARGET_SETS
from scumble.models.skeleton import skeleton_of
from scumble.plan.parameters import adapter_of, adds, count_parameters
from scumble.plan.published import find_published
from scumble.plan.setup import Setup
from scumble.plan.shape import Shape, find_shape
from tests.tiny import FAMILIES, tiny_gemma2, tiny_llama, tiny_qwen2, tiny_qwen3

LLAMA_KIN = ("minimal", "standard", "comprehensive", "all-linear")
# what each architecture calls its layers; a name that matches nothing is refused here and passed over by PEFT
SETS: dict[str, tuple[str, ...]] = {
    "meta-llama/Llama-3.1-8B": LLAMA_KIN,
    "mistralai/Mistral-7B-v0.3": LLAMA_KIN,
    "Qwen/Qwen2.5-0.5B": LLAMA_KIN,
    "Qwen/Qwen3-0.6B": LLAMA_KIN,
    "google/gemma-2-2b-it": LLAMA_KIN,
    "google/gemma-3-1b-it": LLAMA_KIN,
    "HuggingFaceTB/SmolLM2-135M": LLAMA_KIN,
    "microsoft/Phi-3-mini-4k-instruct": (
        "qkv_proj",
        "qkv_proj,o_proj",
        "gate_up_proj,down_proj",
        "all-linear",
    ),
    "mistralai/Mixtral-8x7B-v0.1": ("minimal", "standard", "o_proj", r".*self_attn\.(q|k)_proj"),
    "Qwen/Qwen3-30B-A3B": ("minimal", "standard", "o_proj", r".*self_attn\.(q|k)_proj"),
    "gpt2": ("c_attn", "c_attn,c_proj", r".*mlp\.c_(fc|proj)", "all-linear"),
    "gemma": LLAMA_KIN,
}
RANKS = (1, 8, 64)


def described(model: Any) -> dict[str, Any]:
    """The contents of a tiny model's config.json."""
    return {**json.loads(model.config.to_json_string(use_diff=False)), "dtype": "float32"}


def published(name: str, **differs: Any) -> dict[str, Any]:
    found = find_published(name)
    assert found is not None
    return {**found.config, **differs}


def peft_counts(config: dict[str, Any], **options: Any) -> tuple[int, int]:
    """What PEFT counts as trainable and in all, on the meta device."""
    model = skeleton_of(config, "base").model
    with torch.device("meta"):
        wrapped: Any = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **options))
    trainable, total = wrapped.get_nb_trainable_parameters()
    return trainable, total


def for_peft(targets: str) -> str | list[str]:
    """A target set as PEFT's configuration has it."""
    if targets in TARGET_SETS:
        return list(TARGET_SETS[targets])
    plain = targets == "all-linear" or "\\" in targets
    return targets if plain else targets.split(",")


@pytest.mark.parametrize("name", SETS)
def test_counts_are_pefts_for_four_target_sets_and_three_ranks(name: str) -> None:
    # real widths, and two layers: PEFT takes a second to wrap all of them
    config = described(FAMILIES[name]()) if name in FAMILIES else published(name, num_hidden_layers=2)
    shape = Shape.of_config(config, name, "test")
    for targets in SETS[name]:
        for rank in RANKS:
            counted = count_parameters(shape, Setup(rank=rank, targets=targets))
            expected = peft_counts(config, r=rank, target_modules=for_peft(targets))
            assert (counted.trainable, counted.total) == expected, (targets, rank)
            assert sum(counted.by_module.values()) == counted.trainable


@pytest.mark.parametrize(
    ("name", "targets", "rank"),
    [
        ("meta-llama/Llama-3.1-8B", "comprehensive", 16),
        ("Qwen/Qwen3-30B-A3B", "standard", 8),
        ("google/gemma-3-1b-it", "all-linear", 4),
    ],
)
def test_counts_are_pefts_for_whole_published_models(name: str, targets: str, rank: int) -> None:
    counted = count_parameters(find_shape(name), Setup(rank=rank, targets=targets))
    expected = peft_counts(published(name), r=rank, target_modules=for_peft(targets))
    assert (counted.trainable, counted.total) == expected


VARIANTS: dict[str, dict[str, Any]] = {
    "rank_pattern": {"rank_pattern": {"k_proj": 3, r"layers\.0\.self_attn\.q_proj": 5}},
    "alpha_pattern": {"alpha_pattern": {"q_proj": 64}},
    "dora": {"use_dora": True},
    "lora_bias": {"lora_bias": True},
    "bias of all": {"bias": "all"},
    "bias of the adapter's": {"bias": "lora_only"},
    "head saved": {"modules_to_save": ["lm_head"]},
    "norms saved": {"modules_to_save": ["input_layernorm"]},
    "embedding and head saved": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "tokens": {"trainable_token_indices": [1, 5, 7]},
    "embedding": {"target_modules": ["embed_tokens", "q_proj"]},
    "embedding, DoRA": {"target_modules": ["embed_tokens", "q_proj"], "use_dora": True},
    "head": {"target_modules": ["lm_head", "q_proj"]},
    "layers": {"layers_to_transform": [1]},
    "excluded": {"target_modules": "all-linear", "exclude_modules": ["down_proj"]},
    "all-linear, DoRA": {"target_modules": "all-linear", "use_dora": True},
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2", "qwen3"])
def test_counts_are_pefts_for_every_variant(family: str, variant: str) -> None:
    build = {"llama": tiny_llama, "qwen2": tiny_qwen2, "gemma2": tiny_gemma2, "qwen3": tiny_qwen3}[family]
    config = described(build())
    options = {"r": 4, "target_modules": ["q_proj", "k_proj", "v_proj"], **VARIANTS[variant]}
    expected = peft_counts(config, **options)
    shape = Shape.of_config(config, family, "test")
    counted = count_parameters(shape, LoraSpec.from_peft(LoraConfig(task_type="CAUSAL_LM", **options)))
    assert (counted.trainable, counted.total) == expected


def test_the_figures_of_the_lesson() -> None:
    shape = find_shape("meta-llama/Llama-3.1-8B")
    counted = count_parameters(shape, Setup(rank=16, targets="standard"))
    assert (counted.trainable, counted.total) == (13_631_488, 8_043_892_736)
    assert f"{counted.percent:.4f}" == "0.1695"
    # its one matrix of 4096 x 4096 at rank 16
    assert counted.by_module["q_proj"] // shape.layers == 131_072
    query = next(weight for weight in shape.weights if weight.path.endswith("q_proj"))
    assert query.count == 16_777_216


def test_full_training_trains_every_parameter_once() -> None:
    shape = find_shape("HuggingFaceTB/SmolLM2-135M")
    counted = count_parameters(shape, Setup(method="full", dtype="fp32"))
    assert (counted.trainable, counted.total, counted.base) == (134_515_008,) * 3
    assert sum(counted.by_module.values()) == counted.trainable
    assert counted.file_bytes == 4 * 134_515_008


def test_each_module_adds_what_it_is_counted_with() -> None:
    shape = find_shape("meta-llama/Llama-3.2-1B")
    each = adds(shape, Setup(rank=16, targets="minimal"))
    assert list(each) == ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    assert count_parameters(shape, Setup(rank=16, targets="comprehensive")).by_module == each
    for name, count in each.items():
        assert count_parameters(shape, Setup(rank=16, targets=name)).trainable == count


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"dora": True, "targets": ("q_proj", "embed_tokens"), "rank_pattern": {"q_proj": 3}},
        {"modules_to_save": ("lm_head",), "bias": "all", "trainable_token_indices": {"": (1, 2)}},
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_adapters_file_has_the_size_that_is_planned(options: Any, dtype: str, tmp_path: Any) -> None:
    model = tiny_qwen2(dtype=getattr(torch, dtype))
    spec = LoraSpec(**options)
    written = fresh_adapter(spec, dict(model.named_modules()), model.get_output_embeddings(), seed=0)
    # as a bank holds them: whole copies in the base's type, all else in fp32 at least
    written.tokens = {path: rows.float() for path, rows in written.tokens.items()}
    written.biases = {path: bias.float() for path, bias in written.biases.items()}
    replace(written, base_hash="0" * 32).save(tmp_path / "adapter")
    shape = Shape.of_config({**described(model), "dtype": dtype}, "tiny", "test")
    size = (tmp_path / "adapter" / "adapter_model.safetensors").stat().st_size
    assert count_parameters(shape, spec).file_bytes == size


def test_nothing_is_allocated_for_the_largest() -> None:
    shape = find_shape("meta-llama/Llama-3.1-70B")
    adapter = adapter_of(shape, Setup(rank=64, targets="all-linear", dora=True))
    assert all(tensor.is_meta for tensor in adapter.tensors().values())
    assert all(parameter.is_meta for parameter in shape.skeleton.model.parameters())


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("qwen2", {"targets": "q_porj"}, "q_porj match nothing in this base"),
        ("qwen2", {"targets": ("q_proj", "qq_proj")}, "qq_proj match nothing"),
        ("qwen2", {"targets": r".*nothing"}, "match nothing"),
        ("qwen2", {"targets": "mlp"}, "no weight matrix"),
        ("phi3", {"targets": "minimal"}, "match nothing"),
        ("mixtral", {"targets": "all-linear"}, "fused experts"),
        ("qwen2", {"modules_to_save": ("hed",)}, "which the base lacks"),
    ],
)
def test_what_training_refuses_is_refused_in_its_words(name: str, options: Any, said: str) -> None:
    shape = Shape.of_config(described(FAMILIES[name]()), name, "test")
    with pytest.raises(AdapterError, match=said) as error:
        count_parameters(shape, LoraSpec(**options))
    assert error.value.hint
