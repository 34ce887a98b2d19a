"""The optimizer: groups against PEFT's LoRA+, rates by module, what decays, and bitsandbytes by a stand-in."""

from __future__ import annotations

import copy
import sys
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft.optimizers import create_loraplus_optimizer
from torch import nn

from scumble.errors import AdapterError, ConfigError, MissingExtraError, NotSupportedError
from scumble.lora.bank import Bank
from scumble.lora.spec import LoraSpec
from scumble.train.optimizer import decays, make_optimizer, parameter_groups, set_rates
from tests.lora.conftest import peft_model
from tests.tiny import tiny_llama, tiny_qwen2


@dataclass(frozen=True)
class Chosen:
    optimizer: str = "adamw"
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    lora_plus: float | None = None
    rates: dict[str, float] = field(default_factory=dict)


def trained(**spec: Any) -> dict[str, nn.Parameter]:
    bank = Bank(tiny_llama())
    bank.trainable("a", LoraSpec(rank=4, alpha=8.0, **{"targets": "comprehensive", **spec}))
    return bank.parameters("a")


def by_name(parameters: dict[str, nn.Parameter], chosen: Chosen, key: str) -> dict[str, float]:
    names = {id(parameter): name for name, parameter in parameters.items()}
    optimizer = make_optimizer(parameters, chosen)
    found = {names[id(p)]: group[key] for group in optimizer.param_groups for p in group["params"]}
    assert found.keys() == parameters.keys()  # every one of them, and each once
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(parameters)
    return found


def test_one_rate_and_no_decay_is_one_group_in_the_order_of_the_names() -> None:
    parameters = trained()
    (group,) = parameter_groups(parameters, Chosen())
    assert all(a is b for a, b in zip(group["params"], parameters.values(), strict=True))
    assert (group["lr"], group["highest"], group["weight_decay"]) == (1e-3, 1e-3, 0.0)


# what PEFT does with the same names: LoRA+ over a model of its own, DoRA's magnitudes and biases among them
@pytest.mark.parametrize("config", [{}, {"use_dora": True}, {"lora_bias": True}, {"bias": "lora_only"}])
def test_lora_plus_gives_every_parameter_the_rate_that_peft_gives_it(config: dict[str, Any]) -> None:
    model = peft_model(tiny_qwen2(), target_modules=["q_proj", "down_proj"], **config)
    theirs = create_loraplus_optimizer(model, torch.optim.AdamW, lr=1e-3, loraplus_lr_ratio=16)
    wanted = {id(p): group["lr"] for group in theirs.param_groups for p in group["params"]}
    parameters = {name.replace(".default", ""): p for name, p in model.named_parameters() if p.requires_grad}
    found = by_name(parameters, Chosen(lora_plus=16), "lr")
    assert found == {name: wanted[id(p)] for name, p in parameters.items()}
    assert set(found.values()) == {1e-3, 16e-3}


def test_lora_plus_makes_the_steps_of_peft() -> None:
    model = peft_model(tiny_llama())
    mine = copy.deepcopy(model)
    parameters = {name: p for name, p in mine.named_parameters() if p.requires_grad}
    optimizers = (
        create_loraplus_optimizer(model, torch.optim.AdamW, lr=1e-2, loraplus_lr_ratio=8),
        make_optimizer(parameters, Chosen(learning_rate=1e-2, lora_plus=8)),
    )
    for step in range(3):
        for each, optimizer in zip((model, mine), optimizers, strict=True):
            generator = torch.Generator().manual_seed(step)
            for p in each.parameters():
                if p.requires_grad:
                    p.grad = torch.randn(p.shape, generator=generator)
            optimizer.step()
    for name, wanted in model.named_parameters():
        if wanted.requires_grad:
            assert torch.equal(parameters[name], wanted)


def test_decay_holds_for_a_and_for_whole_matrices_alone() -> None:
    parameters = trained(dora=True, targets=("q_proj", "embed_tokens"))
    found = by_name(parameters, Chosen(weight_decay=0.1), "weight_decay")
    assert {
        name.split("layers.0.")[-1] for name, decay in found.items() if decay and "layers.1" not in name
    } == {
        "self_attn.q_proj.lora_A.weight",
        "base_model.model.model.embed_tokens.lora_embedding_B",
    }
    whole = dict(tiny_qwen2().named_parameters())
    left = {
        name.rsplit(".", 2)[-2] + "." + name.rsplit(".", 1)[-1]
        for name, p in whole.items()
        if not decays(name, p)
    }
    assert left == {
        "q_proj.bias", "k_proj.bias", "v_proj.bias", "norm.weight",
        "input_layernorm.weight", "post_attention_layernorm.weight",
    }  # fmt: skip
    rows = trained(targets=("q_proj",), trainable_token_indices={"embed_tokens": (1, 2)})
    assert not any(decays(name, p) for name, p in rows.items() if "token_adapter" in name)


def test_b_does_not_shrink_where_there_is_no_gradient() -> None:
    parameters = trained()
    before = {name: p.detach().clone() for name, p in parameters.items()}
    with torch.no_grad():
        for name, p in parameters.items():
            if ".lora_B." in name:
                p.fill_(1.0)
    optimizer = make_optimizer(parameters, Chosen(weight_decay=0.5, learning_rate=0.1))
    for p in parameters.values():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for name, p in parameters.items():
        wanted = torch.ones_like(p) if ".lora_B." in name else before[name] * (1 - 0.1 * 0.5)
        torch.testing.assert_close(p.detach(), wanted, rtol=1e-6, atol=0)  # one rounding


def test_rates_go_by_parts_of_names_the_innermost_first() -> None:
    chosen = Chosen(
        rates={"mlp": 5e-5, "down_proj": 7e-5, r"layers\.1\.self_attn\.[qk]_proj": 1e-4}, lora_plus=4
    )
    found = by_name(trained(), chosen, "highest")
    for name, rate in found.items():
        if ".mlp." in name:
            wanted = 7e-5 if "down_proj" in name else 5e-5
        else:
            wanted = 1e-4 if "layers.1." in name and ("q_proj" in name or "k_proj" in name) else 1e-3
        assert rate == pytest.approx(wanted * (4 if ".lora_B." in name else 1))


def test_the_schedule_multiplies_each_groups_own_rate() -> None:
    optimizer = make_optimizer(trained(), Chosen(rates={"mlp": 5e-5}, lora_plus=4))
    highest = [group["highest"] for group in optimizer.param_groups]
    assert len(set(highest)) == 4
    for share in (0.5, 0.1, 1.0):
        set_rates(optimizer, share)
        assert [group["lr"] for group in optimizer.param_groups] == [share * each for each in highest]


def test_what_matches_nothing_is_refused_with_what_there_is() -> None:
    with pytest.raises(ConfigError, match="q_pro matches nothing") as caught:
        make_optimizer(trained(), Chosen(rates={"q_pro": 1e-4}))
    assert "q_proj" in caught.value.hint
    with pytest.raises(ConfigError, match="gate_proj matches nothing"):
        make_optimizer(trained(targets="minimal"), Chosen(rates={"gate_proj": 1e-4}))
    with pytest.raises(AdapterError, match="not a regular expression"):
        make_optimizer(trained(), Chosen(rates={"q_proj(": 1e-4}))
    with pytest.raises(ConfigError, match="nothing that is trained has a B"):
        make_optimizer(dict(tiny_llama().named_parameters()), Chosen(lora_plus=16))


def test_bitsandbytes_missing_is_said_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(MissingExtraError, match="adamw8bit needs bitsandbytes") as caught:
        make_optimizer(trained(), Chosen("adamw8bit"))
    assert "scumble[gpu]" in caught.value.hint


class Fails(torch.optim.AdamW):
    def step(self, closure: Any = None) -> Any:
        raise RuntimeError("no kernel image\nmore")


class Idle(torch.optim.AdamW):
    def step(self, closure: Any = None) -> Any:
        pass


def test_each_of_bitsandbytes_is_taken_by_its_name_and_tried_on_the_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Works(torch.optim.AdamW):
        pass

    optim = SimpleNamespace(AdamW8bit=Fails, PagedAdamW=Works, PagedAdamW8bit=Idle)
    monkeypatch.setitem(sys.modules, "bitsandbytes", SimpleNamespace(optim=optim))
    found = make_optimizer(trained(), Chosen("paged_adamw", lora_plus=2))
    assert type(found) is Works
    assert {group["highest"] for group in found.param_groups} == {1e-3, 2e-3}
    with pytest.raises(NotSupportedError, match="does not work on cpu: bitsandbytes says no kernel image"):
        make_optimizer(trained(), Chosen("adamw8bit"))  # and the first line of the reason alone
    with pytest.raises(NotSupportedError, match="changes nothing on cpu"):
        make_optimizer(trained(), Chosen("paged_adamw8bit"))
