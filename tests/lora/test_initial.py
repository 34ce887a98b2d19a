"""Beginnings other than the default: PEFT's numbers, an untouched base, and results for the original base."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from scumble.errors import AdapterError, ConfigError, NotSupportedError
from scumble.lora.adapter import Adapter
from scumble.lora.bank import Bank
from scumble.lora.initial import compressed, difference, initial_adapter
from scumble.lora.spec import LoraSpec
from tests.lora.conftest import peft_load
from tests.tiny import logits, tiny_gpt2, tiny_ids, tiny_llama, tiny_qwen2

TARGETS = ("q_proj", "v_proj", "down_proj")


def spec(**changed: Any) -> LoraSpec:
    return LoraSpec(**{"rank": 4, "alpha": 6.0, "targets": TARGETS, **changed})


def theirs(base: nn.Module, kind: str, **config: Any) -> Any:
    return get_peft_model(
        copy.deepcopy(base),
        LoraConfig(
            **{"r": 4, "lora_alpha": 6, "target_modules": list(TARGETS), "init_lora_weights": kind, **config}
        ),
    )


def moved(adapter: Adapter, spread: float = 0.1) -> Adapter:
    """The adapter as after some training."""
    generator = torch.Generator().manual_seed(5)
    after = copy.deepcopy(adapter)
    for factors in after.factors.values():
        factors.A += torch.randn(factors.A.shape, generator=generator) * spread
        factors.B += torch.randn(factors.B.shape, generator=generator) * spread
    return after


@pytest.mark.parametrize("kind", ["pissa", "olora"])
@pytest.mark.parametrize("build", [tiny_llama, tiny_qwen2])
@pytest.mark.parametrize("extra", [{}, {"rslora": True}])
def test_what_is_taken_from_the_weights_is_what_peft_takes(
    kind: str, build: Any, extra: dict[str, Any]
) -> None:
    base = build()
    before = {name: value.clone() for name, value in base.state_dict().items()}
    adapter = initial_adapter(kind, spec(**extra), base, seed=0)
    wanted = theirs(base, kind, use_rslora=bool(extra)).state_dict()
    for name, tensor in adapter.tensors().items():
        assert torch.equal(tensor, wanted[name.replace(".weight", ".default.weight")])
        assert tensor.abs().max() > 0
    assert all(torch.equal(value, before[name]) for name, value in base.state_dict().items())


def test_a_conv1d_is_taken_apart_as_peft_does() -> None:
    base = tiny_gpt2()
    adapter = initial_adapter("pissa", spec(targets=("c_attn",)), base, seed=0)
    model = theirs(base, "pissa", target_modules=["c_attn"], fan_in_fan_out=True)
    for path, factors in adapter.factors.items():
        layer = model.base_model.model.get_submodule(path)
        wanted = layer.lora_B["default"].weight @ layer.lora_A["default"].weight
        # the singular vectors' signs are LAPACK's choice, their product is not
        torch.testing.assert_close(factors.B @ factors.A, wanted.detach(), rtol=0, atol=1e-5)


def test_gaussian_and_orthogonal_have_the_spread_and_the_product_that_peft_gives_them() -> None:
    base = tiny_llama(hidden_size=64, intermediate_size=128)
    gaussian = initial_adapter("gaussian", spec(), base, seed=0)
    drawn = torch.cat([factors.A.flatten() for factors in gaussian.factors.values()])
    assert float(drawn.std()) == pytest.approx(1 / 4, rel=0.05)  # 2,000 draws
    assert all(not factors.B.any() for factors in gaussian.factors.values())
    orthogonal = initial_adapter("orthogonal", spec(), base, seed=0)
    for factors in orthogonal.factors.values():
        assert factors.B.abs().max() > 0.01
        # B A = Y' Q_even Q_odd' X' = 0, but for rounding
        assert float((factors.B @ factors.A).abs().max()) < 1e-6
    model = theirs(base, "orthogonal")
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    ours = orthogonal.factors["model.layers.0.self_attn.q_proj"]
    assert float(ours.A.std()) == pytest.approx(float(layer.lora_A["default"].weight.detach().std()), rel=0.3)


def test_the_seed_decides_module_by_module_and_torchs_own_stream_is_left_alone() -> None:
    base = tiny_llama()
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first = initial_adapter("gaussian", spec(), base, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    again = initial_adapter("gaussian", spec(targets=("q_proj",)), base, seed=1)
    other = initial_adapter("gaussian", spec(), base, seed=2)
    path = "model.layers.1.self_attn.q_proj"
    assert torch.equal(first.factors[path].A, again.factors[path].A)
    assert not torch.equal(first.factors[path].A, other.factors[path].A)
    assert not torch.equal(first.factors[path].A, first.factors[path.replace(".1.", ".0.")].A)


@pytest.mark.parametrize("kind", ["pissa", "olora"])
@pytest.mark.parametrize("extra", [{}, {"rslora": True}, {"rank_pattern": {"v_proj": 2}}])
def test_a_bank_with_the_beginning_taken_out_is_peft_on_its_residual_base(
    kind: str, extra: dict[str, Any], tmp_path: Path
) -> None:
    base = tiny_llama()
    plain, ids = copy.deepcopy(base), tiny_ids()
    start = initial_adapter(kind, spec(**extra), base, seed=0)
    after = moved(start)
    model = theirs(
        base, kind, use_rslora=bool(extra.get("rslora")), rank_pattern=extra.get("rank_pattern", {})
    )
    untouched, begun = logits(base, ids), logits(model, ids)
    # PEFT rounds W - s B0 A0 to fp32, and so do we the sum of three: a few digits of logits of about 10
    torch.testing.assert_close(begun, untouched, rtol=1e-4, atol=1e-4)
    for name, tensor in after.tensors().items():
        model.get_parameter(name.replace(".weight", ".default.weight")).data.copy_(tensor)
    wanted = logits(model, ids)
    assert float((wanted - untouched).abs().max()) > 0.1
    bank = Bank(base)
    bank.add("now", after)
    bank.add("start", start)
    with bank.using({"now": 1.0, "start": -1.0}):
        torch.testing.assert_close(logits(bank.model, ids), wanted, rtol=1e-4, atol=1e-4)
    bank.close()
    saved = difference(after, start).save(tmp_path / "twice")
    assert Adapter.load(saved).spec.rank == 8
    torch.testing.assert_close(logits(peft_load(plain, saved), ids), wanted, rtol=1e-4, atol=1e-4)


def test_the_compressed_adapter_misses_what_it_says() -> None:
    base = tiny_llama()
    start = initial_adapter("pissa", spec(), base, seed=0)
    exact = difference(moved(start), start)
    small, error = compressed(exact, 4)
    lost = wanted = 0.0
    for path, factors in exact.factors.items():
        assert small.factors[path].rank == 4
        whole = exact.spec.scale_of(path) * factors.B @ factors.A
        near = small.spec.scale_of(path) * small.factors[path].B @ small.factors[path].A
        lost += float((whole - near).square().sum())
        wanted += float(whole.square().sum())
    assert 0.01 < error < 1
    assert error == pytest.approx((lost / wanted) ** 0.5, rel=1e-4)  # fp32 factors


def batches(rows: int = 8, length: int = 12, count: int = 3) -> list[dict[str, torch.Tensor]]:
    found = []
    for seed in range(count):
        ids = tiny_ids(rows, length, seed)
        found.append({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    return found


def test_eva_shares_the_ranks_out_as_peft_does() -> None:
    from peft.tuners.lora.eva import initialize_lora_eva_weights

    base = tiny_llama()
    before = copy.deepcopy(base.state_dict())
    adapter = initial_adapter("eva", spec(), base, seed=0, batches=batches())
    model = theirs(base, "eva")
    initialize_lora_eva_weights(model, batches(), show_progress_bar=False)
    wanted = {n.replace(".default", ""): p for n, p in model.named_parameters() if "lora_" in n}
    assert adapter.tensors().keys() == wanted.keys()
    for name, tensor in adapter.tensors().items():
        torch.testing.assert_close(tensor, wanted[name].detach(), rtol=1e-5, atol=1e-6)
    ranks = {path: factors.rank for path, factors in adapter.factors.items()}
    assert len(set(ranks.values())) > 1
    for path in ranks:
        layer = model.base_model.model.get_submodule(path)
        assert adapter.spec.scale_of(path) == pytest.approx(layer.scaling["default"])
        assert adapter.spec.rank_of(path) == ranks[path]
    assert all(torch.equal(value, before[name]) for name, value in base.state_dict().items())
    Bank(base).trainable("a", adapter.spec, start=adapter)
    assert not any(module._forward_hooks for module in base.modules())


def test_eva_that_does_not_converge_ends_and_leaves_no_hook(monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny_llama()
    monkeypatch.setattr("scumble.lora.initial._PASSES", 2)
    with pytest.raises(AdapterError, match="has not converged after 2 batches"):
        initial_adapter("eva", spec(), base, seed=0, batches=batches())
    assert not any(module._forward_hooks for module in base.modules())


@pytest.mark.parametrize(
    ("kind", "changed", "error", "says"),
    [
        ("loftq", {}, NotSupportedError, "quantised base"),
        ("pissa", {"rslora": True, "rank_pattern": {"q_proj": 2}}, ConfigError, "rsLoRA and a rank_pattern"),
        ("olora", {"dora": True}, ConfigError, "DoRA"),
        ("orthogonal", {"rank": 3}, ConfigError, "even rank, not 3"),
        ("pissa", {"rank": 20}, ConfigError, "has no rank of 20"),
        ("pissa", {"targets": ("embed_tokens",)}, ConfigError, "is an embedding"),
        ("eva", {"rank_pattern": {"q_proj": 2}}, ConfigError, "shares the ranks out itself"),
        ("eva", {}, ConfigError, "there are 0"),
    ],
)
def test_what_cannot_be_had_is_refused_by_name(
    kind: str, changed: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        initial_adapter(kind, spec(**changed), tiny_llama(), seed=0)
