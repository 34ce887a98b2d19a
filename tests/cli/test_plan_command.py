"""`scumble plan` from the command line: what is printed for people and for programs, files, and refusals."""

import json
import re

import pytest

from tests.cli.conftest import start

LESSON = [
    "meta-llama/Llama-3.1-8B-Instruct",
    *("--rank", 16, "--alpha", 32, "--targets", "standard", "--batch", 4, "--max-length", 2048),
]


@pytest.fixture
def narrow(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")


@pytest.mark.usefixtures("narrow")
def test_the_lesson_s_case_is_told_in_80_columns(scumble):
    ended = scumble("plan", *LESSON, "--gpu", "rtx 4080")
    assert ended.code == 0
    assert "13,631,488 of 8,043,892,736 parameters are trained, 0.1695 %" in ended.out
    assert "It does not fit rtx 4080" in ended.out
    assert "--batch 1 --accumulate 16" in ended.out
    assert max(map(len, ended.out.splitlines())) <= 80
    assert "\x1b" not in ended.out


def test_json_is_one_document_and_nothing_else(scumble):
    ended = scumble("plan", *LESSON, "--gpu", "A100-80GB", "--json")
    assert (ended.code, ended.err) == (0, "")
    found = json.loads(ended.out)
    assert found["parameters"]["trainable"] == 13_631_488
    assert found["fits"] is True
    assert found["gpu"]["name"] == "a100 80GB"


def test_bars_are_as_long_as_their_memory(scumble, letters_folder):
    ended = scumble("plan", letters_folder, "--method", "full", "--max-length", 100)
    lines = ended.out.split("Side by side\n")[1].splitlines()
    lengths = {line[2:35].rstrip(): len(line[46:].split(" ")[0]) for line in lines[:5]}
    found = json.loads(scumble("plan", letters_folder, "--method", "full", "--max-length", 100, "--json").out)
    longest = max(lengths, key=lengths.get)
    peaks = {each["title"]: each["peak"] for each in found["alternatives"].values()}
    assert peaks[longest] == max(peaks.values())


def test_a_plot_is_written_once(scumble, fails, letters_folder, here):
    assert scumble("plan", letters_folder, "--plot", "plan.svg").code == 0
    assert (here / "plan.svg").read_text().startswith("<?xml")
    message, hint = fails("plan", letters_folder, "--plot", "plan.svg")
    assert "plan.svg exists already" in message
    assert "--plot" in hint
    assert scumble("plan", letters_folder, "--plot", "plan.svg", "--force").code == 0


def test_data_are_told_of(scumble, letters_folder):
    ended = scumble("plan", letters_folder, "--data", "good.jsonl", "--eval", 0, "--device", "cpu")
    assert ended.code == 0
    assert "12 examples" in ended.out
    assert "the largest micro-batch of the run" in " ".join(ended.out.split())


def test_full_training_has_no_modules(scumble, letters_folder):
    ended = scumble("plan", letters_folder, "--method", "full")
    assert re.search(r"all [\d,]+ parameters are trained", ended.out)
    assert "What each target module takes" not in ended.out


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (["meta-lama/Llama-3.1-8B"], "not among the published models", "meta-llama/Llama-3.1-8B"),
        (["nobody/nothing"], "not among the published models", "scumble plan path/to/config.json"),
        (["missing/folder/base"], "does not exist", "check the path"),
        (["--rank", "0"], "--rank is 0", "default is 8"),
        (["--rank", "9999"], "--rank is 9,999", "from 1 to 576"),
        (["--max-length", "9000"], "smollm2 has 8,192 positions", "from 2 to 8,192"),
        (["--gpu", "0GB"], "out of range", "from 1MB to 10TB"),
        (["--gpu", "rtx 4091"], "no card", "rtx 4090"),
        (["--supervised", "nan"], "--supervised is nan", ""),
        (["--dtype", "int4"], "'int8' or 'nf4'", "did you mean"),
        (["--method", "dpo"], "preference tuning is not done here", "TRL"),
        (["--data", "missing.jsonl"], "does not exist", "shipped set"),
        (["--plot", "plan.png"], "no name of an SVG file", ".svg"),
        (["--eval", "0.1"], "without --data", "--data FILE"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_mistakes_are_one_line_and_a_hint(fails, here, words, message, hint):
    before = sorted(here.iterdir())
    said, advised = fails("plan", *words)
    assert message in said
    assert hint in advised
    assert sorted(here.iterdir()) == before


def test_a_terminal_without_block_signs_gets_letters(letters_folder, here, monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    command = start("plan", letters_folder, "--max-length", 100, cwd=here)
    out, err = command.communicate(timeout=120)
    assert (command.returncode, err) == (0, "")
    assert "W weights A adapter" in out
    assert "?" not in out
