"""Where a configuration is found by what a user calls a base, and what is said where there is none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from huggingface_hub.errors import LocalEntryNotFoundError

from scumble.errors import BaseModelError, MissingFileError, ScumbleError
from scumble.plan import configuration
from scumble.plan.configuration import find_configuration
from scumble.plan.shape import find_shape
from tests.tiny import SIZES

TINY = {**SIZES, "model_type": "llama"}


def written(folder: Path, contents: Any = TINY, name: str = "config.json") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    text = contents if isinstance(contents, str) else json.dumps(contents)
    (folder / name).write_text(text, encoding="utf-8")
    return folder


def adapter_of(folder: Path, base: Any) -> Path:
    return written(folder, {"peft_type": "LORA", "base_model_name_or_path": base}, "adapter_config.json")


@pytest.mark.parametrize("name", [None, "smollm2", "SmolLM2", "HuggingFaceTB/SmolLM2-135M-Instruct"])
def test_the_default_base_is_known_though_its_weights_are_not_prepared(
    name: str | None, monkeypatch: Any, tmp_path: Path
) -> None:
    monkeypatch.setenv("SCUMBLE_HOME", str(tmp_path))
    monkeypatch.delenv("SCUMBLE_BASE", raising=False)
    shape = find_shape(name)
    # Scumble's own copy of it is kept in fp32
    assert (shape.parameters, shape.dtype) == (134_515_008, "fp32")
    assert not list(tmp_path.iterdir())


def test_a_folder_its_config_and_a_file_of_any_name_are_one_model(tmp_path: Path) -> None:
    folder = written(tmp_path / "base")
    written(tmp_path, TINY, "other.json")
    names = [str(folder), str(folder / "config.json"), str(tmp_path / "other.json")]
    shapes = [find_shape(name) for name in names]
    assert [shape.name for shape in shapes] == names
    assert len({shape.parameters for shape in shapes}) == 1


def test_a_file_is_found_before_the_table(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path / "Qwen" / "Qwen3-8B")
    assert find_shape("Qwen/Qwen3-8B").layers == 2


@pytest.mark.parametrize("inside", ["", "adapter"])
def test_an_adapter_and_a_run_stand_for_their_base(tmp_path: Path, inside: str) -> None:
    adapter_of(tmp_path / "run" / inside, "Qwen/Qwen3-0.6B")
    found = find_configuration(str(tmp_path / "run"))
    assert found.name == "Qwen/Qwen3-0.6B"
    assert "the base of" in found.source


def test_a_run_that_trained_all_weights_stands_for_its_model(tmp_path: Path) -> None:
    written(tmp_path / "run" / "model")
    assert find_shape(str(tmp_path / "run")).layers == 2


def test_adapters_that_name_each_other_are_refused(tmp_path: Path) -> None:
    adapter_of(tmp_path / "one", str(tmp_path / "two"))
    adapter_of(tmp_path / "two", str(tmp_path / "one"))
    with pytest.raises(BaseModelError, match="names another adapter as its base"):
        find_configuration(str(tmp_path / "one"))


@pytest.mark.parametrize("base", [None, "", 3, ["x"]])
def test_an_adapter_without_a_base_is_refused(tmp_path: Path, base: Any) -> None:
    with pytest.raises(BaseModelError, match="names no base"):
        find_configuration(str(adapter_of(tmp_path / "one", base)))


def cached(root: Path, monkeypatch: Any) -> None:
    """A hub's cache that holds one model."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(root))
    place = root / "models--nobody--tiny"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("0123", encoding="utf-8")
    written(place / "snapshots" / "0123")


def test_a_hub_name_is_found_in_the_cache(tmp_path: Path, monkeypatch: Any) -> None:
    cached(tmp_path, monkeypatch)
    found = find_configuration("nobody/tiny")
    assert (found.config["hidden_size"], found.source) == (16, "the hub's cache")


def test_the_table_needs_no_cache_and_no_network(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "none"))
    monkeypatch.setattr(configuration, "hub_reachable", lambda: pytest.fail("the network was asked"))
    assert find_configuration("QWEN/qwen3-8b").name == "Qwen/Qwen3-8B"


def test_where_the_hub_can_be_reached_its_configuration_is_taken(tmp_path: Path, monkeypatch: Any) -> None:
    import huggingface_hub

    written(tmp_path)
    monkeypatch.setattr(configuration, "hub_reachable", lambda: True)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda name, file: str(tmp_path / file))
    assert find_configuration("nobody/other").source == "the hub"


def test_what_the_hub_refuses_is_said_in_one_line(monkeypatch: Any) -> None:
    import huggingface_hub

    def lost(name: str, file: str) -> str:
        raise LocalEntryNotFoundError("a long story")

    monkeypatch.setattr(configuration, "hub_reachable", lambda: True)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lost)
    with pytest.raises(BaseModelError, match="cannot be reached"):
        find_configuration("nobody/other")


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("meta-llama/Lama-3.1-8B", "meta-llama/Llama-3.1-8B"),
        ("unsloth/Qwen3-8B", "Qwen/Qwen3-8B"),
        ("mistral-7b-instruct-v0.3", "mistralai/Mistral-7B-Instruct-v0.3"),
        ("zzz", "Qwen/Qwen3-8B"),
    ],
)
def test_an_unknown_name_offline_names_the_nearest_and_how_to_give_a_file(name: str, near: str) -> None:
    with pytest.raises(BaseModelError, match="the hub cannot be reached") as error:
        find_configuration(name)
    assert near in error.value.hint
    assert "scumble plan path/to/config.json" in error.value.hint


@pytest.mark.parametrize(
    "contents",
    ["", "{", "[1, 2]", '"llama"', "null", "\x00", "[" * 100_000, "{}", '{"model_type": ["llama"]}'],
)
def test_a_file_that_holds_no_configuration_is_refused(contents: str, tmp_path: Path) -> None:
    written(tmp_path, contents)
    with pytest.raises(BaseModelError) as error:
        find_shape(str(tmp_path / "config.json"))
    assert error.value.hint


def test_a_file_of_gigabytes_is_not_read(tmp_path: Path) -> None:
    with open(tmp_path / "config.json", "wb") as file:
        file.truncate(200 * 10**9)
    with pytest.raises(BaseModelError, match="larger than"):
        find_shape(str(tmp_path))


@pytest.mark.parametrize(
    "name", ["", "  ", "two words", "a/b/c", "./none", "none.gguf", "x" * 5000, "a\nb", "~nobody/x"]
)
def test_an_impossible_name_is_refused(name: str) -> None:
    with pytest.raises(ScumbleError) as error:
        find_configuration(name)
    assert error.value.hint


def test_a_file_that_is_none_of_these_is_refused(tmp_path: Path) -> None:
    (tmp_path / "base.gguf").write_bytes(b"GGUF" + bytes(64))
    (tmp_path / "text.txt").write_text("hello", encoding="utf-8")
    for name in ("base.gguf", "text.txt"):
        with pytest.raises(BaseModelError, match=name):
            find_configuration(str(tmp_path / name))
    with pytest.raises(BaseModelError, match=r"has no config\.json"):
        find_configuration(str(tmp_path))
    with pytest.raises(MissingFileError):
        find_configuration(str(tmp_path / "none"))


@pytest.mark.real
def test_the_header_of_a_gguf_file_is_enough() -> None:
    from scumble.models.embedded import find_gguf

    shape = find_shape(str(find_gguf()))
    assert (shape.parameters, shape.layers, shape.tied) == (134_515_008, 30, True)
