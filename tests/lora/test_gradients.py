"""Training through the bank: gradients equal PEFT's, and what was trained computes the same in PEFT."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import PeftModel

from scumble.errors import AdapterError
from scumble.lora.adapter import PREFIX, Adapter
from scumble.lora.bank import Bank
from scumble.lora.spec import LoraSpec
from tests.lora.conftest import peft_load, peft_model
from tests.tiny import logits, tiny_gpt2, tiny_ids, tiny_llama, tiny_qwen2, tiny_qwen2_moe

# fp64 leaves 1e-16 of each term; sums of some hundred terms, gradients up to 34. Measured: 2.3e-14.
TOLERANCE = 1e-9
CASES = {
    "plain": (tiny_llama, {}),
    "rslora": (tiny_llama, {"use_rslora": True, "rank_pattern": {"v_proj": 3}}),
    "dora": (tiny_llama, {"use_dora": True, "target_modules": "all-linear"}),
    "lora_bias": (tiny_llama, {"lora_bias": True}),
    "saved": (tiny_llama, {"modules_to_save": ["lm_head", "norm"]}),
    "saved_mlp": (tiny_llama, {"modules_to_save": ["mlp"]}),
    "tokens": (tiny_llama, {"trainable_token_indices": [5, 3]}),
    "embedding": (tiny_llama, {"target_modules": ["embed_tokens", "q_proj"], "use_dora": True}),
    "conv1d": (tiny_gpt2, {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True, "use_dora": True}),
    "bias_all": (tiny_gpt2, {"target_modules": ["c_attn"], "fan_in_fan_out": True, "bias": "all"}),
    "bias_only": (tiny_qwen2, {"bias": "lora_only"}),
    "experts": (tiny_qwen2_moe, {"target_modules": ["v_proj", "shared_expert.down_proj"]}),
}


def _loss(model, ids):
    scores = model(input_ids=ids).logits.log_softmax(-1)
    return -scores[:, :-1].gather(-1, ids[:, 1:, None]).sum()


def _peft_gradients(model: PeftModel, ids) -> dict[str, torch.Tensor]:
    model.zero_grad()
    _loss(model, ids).backward()
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            name = name.replace(".modules_to_save.default", "").replace(".default", "")
            found[name.removesuffix(".weight") if "magnitude" in name else name] = parameter.grad
    return found


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("case", CASES)
def test_gradients_equal_peft(case, tied, tmp_path):
    build, config = CASES[case]
    base = build(dtype=torch.float64, tie_word_embeddings=tied)
    ids = tiny_ids()
    oracle = peft_model(base, **config)
    oracle.save_pretrained(tmp_path / "in")
    start = Adapter.load(tmp_path / "in")
    wanted = _peft_gradients(oracle, ids)

    bank = Bank(copy.deepcopy(base))
    bank.trainable("a", start.spec, start=start)
    bank.use("a")
    _loss(bank.model, ids).backward()
    found = {name: parameter.grad for name, parameter in bank.parameters("a").items()}
    assert list(found) == sorted(found)
    assert set(found) == set(wanted)
    for name, gradient in found.items():
        assert gradient is not None, name
        torch.testing.assert_close(gradient, wanted[name], rtol=TOLERANCE, atol=TOLERANCE, msg=name)
    assert not any(parameter.requires_grad for parameter in base.parameters() if parameter.grad is not None)


SPECS = {
    "plain": LoraSpec(rank=3, targets="standard"),
    "all-linear": LoraSpec(rank=2, targets="all-linear", rslora=True),
    "dora": LoraSpec(rank=3, dora=True, targets=("q_proj", "embed_tokens")),
    "lora_bias": LoraSpec(lora_bias=True, alpha=4.5),
    "patterns": LoraSpec(rank_pattern={"v_proj": 2}, alpha_pattern={r"layers\.0.*": 3}),
    "saved": LoraSpec(modules_to_save=("lm_head",)),
    "tokens": LoraSpec(trainable_token_indices={"": (5, 4)}),
    "bias": LoraSpec(bias="all"),
    "bias_only": LoraSpec(bias="lora_only"),
    "regex": LoraSpec(targets=r".*\.1\..*(q|k)_proj"),
    "layer": LoraSpec(layers_to_transform=(1,), exclude_modules=("q_proj",)),
}


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("name", SPECS)
def test_what_is_trained_loads_in_peft(name, tied, tmp_path):
    base = tiny_llama(attention_bias=True, tie_word_embeddings=tied)
    ids = tiny_ids()
    before = logits(base, ids)
    bank = Bank(copy.deepcopy(base))
    bank.trainable("a", SPECS[name], seed=3)
    bank.use("a")
    torch.testing.assert_close(logits(bank.model, ids), before, rtol=0, atol=1e-5)  # B is zero
    optimizer = torch.optim.Adam(bank.parameters("a").values(), lr=0.05)
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        loss = _loss(bank.model, ids)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    bank.save("a", tmp_path / "out")
    want = logits(bank.model, ids)
    assert (want - before).abs().max() > 0.1
    # fp32, logits up to 6: the tolerance; measured 2.3e-6
    torch.testing.assert_close(logits(peft_load(base, tmp_path / "out"), ids), want, rtol=0, atol=1e-4)
    again = Bank(copy.deepcopy(base))
    again.add("b", tmp_path / "out")
    again.use("b")
    torch.testing.assert_close(logits(again.model, ids), want, rtol=0, atol=0)


def test_a_fresh_adapter_is_decided_by_its_seed_and_not_by_its_neighbours():
    alone, beside = Bank(tiny_llama()), Bank(tiny_llama())
    alone.trainable("a", LoraSpec(), seed=4)
    beside.trainable("other", LoraSpec(rank=2, targets="all-linear"), seed=9)
    beside.trainable("a", LoraSpec(), seed=4)
    beside.trainable("b", LoraSpec(), seed=5)
    pairs = zip(alone.snapshot("a").tensors().items(), beside.snapshot("a").tensors().items(), strict=True)
    assert all(one == other and torch.equal(x, y) for (one, x), (other, y) in pairs)
    some = PREFIX + "model.layers.0.self_attn.q_proj.lora_A.weight"
    assert not torch.equal(beside.parameters("a")[some], beside.parameters("b")[some])
    A = beside.parameters("a")[some]
    assert A.abs().max() <= 16**-0.5  # PEFT's rule: uniform in +-1/sqrt(in), in is 16 here
    assert A.abs().max() > 0.8 * 16**-0.5


def test_several_adapters_trained_in_one_batch_get_their_own_gradients():
    base = tiny_llama(dtype=torch.float64)
    ids = tiny_ids(rows=2)
    specs = {"a": LoraSpec(rank=2), "b": LoraSpec(rank=3, targets="all-linear", dora=True)}
    bank = Bank(copy.deepcopy(base))
    for name, spec in specs.items():
        bank.trainable(name, spec, seed=1)
    bank.use_rows(["a", "b"])
    _loss(bank.model, ids).backward()
    for row, (name, spec) in enumerate(specs.items()):
        alone = Bank(copy.deepcopy(base))
        alone.trainable(name, spec, seed=1)
        alone.use(name)
        _loss(alone.model, ids[row : row + 1]).backward()
        for key, parameter in alone.parameters(name).items():
            torch.testing.assert_close(bank.parameters(name)[key].grad, parameter.grad, rtol=1e-9, atol=1e-9)


def test_dora_is_not_stale_after_data_was_written():
    bank = Bank(tiny_llama())
    bank.trainable("a", LoraSpec(dora=True), seed=1)
    bank.use("a")
    ids = tiny_ids()
    logits(bank.model, ids)
    for parameter in bank.parameters("a").values():
        parameter.data.add_(0.3)  # torch does not count this as a change
    fresh = Bank(tiny_llama())
    fresh.add("a", bank.snapshot("a"))
    fresh.use("a")
    torch.testing.assert_close(logits(bank.model, ids), logits(fresh.model, ids), rtol=0, atol=1e-5)


def test_going_on_from_an_adapter_of_another_shape_is_refused(made):
    start = Adapter.load(made(tiny_llama()))
    bank = Bank(tiny_llama())
    with pytest.raises(AdapterError, match=r"another shape: .*r is 4, not 8"):
        bank.trainable("a", LoraSpec(), start=start)
    assert bank.names == []


def test_a_peft_configuration_is_taken_for_a_spec():
    from peft import LoraConfig

    bank = Bank(tiny_llama())
    bank.trainable("a", LoraConfig(r=2, lora_alpha=6, target_modules=["o_proj"], use_rslora=True))
    assert bank.adapter("a").spec.scale_of("model.layers.0.self_attn.o_proj") == pytest.approx(6 / 2**0.5)


def test_the_frozen_and_the_base_get_no_gradient(made):
    bank = Bank(tiny_llama())
    bank.add("frozen", made(tiny_llama()))
    bank.trainable("a", LoraSpec(), seed=1)
    bank.use("a+frozen*0.5")
    _loss(bank.model, tiny_ids()).backward()
    assert all(parameter.grad is None for parameter in bank.parameters("frozen").values())
    trained = {id(parameter) for parameter in bank.parameters("a").values()}
    assert {id(p) for p in bank.model.parameters() if p.requires_grad} == trained
