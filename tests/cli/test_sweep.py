"""`scumble sweep` as a command: its output, its errors, and that it goes on after a kill to the same end."""

import json
import signal
import time

import pytest

from tests.bases import sums
from tests.cli.conftest import start, write_rows

HOW = (
    "--max-steps",
    4,
    "--batch",
    4,
    "--accumulate",
    1,
    "--eval",
    0.25,
    "--eval-every",
    2,
    "--learning-rate",
    0.01,
)


@pytest.fixture
def folder(here, letters_folder):
    write_rows(here / "some.jsonl", sums(16))
    return here


def without_times(folder):
    found = json.loads((folder / "sweep.json").read_text())
    del found["times"]
    for each in (*found["trials"], *found["lines"]):
        del each["seconds"]
    return found


def test_an_option_given_twice_is_two_values(scumble, folder, letters_folder):
    words = ("--rank", 2, "--rank", 4, "--targets", "minimal", "--targets", "standard")
    ended = scumble("sweep", "some.jsonl", "--out", "s", "--base", letters_folder, *words, *HOW)
    assert ended.code == 0, ended.err
    lines = ended.out.splitlines()
    assert lines[1].split() == ["rank", "targets", "loss", "parameters", "size", "memory", "time"]
    assert lines[2].startswith("best")
    assert any(line.startswith("best adapter: s/best, of 00") for line in lines)
    found = json.loads((folder / "s" / "sweep.json").read_text())
    settings = [(each["settings"]["rank"], each["settings"]["targets"]) for each in found["trials"]]
    assert settings == [(2, "minimal"), (2, "standard"), (4, "minimal"), (4, "standard")]


def test_json_is_one_document(scumble, folder, letters_folder):
    ended = scumble(
        "sweep",
        "some.jsonl",
        "--out",
        "s",
        "--base",
        letters_folder,
        "--rank",
        2,
        "--rank",
        4,
        *HOW,
        "--json",
    )
    found = json.loads(ended.out)
    assert [trial["settings"]["rank"] for trial in found["trials"]] == [2, 4]
    assert found["best"]["trial"] in ("001-rank2", "002-rank4")
    assert found["adapter"] == "s/best"
    assert "training" in ended.err


def test_options_from_a_file(scumble, folder, letters_folder):
    (folder / "sweep.yaml").write_text("rank: [2, 4, 8]\ntargets: [minimal, standard]\nmax-steps: 1\n")
    words = ("--config", "sweep.yaml", "--rank", 4, "--base", letters_folder)
    assert scumble("sweep", "some.jsonl", "--out", "s", *words, "--eval", 0.25).code == 0
    assert [each["name"] for each in without_times(folder / "s")["trials"]] == ["001-minimal", "002-standard"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--rank", "x"), "--rank is 'x', and must be a whole number"),
        (("--base", "a", "--base", "b"), "--base has several values (a, b), and all trials share one base"),
        (("--device", "cpu", "--device", "cuda"), "--device has several values"),
        (("--trials", 0), "--trials is 0, and must be 1 or more"),
        (("--budget", "30"), "--budget is '30', and must be a time such as 90s, 30m or 1h30m"),
        (("--search", "bayes"), "--search is 'bayes'"),
        (("--rank", 2, "--rank", 2), "--rank is 2 twice"),
        (("--rank", "2,4"), "--rank is '2,4', and several values are not joined by commas"),
        *(
            ((name, one, name, other), f"{name} has several values, and it is one for the sweep")
            for name, one, other in (
                ("--search", "grid", "random"),
                ("--trials", 3, 4),
                ("--eta", 2, 3),
                ("--budget", "1m", "2m"),
                ("--metric", "exact_match", "json_valid"),
                ("--score", 2, 3),
            )
        ),
        (("--config", "none.yaml"), "the configuration none.yaml does not exist"),
    ],
)
def test_what_is_wrong_is_said_before_the_base_is_loaded(fails, folder, unloaded, words, message):
    found, hint = fails("sweep", "some.jsonl", "--out", "s", *words)
    assert found.startswith(message)
    assert hint
    assert not (folder / "s").exists()


def test_where_all_trials_fail_the_exit_status_says_so(scumble, folder, letters_folder):
    words = ("--base", letters_folder, *HOW[:-2], "--learning-rate", 1e29, "--learning-rate", 1e30)
    ended = scumble("sweep", "some.jsonl", "--out", "s", *words)
    assert ended.code == 1
    assert ended.failure[0].startswith("error: no setting came to its end: 2 of 2 trials failed, 001-")
    assert ended.failure[1].startswith("  hint: lower --learning-rate")


def test_a_shifted_beginning_may_be_saved_in_the_rank_trained(scumble, folder, letters_folder):
    words = ("--init", "pissa", "--init-compress", "--rank", 2, "--rank", 4, "--base", letters_folder, *HOW)
    assert scumble("sweep", "some.jsonl", "--out", "s", *words).code == 0
    config = json.loads(
        (folder / "s" / "trials" / "001-rank2" / "adapter" / "adapter_config.json").read_text()
    )
    assert config["r"] == 2  # twice it without


@pytest.mark.parametrize("halving", [(), ("--halving",)], ids=["all", "halving"])
@pytest.mark.timeout(280)
def test_killed_in_the_middle_and_resumed_it_comes_to_the_same(folder, letters_folder, halving):
    how = (
        "--max-steps",
        40,
        "--epochs",
        100,
        "--batch",
        4,
        "--accumulate",
        1,
        "--eval",
        0.25,
        "--eval-every",
        5,
    )
    axes = ("--rank", 2, "--rank", 4, "--learning-rate", 1e-3, "--learning-rate", 1e-2)
    words = ("--base", letters_folder, *axes, *how, "--save-every", 3, "--metric", "exact_match", *halving)
    whole = start("sweep", "some.jsonl", "--out", "whole", *words, cwd=folder)
    assert whole.wait(120) == 0, whole.communicate()[1]

    process = start("sweep", "some.jsonl", "--out", "cut", *words, cwd=folder)
    first = folder / "cut" / "trials" / "001-rank2-learning-rate0.001"
    until = time.monotonic() + 100
    while not any(first.glob("checkpoints/state-*")):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < until
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait(30)
    assert not without_times(folder / "cut")["complete"]

    again = start("sweep", "some.jsonl", "--out", "cut", "--resume", cwd=folder)
    assert again.wait(120) == 0, again.communicate()[1]
    assert without_times(folder / "cut") == without_times(folder / "whole")
    names = [each["name"] for each in without_times(folder / "whole")["trials"]]
    weights = [
        [folder / where / "trials" / name / "adapter" / "adapter_model.safetensors" for name in names]
        for where in ("cut", "whole")
    ]
    assert [path.read_bytes() for path in weights[0]] == [path.read_bytes() for path in weights[1]]
    assert not list((folder / "cut").rglob(".*"))
