"""Opening a chat: names, bases, and what is refused."""

import json
from pathlib import Path

import pytest

from scumble.errors import AdapterError, ConfigError, DataError, MissingFileError
from scumble.lora.bank import Bank
from scumble.lora.spec import LoraSpec
from scumble.models.base import load_base
from scumble.serve.session import open_chat, pairs
from tests.bases import letters_model, letters_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A base and an adapter of it."""
    place = tmp_path_factory.mktemp("session")
    letters_model().save_pretrained(place / "base")
    letters_tokenizer().save_pretrained(place / "base")
    bank = Bank(load_base(str(place / "base")))
    bank.trainable("a", LoraSpec(rank=2))
    bank.save("a", place / "runs" / "my first run" / "adapter")
    return place


@pytest.fixture
def run(folder) -> Path:
    return folder / "runs" / "my first run"


def test_pairs():
    assert pairs(["a=x/y", "b=c=d"]) == {"a": Path("x/y"), "b": Path("c=d")}
    assert pairs([]) == {}


@pytest.mark.parametrize("text", ["", "a", "a=", "=x", "="])
def test_what_is_no_pair_is_refused(text):
    with pytest.raises(ConfigError, match="is not NAME=PATH"):
        pairs([text])


def test_a_name_given_twice_is_refused():
    with pytest.raises(ConfigError, match="twice"):
        pairs(["a=x", "a=y"])


def test_a_run_answers_at_first_under_its_folder_s_name(run):
    chat = open_chat(run, {})
    assert (chat.mixture, chat.bank.names) == ("my-first-run", ["my-first-run"])
    assert open_chat(run / "adapter", {}).mixture == "my-first-run"


def test_without_a_run_the_base_answers_at_first(run):
    chat = open_chat(None, {"a": run, "b": run})
    assert (chat.mixture, chat.bank.names) == ("base", ["a", "b"])


def test_a_run_and_an_adapter_of_one_name_are_refused(run):
    with pytest.raises(ConfigError, match="as the run is called"):
        open_chat(run, {"my-first-run": run})


@pytest.mark.parametrize(
    "options", [{"max_new_tokens": 0}, {"temperature": -1.0}, {"temperature": float("inf")}]
)
def test_options_out_of_range_are_refused(run, options):
    with pytest.raises(ConfigError):
        open_chat(run, {}, **options)


def test_what_is_missing_is_refused(tmp_path):
    with pytest.raises(MissingFileError):
        open_chat(tmp_path / "none", {})


def changed(run: Path, to: Path, base_name: str | None) -> Path:
    """A copy of an adapter that names another base."""
    import shutil

    shutil.copytree(run / "adapter", to)
    config = json.loads((to / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = base_name
    (to / "manifest.json").unlink()  # which would say that the configuration was changed
    (to / "adapter_config.json").write_text(json.dumps(config))
    return to


def test_adapters_of_two_bases_need_one_to_be_named(run, tmp_path, folder):
    other = changed(run, tmp_path / "other", "some/where")
    with pytest.raises(AdapterError, match="different bases") as refused:
        open_chat(run, {"b": other})
    assert "--base" in refused.value.hint
    assert open_chat(run, {"b": other}, base=str(folder / "base")).bank.names == ["my-first-run", "b"]


def test_an_adapter_that_names_no_base_does_not_get_the_default_one(run, tmp_path, folder):
    nameless = changed(run, tmp_path / "nameless", None)
    with pytest.raises(AdapterError, match="does not say what its base is"):
        open_chat(nameless, {})
    assert open_chat(nameless, {}, base=str(folder / "base")).mixture == "nameless"


def test_a_base_without_a_tokenizer_cannot_talk(tmp_path):
    letters_model().save_pretrained(tmp_path / "mute")
    with pytest.raises(DataError, match="has no tokenizer"):
        open_chat(None, {}, base=str(tmp_path / "mute"))
