"""Adapters for vLLM: what vLLM reads of them gives the true update, and what it refuses is refused or converted.

The oracles are PEFT, for the updates, and vLLM's own reading of a folder, written down here from
vllm/lora/peft_helper.py: one scale from r, lora_alpha and use_rslora, and tensors lora_A and lora_B alone.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from scumble.errors import ConfigError, NotSupportedError
from scumble.lora.adapter import Adapter
from scumble.manage.export.vllm import MAX_RANKS, export_vllm
from tests.lora.conftest import peft_load, peft_model
from tests.manage.folders import model_of, save
from tests.tiny import logits, tiny_ids

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {"r": 4, "lora_alpha": 8, "target_modules": ALL},
    "rslora": {"r": 9, "lora_alpha": 5, "use_rslora": True, "target_modules": ALL},
    "ranks": {"r": 4, "target_modules": ALL, "rank_pattern": {"q_proj": 2, "layers.1.mlp.down_proj": 6}},
    "alphas": {"r": 4, "target_modules": ALL, "alpha_pattern": {"k_proj": 3, "up_proj": 20}},
    "one other alpha": {"r": 4, "target_modules": ["k_proj"], "alpha_pattern": {"k_proj": 3}},
    "rslora with ranks": {"r": 4, "use_rslora": True, "target_modules": ALL, "rank_pattern": {"k_proj": 3}},
    "a pattern of targets": {"target_modules": r".*layers\.1\.self_attn\.(q|v)_proj"},
    "one layer": {"target_modules": ALL, "layers_to_transform": [1]},
}


def as_vllm_reads(folder: str | Path) -> dict[str, torch.Tensor]:
    """The update of each module, by path, (out, in)."""
    config = json.loads((Path(folder) / "adapter_config.json").read_text())
    assert not config["modules_to_save"]
    assert not config["use_dora"]
    assert config["bias"] == "none"
    assert config["r"] <= MAX_RANKS[-1]
    root = math.sqrt(config["r"]) if config["use_rslora"] else config["r"]
    tensors = load_file(Path(folder) / "adapter_model.safetensors")
    updates = {}
    for name in tensors:
        assert name.endswith((".lora_A.weight", ".lora_B.weight")), name
        if name.endswith(".lora_A.weight"):
            A, B = tensors[name].double(), tensors[name.replace("lora_A", "lora_B")].double()
            assert A.shape[0] == config["r"]
            updates[name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")] = (
                config["lora_alpha"] / root * B @ A
            )
    return updates


def true_updates(base: Any, **config: Any) -> dict[str, torch.Tensor]:
    """PEFT's merged weights less the base's, in fp64."""
    before = base.double().state_dict()
    after = peft_model(base.double(), **config).merge_and_unload().state_dict()
    return {name.removesuffix(".weight"): after[name] - before[name] for name in before}


@pytest.mark.parametrize("variant", VARIANTS)
def test_vllm_computes_the_true_update(variant, made, tmp_path):
    folder = made(model_of("llama").double(), **VARIANTS[variant])
    written = export_vllm(folder, out=tmp_path / "v")
    found = as_vllm_reads(written.out)
    for name, true in true_updates(model_of("llama"), **VARIANTS[variant]).items():
        # fp64 throughout: the merge rounds W plus the update, whose numbers are below 100
        assert torch.allclose(found.get(name, torch.zeros_like(true)), true, atol=1e-13), name
    assert written.error < 1e-15
    assert bool(written.changes) == (variant not in ("plain", "rslora"))


@pytest.mark.parametrize("variant", VARIANTS)
def test_peft_computes_the_same_with_it(variant, made, tmp_path):
    base = model_of("llama")
    folder = made(base, **VARIANTS[variant])
    export_vllm(folder, out=tmp_path / "v")
    expected, found = (logits(peft_load(base, place), tiny_ids()) for place in (folder, tmp_path / "v"))
    # fp32: a scale folded into B rounds once more, 6e-8 of each number, and layers of large weights amplify it
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_plain_adapter_keeps_its_bytes(made, tmp_path):
    folder = made(model_of("llama"), **VARIANTS["plain"])
    Adapter.load(folder).save(tmp_path / "same")
    written = export_vllm(folder, out=tmp_path / "v")
    name = "adapter_model.safetensors"
    assert (tmp_path / "v" / name).read_bytes() == (tmp_path / "same" / name).read_bytes()
    assert written.max_rank == 8
    assert "--max-lora-rank 8" in written.command


def test_half_precision_factor_is_widened_rather_than_rounded(made, tmp_path):
    """A scale of 5/4 does not fit bf16's 8 bits: B becomes fp32, and the error is fp32's, 6e-8, not 4e-3."""
    folder = made(model_of("llama").bfloat16(), r=4, alpha_pattern={"q_proj": 5}, lora_alpha=8)
    adapter = Adapter.load(folder)
    for each in adapter.factors.values():
        each.A, each.B = each.A.bfloat16(), each.B.bfloat16()
    adapter.save(tmp_path / "half")
    written = export_vllm(tmp_path / "half", out=tmp_path / "v")
    assert written.error < 1e-7
    kinds = {name.split(".")[4]: each.B.dtype for name, each in Adapter.load(tmp_path / "v").factors.items()}
    assert kinds == {"q_proj": torch.float32, "v_proj": torch.bfloat16}  # v's scale is 2, which fits


@pytest.mark.parametrize("rank", [4, 16, 64])
def test_dora_is_converted_with_its_error(rank, made, tmp_path):
    """Against the dense update's own singular values: the best of a rank, module by module; whole at full rank."""
    base = model_of("llama")
    config = {"r": 4, "target_modules": ["q_proj", "down_proj"], "use_dora": True}
    folder = made(base, **config)
    written = export_vllm(folder, out=tmp_path / "v", rank=rank, base=str(save(base, tmp_path / "base")))
    found = as_vllm_reads(written.out)
    missing = wanted = least = 0.0
    for name, true in true_updates(base, **config).items():
        if name in found:
            missing += float((found[name] - true).norm() ** 2)
            wanted += float(true.norm() ** 2)
            least += float(torch.linalg.svdvals(true)[rank:].norm() ** 2)
    assert written.rank == rank
    assert "DoRA is converted" in written.changes[0]
    # factors are written in fp32: 1e-7 of the update beside what is cut off
    assert written.error == pytest.approx(math.sqrt(missing / wanted), rel=1e-3, abs=1e-6)
    assert math.sqrt(missing / wanted) == pytest.approx(math.sqrt(least / wanted), rel=1e-3, abs=1e-6)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"lora_bias": True}, "lora_bias"),
        ({"bias": "lora_only"}, "trained biases"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save \(lm_head\)"),
        ({"trainable_token_indices": {"embed_tokens": [1, 5]}}, "trained token rows"),
        ({"target_modules": ["embed_tokens", "q_proj"]}, "factors of an embedding"),
    ],
)
def test_what_vllm_refuses_is_refused_by_name(config, says, made, tmp_path):
    folder = made(model_of("qwen2" if config.get("bias") else "llama"), **config)
    with pytest.raises(NotSupportedError, match=says) as error:
        export_vllm(folder, out=tmp_path / "v")
    assert "merge it first" in error.value.hint
    assert not (tmp_path / "v").exists()


def test_rank_is_asked_for_where_it_is_needed_only(made, tmp_path):
    dora = made(model_of("llama"), "dora", use_dora=True)
    with pytest.raises(ConfigError, match="is DoRA"):
        export_vllm(dora, out=tmp_path / "v")
    with pytest.raises(ConfigError, match="--rank is 600"):
        export_vllm(dora, out=tmp_path / "v", rank=600)
    plain = made(model_of("llama"), "plain")
    with pytest.raises(ConfigError, match="needs no conversion"):
        export_vllm(plain, out=tmp_path / "v", rank=2)
