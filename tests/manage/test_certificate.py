"""A certificate passes honest merges (PEFT's, in fp64) of every kind, and names what a sabotaged one has wrong."""

from __future__ import annotations

import json
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file

from scumble.errors import AdapterError, MissingFileError
from scumble.lora.adapter import Adapter
from scumble.manage.certificate import certify, describe
from scumble.manage.prompts import PROMPTS
from scumble.models.checkpoint import open_checkpoint
from scumble.models.identity import hash_parameters
from tests.manage.merges import (
    INDEX,
    edit_json,
    edit_tensors,
    honest_merge,
    load,
    opened,
    write_adapter,
    write_base,
)
from tests.tiny import FAMILIES

Q = "model.layers.0.self_attn.q_proj.weight"
FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16
SHORT = ["one prompt", "another, a little longer"]
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
HONEST = {
    "fp32": {},
    "bf16": {"dtype": BF16},
    "fp16": {"dtype": FP16},
    "bf16_of_bf16": {"dtype": BF16, "base_dtype": BF16},
    "fp32_of_bf16": {"base_dtype": BF16},
    "fp16_of_bf16": {"dtype": FP16, "base_dtype": BF16},
    "rslora": {"use_rslora": True, "rank_pattern": {"q_proj": 2}},
    "alpha_pattern": {"alpha_pattern": {"v_proj": 3}},
    "all_linear_bf16": {"target_modules": "all-linear", "dtype": BF16},
    "dora": {"use_dora": True},
    "dora_bf16": {"use_dora": True, "dtype": BF16, "base_dtype": BF16},
    "dora_embedding": {"use_dora": True, "target_modules": ["embed_tokens", "q_proj"]},
    "tied": {"tie": True},
    "tied_bf16": {"tie": True, "dtype": BF16},
    "tied_tokens": {"tie": True, "trainable_token_indices": [5, 3, 9]},
    "untied_for_the_embedding": {"tie": True, "untie": True, "target_modules": ["embed_tokens", "q_proj"]},
    "untied_for_the_head": {
        "tie": True,
        "untie": True,
        "target_modules": ["lm_head", "q_proj"],
        "dtype": BF16,
    },
    "head": {"target_modules": ["lm_head", "q_proj"]},
    "modules_to_save": {"modules_to_save": ["lm_head", "norm"]},
    "tokens": {"trainable_token_indices": [5, 3, 9]},
    "sharded": {"shard": "20KB"},
    "sharded_fp16": {"shard": "20KB", "dtype": FP16},
}


def merged(
    tmp_path, *, base_dtype=FP32, tie=False, dtype=FP32, untie=False, shard="1GB", shrink=1.0, **config
):
    """The base's folder, the adapter's, and that of an honest merge."""
    base = write_base(tmp_path / "base", dtype=base_dtype, tie_word_embeddings=tie)
    adapter = write_adapter(base, tmp_path / "adapter", shrink=shrink, **config)
    out = honest_merge(base, adapter, tmp_path / "merged", dtype=dtype, untie=untie, shard=shard)
    return base, adapter, out


def judged(base, adapter, out, **options):
    return certify(*opened(base, adapter), out, **{"prompts": SHORT, **options})


def assert_caught(certificate, *words):
    """It failed, and one of its lines has all the words."""
    assert not certificate.passed
    assert any(all(word in line for word in words) for line in certificate.failures), certificate.failures
    assert all("\n" not in line for line in certificate.failures)


# -- honest merges ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", HONEST)
def test_an_honest_merge_passes(name, tmp_path):
    base, adapter, out = merged(tmp_path, **HONEST[name])
    certificate = judged(base, adapter, out)
    assert certificate.passed, certificate.failures
    assert certificate.modules
    assert all(found.misrounded == 0 for found in certificate.modules.values())
    logits = certificate.logits
    assert logits is not None
    assert logits.loaded is not None
    # so that the prompts can fail anything: the adapter does something
    assert logits.effect.mean_kl > 1e-3
    # the loaded model and the one computed in memory hold the same numbers: the same kernels, the same logits
    assert logits.loaded.apart == 0
    if HONEST[name].get("dtype", FP32) == FP32:
        # two orders of the same fp32 sums; measured 1e-5 and 1e-11 at most
        assert logits.loaded.difference < 1e-4
        assert logits.loaded.max_kl < 1e-9
        assert certificate.overall.cosine == pytest.approx(1, abs=1e-9)
    else:
        assert 1e-4 < certificate.overall.lost < 0.05  # one rounding to 8 or 11 bits, of a large update
        assert logits.missing() < 0.01


@pytest.mark.parametrize(
    ("family", "config"),
    [
        ("qwen2", {"target_modules": ATTENTION, "bias": "all"}),
        ("qwen2", {"target_modules": ["q_proj"], "lora_bias": True}),
        ("gpt2", {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True, "use_dora": True}),
        ("gpt2", {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True, "lora_bias": True}),
        ("gemma3", {"target_modules": ["q_proj"], "trainable_token_indices": [5, 8]}),
        ("mixtral", {"target_modules": ATTENTION}),
        ("phi3", {"target_modules": ["qkv_proj", "down_proj"]}),
    ],
    ids=str,
)
def test_families_and_bases_without_a_tokenizer(family, config, tmp_path):
    base = tmp_path / "base"
    FAMILIES[family]().save_pretrained(base)
    adapter = write_adapter(base, tmp_path / "adapter", **config)
    out = honest_merge(base, adapter, tmp_path / "merged")
    certificate = judged(base, adapter, out, prompts=None)
    assert certificate.passed, certificate.failures
    assert certificate.prompts.form == "token ids"
    assert certificate.logits.loaded.max_kl < 1e-9
    document = certificate.to_dict()
    assert len(document["prompts"]["ids"]) == 8


def test_an_adapter_that_does_nothing_passes(tmp_path):
    for number, dtype in enumerate((FP32, BF16)):
        base, adapter, out = merged(tmp_path / str(number), shrink=0.0, dtype=dtype)
        certificate = judged(base, adapter, out)
        assert certificate.passed, certificate.failures
        assert certificate.overall.cosine is None
        assert certificate.logits.missing() is None
        assert "changes nothing" in describe(certificate)[0]


def test_a_small_update_in_bf16_passes_with_the_share_that_it_loses(tmp_path):
    base, adapter, out = merged(tmp_path, shrink=0.05, dtype=BF16, base_dtype=BF16)
    certificate = judged(base, adapter, out)
    assert certificate.passed, certificate.failures
    assert 0.08 < certificate.overall.lost < 0.32  # the range that the issue measured
    assert f"loses {certificate.overall.lost:.1%} of the update" in certificate.warnings[0]


def test_the_document(tmp_path):
    base, adapter, out = merged(tmp_path, shard="20KB")
    certificate = judged(base, adapter, out, prompts=None)
    document = json.loads(json.dumps(certificate.to_dict(), allow_nan=False))
    assert document["passed"] is True
    assert document["version"] == 1
    assert document["base"]["hash"] == hash_parameters(load(base, FP32))
    assert document["result"]["hash"] == hash_parameters(load(out, FP32))
    assert document["result"]["dtype"] == "float32"
    assert len(document["result"]["shards"]) == len(list(out.glob("*.safetensors"))) > 1
    assert set(document["versions"]) == {"scumble", "torch", "transformers", "peft"}
    assert document["prompts"]["texts"] == list(PROMPTS)
    assert document["prompts"]["form"] == "chat template"
    assert document["modules"][Q]["cosine"] == pytest.approx(1)
    assert document["logits"]["loaded"]["positions"] == document["prompts"]["tokens"]
    assert all("reason" in limit for limit in document["tolerances"].values())
    assert [line.split(":")[0] for line in describe(certificate)][:1] == ["certificate"]
    # figures by hand: what was achieved in one module
    old, new = load(base, FP32).state_dict()[Q].double(), load_file_of(out, Q).double()
    assert document["modules"][Q]["achieved"] == pytest.approx(float((new - old).norm()), rel=1e-12)


def load_file_of(folder, name):
    """A tensor of a sharded folder."""
    return next(
        tensors[name] for path in folder.glob("*.safetensors") if name in (tensors := load_file(path))
    )


def test_the_weights_alone(tmp_path):
    base, adapter, out = merged(tmp_path)
    certificate = judged(base, adapter, out, weights_only=True)
    assert certificate.passed, certificate.failures
    document = certificate.to_dict()
    assert document["logits"] is None
    assert "weights alone" in document["logits_reason"]
    assert document["result"]["hash"] == hash_parameters(load(out, FP32))
    edit_tensors(out, lambda tensors: tensors[Q].mul_(1.001))
    assert_caught(judged(base, adapter, out, weights_only=True), Q, "rounded once")


def test_another_base_is_a_warning_and_a_wrong_adapter_an_error(tmp_path):
    base, adapter, out = merged(tmp_path)
    loaded = Adapter.load(adapter)
    loaded.base_hash = "0" * 32
    with open_checkpoint(str(base)) as checkpoint:
        certificate = certify(checkpoint, loaded, out, prompts=SHORT)
        assert certificate.passed
        assert "trained on a base with hash 000" in certificate.warnings[-1]
        with pytest.raises(MissingFileError):
            certify(checkpoint, loaded, tmp_path / "nowhere")
        loaded.factors.pop(next(iter(loaded.factors)))
        with pytest.raises(AdapterError, match="in part"):
            certify(checkpoint, loaded, out)


# -- sabotage ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [FP32, BF16, FP16], ids=str)
@pytest.mark.parametrize("by", [0.0, 2.0, 1.02, -1.0])
def test_a_scale_that_is_wrong_in_one_module(by, dtype, tmp_path):
    """0 is a module that was skipped; 1.02 is too little for cosine and ratio, and is seen by the rounding."""
    base, adapter, out = merged(tmp_path, dtype=dtype)
    old = load(base, torch.float64).state_dict()[Q]
    factors, scale = Adapter.load(adapter).factors[Q.removesuffix(".weight")], 8 / 4
    update = scale * factors.B.double() @ factors.A.double()
    edit_tensors(out, lambda tensors: tensors.__setitem__(Q, (old + by * update).to(dtype)))
    certificate = judged(base, adapter, out)
    assert_caught(certificate, Q, "rounded once")
    assert certificate.modules[Q].sums.ratio == pytest.approx(abs(by), abs=0.05)
    if by == 0.0:
        if dtype == FP32:
            assert_caught(certificate, Q, "the update was lost")
        assert certificate.modules[Q].sums.cosine < 0.2  # fp32's rounding is all that is left in bf16
    elif by != 1.02:
        assert_caught(certificate, Q, "achieved and intended update differ")
    others = [line for line in certificate.failures if ".v_proj" in line]
    assert not others


def test_a_small_module_that_was_skipped_is_seen_beside_large_ones(tmp_path):
    base = write_base(tmp_path / "base")
    adapter = write_adapter(base, tmp_path / "adapter", shrink=1.0)
    loaded = Adapter.load(adapter)
    path = Q.removesuffix(".weight")
    loaded.factors[path].B.mul_(1e-3)
    loaded.save(tmp_path / "small")
    out = honest_merge(base, tmp_path / "small", tmp_path / "merged")
    assert judged(base, tmp_path / "small", out).passed
    edit_tensors(out, lambda tensors: tensors.__setitem__(Q, load(base, FP32).state_dict()[Q].contiguous()))
    certificate = judged(base, tmp_path / "small", out)
    assert_caught(certificate, Q, "rounded once")
    # by cosine and ratio it warns only, for it is less than 1 % of the update
    assert any(Q in line and "the whole update's norm" in line for line in certificate.warnings)


def test_the_whole_update_deleted(tmp_path):
    base, adapter, out = merged(tmp_path)
    shutil.copy(base / "model.safetensors", out / "model.safetensors")
    certificate = judged(base, adapter, out)
    assert_caught(certificate, "the whole update", "lost")
    assert_caught(certificate, "misses 100% of the adapter's effect")
    assert_caught(certificate, "which fp32 rounding does not explain")


def test_an_update_that_rounding_deletes(tmp_path):
    """Every element is rounded as it should be, and the update is gone all the same."""
    base, adapter, out = merged(tmp_path, dtype=BF16, base_dtype=BF16, shrink=1e-4)
    certificate = judged(base, adapter, out)
    assert_caught(certificate, "the whole update")
    assert all(found.misrounded == 0 for found in certificate.modules.values())


@pytest.mark.parametrize("dtype", [FP32, BF16, FP16], ids=str)
def test_one_bit_of_an_untouched_tensor(dtype, tmp_path):
    base, adapter, out = merged(tmp_path, dtype=dtype)
    name = "model.layers.1.mlp.up_proj.weight"

    def flip(tensors):
        kind = torch.int32 if dtype == FP32 else torch.int16
        tensors[name].view(kind)[3, 5] ^= 1

    edit_tensors(out, flip)
    certificate = judged(base, adapter, out)
    assert_caught(certificate, name, "not reached by the adapter, and 1 of its elements")
    assert certificate.to_dict()["untouched"]["changed"] == 1


def test_one_unit_in_a_merged_tensor(tmp_path):
    base, adapter, out = merged(tmp_path, dtype=BF16)
    edit_tensors(out, lambda tensors: tensors[Q].view(torch.int16)[1, 2].add_(1))
    certificate = judged(base, adapter, out)
    assert_caught(certificate, Q, "1 of 256 elements")
    assert certificate.modules[Q].worst < 1.6


def test_the_head_replaced(tmp_path):
    base, adapter, out = merged(tmp_path)
    edit_tensors(out, lambda tensors: tensors["lm_head.weight"].copy_(tensors["lm_head.weight"].roll(1, 0)))
    certificate = judged(base, adapter, out)
    assert_caught(certificate, "lm_head.weight", "not reached by the adapter")
    assert_caught(certificate, "logits of the loaded model differ from the computed")


def test_a_tensor_that_is_not_finite(tmp_path):
    base, adapter, out = merged(tmp_path, dtype=FP16)
    edit_tensors(out, lambda tensors: tensors[Q].__setitem__((0, 0), math.inf))
    assert_caught(judged(base, adapter, out), Q, "not finite")


# -- ties -------------------------------------------------------------------------------------------


def test_a_tie_kept_that_should_be_broken(tmp_path):
    """PEFT's own merge into a tied embedding, which changes the output layer too."""
    base, adapter, out = merged(tmp_path, tie=True, target_modules=["embed_tokens", "q_proj"])
    assert_caught(judged(base, adapter, out), "tie:", "lm_head.weight", "needs a tensor of its own")


def test_a_tie_broken_in_the_configuration_alone(tmp_path):
    base, adapter, out = merged(tmp_path, tie=True)
    edit_json(out / "config.json", lambda config: config.update(tie_word_embeddings=False))
    certificate = judged(base, adapter, out)
    assert_caught(certificate, "tie:", "hold no lm_head.weight")
    assert_caught(certificate, "transformers cannot load the folder", "lm_head.weight")


def test_a_tied_configuration_over_two_tensors(tmp_path):
    base, adapter, out = merged(
        tmp_path, tie=True, untie=True, target_modules=["embed_tokens", "q_proj"], dtype=BF16
    )
    edit_json(out / "config.json", lambda config: config.update(tie_word_embeddings=True))
    assert_caught(judged(base, adapter, out), "tie:", "two that differ")


def test_a_tied_head_with_other_numbers(tmp_path):
    base, adapter, out = merged(tmp_path, tie=True)

    def add(tensors):
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] * 1.5

    edit_tensors(out, add)
    assert_caught(judged(base, adapter, out), "tie:", "two that differ")


# -- files ------------------------------------------------------------------------------------------


def test_a_shard_missing_from_the_index(tmp_path):
    base, adapter, out = merged(tmp_path, shard="20KB")
    shard = sorted(out.glob("*.safetensors"))[1].name

    def drop(index):
        index["weight_map"] = {name: file for name, file in index["weight_map"].items() if file != shard}

    edit_json(out / INDEX, drop)
    certificate = judged(base, adapter, out)
    assert_caught(certificate, shard, "missing from the index")
    assert_caught(certificate, "transformers cannot load the folder")


def test_a_shard_that_is_gone_and_one_cut_short(tmp_path):
    base, adapter, out = merged(tmp_path, shard="20KB")
    first, second = sorted(out.glob("*.safetensors"))[:2]
    first.unlink()
    second.write_bytes(second.read_bytes()[:-7])
    certificate = judged(base, adapter, out)
    assert_caught(certificate, first.name, "which is not there")
    assert_caught(certificate, second.name, "cannot be read")
    assert_caught(certificate, "missing from the files")


def test_a_wrong_total_and_a_tensor_too_many(tmp_path):
    base, adapter, out = merged(tmp_path, shard="20KB")
    edit_json(out / INDEX, lambda index: index["metadata"].update(total_size=1))
    assert_caught(judged(base, adapter, out), "total_size 1")
    base, adapter, out = merged(tmp_path / "second")
    edit_tensors(out, lambda tensors: tensors.__setitem__("model.extra.weight", torch.ones(2)))
    assert_caught(judged(base, adapter, out), "model.extra.weight", "not of the base")


@pytest.mark.parametrize(("dtype", "said"), [(BF16, "float32"), (FP32, "bfloat16"), (FP16, "bfloat16")])
def test_a_wrong_type_in_the_configuration(dtype, said, tmp_path):
    base, adapter, out = merged(tmp_path, dtype=dtype)
    edit_json(out / "config.json", lambda config: config.update(dtype=said))
    assert_caught(judged(base, adapter, out), "dtype: config.json says", said)


def test_one_tensor_of_another_type(tmp_path):
    base, adapter, out = merged(tmp_path, dtype=BF16)
    name = "model.layers.1.mlp.up_proj.weight"
    edit_tensors(out, lambda tensors: tensors.__setitem__(name, tensors[name].float()))
    assert_caught(judged(base, adapter, out), "dtype: config.json says bfloat16, and 1 tensors", name)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (["tokenizer.json", "tokenizer_config.json"], "the tokenizer is left out"),
        (["generation_config.json"], "generation_config.json is left out"),
        (["chat_template.jinja"], "chat_template.jinja is left out"),
        (["config.json"], "config.json cannot be read"),
    ],
)
def test_a_file_left_out(files, words, tmp_path):
    base, adapter, out = merged(tmp_path)
    for name in files:
        (out / name).unlink()
    assert_caught(judged(base, adapter, out), words)


def test_another_template_and_an_adapter_beside_the_model(tmp_path):
    base, adapter, out = merged(tmp_path)
    (out / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    shutil.copy(adapter / "adapter_config.json", out)
    certificate = judged(base, adapter, out)
    assert_caught(certificate, "chat template is not the base's")
    assert_caught(certificate, "holds an adapter too")
