"""`Checkpoint`: a model folder read tensor by tensor is what transformers loads, and a strange one is one line."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from scumble.errors import BaseModelError, MissingFileError, NotSupportedError, ScumbleError
from scumble.models.base import load_base
from scumble.models.checkpoint import INDEX_NAME, SINGLE_NAME, open_checkpoint
from scumble.models.identity import hash_parameters
from tests.tiny import FAMILIES, tiny_gpt2, tiny_llama, tiny_mixtral


def saved(model, folder, **options):
    model.save_pretrained(folder, **options)
    return folder


def matrices(model):
    """Each module that an adapter can reach, with its W as (out, in)."""
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear):
            yield path, module.weight
        elif isinstance(module, Conv1D | nn.Embedding):
            yield path, module.weight.T


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma", "gemma3", "mistral", "phi3", "gpt2"])
def test_every_matrix_is_the_models_own(tmp_path, family):
    model = FAMILIES[family]()
    with open_checkpoint(str(saved(model, tmp_path / family))) as checkpoint:
        assert checkpoint.modules.keys() == dict(model.named_modules()).keys()
        assert checkpoint.tied == (family in ("gemma", "gemma3", "gpt2"))
        for path, weight in matrices(model):
            assert checkpoint.shape_of(path) == tuple(weight.shape)
            assert torch.equal(checkpoint.matrix_rows(path, 2, 9), weight[2:9])
            bias = checkpoint.bias_name(path)
            own = model.get_submodule(path)
            assert (bias is None) == (getattr(own, "bias", None) is None)
            if bias is not None:
                assert torch.equal(checkpoint.read(bias), own.bias)
        assert all(parameter.is_meta for parameter in checkpoint.skeleton.model.parameters())


@pytest.mark.parametrize("family", ["llama", "gemma", "gpt2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_hash_is_that_of_the_loaded_base(tmp_path, family, dtype):
    folder = saved(FAMILIES[family](dtype=dtype), tmp_path / family)
    with open_checkpoint(str(folder)) as checkpoint:
        assert checkpoint.dtype == dtype
        assert checkpoint.hash(torch.float32) == load_base(str(folder), tokenizer=False, device="cpu").hash
        loaded = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
        assert checkpoint.hash() == hash_parameters(loaded)


def test_shards(tmp_path):
    model = tiny_llama()
    with open_checkpoint(str(saved(model, tmp_path / "base", max_shard_size="4KB"))) as checkpoint:
        assert len(checkpoint.files) > 2
        assert checkpoint.index is not None
        assert {fact.file for fact in checkpoint.tensors.values()} == set(checkpoint.files)
        assert checkpoint.bytes == sum(f.stat().st_size for f in (tmp_path / "base").glob("*.safetensors"))
        for name, tensor in model.state_dict().items():
            assert torch.equal(checkpoint.read(name), tensor)
            assert torch.equal(checkpoint.rows(name, 1, 3), tensor[1:3])
            assert checkpoint.tensors[name].shape == tuple(tensor.shape)


def test_names_with_and_without_the_decoders(tmp_path):
    model = tiny_gpt2()
    folder = saved(model, tmp_path / "base")
    tensors = load_file(folder / SINGLE_NAME)
    bare = {name.removeprefix("transformer."): tensor.clone() for name, tensor in tensors.items()}
    save_file(bare, folder / SINGLE_NAME, {"format": "pt"})
    with open_checkpoint(str(folder)) as checkpoint:
        assert checkpoint.weight_name("transformer.h.0.attn.c_attn") == "h.0.attn.c_attn.weight"
        assert checkpoint.weight_name("lm_head") == "wte.weight"
        assert torch.equal(
            checkpoint.matrix_rows("transformer.h.1.mlp.c_fc", 0, 5),
            model.transformer.h[1].mlp.c_fc.weight.T[:5],
        )


def test_a_tied_head_is_the_embedding(tmp_path):
    with open_checkpoint(str(saved(tiny_llama(tie_word_embeddings=True), tmp_path / "base"))) as checkpoint:
        assert checkpoint.ties == {
            "model.embed_tokens.weight": ("lm_head.weight",),
            "lm_head.weight": ("model.embed_tokens.weight",),
        }
        assert (
            checkpoint.weight_name("lm_head")
            == checkpoint.weight_name("model.embed_tokens")
            == "model.embed_tokens.weight"
        )
        assert checkpoint.own_tensor("lm_head.weight") is None


def test_both_tensors_of_a_tied_model(tmp_path):
    """As transformers does: equal ones are tied whatever the file holds, different ones are not."""
    model = tiny_llama(tie_word_embeddings=True)
    folder = saved(model, tmp_path / "base")
    tensors = load_file(folder / SINGLE_NAME)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, folder / SINGLE_NAME, {"format": "pt"})
    with open_checkpoint(str(folder)) as checkpoint:
        assert checkpoint.tied
        assert checkpoint.weight_name("lm_head") == "lm_head.weight"
    tensors["lm_head.weight"][3, 3] += 1
    save_file(tensors, folder / SINGLE_NAME, {"format": "pt"})
    with open_checkpoint(str(folder)) as checkpoint:
        assert not checkpoint.tied
        loaded = load_base(str(folder), tokenizer=False, device="cpu")
        assert checkpoint.hash(torch.float32) == loaded.hash
        assert loaded.model.lm_head.weight is not loaded.model.model.embed_tokens.weight


def test_fused_experts_are_refused_by_name(tmp_path):
    with open_checkpoint(str(saved(tiny_mixtral(), tmp_path / "base"))) as checkpoint:
        assert checkpoint.weight_name("model.layers.0.self_attn.q_proj") in checkpoint.tensors
        with pytest.raises(NotSupportedError, match=r"model\.layers\.0\.mlp\.gate\.weight"):
            checkpoint.weight_name("model.layers.0.mlp.gate")
        assert checkpoint.hash() is None


def test_a_gguf_file_is_read_while_the_checkpoint_lives(tmp_path, monkeypatch):
    from scumble.models import weights

    file = tmp_path / "tiny.gguf"
    file.write_bytes(b"GGUF")
    model = tiny_llama()
    monkeypatch.setattr(weights, "read_gguf", lambda path, **_: (model, None))
    with open_checkpoint(str(file)) as checkpoint:
        folder = checkpoint.folder
        assert checkpoint.dequantised
        assert checkpoint.name == str(file)
        assert torch.equal(checkpoint.read("lm_head.weight"), model.lm_head.weight)
    assert not folder.exists()


# -- what is refused --------------------------------------------------------------------------------


@pytest.fixture
def sharded(tmp_path):
    return saved(tiny_llama(), tmp_path / "base", max_shard_size="4KB")


def first_line(folder) -> str:
    with pytest.raises(ScumbleError) as caught:
        open_checkpoint(str(folder))
    assert "\n" not in caught.value.message
    assert caught.value.hint
    return caught.value.message


@pytest.mark.parametrize(
    "file", ["../model.safetensors", "/etc/model.safetensors", "a/b.safetensors", "..", "a\\b.safetensors", 3]
)
def test_an_index_that_reaches_outside(sharded, tmp_path, file):
    save_file({"lm_head.weight": torch.zeros(2)}, tmp_path / SINGLE_NAME)
    index = json.loads((sharded / INDEX_NAME).read_text())
    index["weight_map"]["lm_head.weight"] = file
    (sharded / INDEX_NAME).write_text(json.dumps(index))
    assert "no plain name" in first_line(sharded)


@pytest.mark.parametrize("text", ["", "[]", '{"weight_map": 3}', '{"weight_map": {}}', "{" * 5000])
def test_an_index_that_is_none(sharded, text):
    (sharded / INDEX_NAME).write_text(text)
    assert INDEX_NAME in first_line(sharded)


def test_a_missing_shard(sharded):
    gone = sorted(sharded.glob("*.safetensors"))[1]
    gone.unlink()
    assert gone.name in first_line(sharded)


def test_a_tensor_in_another_shard_than_the_index_says(sharded):
    index = json.loads((sharded / INDEX_NAME).read_text())
    index["weight_map"]["more.weight"] = sorted(set(index["weight_map"].values()))[0]
    (sharded / INDEX_NAME).write_text(json.dumps(index))
    assert "lacks the tensor more.weight" in first_line(sharded)


def test_the_same_tensor_in_two_shards(sharded):
    files = sorted(sharded.glob("*.safetensors"))
    save_file({**load_file(files[0]), **load_file(files[1])}, files[0], {"format": "pt"})
    assert "twice" in first_line(sharded)


@pytest.mark.parametrize("keep", [0, 7, 100, 0.5, 0.999])
def test_a_truncated_shard(sharded, keep):
    file = sorted(sharded.glob("*.safetensors"))[0]
    data = file.read_bytes()
    file.write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    assert "broken weights" in first_line(sharded)


def test_pickles_are_not_read(tmp_path):
    folder = saved(tiny_llama(), tmp_path / "base")
    (folder / SINGLE_NAME).rename(folder / "pytorch_model.bin")
    assert "no safetensors weights" in first_line(folder)


def test_quantised_weights_are_refused_by_name(tmp_path):
    folder = saved(tiny_llama(), tmp_path / "base")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(NotSupportedError, match="bitsandbytes"):
        open_checkpoint(str(folder))


@pytest.mark.parametrize("text", ["{", "[]", '{"model_type": "no-such-model"}', '{"model_type": "t5"}'])
def test_a_configuration_that_is_none(tmp_path, text):
    folder = saved(tiny_llama(), tmp_path / "base")
    (folder / "config.json").write_text(text)
    assert first_line(folder)


def test_no_such_folder(tmp_path):
    with pytest.raises(MissingFileError):
        open_checkpoint(str(tmp_path / "gone" / "base"))


def test_a_hub_name_offline(monkeypatch, tmp_path):
    monkeypatch.setattr("scumble.models.checkpoint.hub_reachable", lambda: False)
    with pytest.raises(BaseModelError, match="cannot be reached"):
        open_checkpoint("someone/no-such-model-here")


def test_a_hub_name_from_the_cache(monkeypatch, tmp_path):
    cached = saved(tiny_llama(), tmp_path / "snapshot")
    seen = {}

    def snapshot_download(name, **options):
        seen.update(options, name=name)
        return str(cached)

    monkeypatch.setattr("scumble.models.checkpoint.hub_reachable", lambda: False)
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    with open_checkpoint("someone/model") as checkpoint:
        assert checkpoint.name == "someone/model"
        assert checkpoint.folder == cached
    assert seen["local_files_only"]
    assert not any(pattern.endswith(".bin") for pattern in seen["allow_patterns"])


def test_what_is_not_there_is_named(tmp_path):
    with (
        open_checkpoint(str(saved(tiny_llama(), tmp_path / "base"))) as checkpoint,
        pytest.raises(NotSupportedError, match=r"no tensor nothing\.weight"),
    ):
        checkpoint.read("nothing.weight")
    shutil.rmtree(tmp_path / "base")
