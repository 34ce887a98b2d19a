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


@pytest.mark.parametrize("goes_on", [False, True])
def test_training_takes_the_command_of_a_run_that_went_on_from_an_adapter(
    scumble, here, run_folder, letters_folder, goes_on
):
    # a plateau asks for more rank than the adapter has; what still improves goes on from it again
    losses = LOSSES if goes_on else [4.0] + [2.0] * 199
    evals = EVALS if goes_on else {0: 4.0, 100: 2.0, 200: 2.0}
    folder = write_run(
        here / "second", losses, evals, max_steps=3, from_=str(run_folder), adapter=an_adapter(flat=True)
    )
    facts = json.loads((folder / "run.json").read_text())
    facts["data"]["source"], facts["base"] = "good.jsonl", {"name": str(letters_folder)}
    (folder / "run.json").write_text(json.dumps(facts))
    command = json.loads(scumble("advise", "second", "--json").out)["findings"][0]["command"]
    assert ("--from" in command, "--rank" in command) == (goes_on, not goes_on)
    ended = scumble(*shlex.split(command)[1:])
    assert ended.code == 0, ended.err


def test_a_damaged_run_is_said_in_a_line(fails, run):
    facts = json.loads((run / "run.json").read_text())
    del facts["training"]["learning_rate"]
    (run / "run.json").write_text(json.dumps(facts))
    message, hint = fails("advise", "run")
    assert message == "run/run.json is damaged: training has no learning_rate"
    assert "train again" in hint


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
