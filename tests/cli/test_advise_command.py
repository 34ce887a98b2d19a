"""`scumble advise`: what it prints, for people and programs, and that its command can be typed as it stands."""

from __future__ import annotations

import json
import shlex

import pytest

from tests.train.advice.made import an_adapter, write_run, write_sweep

LOSSES = [4.0 / (1 + step / 50) for step in range(200)]
EVALS = {0: 4.0} | {step: LOSSES[step - 1] for step in range(20, 201, 20)}


@pytest.fixture
def run(here):
    return write_run(here / "run", LOSSES, EVALS, adapter=an_adapter())


def test_for_people(scumble, run):
    ended = scumble("advise", "run")
    assert ended.code == 0
    assert "it still improves" in ended.out
    assert "confidence" in ended.out
    # in one line, whatever the width of the terminal
    assert any(
        line.strip().startswith("scumble train cron --out run-epochs-") for line in ended.out.splitlines()
    )


def test_for_programs(scumble, run):
    document = json.loads(scumble("advise", "run", "--json").out)
    assert document["verdict"] == "still improving"
    assert document["kind"] == "run"


def test_a_sweep(scumble, here):
    trials = [({"rank": rank, "seed": seed}, 1 / rank + 0.001 * seed) for rank in (4, 8) for seed in (0, 1)]
    write_sweep(here / "sweep", trials)
    assert json.loads(scumble("advise", "sweep", "--json").out)["kind"] == "sweep"
    assert "rank moved the loss most" in scumble("advise", "sweep").out


@pytest.mark.parametrize("words", [("nowhere",), (".",), ("good.jsonl",)])
def test_what_is_no_run_is_said_in_a_line(fails, words):
    message, hint = fails("advise", *words)
    assert hint
    assert "run" in message or "does not exist" in message


def test_silence_says_what_is_missing(scumble, here):
    write_run(here / "short", [3.0, 2.0], {0: 3.0})
    ended = scumble("advise", "short")
    assert ended.code == 0
    assert "nothing to advise" in ended.out
    assert "missing: 2 steps were made" in ended.out


def test_the_command_can_be_typed_as_it_stands(scumble, letters_folder, here):
    words = (
        "--base",
        letters_folder,
        "--epochs",
        6,
        "--learning-rate",
        1e-2,
        "--batch",
        2,
        "--eval-every",
        2,
    )
    assert scumble("train", "good.jsonl", "--out", "first", *words).code == 0
    document = json.loads(scumble("advise", "first", "--json").out)
    command = document["findings"][0]["command"]
    assert command
    ended = scumble(*shlex.split(command)[1:])
    assert ended.code == 0, ended.err
    after = json.loads((here / document["findings"][0]["next"]["out"] / "run.json").read_text())["options"]
    before = json.loads((here / "first/run.json").read_text())["options"]
    changed = {name for name in after if after[name] != before[name]}
    assert changed <= set(document["findings"][0]["next"]["changed"])
