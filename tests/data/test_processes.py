"""Forks give back in order what this process would have made, hand errors on, and are gone afterwards."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scumble.data import encoding, groups
from scumble.data.encoding import Encoded, encode, encode_each, encoding_processes
from scumble.data.example import Example
from scumble.data.processes import Processes, cores
from scumble.data.templates import Template
from scumble.errors import DataError, ScumbleError
from tests.bases import CHATML, END, letters_tokenizer

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks are made on Linux only")
CHANGED = CHATML.replace("<|im_start|>assistant\n", "<|im_start|>assistant\n<think>\n")


@pytest.fixture(autouse=True)
def two_for_all_but_ten(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(encoding, "FEW", 10)
    monkeypatch.setattr(groups, "TOGETHER", 7)
    monkeypatch.setattr(groups, "SOME", 3)
    monkeypatch.setattr("scumble.data.processes.cores", lambda: 2)
    yield
    assert not multiprocessing.active_children()


def here(examples: list[Example], tokenizer: Any, **options: Any) -> tuple[list[Encoded], list[str]]:
    """One by one, in this process."""
    found, errors = [], []
    for number, example in enumerate(examples):
        try:
            found.append(encode(example, tokenizer, number, **options))
        except DataError as error:
            errors.append(str(error))
    return found, errors


def drawn(count: int) -> list[Example]:
    """Chats of one to three answers, texts, and a few that cannot be encoded."""
    draw = random.Random(0)
    words = ["and", "é", "the sum", "\n", " ", "日本", "12", "<", END, ""]
    made = []
    for line in range(count):
        where = f"line {line}"
        said = ["".join(draw.choices(words, k=draw.randint(0, 9))) for _ in range(6)]
        turns = [
            {"role": ("user", "assistant")[i % 2], "content": said[i]} for i in range(draw.choice((2, 4, 6)))
        ]
        kind = draw.random()
        if kind < 0.1:
            made.append(Example((), where, text="".join(said), number=line))
        elif kind < 0.15:
            made.append(Example(tuple(turns[1:]), where, number=line))  # the assistant begins
        elif kind < 0.2:
            made.append(Example(tuple({**t, "weight": 0} for t in turns), where, number=line))
        else:
            made.append(Example(tuple(turns), where, number=line))
    return made


@pytest.mark.parametrize("train_on", ["all", "last"])
@pytest.mark.parametrize("template", [None, CHANGED])
def test_the_same_example_by_example(train_on: Any, template: str | None) -> None:
    examples, tokenizer = drawn(300), letters_tokenizer()
    named = None if template is None else Template(template, "here", tokenizer)
    errors: list[DataError] = []
    found = list(
        encode_each(iter(examples), tokenizer, train_on=train_on, template=named, on_error=errors.append)
    )
    expected, said = here(examples, tokenizer, train_on=train_on, template=named)
    assert found == expected
    assert [str(error) for error in errors] == said
    assert len(said) > 10
    assert all(error.line == int(error.message.split()[1].strip(":")) for error in errors)
    assert any(each.notes for each in found) == (template is not None)
    assert all(type(token) is int for token in found[-1].ids)
    assert all(type(loss) is bool for loss in found[-1].supervised)


def test_an_error_is_raised_after_all_before_it() -> None:
    good, tokenizer = [e for e in drawn(200) if "assistant" in str(e.messages[1:])], letters_tokenizer()
    good = [e for e in good if here([e], tokenizer)[0]]
    bad = Example(({"role": "assistant", "content": "I begin"},), "line 77", number=77)
    seen = []
    with pytest.raises(DataError, match="line 77") as caught:
        for each in encode_each([*good[:77], bad, *good[77:]], tokenizer):
            seen.append(each.number)
    assert seen == list(range(77))
    assert (caught.value.line, caught.value.kind) == (77, "mask_refused")


def test_what_cannot_be_pickled_is_encoded_here() -> None:
    examples, tokenizer = here_and_there(), letters_tokenizer()
    found = list(encode_each(examples, tokenizer))
    assert found == here(examples, tokenizer)[0]


def here_and_there() -> list[Example]:
    turns = ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"})
    odd = ({**turns[0], "made_by": lambda: None}, turns[1])
    return [Example(odd if i == 40 else turns, f"line {i}") for i in range(60)]


def test_a_stream_is_not_read_far_ahead_and_may_be_left() -> None:
    taken = 0

    def endless() -> Iterator[Example]:
        nonlocal taken
        while True:
            taken += 1
            yield here_and_there()[0]

    stream = encode_each(endless(), letters_tokenizer())
    assert [next(stream).number for _ in range(30)] == list(range(30))
    assert multiprocessing.active_children()
    stream.close()  # type: ignore[attr-defined]
    assert taken < 100


def test_processes_are_lent_to_several_calls() -> None:
    examples, tokenizer = drawn(60), letters_tokenizer()
    expected = here(examples, tokenizer)[0]
    lent = encoding_processes(tokenizer)
    with pytest.raises(ZeroDivisionError):
        for _ in encode_each(examples, tokenizer, on_error=lambda error: 1 / 0, processes=lent):  # type: ignore[arg-type]
            pass
    for _ in range(2):
        assert list(encode_each(examples, tokenizer, on_error=lambda _: None, processes=lent)) == expected
    assert lent.started
    lent.close()


def test_where_none_can_be_encoded_each_is_said() -> None:
    bad = [Example(({"role": "assistant", "content": "I begin"},), f"line {i}", number=i) for i in range(60)]
    errors: list[DataError] = []
    assert list(encode_each(bad, letters_tokenizer(), on_error=errors.append)) == []
    assert [error.line or 0 for error in errors] == list(range(60))


def test_one_that_ends_is_said() -> None:
    def work(item: int) -> int:
        if item == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return -item

    seen = []
    with pytest.raises(ScumbleError, match=r"has ended \(exit code -9\)"):
        for item, made in Processes(work).each(iter(range(20))):
            seen.append((item, made))
    assert seen == [(i, -i) for i in range(5)]


def test_none_within_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert cores() >= 1
    forks = Processes(lambda _: cores(), 1)
    assert list(forks.each(iter([0]))) == [(0, 1)]
    forks.close()


SCRIPT = """
import signal, sys, threading, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts in the background ignores it
from scumble.data import encoding, processes
from tests.data.test_processes import here_and_there
from tests.bases import letters_tokenizer
encoding.FEW, processes.cores = 10, lambda: 2
threading.Thread(target=time.sleep, args=(3600,), daemon=True).start()
rows = here_and_there()[:1] * int(sys.argv[1])
import multiprocessing
for each in encoding.encode_each(rows, letters_tokenizer()):
    if each.number == 500:
        print(*[p.pid for p in multiprocessing.active_children()], flush=True)
print("all", each.number + 1)
"""


def run(examples: int, tmp_path: Path) -> subprocess.Popen[str]:
    file = tmp_path / "script.py"
    file.write_text(SCRIPT)
    root = Path(__file__).parents[2]
    return subprocess.Popen(
        [sys.executable, str(file), str(examples)],
        env={**os.environ, "PYTHONPATH": str(root)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_script_needs_no_guard_and_stderr_stays_empty(tmp_path: Path) -> None:
    script = run(2000, tmp_path)
    out, errors = script.communicate(timeout=60)
    assert out.splitlines()[-1] == "all 2000"
    assert errors == ""
    assert script.returncode == 0


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
def test_none_is_left_after_an_interruption(sent: signal.Signals, tmp_path: Path) -> None:
    script = run(10_000_000, tmp_path)
    assert script.stdout is not None
    forks = [int(pid) for pid in script.stdout.readline().split()]
    assert len(forks) == 2
    if sent == signal.SIGINT:  # a terminal sends it to all of them
        for pid in forks:
            os.kill(pid, sent)
    script.send_signal(sent)
    _, errors = script.communicate(timeout=60)
    assert errors.count("Traceback") == (sent == signal.SIGINT)
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}/cmdline").exists() and _alive(pid) for pid in forks):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
