"""`merge`: what is written is what the bank computes and what PEFT merges, for every variant and family."""

import json
import re
import shutil
import warnings
from collections import namedtuple

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import scumble
from scumble.errors import (
    AdapterError,
    ConfigError,
    MissingFileError,
    NotSupportedError,
    OutputError,
    OutputExistsError,
)
from scumble.lora.adapter import Adapter
from scumble.lora.bank import Bank
from scumble.manage.merge import CERTIFICATE_NAME, merge
from scumble.manifest import check_manifest
from scumble.models.checkpoint import SINGLE_NAME
from tests.bases import letters_model, letters_tokenizer
from tests.lora.conftest import peft_model
from tests.lora.test_variants import TIED, VARIANTS
from tests.tiny import FAMILIES, logits, tiny_gpt2, tiny_ids, tiny_llama, tiny_qwen2

# Two ways of adding the same terms in fp32, over logits up to 9: the bank adds the update to y, the merge to W.
TOLERANCE = 1e-4
# A merge in fp64 against PEFT's in fp64: the same sums in another order.
IN_FP64 = 1e-12
MOVED = 0.1


@pytest.fixture
def on(tmp_path):
    """Save a base and an adapter that PEFT makes for it; gives both folders."""

    def write(model, **config):
        saving = {key: config.pop(key) for key in ("max_shard_size",) if key in config}
        model.save_pretrained(tmp_path / "base", **saving)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            peft_model(model, **config).save_pretrained(tmp_path / "adapter")
        return tmp_path / "base", tmp_path / "adapter"

    return write


def merged(adapter, base, **options):
    """Merge quietly, and give the folder."""
    out = adapter.parent / options.pop("name", "merged")
    merge(adapter, out=out, base=str(base), quiet=True, **{"weights_only": True, **options})
    return out


def load(folder, dtype=torch.float32):
    model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    return model.eval()


def in_the_bank(model, adapter, ids):
    bank = Bank(model)
    bank.add("a", adapter)
    bank.use("a")
    found = logits(bank.model, ids)
    bank.close()
    return found


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant(on, variant):
    switched = {"attention_bias": False} if variant == "lora_bias" else {}
    model = tiny_llama(**switched)
    base, adapter = on(model, **VARIANTS[variant])
    ids = tiny_ids()
    before = logits(model, ids)
    expected = in_the_bank(model, adapter, ids)
    found = logits(load(merged(adapter, base)), ids)
    assert (found - expected).abs().max() < TOLERANCE
    assert (found - before).abs().max() > MOVED


@pytest.mark.parametrize("variant", TIED)
def test_tied_models(on, variant):
    model = tiny_llama(tie_word_embeddings=True)
    base, adapter = on(model, **TIED[variant])
    ids = tiny_ids()
    expected = in_the_bank(model, adapter, ids)
    out = merged(adapter, base)
    again = load(out)
    assert (logits(again, ids) - expected).abs().max() < TOLERANCE
    apart = not variant.startswith("tokens")
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is not apart
    assert (again.lm_head.weight is again.model.embed_tokens.weight) is not apart
    assert ("lm_head.weight" in load_file(out / SINGLE_NAME)) is apart


@pytest.mark.parametrize(
    "family", ["llama", "qwen2", "gemma", "gemma3", "mistral", "phi3", "gpt2", "mixtral"]
)
@pytest.mark.parametrize("kind", ["plain", "rslora", "dora"])
def test_families(on, family, kind):
    model = FAMILIES[family]()
    targets = {
        "gpt2": ["c_attn", "c_fc", "c_proj"],
        "phi3": ["qkv_proj", "down_proj"],
        "mixtral": ["q_proj", "o_proj"],
    }
    base, adapter = on(
        model,
        target_modules=targets.get(family, ["q_proj", "v_proj", "down_proj"]),
        **{"plain": {}, "rslora": {"use_rslora": True}, "dora": {"use_dora": True}}[kind],
    )
    ids = tiny_ids()
    before = logits(model, ids)
    expected = in_the_bank(model, adapter, ids)
    found = logits(load(merged(adapter, base)), ids)
    assert (found - expected).abs().max() < TOLERANCE
    assert (found - before).abs().max() > MOVED


@pytest.mark.parametrize(
    ("build", "config"),
    [
        (tiny_llama, {"target_modules": "all-linear"}),
        (tiny_llama, {"use_rslora": True, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 5}}),
        (tiny_llama, {"use_dora": True, "target_modules": "all-linear"}),
        (tiny_llama, {"target_modules": ["embed_tokens", "lm_head", "q_proj"]}),
        (tiny_qwen2, {"lora_bias": True}),
        (tiny_gpt2, {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
        (tiny_gpt2, {"target_modules": ["c_attn"], "bias": "all", "fan_in_fan_out": True}),
        (tiny_gpt2, {"target_modules": ["c_attn", "wte"], "lora_bias": False, "fan_in_fan_out": True}),
    ],
    ids=["all", "patterns", "dora", "embeddings", "lora_bias", "conv1d", "biases", "wte"],
)
def test_peft_in_fp64(on, build, config):
    """PEFT's own merge, tensor by tensor: two programs, the same numbers."""
    # PEFT merges into a tied embedding without untying it, which is another model than the unmerged one
    model = (
        build(dtype=torch.float64) if build is not tiny_gpt2 else build(tie_word_embeddings=False).double()
    )
    base, adapter = on(model, **config)
    oracle = peft_model(model, **config).merge_and_unload().state_dict()
    out = merged(adapter, base)
    found = load_file(out / SINGLE_NAME)
    assert all(tensor.dtype == torch.float64 for tensor in found.values())
    for name, tensor in oracle.items():
        assert (found[name] - tensor).abs().max() < IN_FP64, name
    assert set(found) == set(oracle)


@pytest.mark.parametrize("tied", [False, True])
def test_shards(on, tied):
    model = tiny_llama(tie_word_embeddings=tied)
    base, adapter = on(model, max_shard_size="4KB", target_modules=["q_proj", "lm_head"])
    ids = tiny_ids()
    expected = in_the_bank(model, adapter, ids)
    out = merged(adapter, base)
    assert (logits(load(out), ids) - expected).abs().max() < TOLERANCE
    shards = sorted(file.name for file in base.glob("*.safetensors"))
    assert sorted(file.name for file in out.glob("*.safetensors")) == shards
    index = json.loads((out / "model.safetensors.index.json").read_text())
    tensors = {name: load_file(out / file)[name] for name, file in index["weight_map"].items()}
    assert "lm_head.weight" in tensors
    assert index["metadata"]["total_size"] == sum(t.numel() * t.itemsize for t in tensors.values())


@pytest.mark.parametrize(
    ("dtype", "kind"), [("bf16", torch.bfloat16), ("fp16", torch.float16), ("fp32", None)]
)
@pytest.mark.parametrize("variant", ["plain", "tokens", "save", "bias"])
def test_types_are_rounded_once(on, dtype, kind, variant):
    kind = kind or torch.float32
    config = {
        "plain": {"target_modules": ["q_proj", "embed_tokens"]},
        "tokens": {"trainable_token_indices": [5, 3]},
        "save": {"modules_to_save": ["lm_head"]},
        "bias": {"lora_bias": True},
    }[variant]
    base, adapter = on(tiny_qwen2(), **config)
    wide = load_file(merged(adapter, base, dtype="fp32", name="wide") / SINGLE_NAME)
    out = merged(adapter, base, dtype=dtype)
    found = load_file(out / SINGLE_NAME)
    assert json.loads((out / "config.json").read_text())["dtype"] == str(kind).removeprefix("torch.")
    for name, tensor in found.items():
        assert tensor.dtype == kind
        # through fp32 a number may be rounded twice, and then lies one step off
        step = wide[name].abs() * torch.finfo(kind).eps + torch.finfo(kind).tiny
        assert ((tensor.float() - wide[name]).abs() <= step).all(), name
    assert load(out, "auto").dtype == kind


def test_a_type_that_the_base_has_is_kept(on):
    base, adapter = on(tiny_llama(dtype=torch.bfloat16))
    assert {t.dtype for t in load_file(merged(adapter, base) / SINGLE_NAME).values()} == {torch.bfloat16}


def test_untouched_tensors_keep_their_bits(on):
    base, adapter = on(tiny_llama())
    before, after = load_file(base / SINGLE_NAME), load_file(merged(adapter, base) / SINGLE_NAME)
    for name in before:
        assert torch.equal(before[name], after[name]) is not name.endswith(("q_proj.weight", "v_proj.weight"))


# -- biases ----------------------------------------------------------------------------------------


def test_new_biases_turn_a_setting_on(on, capsys):
    base, adapter = on(tiny_llama(), lora_bias=True, target_modules=["q_proj", "up_proj"])
    merge(adapter, out=adapter.parent / "merged", base=str(base), weights_only=True)
    assert "attention_bias and mlp_bias become true" in capsys.readouterr().err
    found = load_file(adapter.parent / "merged" / SINGLE_NAME)
    assert found["model.layers.0.self_attn.q_proj.bias"].abs().max() > 0
    assert not found["model.layers.0.self_attn.k_proj.bias"].any()
    assert not found["model.layers.1.mlp.down_proj.bias"].any()


def test_a_bias_that_an_architecture_cannot_have(on):
    base, adapter = on(tiny_qwen2(), lora_bias=True, target_modules=["o_proj"])
    with pytest.raises(NotSupportedError, match=r"self_attn\.o_proj"):
        merged(adapter, base)
    assert not (adapter.parent / "merged").exists()


@pytest.mark.parametrize("bias", ["all", "lora_only"])
@pytest.mark.parametrize("family", ["qwen2", "gpt2"])
def test_trained_biases_of_the_base(on, bias, family):
    model = FAMILIES[family]()
    targets = ["c_attn", "c_fc"] if family == "gpt2" else ["q_proj", "o_proj"]
    base, adapter = on(model, bias=bias, target_modules=targets)
    ids = tiny_ids()
    expected = in_the_bank(model, adapter, ids)
    assert (logits(load(merged(adapter, base)), ids) - expected).abs().max() < TOLERANCE


# -- the folder ------------------------------------------------------------------------------------


@pytest.fixture
def letters(tmp_path):
    """A base with a tokenizer, and an adapter for it."""
    model = letters_model(tie_word_embeddings=True)
    model.generation_config.max_new_tokens = 17
    model.save_pretrained(tmp_path / "base")
    letters_tokenizer().save_pretrained(tmp_path / "base")
    (tmp_path / "base" / "README.md").write_text("a card")
    peft_model(model, spread=0.1).save_pretrained(tmp_path / "adapter")
    return tmp_path / "base", tmp_path / "adapter"


def test_the_folder_is_whole(letters):
    base, adapter = letters
    out = adapter.parent / "merged"
    result = scumble.merge(adapter, out=out, base=str(base), quiet=True)
    names = {file.name for file in out.iterdir()}
    assert names >= {"config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja"}
    assert not {"README.md", "adapter_config.json"} & names
    tokenizer, own = AutoTokenizer.from_pretrained(out), AutoTokenizer.from_pretrained(base)
    assert tokenizer.chat_template == own.chat_template
    assert tokenizer("a lamp")["input_ids"] == own("a lamp")["input_ids"]
    assert load(out).generation_config.max_new_tokens == 17
    assert check_manifest(out)
    document = json.loads((out / CERTIFICATE_NAME).read_text())
    assert document["passed"]
    assert document == json.loads(json.dumps(result.certificate))
    assert result.to_dict()["out"] == str(out)
    assert result.changed == 4
    assert not result.untied
    assert result.summary[0].startswith("certificate: passed")
    assert json.dumps(result.to_dict())


def test_no_adapter_library_is_needed(letters):
    base, adapter = letters
    out = merged(adapter, base)
    assert not any(file.name.startswith("adapter") for file in out.iterdir())
    model = load(base)
    ids = torch.tensor([[5, 9, 40, 41]])
    expected = in_the_bank(model, adapter, ids)
    assert (logits(load(out), ids) - expected).abs().max() < TOLERANCE


def test_a_base_without_a_tokenizer(on):
    base, adapter = on(tiny_llama(max_position_embeddings=256))
    out = merged(adapter, base, weights_only=False)
    assert json.loads((out / CERTIFICATE_NAME).read_text())["passed"]
    assert not (out / "tokenizer.json").exists()


def test_the_base_that_the_adapter_names(letters):
    base, adapter = letters
    config = json.loads((adapter / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(base)
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    out = adapter.parent / "merged"
    assert merge(adapter, out=out, weights_only=True, quiet=True).base == str(base)


def test_a_base_in_memory_must_be_what_its_files_hold(letters):
    base, adapter = letters
    loaded = scumble.load_base(str(base), device="cpu")
    out = adapter.parent / "merged"
    assert merge(adapter, out=out, base=loaded, weights_only=True, quiet=True).base == str(base)
    with torch.no_grad():
        loaded.model.model.norm.weight += 1
    moved = scumble.Base(loaded.model, loaded.tokenizer, str(base))
    with pytest.raises(scumble.ScumbleError, match="not what its files hold"):
        merge(adapter, out=adapter.parent / "other", base=moved, quiet=True)


# -- what fails ------------------------------------------------------------------------------------


def test_a_failed_certificate(letters, monkeypatch):
    from scumble.lora import merging

    base, adapter = letters
    real = merging.update_rows
    monkeypatch.setattr(merging, "update_rows", lambda f, scale, *rest: real(f, 2 * scale, *rest))
    out = adapter.parent / "merged"
    with pytest.raises(AdapterError, match="failed its certificate") as caught:
        merge(adapter, out=out, base=str(base), weights_only=True, quiet=True)
    assert re.search(r"self_attn\.[qv]_proj", caught.value.message)
    assert "ratio of norms 2.000" in caught.value.message
    assert "--keep-failed" in caught.value.hint
    assert sorted(file.name for file in adapter.parent.iterdir()) == ["adapter", "base"]
    with pytest.raises(AdapterError, match="failed its certificate") as caught:
        merge(adapter, out=out, base=str(base), weights_only=True, quiet=True, keep_failed=True)
    assert "was kept" in caught.value.hint
    assert not json.loads((out / CERTIFICATE_NAME).read_text())["passed"]


def test_an_update_that_bf16_would_delete_fails(letters):
    """Rounded to bf16, an update a thousandth of the weights' step is gone; the certificate must not pass."""
    base, adapter = letters
    small = Adapter.load(adapter)
    for factors in small.factors.values():
        factors.B.mul_(1e-5)
    small.save(adapter, force=True)
    with pytest.raises(AdapterError, match="failed its certificate") as caught:
        merge(adapter, out=adapter.parent / "merged", base=str(base), dtype="bf16", quiet=True)
    assert "--dtype fp32" in caught.value.hint


def test_out_exists(letters):
    base, adapter = letters
    out = merged(adapter, base)
    with pytest.raises(OutputExistsError):
        merged(adapter, base)
    (out / "stray").write_text("")
    merged(adapter, base, force=True)
    assert not (out / "stray").exists()


@pytest.mark.parametrize("which", ["base", "adapter"])
def test_what_is_read_is_not_replaced(letters, which):
    base, adapter = letters
    with pytest.raises(OutputExistsError, match="is read"):
        merge(adapter, out=adapter.parent / which, base=str(base), force=True, quiet=True)
    assert (adapter.parent / which).is_dir()


def test_an_adapter_of_another_base(on):
    base, adapter = on(tiny_llama())
    shutil.rmtree(base)
    tiny_gpt2().save_pretrained(base)
    with pytest.raises(AdapterError, match="match nothing"):
        merged(adapter, base)
    assert not (adapter.parent / "merged").exists()


def test_a_base_with_other_weights_is_warned_of(on):
    base, adapter = on(tiny_llama())
    known = Adapter.load(adapter)
    known.base_hash = "0" * 32
    known.save(adapter, force=True)
    with pytest.warns(UserWarning, match="was trained on a base with hash 0000"):
        merged(adapter, base)
    known.base_hash = scumble.load_base(str(base), tokenizer=False, dtype="bf16").hash
    known.save(adapter, force=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        merged(adapter, base, name="again")


def test_an_embedding_that_is_not_the_bases(on):
    base, adapter = on(tiny_llama(), target_modules=["embed_tokens"])
    shutil.rmtree(base)
    tiny_llama(seed=4).save_pretrained(base)
    with pytest.raises(AdapterError, match="differs from the base"):
        merged(adapter, base)


def test_values_beyond_fp16(on):
    base, adapter = on(tiny_llama())
    big = Adapter.load(adapter)
    for factors in big.factors.values():
        factors.B.mul_(1e6)
    big.save(adapter, force=True)
    with pytest.raises(AdapterError, match="beyond the range of float16"):
        merged(adapter, base, dtype="fp16")


def test_no_room(on, monkeypatch):
    base, adapter = on(tiny_llama())
    usage = namedtuple("usage", "total used free")(1, 1, 10)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    with pytest.raises(OutputError, match="are free"):
        merged(adapter, base)


def test_names_that_are_not_there(on):
    base, adapter = on(tiny_llama())
    with pytest.raises(MissingFileError):
        merged(adapter.parent / "no-adapter", base)
    with pytest.raises(MissingFileError):
        merged(adapter, adapter.parent / "no" / "base")
    with pytest.raises(ConfigError, match="dtype"):
        merged(adapter, base, dtype="int8")


def test_a_base_is_never_guessed(letters):
    _, adapter = letters
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": None}))
    with pytest.raises(AdapterError, match="names no base"):
        merge(adapter, out=adapter.parent / "none", quiet=True)
    assert not (adapter.parent / "none").exists()
