"""Honest merges by PEFT in fp64, written by transformers: what a certificate must pass, before it is sabotaged."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from scumble.lora.adapter import Adapter
from scumble.manage import merge as merging
from scumble.manage.certificate.certificate import certify
from scumble.models.checkpoint import Checkpoint, open_checkpoint
from tests.bases import letters_model, letters_tokenizer
from tests.lora.conftest import peft_model

INDEX = "model.safetensors.index.json"


def write_base(folder: Path, model: Any = None, **overrides: Any) -> Path:
    """A base folder with a tokenizer; `model` instead of the tiny Llama of `tests.bases`."""
    model = letters_model(**overrides) if model is None else model
    model.save_pretrained(folder)
    letters_tokenizer().save_pretrained(folder)
    return folder


def write_adapter(base: Path, folder: Path, *, shrink: float = 1.0, **config: Any) -> Path:
    """An adapter that PEFT makes for a base, moved by random numbers; B multiplied by `shrink`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = peft_model(load(base, torch.float32), spread=0.1, **config)
        with torch.no_grad():
            for name, parameter in made.named_parameters():
                if "lora_B" in name or "lora_embedding_B" in name:
                    parameter.mul_(shrink)
        made.save_pretrained(folder)
    return folder


def load(folder: Path, dtype: torch.dtype) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)


def honest_merge(
    base: Path,
    adapter: Path,
    out: Path,
    *,
    dtype: torch.dtype = torch.float32,
    untie: bool = False,
    shard: str = "1GB",
) -> Path:
    """PEFT's own merge in fp64, cast once to `dtype`; `untie` gives the output layer a tensor of its own first."""
    model = load(base, torch.float64)
    if untie:
        model.config.tie_word_embeddings = False
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = PeftModel.from_pretrained(model, str(adapter), autocast_adapter_dtype=False).double()
        merged: Any = wrapped.merge_and_unload()
    merged.to(dtype).save_pretrained(out, max_shard_size=shard)
    letters_tokenizer().save_pretrained(out)
    return out


def opened(base: Path, adapter: Path) -> tuple[Checkpoint, Adapter]:
    return open_checkpoint(str(base)), Adapter.load(adapter)


def edit_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Change the tensors of a folder of one file in place."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def edit_json(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


Q = "model.layers.0.self_attn.q_proj.weight"
FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16
SHORT = ["one prompt", "another, a little longer"]


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


def own_merge(tmp_path, dtype="fp32", *, base_dtype=FP32, tie=False, **config):
    base = write_base(tmp_path / "base", dtype=base_dtype, tie_word_embeddings=tie)
    adapter = write_adapter(base, tmp_path / "adapter", **config)
    options = {"base": base, "dtype": dtype, "prompts": SHORT, "quiet": True}
    return merging.merge(adapter, out=tmp_path / "merged", **options)
