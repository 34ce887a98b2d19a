"""Model folders for the tests of exports: tiny random models with the tokenizer whose tokens are bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGUFReader, quants
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM

from tests.bases import LETTERS, letters_tokenizer
from tests.tiny import _builder, tiny_llama, tiny_mistral, tiny_qwen2

PRE = "gpt-2"  # llama.cpp has no rules for a tokenizer of bytes; any name will do where no text is cut
# Rows of 64 and 96 numbers, whole blocks of 32; more heads of queries than of keys.
BLOCKS: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96}
FAMILIES: dict[str, Any] = {
    "llama": tiny_llama,
    "llama tied": lambda **k: tiny_llama(tie_word_embeddings=True, **k),
    "llama with wide heads": lambda **k: tiny_llama(head_dim=32, **k),
    "llama with another theta": lambda **k: tiny_llama(
        rope_parameters={"rope_type": "default", "rope_theta": 500.0}, **k
    ),
    "mistral": lambda **k: tiny_mistral(sliding_window=None, **k),
    "qwen2": tiny_qwen2,
    "qwen2 tied": lambda **k: tiny_qwen2(tie_word_embeddings=True, **k),
    # transformers reads no head width of Qwen3's files, and takes its default, 128
    "qwen3": lambda **k: _builder(Qwen3Config, Qwen3ForCausalLM, head_dim=128)(**k),
}


def model_of(family: str, **overrides: Any) -> Any:
    return FAMILIES[family](vocab_size=LETTERS, **{**BLOCKS, **overrides})


def save(model: Any, folder: Path, tokenizer: Any | None = None, **options: Any) -> Path:
    model.save_pretrained(folder, **options)
    (tokenizer or letters_tokenizer()).save_pretrained(folder)
    return folder


def read_back(file: str | Path) -> Any:
    """What transformers makes of a GGUF file."""
    path = Path(file)
    return AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()


def tensors_of(file: str | Path) -> dict[str, np.ndarray]:
    """The numbers of each tensor, by GGUF's own name, in the order of its rows."""
    return {
        each.name: quants.dequantize(each.data, each.tensor_type).reshape(
            tuple(reversed(each.shape.tolist()))
        )
        for each in GGUFReader(file).tensors
    }


def types_of(file: str | Path) -> dict[str, str]:
    return {each.name: each.tensor_type.name for each in GGUFReader(file).tensors}


def fields_of(file: str | Path) -> dict[str, Any]:
    return {name: field.contents() for name, field in GGUFReader(file).fields.items()}


def through(weight: torch.Tensor, kind: str) -> torch.Tensor:
    """A weight quantised and dequantised by gguf itself; blocks lie within rows, so their order does not matter."""
    wanted = gguf.GGMLQuantizationType[kind]
    return torch.from_numpy(quants.dequantize(quants.quantize(weight.float().numpy(), wanted), wanted).copy())
