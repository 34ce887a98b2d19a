"""`scumble inspect` on the command line: what it prints, what it writes, and bad input."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from scumble.lora.adapter import CONFIG_NAME, WEIGHTS_NAME

MANIFEST = shutil.ignore_patterns("manifest.json")  # what is changed here was not damaged on its way


@pytest.fixture
def nan_adapter(run_folder, here):
    folder = here / "broken"
    shutil.copytree(run_folder / "adapter", folder, ignore=MANIFEST)
    tensors = load_file(folder / WEIGHTS_NAME)
    name = sorted(tensors)[0]
    tensors[name][0, 0] = torch.inf
    save_file(tensors, folder / WEIGHTS_NAME, metadata={"format": "pt"})
    return folder, name


def test_a_run_is_inspected(scumble, run_folder):
    ended = scumble("inspect", run_folder)
    assert ended.code == 0
    assert ended.out.startswith("first\n  rank 8, alpha 16, scale 2")
    assert "q_proj" in ended.out
    assert "trained on" in ended.out
    assert ended.err == ""
    every = scumble("inspect", run_folder, "--modules")
    assert "model.layers.1" in every.out


def test_the_document_is_all_there_is_on_stdout(scumble, run_folder):
    ended = scumble("inspect", run_folder, run_folder, "--json", "--data", "good.jsonl", "--limit", 3)
    document = json.loads(ended.out)
    assert len(document["adapters"]) == 2
    assert {"path", "rank", "alpha", "parameters", "modules"} <= set(document["adapters"][0])
    assert document["pairs"][0]["cosine"] == pytest.approx(1)
    assert document["pairs"][0]["on_data"]["cosine"] == pytest.approx(1)
    assert document["data"]["examples"] == 3


def test_a_page_is_written_and_not_replaced_unasked(scumble, fails, run_folder, here):
    assert scumble("inspect", run_folder, "--html", "page.html").code == 0
    assert "<svg" in (here / "page.html").read_text()
    assert "page.html exists already" in fails("inspect", run_folder, "--html", "page.html")[0]
    assert scumble("inspect", run_folder, "--html", "page.html", "--force").code == 0


def test_an_adapter_with_values_that_are_not_finite_is_reported(scumble, nan_adapter, run_folder):
    folder, name = nan_adapter
    ended = scumble("inspect", folder, run_folder)
    assert ended.code == 0
    assert f"not finite: 1 values of {name}" in ended.out
    document = json.loads(scumble("inspect", folder, "--json").out)
    assert document["adapters"][0]["not_finite"] == {name: 1}
    assert document["adapters"][0]["norm"] is None


def test_two_bases_are_named(scumble, run_folder, here):
    other = here / "other"
    shutil.copytree(run_folder / "adapter", other, ignore=MANIFEST)
    config = json.loads((other / CONFIG_NAME).read_text())
    (other / CONFIG_NAME).write_text(json.dumps(config | {"base_model_name_or_path": "some/base"}))
    tensors = load_file(other / WEIGHTS_NAME)
    save_file(tensors, other / WEIGHTS_NAME, metadata={"format": "pt"})  # without the base's hash
    ended = scumble("inspect", run_folder, other)
    assert ended.code == 0
    assert "different bases" in ended.out
    assert "other on some/base" in ended.out


BAD = [
    (["nothere"], "the adapter nothere does not exist", "name an adapter folder or a run"),
    (["empty"], "empty is neither an adapter nor a run", "scumble train"),
    (["good.jsonl"], "good.jsonl is neither an adapter nor a run", ""),
    (["RUN", "--base", "./nope"], "base './nope' does not exist", ""),
    (["RUN", "--weights", "1,2"], "there are 2 weights for 1 adapters", "one for each"),
    (["RUN", "--weights", "a"], "--weights is 'a'", "0.7,0.3"),
    (["RUN", "--weights", "nan"], "the weight nan is not a finite number", ""),
    (["RUN", "--limit", "0"], "--limit is 0, and must be 1 or more", ""),
    (["RUN", "--data", "missing.jsonl"], "the data file missing.jsonl does not exist", ""),
    (["RUN", "--html", "good.jsonl/page.html"], "good.jsonl is not a folder", "choose another --html"),
    (["RUN", "--html", "RUN"], "which is read", "choose another --html"),
]


@pytest.mark.parametrize(("given", "message", "hint"), BAD, ids=lambda value: str(value)[:40])
def test_bad_input_is_one_line_and_a_hint(fails, here, run_folder, given, message, hint):
    (here / "empty").mkdir()
    said, advised = fails("inspect", *(run_folder if word == "RUN" else word for word in given))
    assert message in said
    assert hint in advised


def test_damaged_files_are_refused(fails, here, run_folder):
    folder = here / "damaged"
    shutil.copytree(run_folder / "adapter", folder, ignore=MANIFEST)
    whole = (folder / WEIGHTS_NAME).read_bytes()
    (folder / WEIGHTS_NAME).write_bytes(whole[:-10])
    assert "damaged" in " ".join(fails("inspect", folder))
    (folder / WEIGHTS_NAME).write_bytes(whole)
    (folder / CONFIG_NAME).write_text('{"peft_type": "IA3"}')
    assert "IA3 is not LoRA" in fails("inspect", folder)[0]


def test_no_adapter_is_wrong_usage(scumble):
    assert scumble("inspect").code == 2
