"""Layers computed twice: the same gradient, less kept, and no more of them than memory asks for."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.profiler import ProfilerActivity, profile

from scumble.compare.loss import loss_sum
from scumble.data.packing import pack
from scumble.models.checkpointing import Kept, checkpointed, layers_of, layers_to_repeat
from scumble.models.lean import lean
from tests.models.test_lean import examples, gradients, with_adapter
from tests.tiny import tiny_gpt2, tiny_llama


def test_the_gradient_is_the_same_to_the_last_bit() -> None:
    found = []
    for count in (0, 1, 2):
        bank = with_adapter(tiny_llama())
        with lean(bank.model), checkpointed(bank.model, count):
            found.append(gradients(bank))
    for loss, tensors in found[1:]:
        assert loss == found[0][0]
        assert all(torch.equal(a, b) for a, b in zip(tensors, found[0][1], strict=True))


def test_each_layer_computed_twice_keeps_less() -> None:
    kept = []
    for count in (0, 1, 2):
        bank = with_adapter(tiny_llama())
        counted = Kept(bank.model)
        with bank.using("a"), checkpointed(bank.model, count), counted.counting():
            loss_sum(bank.model, pack(examples()))
        kept.append(counted.bytes)
    assert kept[0] > kept[1] > kept[2] > 0


def test_what_was_counted_is_let_go() -> None:
    bank = with_adapter(tiny_llama())
    laid = pack(examples())

    def count() -> int:
        counted = Kept(bank.model)
        with bank.using("a"), lean(bank.model), counted.counting():
            loss_sum(bank.model, laid)
        return counted.bytes

    kept = count()  # what is made once is made now
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        count()
    events = (each for each in seen.profiler.kineto_results.events() if each.name() == "[memory]")
    assert sum(each.nbytes() for each in events) < 0.01 * kept


def test_a_model_of_another_shape_has_no_layers_to_repeat() -> None:
    assert layers_of(tiny_gpt2()) == []
    assert len(layers_of(tiny_llama())) == 2


@given(
    each=st.integers(1, 10**9),
    share=st.floats(0.01, 0.99),
    layers=st.integers(1, 100),
    room=st.integers(0, 10**12),
)
def test_as_few_as_it_takes(each: int, share: float, layers: int, room: int) -> None:
    inputs = int(each * share)

    def need(repeated: int) -> float:
        return (layers - repeated) * each + repeated * inputs + (each if repeated else 0)

    found = layers_to_repeat(layers * each, inputs, layers, room)
    assert 0 <= found <= layers
    assert need(found) <= room or found == layers
    assert found == 0 or need(found - 1) > room or (found == 1 and need(0) > room)
