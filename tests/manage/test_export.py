"""`export`: which form is whose work, and one line for each mistake in what was named."""

from __future__ import annotations

import json
import sys

import pytest

import scumble
from scumble.cli.main import main
from scumble.errors import BaseModelError, ConfigError, MissingFileError
from tests.manage.folders import PRE, model_of, save


@pytest.fixture
def folders(made, tmp_path):
    """An adapter, its run, and the base's folder."""
    base = model_of("llama")
    adapter = made(base, "run/adapter")
    return adapter, adapter.parent, save(base, tmp_path / "base")


def test_adapters_and_models_are_told_apart(folders, tmp_path):
    adapter, run, base = folders
    model = scumble.export("gguf", base, out=tmp_path / "m.gguf", pre=PRE)
    assert model.to_dict()["type"] == "F16"
    assert model.to_dict()["kind"] == "gguf"
    for what, name in ((adapter, "a"), (run, "r")):
        found = scumble.export("gguf", what, out=tmp_path / f"{name}.gguf", base=str(base))
        assert found.to_dict()["modules"] == 4
        assert found.type == "F32"
    assert json.dumps(scumble.export("vllm", run, out=tmp_path / "v").to_dict())
    assert scumble.export("card", base, out=tmp_path / "c.md").about == "model"


def test_mistakes_are_one_line(folders, tmp_path):
    adapter, _, base = folders
    out = tmp_path / "x.gguf"
    cases = [
        (("ggfu", adapter), {"out": out}, ConfigError, "is no form to export to"),
        (("vllm", base), {"out": out}, ConfigError, "is a model, and export vllm takes an adapter"),
        (("gguf", base), {"out": out, "base": "smollm2"}, ConfigError, "--base is an adapter's"),
        (("gguf", adapter), {"out": out, "pre": "gpt-2"}, ConfigError, "an adapter has no tokenizer"),
        (("gguf", adapter), {}, ConfigError, "needs --out"),
        (("gguf", tmp_path), {"out": out}, MissingFileError, "neither an adapter nor a model"),
        (("gguf", tmp_path / "none"), {"out": out}, MissingFileError, "does not exist"),
        (("card", "smollm2"), {"out": out}, ConfigError, "is no folder here"),
        (("card", adapter), {"out": out, "rank": 4}, ConfigError, "has no option 'rank'"),
        (("hub", adapter), {}, ConfigError, "nothing is sent without"),
        (("hub", adapter), {"out": out, "to": "a/b"}, ConfigError, "writes no file"),
    ]
    for arguments, options, error, says in cases:
        with pytest.raises((error, BaseModelError), match=says) as raised:
            scumble.export(*arguments, **options)
        assert isinstance(raised.value, error), says
        assert "\n" not in raised.value.message, says
    assert not out.exists()


def test_a_model_with_an_adapter_in_its_folder_is_told_apart(folders):
    """A merged folder is a model, also where a run's adapter lies in a folder below it."""
    _, run, base = folders
    (base / "adapter").symlink_to(run / "adapter")
    from scumble.manage.export.holding import holding

    assert holding(base) == "model"
    assert holding(run) == "adapter"


def run_command(monkeypatch, capsys, *words: str) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["scumble", *words])
    with pytest.raises(SystemExit) as end:
        main()
    found = capsys.readouterr()
    return int(end.value.code or 0), found.out, found.err


def test_command_line(folders, tmp_path, monkeypatch, capsys):
    adapter, _, base = folders
    out = str(tmp_path / "m.gguf")
    code, said, _ = run_command(monkeypatch, capsys, "export", "gguf", str(base), "--out", out, "--pre", PRE)
    assert code == 0
    assert said.splitlines()[0].startswith(f"{out}: F16, ")
    code, said, heard = run_command(
        monkeypatch, capsys, "export", "gguf", str(base), "--out", out, "--pre", PRE, "--force", "--json"
    )
    assert code == 0
    assert json.loads(said)["architecture"] == "llama"
    code, said, heard = run_command(monkeypatch, capsys, "export", "vllm", str(base), "--out", out)
    assert (code, said) == (1, "")
    assert heard.startswith("error: ")
    assert len(heard.splitlines()) == 2
    code, said, _ = run_command(
        monkeypatch, capsys, "export", "vllm", str(adapter), "--out", str(tmp_path / "v")
    )
    assert code == 0
    assert "--max-lora-rank 8" in said
    code, _, heard = run_command(monkeypatch, capsys, "export", "hub", str(adapter))
    assert code == 2
    assert "--to" in heard
