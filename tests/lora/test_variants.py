"""Every variant of LoRA that PEFT's file can hold: the same logits in the bank as in PEFT, and back."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from scumble.lora.adapter import Adapter
from scumble.lora.bank import Bank
from tests.lora.conftest import peft_load, peft_model
from tests.tiny import FAMILIES, logits, tiny_ids, tiny_llama

# The tolerance in fp32: two ways of adding the same terms, over logits up to 9. Measured: 1.2e-5.
TOLERANCE = 1e-4
# So that a test can fail: the adapter moves the logits by this, and each of its tensors' modules by that.
MOVED, EACH_MOVED = 0.1, 1e-3

VARIANTS = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "rank_pattern": {"rank_pattern": {"v_proj": 3, r"layers\.1\.self_attn\.q_proj": 6}},
    "alpha_pattern": {"alpha_pattern": {"layers.0.self_attn.q_proj": 3, "v_proj": 11}},
    "both_patterns_rslora": {
        "rank_pattern": {"q_proj": 2},
        "alpha_pattern": {"v_proj": 5},
        "use_rslora": True,
    },
    "layers": {"layers_to_transform": [1]},
    "one_layer": {"layers_to_transform": 0},
    "layers_pattern": {"layers_to_transform": [0], "layers_pattern": "layers"},
    "exclude_names": {"exclude_modules": ["layers.0.self_attn.q_proj"]},
    "exclude_regex": {"exclude_modules": r".*layers\.1.*v_proj"},
    "all_linear": {"target_modules": "all-linear"},
    "regex": {"target_modules": r".*layers\.[01]\.(self_attn\.k_proj|mlp\.down_proj)"},
    "lora_bias": {"lora_bias": True},
    "dora": {"use_dora": True},
    "dora_rslora": {"use_dora": True, "use_rslora": True, "rank_pattern": {"q_proj": 2}},
    "dora_embedding": {"use_dora": True, "target_modules": ["embed_tokens", "q_proj"]},
    "fan_in_fan_out": {"fan_in_fan_out": True},
    "modules_to_save": {"modules_to_save": ["lm_head"]},
    "modules_to_save_norms": {"modules_to_save": ["norm"]},
    "modules_to_save_mlp": {"modules_to_save": ["mlp"], "target_modules": ["q_proj", "down_proj"]},
    "tokens_list": {"trainable_token_indices": [5, 3, 9]},
    "tokens_dict": {"trainable_token_indices": {"embed_tokens": [5, 11]}},
    "embedding": {"target_modules": ["embed_tokens", "q_proj"]},
    "head": {"target_modules": ["lm_head", "v_proj"]},
}
TIED = {
    "embedding": {"target_modules": ["embed_tokens", "q_proj"]},
    "head": {"target_modules": ["lm_head", "v_proj"]},
    "both": {"target_modules": ["lm_head", "embed_tokens", "v_proj"]},
    "save_embedding": {"modules_to_save": ["embed_tokens"]},
    "save_head": {"modules_to_save": ["lm_head"]},
    "tokens_list": {"trainable_token_indices": [5, 3, 9]},
    "tokens_dict": {"trainable_token_indices": {"embed_tokens": [5]}},
}
ATTENTION = {"target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]}
GPT2 = {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}
OF_FAMILIES = [
    ("qwen2", {"target_modules": "all-linear"}),
    ("qwen2", {**ATTENTION, "bias": "all"}),
    ("qwen2", {**ATTENTION, "bias": "lora_only"}),
    ("qwen2", {**ATTENTION, "use_dora": True}),
    ("gemma", {"target_modules": "all-linear"}),
    ("gemma", {"target_modules": ["embed_tokens", "q_proj"]}),
    ("gemma", {"trainable_token_indices": [5, 8]}),
    ("gemma3", {"target_modules": ["embed_tokens", "q_proj"]}),
    ("gemma3", {"trainable_token_indices": [5, 8]}),
    ("gemma3", {"target_modules": ["embed_tokens"], "use_dora": True}),
    ("mistral", {"target_modules": "all-linear"}),
    ("phi3", {"target_modules": ["qkv_proj", "gate_up_proj", "o_proj", "down_proj"]}),
    ("phi3", {"target_modules": ["qkv_proj"], "use_dora": True}),
    ("gpt2", GPT2),
    ("gpt2", {**GPT2, "use_dora": True}),
    ("gpt2", {**GPT2, "bias": "all"}),
    ("gpt2", {**GPT2, "bias": "lora_only"}),
    ("gpt2", {**GPT2, "lora_bias": True}),
    ("gpt2", {"target_modules": ["wte"], "trainable_token_indices": {"wpe": [1, 2]}}),
    ("gpt2", {**GPT2, "trainable_token_indices": [5, 3]}),
    ("mixtral", ATTENTION),
    ("mixtral", {**ATTENTION, "use_dora": True}),
    ("qwen2_moe", ATTENTION),
    ("qwen2_moe", {"target_modules": ["q_proj", "shared_expert.down_proj", "shared_expert.up_proj"]}),
]


def _check(base, config, tmp_path) -> None:
    ids = tiny_ids()
    oracle = peft_model(base, **config)
    want = logits(oracle, ids)
    oracle.save_pretrained(tmp_path / "in")
    before = logits(base, ids)
    assert (want - before).abs().max() >= MOVED

    bank = Bank(copy.deepcopy(base))
    bank.add("a", tmp_path / "in")
    torch.testing.assert_close(logits(bank.model, ids), before, rtol=0, atol=0)
    bank.use("a")
    torch.testing.assert_close(logits(bank.model, ids), want, rtol=0, atol=TOLERANCE)
    # rows: the adapter in one, the base in the others; each as alone
    bank.use_rows([{}, "a", {}])
    mixed = logits(bank.model, ids)
    torch.testing.assert_close(mixed[1], want[1], rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(mixed[::2], before[::2], rtol=0, atol=TOLERANCE)
    # written by Scumble, read by PEFT
    bank.save("a", tmp_path / "out")
    torch.testing.assert_close(logits(peft_load(base, tmp_path / "out"), ids), want, rtol=0, atol=TOLERANCE)
    bank.use({})
    bank.close()

    _check_each_counts(base, Adapter.load(tmp_path / "in"), want, ids)


def _check_each_counts(base, adapter, want, ids) -> None:
    """Leaving out any one module, one bias, one saved tensor or the token rows is seen in the logits."""
    own = dict(base.named_modules())
    parameters = base.state_dict()
    fewer = []
    for path, factors in adapter.factors.items():
        changed = {"B": torch.zeros_like(factors.B)}
        if factors.bias is not None:
            changed["bias"] = torch.zeros_like(factors.bias)
        if factors.magnitude is not None:
            # the norms of W itself by rows, so that what is left is W
            weight = own[path].weight.detach()
            along = 1 if isinstance(own[path], torch.nn.Linear) else 0
            changed["magnitude"] = torch.linalg.vector_norm(weight, dim=along)
        fewer.append((path, replace(adapter, factors={**adapter.factors, path: replace(factors, **changed)})))
    for path in adapter.biases:
        fewer.append((path, replace(adapter, biases={**adapter.biases, path: own[path].bias.detach()})))
    for name in adapter.saved:
        fewer.append((name, replace(adapter, saved={**adapter.saved, name: parameters[name]})))
    for path, rows in adapter.tokens.items():
        numbers = next(iter(adapter.spec.trainable_token_indices.values()))
        plain = own[path].weight.detach()[list(numbers)]
        assert plain.shape == rows.shape
        fewer.append((path, replace(adapter, tokens={**adapter.tokens, path: plain})))
    bank = Bank(copy.deepcopy(base))
    bank.add("a", adapter)
    bank.use("a")
    for path, less in fewer:
        bank.swap("a", less)
        moved = (logits(bank.model, ids) - want).abs().max()
        # a softmax does not see what is added to all its scores, so k's bias counts for nothing by itself
        if not (path in adapter.biases and path.endswith("k_proj")):
            assert moved > EACH_MOVED, path


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_on_llama(name, tmp_path):
    _check(tiny_llama(), VARIANTS[name], tmp_path)


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_biases_on_a_llama_that_has_them(bias, tmp_path):
    base = tiny_llama(attention_bias=True, mlp_bias=True)
    _check(base, {"bias": bias}, tmp_path)


@pytest.mark.parametrize("name", TIED)
def test_a_variant_with_tied_embeddings(name, tmp_path):
    _check(tiny_llama(tie_word_embeddings=True), TIED[name], tmp_path)


@pytest.mark.parametrize(("family", "config"), OF_FAMILIES, ids=lambda value: str(value)[:60])
def test_a_family(family, config, tmp_path):
    _check(FAMILIES[family](), config, tmp_path)
