"""A model cut in two: the same numbers as in one piece, and where it cannot be cut, it says no."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from scumble.compare.loss import loss_sum
from scumble.data.packing import pack
from scumble.models import trunk
from scumble.models.checkpointing import checkpointed, layers_of
from scumble.models.lean import lean
from scumble.models.trunk import Trunk, can_be_cut
from tests import tiny
from tests.trees import forest

FAMILIES: list[Callable[..., Any]] = [tiny.tiny_llama, tiny.tiny_qwen2, tiny.tiny_gemma]


def made(family: Callable[..., Any], layers: int = 4) -> Any:
    model = family(num_hidden_layers=layers)
    model.requires_grad_(False)
    for parameter in layers_of(model)[-1].parameters():
        parameter.requires_grad_(True)
    return model


def step(model: Any, batch: Any) -> list[torch.Tensor]:
    """The loss, and the gradients of the last layer."""
    for parameter in model.parameters():
        parameter.grad = None
    loss = loss_sum(model, batch)
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in layers_of(model)[-1].parameters() if p.grad is not None)]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("repeat", [0, 4])
def test_both_parts_give_what_the_whole_gives(family: Callable[..., Any], depth: int, repeat: int) -> None:
    model, batch = made(family), pack(forest(0, 6, 40), share=True)
    with lean(model), checkpointed(model, repeat):
        wanted = step(model, batch)
        cut = Trunk(model, depth)
        hidden = cut.hidden(batch.ids, batch.positions, batch.segments)
        assert not hidden.requires_grad
        with cut.beginning(hidden):
            found = step(model, batch)
        again = step(model, batch)  # and afterwards it is whole
    assert len(wanted) > 5
    for one, two, three in zip(wanted, found, again, strict=True):
        assert torch.equal(one, two)
        assert torch.equal(one, three)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_layers_below_are_not_computed_again(family: Callable[..., Any]) -> None:
    model, batch = made(family), pack(forest(0, 3, 20))
    calls: list[int] = []
    for number, layer in enumerate(layers_of(model)):
        layer.self_attn.register_forward_hook(lambda *args, n=number: calls.append(n))
    cut = Trunk(model, 2)
    hidden = cut.hidden(batch.ids, batch.positions, batch.segments)
    assert calls == [0, 1]
    with cut.beginning(hidden):
        step(model, batch)
    assert calls == [0, 1, 2, 3]


def test_a_model_of_these_families_can_be_cut_and_one_of_one_layer_not() -> None:
    assert all(can_be_cut(made(family)) for family in FAMILIES)
    assert not can_be_cut(made(tiny.tiny_llama, layers=1))


def test_a_model_whose_layers_hand_on_more_than_one_state_is_left_whole() -> None:
    model = made(tiny.tiny_llama)
    seen: dict[str, torch.Tensor] = {}

    def remember(module: Any, args: Any, output: torch.Tensor) -> None:
        seen["first"] = output

    def add(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        return output + seen.pop("first", torch.zeros(())) * 0.5

    layers_of(model)[0].self_attn.o_proj.register_forward_hook(lambda *args: remember(*args))
    layers_of(model)[3].register_forward_hook(add)
    trunk._known.pop(model, None)
    assert not can_be_cut(model)
