"""What a sabotaged merge has wrong is caught and named: modules, scales, single bits, ties, types, files."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace

import pytest
import torch

from scumble.errors import AdapterError
from scumble.lora.adapter import Adapter
from scumble.manage import merge as merging
from tests.manage.merges import (
    BF16,
    FP16,
    FP32,
    INDEX,
    Q,
    assert_caught,
    edit_json,
    edit_tensors,
    honest_merge,
    judged,
    load,
    merged,
    own_merge,
    write_adapter,
    write_base,
)

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
    certificate = judged(base, adapter, out)
    assert_caught(certificate, Q, "not finite")
    document = json.loads(json.dumps(certificate.to_dict(), allow_nan=False))
    assert document["modules"][Q]["not_finite"] == 1


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


# -- Scumble's own merge, sabotaged -------


def sabotage(monkeypatch, change):
    """Let `change` have a say in every tensor that the merge changes: (its number, Change) -> Change or None."""
    honest, count = merging.changed, iter(range(10**6))

    def crooked(stored, what, dtype):
        return honest(stored, what if what is None else change(next(count), what), dtype)

    monkeypatch.setattr(merging, "changed", crooked)


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("config", [{}, {"use_dora": True}, {"use_rslora": True}], ids=str)
def test_a_sabotaged_merge_leaves_nothing(config, dtype, tmp_path, monkeypatch):
    kinds = {
        "one skipped": lambda number, what: None if number == 1 else what,
        "doubled": lambda number, what: replace(what, scale=2 * what.scale),
        "one doubled": lambda number, what: replace(what, scale=what.scale * (1 + (number == 2))),
        "two percent": lambda number, what: replace(what, scale=1.02 * what.scale),
        "transposed": lambda number, what: replace(what, transposed=number == 3),
    }
    if config.get("use_dora"):
        kinds["plain"] = lambda number, what: replace(what, factors=replace(what.factors, magnitude=None))
    for title, change in kinds.items():
        if title == "transposed":
            config = {**config, "target_modules": ["q_proj", "o_proj"]}  # square
        with monkeypatch.context() as patch:
            sabotage(patch, change)
            with pytest.raises(AdapterError, match="failed its certificate"):
                own_merge(tmp_path / title, dtype, **config)
        assert not (tmp_path / title / "merged").exists()


def test_a_merge_that_keeps_a_tie(tmp_path, monkeypatch):
    honest = merging.plan_layout

    def tied(*args):
        layout = honest(*args)
        layout.config["tie_word_embeddings"] = True
        del layout.entries["lm_head.weight"]
        return layout

    monkeypatch.setattr(merging, "plan_layout", tied)
    with pytest.raises(AdapterError, match="tie:"):
        own_merge(tmp_path, tie=True, target_modules=["embed_tokens", "q_proj"])
