"""Wrong usage, `--json`, `--debug`, pipes, and that nothing heavy is imported for `--help`."""

import json
import os
import subprocess
import sys

import pytest

from scumble.cli import output
from tests.cli.conftest import start

WRONG = [
    (["train"], "missing argument 'data'", "scumble train --help"),
    (["train", "good.jsonl"], "missing option '--out'", "scumble train --help"),
    (["train", "good.jsonl", "--out", "run", "--rank", "x"], "invalid value for '--rank'", "scumble train"),
    (["train", "good.jsonl", "--out", "run", "--rank", "2.5"], "invalid value for '--rank'", "scumble train"),
    (["train", "good.jsonl", "--out", "run", "--rnak", "4"], "no such option: --rnak", "scumble train"),
    (["train", "good.jsonl", "--out", "run", "--restart"], "no such option: --restart", "scumble train"),
    (["train", "good.jsonl", "more", "--out", "run"], "got unexpected extra argument", "scumble train"),
    (["train", "good.jsonl", "--out"], "--out", "--help"),
    (["compare", "run"], "missing option '--data'", "scumble compare --help"),
    (["trian"], "did you mean 'train'?", "scumble --help"),
    (["lab", "nope"], "no such command 'nope'", "scumble lab --help"),
    (["doctor", "more"], "got unexpected extra argument", "scumble doctor --help"),
]


@pytest.mark.parametrize(("words", "message", "hint"), WRONG, ids=lambda value: str(value)[:40])
def test_wrong_usage_is_two_lines_and_exit_2(scumble, words, message, hint):
    ended = scumble(*words)
    assert ended.code == 2
    assert ended.out == ""
    first, second = ended.err.splitlines()
    assert message.lower() in first.lower()
    assert first.startswith("error: ")
    assert second.startswith("  hint: ")
    assert hint in second


@pytest.mark.parametrize("words", [[], ["export"]])
def test_no_command_shows_what_there_is(scumble, words):
    ended = scumble(*words)
    assert ended.code == 2
    assert "Commands" in ended.out
    assert "error" not in ended.err


@pytest.mark.parametrize(
    "words", [["--help"], ["-h"], ["train", "--help"], ["chat", "-h"], ["lab", "cron", "-h"]]
)
def test_help_is_no_failure(scumble, words):
    ended = scumble(*words)
    assert (ended.code, ended.err) == (0, "")
    assert "Usage" in ended.out


def test_help_imports_nothing_heavy():
    script = (
        "import sys\n"
        "from scumble.cli.main import main\n"
        "sys.argv = ['scumble', '--help']\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'accelerate', 'peft', 'numpy', 'datasets', 'pydantic', 'matplotlib'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ended.stderr.strip() == "[]"


def test_the_last_of_two_values_holds(scumble, here, letters_folder):
    words = ("--base", letters_folder, "--max-steps", 1, "--rank", 4, "--rank", 2)
    assert scumble("train", "good.jsonl", "--out", "run", *words).code == 0
    assert json.loads((here / "run" / "run.json").read_text())["adapter"]["rank"] == 2


def test_json_is_one_document_and_messages_go_to_stderr(here, letters_folder):
    words = ("train", "good.jsonl", "--out", "run", "--base", letters_folder, "--max-steps", 2, "--json")
    process = start(*words, cwd=here)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    document = json.loads(out)
    wanted = {"adapter", "report", "steps", "tokens", "seconds", "tokens_per_second", "loss", "peak_bytes"}
    assert wanted <= set(document)
    assert set(document["loss"]) == {"first", "last", "best_eval"}
    assert "validation loss" in err
    process = start("compare", "run", "--data", "good.jsonl", "--max-new-tokens", 3, "--json", cwd=here)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    document = json.loads(out)
    assert {"metric", "loss", "examples", "adapter_bytes", "base_bytes"} <= set(document)
    assert document["examples"][0]["prompt"].endswith("0 and 0")


def test_a_failure_with_json_prints_no_document(scumble):
    ended = scumble("train", "nothere.jsonl", "--out", "run", "--json")
    assert (ended.code, ended.out) == (1, "")


def test_json_has_null_for_what_it_cannot_hold():
    made = output.finite({"a": [float("nan"), 1.0], "b": (float("inf"), "x"), "c": {"d": None}})
    assert made == {"a": [None, 1.0], "b": [None, "x"], "c": {"d": None}}


@pytest.mark.parametrize("place", [0, 1, 5])
def test_debug_shows_the_traceback_wherever_it_stands(here, monkeypatch, place):
    from scumble.cli.main import main
    from scumble.errors import MissingFileError

    words = ["train", "nothere.jsonl", "--out", "run"]
    monkeypatch.setattr(sys, "argv", ["scumble", *words[:place], "--debug", *words[place:]])
    with pytest.raises(MissingFileError):
        main()
    assert "SCUMBLE_DEBUG" not in os.environ


def test_a_mistake_of_ours_is_one_line_too(fails, monkeypatch):
    def broken(*args, **kwargs):
        raise KeyError("some\nthing")

    monkeypatch.setattr("scumble.models.doctor.diagnose", broken)
    message, hint = fails("doctor")
    assert message.startswith("unexpected: KeyError:")
    assert "--debug" in hint


def test_a_reader_that_leaves_is_no_failure(here):
    process = start("doctor", "--json", cwd=here)
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == ""
    process.wait(timeout=60)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full here")
def test_output_that_cannot_be_written_is_said(here):
    ended = subprocess.run(
        [sys.executable, "-c", "from scumble.cli.main import main; main()", "doctor"],
        stdout=open("/dev/full", "w"),  # noqa: SIM115
        stderr=subprocess.PIPE,
        text=True,
        cwd=here,
    )
    assert ended.returncode != 0
    assert "Traceback" not in ended.stderr
    assert ended.stderr.startswith("error: No space left on device")


def test_text_that_the_terminal_cannot_show_is_no_failure(here, letters_folder):
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "SCUMBLE_THREADS": "1"}
    (here / "data.jsonl").write_text(
        json.dumps({"messages": [{"role": "user", "content": "é✓"}, {"role": "assistant", "content": "ü"}]})
        + "\n"
    )
    script = "from scumble.cli.main import main; main()"
    words = ["train", "data.jsonl", "--out", "run", "--base", str(letters_folder), "--eval", "data.jsonl"]
    for more in (
        [*words, "--max-steps", "1"],
        ["compare", "run", "--data", "data.jsonl", "--max-new-tokens", "2"],
    ):
        ended = subprocess.run(
            [sys.executable, "-c", script, *more], cwd=here, env=environment, capture_output=True, text=True
        )
        assert ended.returncode == 0, ended.stderr
        assert "Traceback" not in ended.stderr


def test_warnings_of_other_libraries_are_not_shown(scumble, monkeypatch):
    import warnings

    def warn(*args, **kwargs):
        warnings.warn("of another", UserWarning, stacklevel=1)
        raise SystemExit(0)

    monkeypatch.setattr("scumble.models.doctor.diagnose", warn)
    assert "of another" not in scumble("doctor").err


def test_doctor_says_what_there_is(scumble):
    ended = scumble("doctor")
    assert ended.code == 0
    assert "python" in ended.out
    assert json.loads(scumble("doctor", "--json").out)


@pytest.mark.parametrize(
    ("words", "default"),
    [(["blend"], "[exact]"), (["export", "gguf"], "[found by itself]"), (["compare"], "[all]")],
)
def test_help_shows_defaults_that_are_words(scumble, words, default):
    assert default in " ".join(scumble(*words, "--help").out.replace("│", " ").split())
