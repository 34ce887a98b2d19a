"""The table of published models: every count equals what its makers publish, and names are found as people write them."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForImageTextToText, Gemma3Config

from scumble.plan.published import Published, find_published, published_models
from scumble.plan.shape import Shape

MODELS = {model.name: model for model in published_models()}
# of each shape one name is enough: the others of its entry differ in no size of a matrix
ONE_OF_EACH = {
    (m.published, m.config["vocab_size"], str(m.config.get("sliding_window"))): m for m in MODELS.values()
}


@pytest.mark.parametrize("model", ONE_OF_EACH.values(), ids=lambda model: model.name)
def test_the_skeleton_has_as_many_parameters_as_are_published(model: Published) -> None:
    shape = Shape.of_config(model.config, model.name, model.source)
    assert shape.parameters + sum(model.besides.values()) == model.published
    assert model.parameters == shape.parameters
    assert shape.known or shape.experts


@pytest.mark.parametrize("size", ["4b", "12b", "27b"])
def test_what_gemma_3_has_besides_its_text_model_is_its_vision_tower(size: str) -> None:
    model = MODELS[f"google/gemma-3-{size}-it"]
    sizes = {
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
    }
    vision = {
        **sizes,
        "image_size": 896,
        "patch_size": 14,
        "vision_use_head": False,
    }  # SigLIP, as published with it
    config = Gemma3Config(text_config=model.config, vision_config=vision)
    with torch.device("meta"):
        whole = AutoModelForImageTextToText.from_config(config)
    assert sum(parameter.numel() for parameter in whole.parameters()) == model.published


def test_what_llama_2_and_qwen_3_publish_besides_has_the_size_it_is_said_to_have() -> None:
    for name, layers in (("meta-llama/Llama-2-7b-hf", 32), ("meta-llama/Llama-2-13b-hf", 40)):
        assert sum(MODELS[name].besides.values()) == layers * 128 // 2  # a frequency for each pair of a head
    for name in ("Qwen/Qwen3-0.6B", "Qwen/Qwen3-1.7B"):
        config = MODELS[name].config
        assert sum(MODELS[name].besides.values()) == config["vocab_size"] * config["hidden_size"]


def test_the_base_of_the_lesson_has_its_exact_count() -> None:
    assert MODELS["meta-llama/Llama-3.1-8B"].parameters == 8_030_261_248


@pytest.mark.parametrize(
    "name",
    [
        "meta-llama/Llama-3.1-70B", "meta-llama/Llama-3.3-70B-Instruct", "meta-llama/Llama-3.2-1B",
        "meta-llama/Llama-2-13b-chat-hf", "TinyLlama/TinyLlama-1.1B-Chat-v1.0", "mistralai/Mistral-7B-Instruct-v0.2",
        "mistralai/Mistral-Nemo-Base-2407", "mistralai/Mixtral-8x7B-Instruct-v0.1", "Qwen/Qwen2.5-72B-Instruct",
        "Qwen/Qwen3-32B", "Qwen/Qwen3-30B-A3B", "google/gemma-2-27b-it", "google/gemma-3-27b-pt", "microsoft/phi-4",
        "microsoft/Phi-3-mini-128k-instruct", "microsoft/Phi-4-mini-instruct", "HuggingFaceTB/SmolLM2-360M",
        "HuggingFaceTB/SmolLM3-3B",
    ],
)  # fmt: skip
def test_a_name_is_found_in_any_case(name: str) -> None:
    found = find_published(f" {name.upper()} ")
    assert found is not None
    assert found.name == name


def test_a_name_that_is_not_there_is_not_found() -> None:
    assert find_published("nobody/Llama-3.1-8B") is None


def test_versions_that_differ_in_window_or_vocabulary_are_kept_apart() -> None:
    first, second, third = (
        MODELS[f"mistralai/Mistral-7B-Instruct-v0.{version}"].config for version in (1, 2, 3)
    )
    assert (first["sliding_window"], second["sliding_window"], third["sliding_window"]) == (4096, None, None)
    assert (first["vocab_size"], second["vocab_size"], third["vocab_size"]) == (32000, 32000, 32768)
    assert MODELS["microsoft/Phi-3-mini-4k-instruct"].config["max_position_embeddings"] == 4096
    assert MODELS["microsoft/Phi-3-mini-128k-instruct"].config["max_position_embeddings"] == 131072


def test_every_entry_says_where_it_comes_from() -> None:
    assert all(model.source.strip() and model.counted.strip() for model in MODELS.values())
    assert all(count > 0 and what for model in MODELS.values() for what, count in model.besides.items())
