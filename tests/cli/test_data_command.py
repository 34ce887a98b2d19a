"""`scumble data`: what each command prints and writes, and how it ends."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.bases import END, chat, sums
from tests.cli.conftest import write_rows


def check_lines(err: str) -> list[str]:
    return [line for line in err.splitlines() if line.startswith(("error", "warning"))]


def test_check_of_good_data(scumble, here, letters_folder) -> None:
    ended = scumble("data", "check", "good.jsonl", "--base", letters_folder, "--eval", 0)
    assert ended.code == 0
    assert "good.jsonl: 12 examples" in ended.out
    assert "with a loss" in ended.out
    assert "0 errors" in ended.out


def test_check_of_bad_data_exits_with_1_and_still_prints(scumble, here, letters_folder) -> None:
    write_rows(here / "bad.jsonl", [*sums(5), {"messages": [{"role": "user", "content": "q"}]}])
    ended = scumble("data", "check", "bad.jsonl", "--base", letters_folder, "--json")
    assert ended.code == 1
    document = json.loads(ended.out)
    errors = [each for each in document["findings"] if each["severity"] == "error"]
    assert errors[0]["lines"] == [6]
    assert {"check", "severity", "lines", "message", "fix"} <= set(errors[0])
    assert {"examples", "tokens", "supervised_tokens"} <= set(document)
    ended = scumble("data", "check", "bad.jsonl", "--base", letters_folder)
    assert ended.code == 1
    assert "error: " in ended.out
    assert "line 6" in ended.out
    assert "if ignored: " in ended.out
    assert "to do: " in ended.out
    assert "1 error" in ended.out.splitlines()[-1]
    assert "error" not in ended.err


def test_preview_without_colour_marks_what_carries_a_loss(scumble, here, letters_folder) -> None:
    write_rows(here / "one.jsonl", [chat("hi", "so")])
    ended = scumble("data", "preview", "one.jsonl", "--base", letters_folder)
    assert ended.code == 0
    assert f"⟦s|o|{END}⟧" in ended.out
    assert "1 example, all of one.jsonl" in ended.out


def test_preview_as_json_and_as_a_page(scumble, here, letters_folder) -> None:
    words = ("data", "preview", "good.jsonl", "-n", 1, "--base", letters_folder)
    ended = scumble(*words, "--html", "page.html", "--json")
    assert json.loads(ended.out)["examples"] == 12
    assert "<svg" in (here / "page.html").read_text(encoding="utf-8")
    again = scumble(*words, "--html", "page.html")
    assert again.code == 1
    assert "page.html exists already" in again.failure[0]
    assert scumble(*words, "--html", "page.html", "--force").code == 0


def test_convert_writes_chats(scumble, here) -> None:
    write_rows(here / "alpaca.jsonl", [{"instruction": "add", "input": "1 and 2", "output": "3"}])
    ended = scumble("data", "convert", "alpaca.jsonl", "--out", "chat.jsonl")
    assert ended.code == 0
    assert "1 example as OpenAI chat (1 alpaca)" in ended.out
    row = json.loads((here / "chat.jsonl").read_text())
    assert row["messages"][-1] == {"role": "assistant", "content": "3"}


def test_split_writes_the_parts(scumble, here) -> None:
    ended = scumble("data", "split", "good.jsonl", "--out", "parts", "--share", 0.25, "--json")
    found = json.loads(ended.out)
    assert sum(found["examples"].values()) == 12
    for name, count in found["examples"].items():
        assert len((here / found["files"][name]).read_text().splitlines()) == count
    assert scumble("data", "split", "good.jsonl", "--out", "parts").code == 1


def test_the_parts_can_be_trained_on(scumble, here, letters_folder) -> None:
    write_rows(here / "more.jsonl", sums(40))
    assert scumble("data", "split", "more.jsonl", "--out", "parts").code == 0
    ended = scumble(
        *("train", "parts/train.jsonl", "--eval", "parts/validation.jsonl", "--out", "run"),
        *("--base", letters_folder, "--max-steps", 2),
    )
    assert ended.code == 0, ended.err


@pytest.mark.parametrize(
    "words",
    [
        ("check", "nothere.jsonl"),
        ("preview", "nothere.jsonl"),
        ("convert", "nothere.jsonl", "--out", "x.jsonl"),
        ("split", "nothere.jsonl", "--out", "x"),
    ],
)
def test_a_missing_file_is_one_line(fails, here, letters_folder, words) -> None:
    base = ("--base", letters_folder) if words[0] in ("check", "preview") else ()
    message, hint = fails("data", *words, *base)
    assert "nothere.jsonl" in message
    assert hint


@pytest.mark.parametrize("value", ["0", "1", "-0.1", "half"])
def test_an_impossible_share_is_refused(scumble, here, value) -> None:
    ended = scumble("data", "split", "good.jsonl", "--out", "parts", f"--share={value}")
    assert ended.code in (1, 2)
    assert "share" in ended.err
    assert not (here / "parts").exists()


def test_terminal_escapes_of_the_data_do_not_reach_the_terminal(scumble, here, letters_folder) -> None:
    write_rows(here / "odd.jsonl", [chat("a\x1b[31mb\x07", "c\u202ed")])
    ended = scumble("data", "preview", "odd.jsonl", "--base", letters_folder)
    assert ended.code == 0
    assert not {"\x1b", "\x07", "\u202e"} & set(ended.out)


def test_help_needs_no_heavy_import() -> None:
    code = (
        "import sys\nfrom scumble.cli import data\n"
        "print([m for m in ('torch', 'transformers', 'datasets', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
