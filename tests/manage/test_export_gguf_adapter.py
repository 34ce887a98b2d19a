"""Adapters as GGUF LoRA: what llama.cpp computes of them is the true update, in the order of the base's rows.

The oracle is PEFT's merged model, written as GGUF by the export that transformers reads back: its tensors less
those of the base are the updates that llama.cpp must add, and it adds alpha / rank times lora_b lora_a.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader

from scumble.errors import AdapterError, ConfigError, NotSupportedError
from scumble.lora.adapter import Adapter
from scumble.manage.export.gguf_adapter import export_adapter
from scumble.manage.export.gguf_model import export_model
from tests.lora.conftest import peft_model
from tests.manage.folders import PRE, fields_of, model_of, save, tensors_of, types_of

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {"r": 4, "lora_alpha": 8},
    "rslora": {"r": 9, "lora_alpha": 5, "use_rslora": True},
    "patterns": {
        "r": 4,
        "lora_alpha": 8,
        "rank_pattern": {"q_proj": 2, "layers.1.mlp.down_proj": 6},
        "alpha_pattern": {"k_proj": 3, "up_proj": 20},
    },
    "rslora with patterns": {
        "r": 4,
        "use_rslora": True,
        "rank_pattern": {"k_proj": 3},
        "alpha_pattern": {"v_proj": 7},
    },
    "one layer": {"layers_to_transform": [1]},
}


def merged_file(base: Any, tmp_path: Path, **config: Any) -> Path:
    merged = peft_model(base, **config).merge_and_unload()
    return Path(
        export_model(save(merged, tmp_path / "merged"), out=tmp_path / "merged.gguf", type="f32", pre=PRE).out
    )


def as_llama_cpp_adds_it(file: str | Path) -> dict[str, np.ndarray]:
    """alpha / rank * lora_b lora_a of each tensor, the rank being that of lora_b (llama-adapter.h, get_scale)."""
    parts, alpha = tensors_of(file), fields_of(file)["adapter.lora.alpha"]
    found = {}
    for name in parts:
        if name.endswith(".lora_a"):
            A, B = parts[name], parts[name.removesuffix("a") + "b"]
            found[name.removesuffix(".lora_a")] = alpha / B.shape[1] * (B.astype(np.float64) @ A)
    return found


@pytest.mark.parametrize(
    "family", ["llama", "llama tied", "llama with wide heads", "mistral", "qwen2", "qwen3"]
)
@pytest.mark.parametrize("variant", VARIANTS)
def test_update_is_the_true_one(variant, family, made, tmp_path):
    base = model_of(family)
    config = {"target_modules": ALL, **VARIANTS[variant]}
    folder = made(base, **config)
    before = tensors_of(
        export_model(save(base, tmp_path / "base"), out=tmp_path / "b.gguf", type="f32", pre=PRE).out
    )
    after = tensors_of(merged_file(base, tmp_path, **config))
    written = export_adapter(folder, base=str(tmp_path / "base"), out=tmp_path / "a.gguf")
    updates = as_llama_cpp_adds_it(written.out)
    assert len(updates) == written.modules > 0
    for name, matrix in after.items():
        # fp32: PEFT rounds W plus the update, whose numbers are below 16, to 1e-6
        assert before[name] + updates.get(name, 0) == pytest.approx(matrix, abs=4e-6), name
    assert {name for name in after if not np.array_equal(before[name], after[name])} == set(updates)


def test_file_says_what_llama_cpp_asks_for(made, tmp_path):
    base = model_of("llama")
    folder = made(base, target_modules=ALL, r=4, lora_alpha=8)
    written = export_adapter(folder, base=str(save(base, tmp_path / "base")), out=tmp_path / "legal.gguf")
    fields = fields_of(written.out)
    expected = {
        "general.type": "adapter",
        "general.architecture": "llama",
        "general.name": "legal",
        "adapter.type": "lora",
        "adapter.lora.alpha": 8.0,
    }
    assert {name: fields[name] for name in expected} == expected
    shapes = {each.name: each.shape.tolist() for each in GGUFReader(written.out).tensors}
    # GGUF's order: the fastest first; q is 64 x 64 and k 32 x 64
    assert shapes["blk.0.attn_k.weight.lora_a"] == [64, 4]
    assert shapes["blk.0.attn_k.weight.lora_b"] == [4, 32]
    assert len(shapes) == 2 * 2 * 7
    assert not any(str(tmp_path) in str(value) for value in fields.values())


def test_plain_factors_keep_their_bits(made, tmp_path):
    base = model_of("qwen2")
    folder = made(base, target_modules=ALL, r=6, lora_alpha=7)
    written = export_adapter(folder, base=str(save(base, tmp_path / "base")), out=tmp_path / "a.gguf")
    found = tensors_of(written.out)
    factors = Adapter.load(folder).factors["model.layers.0.self_attn.q_proj"]
    assert np.array_equal(found["blk.0.attn_q.weight.lora_a"], factors.A.numpy())
    assert np.array_equal(found["blk.0.attn_q.weight.lora_b"], factors.B.numpy())
    assert written.folded == 0


@pytest.mark.parametrize("type", ["f16", "bf16"])
def test_factors_in_half_precision(type, made, tmp_path):
    base = model_of("llama")
    folder = made(base, target_modules=ALL)
    written = export_adapter(
        folder, base=str(save(base, tmp_path / "base")), out=tmp_path / "a.gguf", type=type
    )
    assert set(types_of(written.out).values()) == {type.upper()}
    with pytest.raises(ConfigError, match="not written for adapters"):
        export_adapter(folder, base=str(tmp_path / "base"), out=tmp_path / "b.gguf", type="q8_0")


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"lora_bias": True}, "lora_bias"),
        ({"bias": "lora_only", "target_modules": ["q_proj"]}, "trained biases"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save \(lm_head\)"),
        ({"trainable_token_indices": {"embed_tokens": [1, 5]}}, "trained token rows"),
        ({"target_modules": ["embed_tokens", "q_proj"]}, "factors of an embedding"),
    ],
)
def test_what_llama_cpp_cannot_take_is_refused_by_name(config, says, made, tmp_path):
    base = model_of("qwen2" if config.get("bias") else "llama")
    folder = made(base, **config)
    with pytest.raises(NotSupportedError, match=says) as error:
        export_adapter(folder, base=str(save(base, tmp_path / "base")), out=tmp_path / "a.gguf")
    assert "merge it first" in error.value.hint
    assert not list(tmp_path.glob("*a.gguf*"))


def test_head_of_a_tied_base_is_refused_and_of_an_untied_one_is_written(made, tmp_path):
    tied, untied = model_of("llama tied"), model_of("llama")
    save(tied, tmp_path / "tied"), save(untied, tmp_path / "untied")
    folder = made(untied, target_modules=["q_proj", "lm_head"])
    written = export_adapter(folder, base=str(tmp_path / "untied"), out=tmp_path / "a.gguf")
    assert "output.weight.lora_b" in tensors_of(written.out)
    with pytest.raises(NotSupportedError, match="tied to the embedding"):
        export_adapter(folder, base=str(tmp_path / "tied"), out=tmp_path / "b.gguf")


def test_base_that_does_not_fit_is_refused(made, tmp_path):
    folder = made(model_of("llama"), target_modules=ALL)
    other = save(model_of("llama", intermediate_size=64), tmp_path / "other")
    with pytest.raises(
        AdapterError, match=r"down_proj is for a weight of \(64, 96\), and in its base there it is"
    ):
        export_adapter(folder, base=str(other), out=tmp_path / "a.gguf")
    with pytest.raises(AdapterError, match="does not say what its base is"):
        export_adapter(folder, out=tmp_path / "a.gguf")
    less = save(model_of("llama", num_hidden_layers=1), tmp_path / "less")
    with pytest.raises(AdapterError, match="there is none of that name"):
        export_adapter(folder, base=str(less), out=tmp_path / "a.gguf")
