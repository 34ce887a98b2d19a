"""Models as GGUF: read back by transformers, held against the original, and what is refused."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from scumble.errors import BaseModelError, ConfigError, NotSupportedError, OutputExistsError
from scumble.manage.export.gguf_file import encoded
from scumble.manage.export.gguf_model import export_model
from scumble.manage.export.gguf_tokenizer import PRE as KNOWN
from scumble.manage.export.gguf_tokenizer import probe_hash, vocabulary_of
from tests.bases import LETTERS, letters_tokenizer
from tests.manage.folders import (
    FAMILIES,
    PRE,
    fields_of,
    model_of,
    read_back,
    save,
    tensors_of,
    through,
    types_of,
)
from tests.tiny import logits, tiny_gpt2, tiny_ids, tiny_llama, tiny_mistral, tiny_phi3

TYPES = ("f16", "bf16", "q8_0", "q4_0")


@pytest.mark.parametrize("family", FAMILIES)
def test_fp32_file_has_the_same_logits(family, tmp_path):
    """Bit for bit: the numbers are copied, and q and k are put back in order by a reader that we did not write."""
    model = model_of(family)
    written = export_model(save(model, tmp_path / "model"), out=tmp_path / "m.gguf", type="f32", pre=PRE)
    again = read_back(written.out)
    assert torch.equal(logits(again, tiny_ids()), logits(model, tiny_ids()))
    assert again.config.tie_word_embeddings == model.config.tie_word_embeddings


@pytest.mark.parametrize("type", TYPES)
@pytest.mark.parametrize("family", ["llama", "llama tied", "qwen2"])
def test_quantised_file_has_the_logits_of_quantised_weights(family, type, tmp_path):
    """gguf's own quantising and dequantising of each matrix gives the expected model; fp32 rounding remains."""
    model = model_of(family)
    written = export_model(save(model, tmp_path / "model"), out=tmp_path / "m.gguf", type=type, pre=PRE)
    head = "model.embed_tokens.weight" if "tied" in family else "lm_head.weight"
    expected = copy.deepcopy(model)
    with torch.no_grad():
        for name, weight in expected.named_parameters():
            if weight.ndim == 2:
                kind = "Q8_0" if type == "q4_0" and name == head else type.upper()
                weight.copy_(through(weight, kind))
    found = logits(read_back(written.out), tiny_ids())
    assert torch.allclose(found, logits(expected, tiny_ids()), atol=1e-5)
    assert not torch.equal(found, logits(model, tiny_ids()))  # something was quantised at all


@pytest.mark.parametrize("type", TYPES)
def test_each_number_is_within_half_a_step(type, tmp_path):
    """Steps: of fp16 and bf16 the spacing of floats, of Q8_0 and Q4_0 the block's scale, itself rounded to fp16."""
    folder = save(model_of("llama"), tmp_path / "model")
    exact = tensors_of(export_model(folder, out=tmp_path / "exact.gguf", type="f32", pre=PRE).out)
    written = export_model(folder, out=tmp_path / "m.gguf", type=type, pre=PRE)
    types = types_of(written.out)
    for name, found in tensors_of(written.out).items():
        true, error = exact[name], np.abs(found - exact[name])
        if types[name] == "F32":
            assert (error == 0).all(), name
        elif types[name] in ("F16", "BF16"):
            bits = 11 if types[name] == "F16" else 8
            # below fp16's smallest normal number the spacing stays 2^-24
            assert (error <= np.maximum(np.abs(true) * 2.0**-bits, 2.0**-25)).all(), name
        else:
            blocks, error = true.reshape(-1, 32), error.reshape(-1, 32)
            extreme = np.take_along_axis(blocks, np.abs(blocks).argmax(1, keepdims=True), 1)
            step = np.abs(extreme) / (127 if types[name] == "Q8_0" else 8)
            # the scale is off by 2^-11 of itself at most, and multiplies 127 or 8
            slack = 2.0**-11 * np.abs(extreme) + 1e-7
            # Q4_0 has 15 steps: -8 to 7 times a scale that has the sign of the extreme value
            cut = (np.sign(extreme) * blocks < -7 * step) & (types[name] == "Q4_0")
            assert (error <= np.where(cut, step, step / 2) + slack).all(), name


def test_matrix_of_uneven_rows_is_kept_in_f16_and_named(tmp_path):
    folder = save(tiny_llama(vocab_size=LETTERS, intermediate_size=64, hidden_size=24), tmp_path / "model")
    written = export_model(folder, out=tmp_path / "m.gguf", type="q8_0", pre=PRE)
    kinds = types_of(written.out)
    assert kinds["blk.0.ffn_down.weight"] == "Q8_0"  # rows of 64
    assert kinds["blk.0.ffn_up.weight"] == "F16"  # rows of 24
    assert "blk.0.ffn_up.weight" in written.kept
    assert "blk.0.ffn_down.weight" not in written.kept
    assert written.notes[0].startswith(f"{len(written.kept)} matrices")


def test_metadata_is_complete(tmp_path):
    folder = save(model_of("llama", rms_norm_eps=1e-4, max_position_embeddings=512), tmp_path / "a model")
    found = fields_of(export_model(folder, out=tmp_path / "m.gguf", type="q8_0", pre=PRE).out)
    expected = {
        "general.architecture": "llama",
        "general.type": "model",
        "general.name": "a model",
        "general.file_type": 7,
        "llama.block_count": 2,
        "llama.context_length": 512,
        "llama.embedding_length": 64,
        "llama.feed_forward_length": 96,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.attention.key_length": 16,
        "llama.rope.dimension_count": 16,
        "llama.rope.freq_base": 10000.0,
        "llama.vocab_size": LETTERS,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": PRE,
        "tokenizer.ggml.bos_token_id": 3,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.padding_token_id": 2,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": letters_tokenizer().chat_template,
    }
    assert {name: found.get(name) for name in expected} == expected
    assert found["llama.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-4)
    assert not any(str(tmp_path) in str(value) for value in found.values())  # no path of this machine


def test_llama3_rope_factors_give_transformers_frequencies(tmp_path):
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    rope = {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    }
    model = model_of("llama", rope_parameters=rope)
    written = export_model(save(model, tmp_path / "model"), out=tmp_path / "m.gguf", type="f32", pre=PRE)
    factors = tensors_of(written.out)["rope_freqs.weight"]
    plain = 500000.0 ** -(np.arange(0, 16, 2) / 16)
    # llama.cpp divides each frequency by its factor
    assert plain / factors == pytest.approx(LlamaRotaryEmbedding(model.config).inv_freq.numpy(), rel=1e-6)
    assert (factors[0], factors[-1]) == pytest.approx((1.0, 8.0))
    assert "rope_freqs" in written.notes[0]


def test_shards_are_read(tmp_path):
    model = model_of("llama")
    folder = save(model, tmp_path / "model", max_shard_size="40KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    written = export_model(folder, out=tmp_path / "m.gguf", type="f32", pre=PRE)
    assert torch.equal(logits(read_back(written.out), tiny_ids()), logits(model, tiny_ids()))


def test_blocks_of_rows_are_quantised_as_the_whole(monkeypatch):
    weight = torch.randn(50, 64, generator=torch.Generator().manual_seed(0))
    whole = encoded(weight, "Q4_0", "w")
    monkeypatch.setattr("scumble.manage.export.gguf_file._BLOCK", 64 * 7)
    assert (encoded(weight, "Q4_0", "w") == whole).all()
    assert whole.size == 50 * 2 * 18  # two blocks in a row, each 2 bytes of scale and 16 of numbers


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: tiny_gpt2(vocab_size=LETTERS), "GPT2LMHeadModel"),
        (lambda: tiny_phi3(vocab_size=LETTERS), "Phi3ForCausalLM"),
        (lambda: model_of("llama", attention_bias=True), "biases"),
        (lambda: model_of("llama", hidden_act="gelu"), "activation 'gelu'"),
        (lambda: tiny_mistral(vocab_size=LETTERS, sliding_window=16), "sliding window of 16"),
        (
            lambda: model_of(
                "llama", rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}
            ),
            "rope scaling of type 'linear'",
        ),
    ],
)
def test_what_has_no_tested_conversion_is_refused_by_name(build, says, tmp_path):
    folder = save(build(), tmp_path / "model")
    with pytest.raises(NotSupportedError, match=says):
        export_model(folder, out=tmp_path / "m.gguf", pre=PRE)
    assert not list(tmp_path.glob("*m.gguf*"))


def test_tokenizer_without_known_rules_is_refused(tmp_path):
    folder = save(model_of("llama"), tmp_path / "model")
    with pytest.raises(NotSupportedError, match="no known name"):
        export_model(folder, out=tmp_path / "m.gguf")
    model_of("llama").save_pretrained(tmp_path / "bare")
    with pytest.raises(NotSupportedError, match="no tokenizer"):
        export_model(tmp_path / "bare", out=tmp_path / "m.gguf")


def test_sentencepiece_tokenizer_is_refused():
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(
        models.BPE(vocab={"<unk>": 0, "a": 1}, merges=[], byte_fallback=True, unk_token="<unk>")
    )
    with pytest.raises(NotSupportedError, match="SentencePiece"):
        vocabulary_of(PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>"), 2, "a model")


def test_vocabulary_has_types_and_begin_token():
    found = vocabulary_of(letters_tokenizer(adds_begin=True), LETTERS + 3, "a model", pre=PRE)
    assert found.adds == {"bos": True, "eos": False}
    assert found.tokens[:4] == ["<unk>", "<|im_start|>", "<|im_end|>", "<s>"]
    assert found.types[:5] == [3, 3, 3, 3, 1]
    assert found.tokens[-1] == f"[PAD{LETTERS + 2}]"
    assert found.types[-1] == 5
    with pytest.raises(NotSupportedError, match="embedding of 10 rows"):
        vocabulary_of(letters_tokenizer(), 10, "a model", pre=PRE)


@pytest.mark.real
def test_rules_of_the_embedded_base_are_found():
    from transformers import AutoTokenizer

    from scumble.models.embedded import ensure

    tokenizer = AutoTokenizer.from_pretrained(ensure().folder, local_files_only=True)
    assert KNOWN[probe_hash(tokenizer)] == "smollm"


def test_rules_that_llama_cpp_has_not_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="no rules of that name"):
        export_model(save(tiny_llama(), tmp_path / "m"), out=tmp_path / "m.gguf", pre="nonsense")
    assert not (tmp_path / "m.gguf").exists()


def test_options_and_outputs_are_checked_first(tmp_path):
    folder = save(model_of("llama"), tmp_path / "model")
    with pytest.raises(ConfigError, match="q5_1"):
        export_model(folder, out=tmp_path / "m.gguf", type="q5_1")
    with pytest.raises(ConfigError, match=r"does not end in \.gguf"):
        export_model(folder, out=tmp_path / "m", pre=PRE)
    export_model(folder, out=tmp_path / "m.gguf", pre=PRE)
    with pytest.raises(OutputExistsError):
        export_model(folder, out=tmp_path / "m.gguf", pre=PRE)
    export_model(folder, out=tmp_path / "m.gguf", pre=PRE, force=True)
    (tmp_path / "m.gguf").unlink()
    with pytest.raises(OutputExistsError, match="Modelfile"):
        export_model(folder, out=tmp_path / "m.gguf", pre=PRE)


@pytest.mark.parametrize(
    ("value", "error", "says"),
    [(float("nan"), BaseModelError, "not finite"), (1e6, NotSupportedError, "beyond F16")],
)
def test_numbers_that_do_not_fit_are_refused_and_nothing_is_left(value, error, says, tmp_path):
    model = model_of("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[3, 3] = value
    folder = save(model, tmp_path / "model")
    with pytest.raises(error, match=says):
        export_model(folder, out=tmp_path / "out" / "m.gguf", type="f16", pre=PRE)
    assert not list((tmp_path / "out").iterdir())
