"""llama.cpp itself on what `scumble export gguf` writes: the same greedy text as transformers.

Skipped where the package llama-cpp-python is not installed, as on most machines: it compiles llama.cpp. The
run that did it is in docs/export.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from scumble.lora.adapter import Adapter, Factors
from scumble.lora.bank import Bank
from scumble.lora.spec import LoraSpec
from scumble.manage.export.gguf_adapter import export_adapter
from scumble.manage.export.gguf_model import export_model
from scumble.models.base import Base, load_base
from scumble.models.embedded import ensure

llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
pytestmark = pytest.mark.real

TOKENS = 24
PROMPTS = ["Write a haiku about rain.", "What is 12 times 12, and why?"]
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {"rank": 8, "alpha": 16.0},
    "rslora": {"rank": 16, "alpha": 8.0, "rslora": True},
    "patterns": {
        "rank": 8,
        "alpha": 16.0,
        "rank_pattern": {"q_proj": 4, r"layers\.3\..*down_proj": 12},
        "alpha_pattern": {"k_proj": 5.0, "v_proj": 40.0},
    },
}


@pytest.fixture(scope="module")
def base() -> Base:
    return load_base("smollm2")


@pytest.fixture(scope="module")
def base_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(export_model("smollm2", out=tmp_path_factory.mktemp("gguf") / "base.gguf", type="f32").out)


def prompts() -> Iterator[list[int]]:
    tokenizer = AutoTokenizer.from_pretrained(ensure().folder, local_files_only=True)
    for text in PROMPTS:
        messages = [{"role": "user", "content": text}]
        yield list(
            tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
        )


def seeded(base: Base, folder: Path, size: float = 0.1, **shape: Any) -> Path:
    """An adapter whose true update of every module has `size` of its weight's norm: enough for another text."""
    spec = LoraSpec(targets=TARGETS, base_name=base.name, **shape)
    generator = torch.Generator().manual_seed(0)
    factors = {}
    for path, module in base.model.named_modules():
        if path.rpartition(".")[2] in TARGETS:
            rank, (out, width) = spec.rank_of(path), module.weight.shape
            A = torch.randn(rank, width, generator=generator) / math.sqrt(width)
            B = torch.randn(out, rank, generator=generator)
            wanted = size * float(module.weight.norm()) / (spec.scale_of(path) * float((B @ A).norm()))
            factors[path] = Factors(A, B * wanted)
    return Adapter(spec, factors).save(folder)


def started(model: Path, adapter: Path | None = None, **options: Any) -> Any:
    """llama.cpp with keys and values in fp32, as transformers has them: its default, fp16, is off by 0.05 a logit."""
    fp32 = {"type_k": llama_cpp.GGML_TYPE_F32, "type_v": llama_cpp.GGML_TYPE_F32}
    where = str(adapter) if adapter else None
    return llama_cpp.Llama(
        str(model), lora_path=where, n_ctx=256, n_threads=2, verbose=False, **fp32, **options
    )


def logits_in_llama_cpp(model: Path, prompt: list[int], adapter: Path | None = None) -> torch.Tensor:
    """(length, vocabulary)."""
    engine = started(model, adapter, logits_all=True)
    engine.eval(prompt)
    found = torch.tensor(engine.scores[: len(prompt)].copy())
    engine.close()
    return found


def in_llama_cpp(model: Path, prompt: list[int], adapter: Path | None = None) -> list[int]:
    """The greedy tokens after a prompt."""
    engine = started(model, adapter)
    found = []
    for token in engine.generate(prompt, temp=0.0, top_k=1, repeat_penalty=1.0):
        if token == engine.token_eos() or len(found) == TOKENS:
            break
        found.append(int(token))
    engine.close()
    return found


def in_transformers(model: Any, prompt: list[int], end: int) -> list[int]:
    ids = torch.tensor([prompt])
    with torch.no_grad():
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=TOKENS,
            do_sample=False,
            repetition_penalty=1.0,
        )
    found = out[0, len(prompt) :].tolist()
    return found[: found.index(end)] if end in found else found


def test_base_says_the_same_as_in_transformers(base, base_gguf):
    for prompt in prompts():
        expected = in_transformers(base.model, prompt, base.tokenizer.eos_token_id)
        assert in_llama_cpp(base_gguf, prompt) == expected, base.tokenizer.decode(expected)


def test_tokenizer_cuts_texts_as_transformers_does(base, base_gguf):
    engine = llama_cpp.Llama(str(base_gguf), vocab_only=True, verbose=False)
    texts = [
        "x  12 34567",
        "don't  stop\n\n\tnow",
        "Größe 漢字 🚀 \u200d",
        "<|im_start|>user\nhi<|im_end|>\n",
        "   ",
    ]
    for text in texts:
        found = engine.tokenize(text.encode(), add_bos=True, special=True)
        assert found == base.tokenizer(text)["input_ids"], text
    engine.close()


@pytest.mark.parametrize("variant", VARIANTS)
def test_adapter_says_the_same_as_in_the_bank(variant, base, base_gguf, tmp_path, capsys):
    """One alpha for the file, the true scale folded into B, and q and k permuted: any mistake is another text."""
    folder = seeded(base, tmp_path / "adapter", **VARIANTS[variant])
    written = export_adapter(folder, out=tmp_path / "adapter.gguf")
    bank = Bank(base)
    bank.add("seeded", folder)
    changed = []
    try:
        for prompt in prompts():
            end = base.tokenizer.eos_token_id
            bank.use({})
            plain = in_transformers(bank.model, prompt, end)
            bank.use({"seeded": 1.0})
            expected = in_transformers(bank.model, prompt, end)
            found = in_llama_cpp(base_gguf, prompt, Path(written.out))
            with torch.no_grad():
                logits = bank.model(torch.tensor([prompt])).logits[0]
            # two fp32 engines of 30 layers each: measured 2e-4 of logits up to 39
            assert torch.allclose(
                logits_in_llama_cpp(base_gguf, prompt, Path(written.out)), logits, atol=2e-3
            )
            assert found == expected, base.tokenizer.decode(expected)
            changed.append(expected != plain)
            with capsys.disabled():
                print(f"\n{variant}: {base.tokenizer.decode(found)!r}, was {base.tokenizer.decode(plain)!r}")
    finally:
        bank.close()
    assert all(changed)
