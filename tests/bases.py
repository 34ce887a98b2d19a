"""Tiny bases with tokenizers, made here: one whose tokens are bytes, and one with SmolLM2's own tokenizer.

The first needs nothing. The second is a fixture, `tiny_base_folder`, which reads the tokenizer of the
embedded base's copy in the cache: tests that use it are marked `real`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from scumble.data.encoding import Encoded, encode_all
from scumble.data.examples import read_examples
from scumble.models.base import Base
from tests.tiny import tiny_llama

START, END, BEGIN = "<|im_start|>", "<|im_end|>", "<s>"
SPECIAL = ["<unk>", START, END, BEGIN]
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# As Llama 3 and Mistral have it: the template writes the begin token, and the tokenizer would add one too.
BEGUN = "{{ bos_token }}" + CHATML
LETTERS = 256 + len(SPECIAL)


def letters_tokenizer(template: str | None = CHATML, *, adds_begin: bool = False) -> PreTrainedTokenizerFast:
    """A tokenizer whose tokens are bytes; its pad token is its end token, as in SmolLM2."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*SPECIAL, *alphabet])}
    words = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    words.decoder = decoders.ByteLevel()
    if adds_begin:
        words.post_processor = processors.TemplateProcessing(
            single=f"{BEGIN} $A", pair=f"{BEGIN} $A {BEGIN} $B", special_tokens=[(BEGIN, vocabulary[BEGIN])]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        unk_token="<unk>",
        bos_token=BEGIN,
        eos_token=END,
        pad_token=END,
        additional_special_tokens=[START],
    )
    tokenizer.chat_template = template
    return tokenizer


def letters_model(*, dtype: torch.dtype = torch.float32, seed: int = 0, **overrides: Any) -> Any:
    """A Llama of two layers whose vocabulary is that of `letters_tokenizer`."""
    sizes = {"vocab_size": LETTERS, "max_position_embeddings": 1024, "bos_token_id": 3, **overrides}
    return tiny_llama(dtype=dtype, seed=seed, **sizes)


def make_letters_base(*, dtype: torch.dtype = torch.float32, **overrides: Any) -> Base:
    """A base of the two, fresh at each call."""
    return Base(letters_model(dtype=dtype, **overrides), letters_tokenizer(), "letters")


@pytest.fixture
def letters_base() -> Base:
    return make_letters_base()


@pytest.fixture(scope="session")
def tiny_base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random Llama of two layers and SmolLM2's tokenizer and chat template."""
    from transformers import AutoTokenizer

    from scumble.models.embedded import ensure

    folder = tmp_path_factory.mktemp("bases") / "tiny"
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        initializer_range=0.2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(ensure().folder, local_files_only=True).save_pretrained(folder)
    return folder


def chat(*turns: str, system: str | None = None) -> dict[str, Any]:
    """A row of data: user and assistant in turns."""
    first = [{"role": "system", "content": system}] if system is not None else []
    roles = ("user", "assistant")
    return {"messages": first + [{"role": roles[i % 2], "content": turn} for i, turn in enumerate(turns)]}


def sums(n: int, start: int = 0) -> list[dict[str, Any]]:
    """`n` different questions with answers, of different lengths."""
    return [chat(f"{'add ' * (i % 4)}{i} and {i * i}", f"{i + i * i}!") for i in range(start, start + n)]


def encoded(rows: Sequence[dict[str, Any]], tokenizer: Any | None = None) -> list[Encoded]:
    """Rows as tokens of `letters_tokenizer`."""
    return encode_all(read_examples(rows), tokenizer or letters_tokenizer(), 4096).examples
