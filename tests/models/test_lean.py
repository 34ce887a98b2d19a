"""Replaced norms and MLPs: the same numbers and gradients, less kept, and the model as it was afterwards."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from scumble.compare.loss import loss_sum
from scumble.data.encoding import Encoded
from scumble.data.packing import pack
from scumble.lora.bank import Bank
from scumble.lora.spec import LoraSpec
from scumble.models.checkpointing import Kept
from scumble.models.lean import lean, only_rows
from tests.tiny import FAMILIES, tiny_ids, tiny_llama


def examples() -> list[Encoded]:
    ids = tiny_ids(3, 9).tolist()
    return [Encoded(tuple(row), (False,) * 5 + (True,) * 4, i, "") for i, row in enumerate(ids)]


def with_adapter(model: Any, targets: str = "all-linear") -> Bank:
    bank = Bank(model)
    bank.trainable("a", LoraSpec(2, 4.0, targets))
    with torch.no_grad():
        for parameter in bank.parameters("a").values():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)) * 0.3)
    return bank


def gradients(bank: Bank) -> tuple[float, list[torch.Tensor]]:
    with bank.using("a"):
        loss = loss_sum(bank.model, pack(examples()))
        loss.backward()
    found = [parameter.grad for parameter in bank.parameters("a").values()]
    return float(loss.detach()), [each for each in found if each is not None]


# fp32: the same operations in another order
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_the_gradient_is_that_of_the_model_as_it_is(family: str) -> None:
    base = FAMILIES[family]()
    targets = "standard" if family == "mixtral" else "all-linear"  # fused experts have no layers of their own
    loss, wanted = gradients(with_adapter(copy.deepcopy(base), targets))
    bank = with_adapter(base, targets)
    with lean(bank.model):
        lean_loss, found = gradients(bank)
    assert lean_loss == pytest.approx(loss, rel=1e-5)
    assert len(found) == len(wanted) > 0
    for mine, theirs in zip(found, wanted, strict=True):
        assert (mine - theirs).norm() <= 1e-4 * theirs.norm()


def replaced(model: nn.Module) -> set[str]:
    return {type(module).__name__ for module in model.modules() if "forward" in module.__dict__}


def test_what_is_replaced_and_that_it_is_put_back() -> None:
    model = tiny_llama().requires_grad_(False)
    with lean(model):
        assert replaced(model) == {"LlamaRMSNorm", "LlamaMLP", "Linear"}
    assert replaced(model) == set()
    with pytest.raises(ValueError, match="on purpose"), lean(model):
        raise ValueError("on purpose")
    assert replaced(model) == set()


def test_a_module_that_computes_otherwise_is_left_as_it_is() -> None:
    model = tiny_llama().requires_grad_(False)
    mlp = type(model.model.layers[0].mlp)

    class Doubled(mlp):  # type: ignore[misc, valid-type]
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    for layer in model.model.layers:
        layer.mlp.__class__ = Doubled
    with lean(model):
        # but for the tokens that the last layer leaves out, whatever it computes
        assert replaced(model.model.layers[:-1]) == {"LlamaRMSNorm"}


def test_a_norm_whose_weight_trains_is_left_as_it_is() -> None:
    model = tiny_llama().requires_grad_(False)
    model.model.norm.weight.requires_grad_(True)
    with lean(model):
        assert "forward" not in model.model.norm.__dict__
        assert "forward" in model.model.layers[0].input_layernorm.__dict__


def kept(targets: str, how: Any) -> float:
    model = tiny_llama(hidden_size=64, intermediate_size=96)
    bank = with_adapter(model, targets)
    laid = pack(examples())
    counted = Kept(model)
    with bank.using("a"), how(model), counted.counting():
        loss_sum(model, laid)
    return counted.bytes / laid.computed / 2


def test_what_a_token_keeps_in_a_layer() -> None:
    # in fp32: 4 (x, q, attention, middle) h, k and v, gate and up, a normaliser for each head and two norms
    h, k, wide, heads = 64, 32, 96, 4
    floor = 4 * (4 * h + 2 * k + 2 * wide + heads + 2)
    for targets, rank in (("standard", 4 * 2), ("comprehensive", 7 * 2)):
        # the adapter's own: h = A x of each module; and once for the model: loss, positions, the head's gradient
        assert floor <= kept(targets, lean) + 4 * wide <= floor + 4 * rank + 4 * 3 * h
        assert kept(targets, lambda model: torch.no_grad()) == 0


def test_after_its_attention_the_last_layer_computes_only_what_is_read() -> None:
    model = tiny_llama()
    seen: list[int] = []
    for layer in model.model.layers:
        layer.mlp.down_proj.register_forward_hook(lambda module, args, out: seen.append(out.shape[1]))
    rows = torch.tensor([2, 5])
    ids = tiny_ids(1, 9)
    with torch.no_grad():
        whole = model.model(input_ids=ids).last_hidden_state
        with lean(model), only_rows(rows):
            seen.clear()
            part = model.model(input_ids=ids).last_hidden_state
    assert seen == [9, 2]
    assert torch.allclose(part[:, rows], whole[:, rows], atol=1e-5)
