"""`unmerge`: the base bit for bit with the base gone, or one line on what it needs."""

import hashlib
import json
import shutil
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file

import scumble
from scumble.errors import BaseModelError, MissingFileError, OutputExistsError, ScumbleError
from scumble.manage import difference as difference_module
from scumble.manage.difference import DIFFERENCE_NAME, Difference, DifferenceWriter
from scumble.manage.merge import merge
from scumble.manage.unmerge import unmerge
from scumble.manifest import check_manifest
from scumble.models.checkpoint import SINGLE_NAME
from tests.bases import letters_model, letters_tokenizer
from tests.lora.conftest import peft_model
from tests.tiny import FAMILIES, tiny_llama


def sums(folder):
    """The sha256 of every file."""
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}


def prepared(tmp_path, model, saving=None, merging=None, **config):
    """A base, merged with its difference, and then removed; gives the merged folder and the base's sums."""
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    model.save_pretrained(base, **(saving or {}))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft_model(model, **config).save_pretrained(adapter)
    before = sums(base)
    options = {"weights_only": True, "quiet": True, **(merging or {})}
    merge(adapter, out=tmp_path / "merged", base=str(base), keep_difference=True, **options)
    shutil.rmtree(base)
    return tmp_path / "merged", before


def restored(tmp_path, merged):
    found = unmerge(merged, out=tmp_path / "again", quiet=True)
    files = sums(found.out)
    assert check_manifest(found.out)
    del files["manifest.json"]
    return found, files


@pytest.mark.parametrize("dtype", [None, "bf16", "fp16", "fp32"])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_bit_for_bit_whatever_the_type(tmp_path, dtype, stored):
    merged, before = prepared(tmp_path, tiny_llama(dtype=stored), merging={"dtype": dtype})
    found, files = restored(tmp_path, merged)
    assert files == before
    assert found.tensors == len(load_file(found.out / SINGLE_NAME))
    assert found.bytes == (found.out / SINGLE_NAME).stat().st_size


@pytest.mark.parametrize(
    ("model", "config"),
    [
        (tiny_llama(tie_word_embeddings=True), {"target_modules": ["lm_head", "q_proj"]}),
        (tiny_llama(tie_word_embeddings=True), {"modules_to_save": ["embed_tokens"]}),
        (tiny_llama(), {"lora_bias": True}),
        (tiny_llama(), {"use_dora": True, "target_modules": "all-linear"}),
        (FAMILIES["gpt2"](), {"target_modules": ["c_attn"], "bias": "all", "fan_in_fan_out": True}),
        (FAMILIES["gemma"](), {"target_modules": ["q_proj", "embed_tokens"]}),
    ],
    ids=["untied", "saved", "lora_bias", "dora", "gpt2", "gemma"],
)
def test_variants(tmp_path, model, config):
    merged, before = prepared(tmp_path, model, **config)
    assert restored(tmp_path, merged)[1] == before


@pytest.mark.parametrize("dtype", [None, "bf16"])
def test_shards_and_untying(tmp_path, dtype):
    merged, before = prepared(
        tmp_path,
        tiny_llama(tie_word_embeddings=True),
        saving={"max_shard_size": "4KB"},
        merging={"dtype": dtype},
        target_modules=["lm_head", "q_proj"],
    )
    found, files = restored(tmp_path, merged)
    assert files == before
    assert len(found.files) > 2


def test_the_tokenizer_comes_along(tmp_path):
    model = letters_model()
    base = tmp_path / "base"
    model.save_pretrained(base)
    letters_tokenizer().save_pretrained(base)
    (base / "additional_chat_templates").mkdir()
    (base / "additional_chat_templates" / "tools.jinja").write_text("{{ tools }}")
    peft_model(model).save_pretrained(tmp_path / "adapter")
    options = {"base": str(base), "keep_difference": True, "weights_only": True, "quiet": True}
    merge(tmp_path / "adapter", out=tmp_path / "merged", **options)
    found = unmerge(tmp_path / "merged", out=tmp_path / "again", quiet=True)
    for file in base.rglob("*"):
        if file.is_file():
            assert (found.out / file.relative_to(base)).read_bytes() == file.read_bytes(), file
    assert not (found.out / "certificate.json").exists()
    assert not (found.out / DIFFERENCE_NAME).exists()
    assert json.dumps(found.to_dict())
    loaded = scumble.load_base(str(found.out), device="cpu")
    assert loaded.hash == scumble.load_base(str(base), device="cpu").hash


def test_a_small_update_takes_less_than_the_weights(tmp_path):
    model = letters_model(hidden_size=64, intermediate_size=128)
    model.save_pretrained(tmp_path / "base")
    peft_model(model, spread=0.01).save_pretrained(tmp_path / "adapter")
    options = {"base": str(tmp_path / "base"), "keep_difference": True, "weights_only": True, "quiet": True}
    merge(tmp_path / "adapter", out=tmp_path / "merged", **options)
    changed = 2 * 64 * (64 + 32) * 4  # q and v of two layers, in fp32
    header = 20_000  # facts of 21 tensors, and the base's own header
    assert (tmp_path / "merged" / DIFFERENCE_NAME).stat().st_size < 0.9 * changed + header


@pytest.mark.parametrize("chunk", [1, 5, 10**6])
def test_chunks_change_nothing(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(difference_module, "_CHUNK", chunk)
    merged, before = prepared(
        tmp_path, tiny_llama(vocab_size=8, num_hidden_layers=1), merging={"dtype": "bf16"}
    )
    assert restored(tmp_path, merged)[1] == before


def test_odd_tensors(tmp_path):
    """No numbers, no dimensions, no floats, and numbers that are none."""
    tensors = {
        "empty": torch.zeros(0, 3),
        "scalar": torch.tensor(2.5),
        "whole": torch.arange(5),
        "odd": torch.tensor([float("nan"), float("inf"), -0.0, 1e-40]),
    }
    folder = tmp_path / "base"
    folder.mkdir()
    save_file(tensors, folder / SINGLE_NAME)
    (folder / "config.json").write_text("{}")

    class Opened:
        files, index, name = (SINGLE_NAME,), None, "odd"

    Opened.folder = folder
    writer = DifferenceWriter()
    written = {name: t.to(torch.bfloat16) if t.is_floating_point() else t for name, t in tensors.items()}
    for name, tensor in tensors.items():
        writer.add(name, tensor, written[name])
    writer.write(tmp_path / "difference", Opened, [])
    writer.close()
    found = Difference(tmp_path / "difference")
    assert set(found.order(SINGLE_NAME)) == set(tensors)
    for name, tensor in tensors.items():
        again = found.original(name, written[name])
        assert again.dtype == tensor.dtype
        assert again.numpy().tobytes() == tensor.numpy().tobytes()


# -- what fails ------------------------------------------------------------------------------------


def fails(tmp_path, merged, **options) -> ScumbleError:
    with pytest.raises(ScumbleError) as caught:
        unmerge(merged, out=tmp_path / "again", quiet=True, **options)
    assert "\n" not in caught.value.message
    assert not (tmp_path / "again").exists()
    return caught.value


def test_without_a_difference_it_says_where_the_base_is(tmp_path):
    model = tiny_llama()
    base, adapter, out = (tmp_path / name for name in ("base", "adapter", "merged"))
    model.save_pretrained(base)
    peft_model(model).save_pretrained(adapter)
    merge(adapter, out=out, base=str(base), weights_only=True, quiet=True)
    error = fails(tmp_path, out)
    assert f"needs the base {base}; that is at {base}" in error.message
    assert "--keep-difference" in error.hint
    shutil.rmtree(base)
    assert "not on this machine" in fails(tmp_path, out).message
    assert "no-such/base" in fails(tmp_path, out, base="no-such/base").message
    (out / "certificate.json").write_text("[")
    assert fails(tmp_path, out).message.endswith("needs the base")


@pytest.mark.parametrize("place", [9, 0.2, 0.5, 0.8, 0.99])
def test_a_changed_difference(tmp_path, place):
    merged, _ = prepared(tmp_path, tiny_llama())
    file = merged / DIFFERENCE_NAME
    data = bytearray(file.read_bytes())
    data[place if isinstance(place, int) else int(place * len(data))] ^= 0x11
    file.write_bytes(data)
    assert isinstance(fails(tmp_path, merged), BaseModelError)


@pytest.mark.parametrize("keep", [0, 5, 0.5, 0.99])
def test_a_truncated_difference(tmp_path, keep):
    merged, _ = prepared(tmp_path, tiny_llama())
    file = merged / DIFFERENCE_NAME
    data = file.read_bytes()
    file.write_bytes(data[: keep if isinstance(keep, int) else int(keep * len(data))])
    assert DIFFERENCE_NAME in fails(tmp_path, merged).message


def test_a_changed_merge(tmp_path):
    merged, _ = prepared(tmp_path, tiny_llama())
    tensors = load_file(merged / SINGLE_NAME)
    tensors["model.norm.weight"][0] += 1
    save_file(tensors, merged / SINGLE_NAME, {"format": "pt"})
    assert "model.norm.weight does not come out as it was" in fails(tmp_path, merged).message


def test_a_merge_of_another_model(tmp_path):
    merged, _ = prepared(tmp_path, tiny_llama())
    tiny_llama(num_hidden_layers=1).save_pretrained(merged)
    assert "lacks the tensor" in fails(tmp_path, merged).message


def doctored(merged, change):
    """Change the facts in a difference, as a stranger could."""
    file = merged / DIFFERENCE_NAME
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        facts = json.loads(opened.metadata()["difference"])
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    change(facts, tensors)
    save_file(tensors, file, {"difference": json.dumps(facts)})


@pytest.mark.parametrize(
    "name", ["../stolen", "/etc/passwd", "a/b", "..", "", 3, "additional_chat_templates/.."]
)
def test_names_that_reach_outside(tmp_path, name):
    merged, _ = prepared(tmp_path, tiny_llama())
    doctored(merged, lambda facts, _: facts["copied"].append(name))
    fails(tmp_path, merged)


@pytest.mark.parametrize("kind", ["header", "document"])
def test_parts_that_reach_outside(tmp_path, kind):
    merged, _ = prepared(tmp_path, tiny_llama())

    def change(facts, tensors):
        tensors[f"{kind} ../stolen"] = torch.zeros(8, dtype=torch.uint8)
        facts["texts"][f"{kind} ../stolen"] = hashlib.sha256(bytes(8)).hexdigest()

    doctored(merged, change)
    assert "no plain file name" in fails(tmp_path, merged).message
    assert not (tmp_path / "stolen").exists()


def test_pieces_that_unpack_to_too_much(tmp_path):
    import zlib

    merged, _ = prepared(tmp_path, tiny_llama())

    def change(facts, tensors):
        name = "model.layers.0.self_attn.q_proj.weight"
        bomb = zlib.compress(bytes(10**8), 9)
        facts["tensors"][name]["pieces"] = [["zlib", len(bomb)], *[["zero", 0]] * 3]
        tensors[f"tensor {name}"] = torch.frombuffer(bytearray(bomb), dtype=torch.uint8)

    doctored(merged, change)
    fails(tmp_path, merged)


def test_what_is_not_there_and_what_is(tmp_path):
    with pytest.raises(MissingFileError):
        unmerge(tmp_path / "gone", out=tmp_path / "again", quiet=True)
    merged, _ = prepared(tmp_path, tiny_llama())
    (tmp_path / "again").mkdir()
    with pytest.raises(OutputExistsError):
        unmerge(merged, out=tmp_path / "again", quiet=True)
    assert unmerge(merged, out=tmp_path / "again", quiet=True, force=True).tensors > 0
    with pytest.raises(OutputExistsError, match="is read"):
        unmerge(merged, out=merged, quiet=True, force=True)


def test_what_no_merge_wrote_is_said(tmp_path):
    tiny_llama().save_pretrained(tmp_path / "base")
    assert "is not what a merge wrote" in fails(tmp_path, tmp_path / "base").message
