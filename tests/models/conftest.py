"""A tiny random Llama with a tiny tokenizer, made here and nowhere downloaded; a cache of its own per test."""

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from scumble.models import embedded


def tiny_model(seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    vocab = {word: index for index, word in enumerate(["<unk>", "<end>", *[f"w{n}" for n in range(30)]])}
    words = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="<unk>", eos_token="<end>", pad_token="<end>"
    )


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "home"
    monkeypatch.setenv("SCUMBLE_HOME", str(folder))
    monkeypatch.delenv("SCUMBLE_BASE", raising=False)
    monkeypatch.delenv("SCUMBLE_THREADS", raising=False)
    return folder


@pytest.fixture
def offline(monkeypatch) -> None:
    monkeypatch.setattr("scumble.models.base.hub_reachable", lambda: False)


@pytest.fixture
def tiny_folder(tmp_path) -> Path:
    folder = tmp_path / "tiny"
    tiny_model().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def tiny_build(home, tmp_path, monkeypatch) -> list[Path]:
    """Let the embedded default be the tiny model; the list grows by one at each build."""
    source = tmp_path / "tiny.gguf"
    source.write_bytes(b"GGUF")
    built: list[Path] = []

    def dequantise(gguf: Path):
        built.append(gguf)
        return tiny_model(), tiny_tokenizer()

    monkeypatch.setattr(embedded, "find_gguf", lambda: source)
    monkeypatch.setattr(embedded, "dequantise", dequantise)
    return built
