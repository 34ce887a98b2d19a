"""`scumble train` on good input of every shape, from a YAML file, and over an old run."""

import json

import pytest

from scumble.lora.adapter import Adapter
from tests.bases import sums

LINES = [json.dumps(row) for row in sums(12)]
SHAPES = {
    "with a byte order mark": b"\xef\xbb\xbf" + "\n".join(LINES).encode(),
    "with Windows' line ends": "\r\n".join(LINES).encode() + b"\r\n",
    "with blank lines": ("\n\n  \n".join(LINES) + "\n\n").encode(),
    "without a last line end": "\n".join(LINES).encode(),
}


@pytest.fixture
def trains(scumble, letters_folder):
    def train(data, out, *more):
        ended = scumble("train", data, "--out", out, "--base", letters_folder, "--max-steps", 2, *more)
        assert ended.code == 0, ended.err
        return ended

    return train


@pytest.mark.parametrize("name", SHAPES)
def test_the_shape_of_the_file_changes_nothing(trains, here, name):
    (here / "data.jsonl").write_bytes(SHAPES[name])
    trains("good.jsonl", "plain")
    trains("data.jsonl", "run")
    weights = [(here / run / "adapter/adapter_model.safetensors").read_bytes() for run in ("plain", "run")]
    assert weights[0] == weights[1]
    facts = [json.loads((here / run / "run.json").read_text())["data"] for run in ("plain", "run")]
    assert facts[0]["hash"] == facts[1]["hash"]


def test_what_is_printed_names_what_was_written(trains, here):
    ended = trains("good.jsonl", "run")
    assert "2 steps" in ended.out
    assert "adapter: run/adapter" in ended.out
    assert "report: run/report.html" in ended.out
    assert "scumble chat run" in ended.out
    for name in ("run.json", "metrics.jsonl", "report.html", "adapter/adapter_config.json"):
        assert (here / "run" / name).stat().st_size > 0


def test_force_replaces_an_old_run_only_once_the_new_one_begins(trains, fails, here, letters_folder):
    trains("good.jsonl", "run")
    (here / "run" / "note.txt").write_text("of the old run")
    words = ("train", "good.jsonl", "--out", "run", "--force", "--base", letters_folder)
    fails(*words, "--targets", "nothing_like_it")
    assert (here / "run" / "note.txt").exists()
    trains("good.jsonl", "run", "--force", "--rank", 3)
    assert not (here / "run" / "note.txt").exists()
    assert Adapter.load(here / "run").spec.rank == 3


def test_a_link_is_replaced_and_not_what_it_leads_to(trains, here):
    (here / "kept").mkdir()
    (here / "kept" / "mine.txt").write_text("mine")
    (here / "run").symlink_to("kept")
    trains("good.jsonl", "run", "--force")
    assert (here / "kept" / "mine.txt").read_text() == "mine"
    assert not (here / "run").is_symlink()
    assert Adapter.load(here / "run").factors


def test_options_come_from_a_file_and_those_given_win(trains, here):
    (here / "run.yaml").write_text("rank: 2\nlearning-rate: 1e-2\ntargets: [q_proj, up_proj]\nseed: 7\n")
    trains("good.jsonl", "run", "--config", "run.yaml", "--rank", 3)
    facts = json.loads((here / "run" / "run.json").read_text())
    assert facts["options"]["rank"] == 3
    assert facts["options"]["learning_rate"] == 0.01
    assert facts["options"]["seed"] == 7
    assert facts["adapter"]["targets"] == ["q_proj", "up_proj"]


@pytest.mark.usefixtures("unloaded")
def test_a_mistake_in_the_file_is_named_with_its_line(fails, here):
    (here / "run.yaml").write_text("rank: 2\n\nrnak: 3\n")
    message, hint = fails("train", "good.jsonl", "--out", "run", "--config", "run.yaml")
    assert message == "run.yaml, line 3: rnak is not a known option"
    assert hint == "did you mean rank?"


def test_one_example_can_be_trained_on_without_validation(trains, fails, here):
    (here / "one.jsonl").write_text(LINES[0] + "\n")
    trains("one.jsonl", "run", "--eval", 0)
    message, hint = fails("train", "one.jsonl", "--out", "other")
    assert "no two different examples" in message
    assert "--eval 0" in hint


def test_examples_that_are_left_out_are_said(trains, fails, here):
    ended = trains("good.jsonl", "run", "--max-length", 40, "--eval", 0)
    assert "are left out whole, not cut" in ended.err
    message, hint = fails("train", "good.jsonl", "--out", "other", "--max-length", 3)
    assert "every example is longer than 3 tokens" in message
    assert "--max-length" in hint


def test_compare_writes_a_page_and_takes_a_run_for_an_adapter(scumble, here, run_folder):
    words = ("--data", "good.jsonl", "--max-new-tokens", 3, "-n", 2, "--html", "page.html")
    ended = scumble("compare", run_folder, *words)
    assert ended.code == 0, ended.err
    assert "exact_match on 12 examples" in ended.out
    assert "<html" in (here / "page.html").read_text()
    assert scumble("compare", run_folder / "adapter", *words).code == 1
    assert scumble("compare", run_folder / "adapter", *words, "--force").code == 0


@pytest.mark.real
def test_train_on_the_tokenizer_of_the_embedded_base(scumble, here, tiny_base_folder):
    words = ("--base", tiny_base_folder, "--max-steps", 1, "--json")
    ended = scumble("train", "tickets", "--out", "run", *words)
    assert ended.code == 0, ended.err
    assert json.loads(ended.out)["steps"] == 1
    words = ("--data", "tickets", "--limit", 2, "--max-new-tokens", 4, "--json")
    document = json.loads(scumble("compare", "run", *words).out)
    assert document["metric"]["name"] == "json_exact_match"
    assert document["metric"]["n"] == 2
