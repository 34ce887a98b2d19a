"""Which layers a thin model keeps, and what they stand for."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from scumble.lab.thin import Thin
from scumble.plan.parameters import count_parameters
from scumble.plan.setup import Setup
from scumble.plan.shape import Shape

LLAMA = {
    "model_type": "llama", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 20,
    "num_attention_heads": 4, "vocab_size": 48,
}  # fmt: skip


def thin_of(config: dict[str, Any] | None = None, **changed: Any) -> Thin:
    return Thin.of(
        Shape.of_config({**LLAMA, **(config or {})}, "a", "this test"), Setup(dtype="fp32", **changed)
    )


def test_first_and_last_layer_and_some_between() -> None:
    thin = thin_of()
    assert thin.kept == (0, 1, 2, 3, 4, 19)
    assert (thin.kinds, thin.counts) == (((1, 2, 3, 4),), (18,))


def test_layers_that_attend_otherwise_are_of_another_kind() -> None:
    thin = thin_of({"model_type": "gemma3_text", "head_dim": 4, "num_hidden_layers": 26})
    kinds = thin.shape.skeleton.model.config.layer_types
    stand = {
        kinds[thin.kept[places[0]]]: count for places, count in zip(thin.kinds, thin.counts, strict=True)
    }
    assert stand == {"sliding_attention": 20, "full_attention": 4}
    assert all(len({kinds[thin.kept[place]] for place in places}) == 1 for places in thin.kinds)


def test_the_first_layer_that_is_trained_is_like_no_other() -> None:
    thin = thin_of(targets=r".*layers\.(8|9|1\d)\.mlp\.up_proj")
    assert 8 in thin.kept
    assert sorted(thin.counts) == [1, 7, 10]
    first = thin.kept.index(8)
    assert (first,) in thin.kinds
    assert [f"model.layers.{place}.mlp.up_proj" for place in range(first, len(thin.kept))] == list(
        thin.setup.targets
    )


def test_layers_computed_twice_are_another_kind() -> None:
    thin = thin_of(repeat=7)
    assert sorted(thin.counts) == [6, 12]
    assert thin.setup.repeat == sum(number < 7 for number in thin.kept)


@pytest.mark.parametrize(
    "changed",
    [{"method": "full"}, {"targets": "all-linear"}, {"targets": ("q_proj", "lm_head")}, {"targets": ("lm_head",)}],
)  # fmt: skip
def test_how_many_more_numbers_are_trained_in_the_whole_models_layers(changed: dict[str, Any]) -> None:
    thin = thin_of(**changed)
    config = thin.build(torch.device("cpu")).config.to_dict()
    small = Shape.of_config(config, "thin", "this test")
    layers = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "input_layernorm",
              "post_attention_layernorm")  # fmt: skip
    trained = [
        sum(count for name, count in count_parameters(shape, setup).by_module.items() if name in layers)
        for shape, setup in ((thin.shape, Setup(dtype="fp32", **changed)), (small, thin.setup))
    ]
    assert thin.more == pytest.approx(trained[0] / trained[1] if trained[1] else 1.0)


def test_a_shape_with_few_layers_is_kept_whole() -> None:
    thin = thin_of({"num_hidden_layers": 2})
    assert (thin.kept, thin.kinds, thin.more) == ((0, 1), (), 1.0)
