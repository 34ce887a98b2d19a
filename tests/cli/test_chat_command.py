"""`scumble chat`: a conversation through a pipe and at a terminal, and Ctrl-C in it."""

import io
import os
import pty
import select
import signal
import subprocess
import sys
import time

import pytest

from tests.bases import letters_model, letters_tokenizer
from tests.cli.conftest import start


@pytest.fixture
def talk(scumble, run_folder, monkeypatch):
    """Say lines to the chat, as from a pipe."""

    def say(*lines, more=()):
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        return scumble("chat", run_folder, "--max-new-tokens", 6, *more)

    return say


def test_a_conversation_through_a_pipe(talk):
    ended = talk(
        "1 and 1", "/use base", "/compare", "/use first*0.5", "2 and 4", "/help", "/quit", "never said"
    )
    assert ended.code == 0
    assert "now answering: first" in ended.err
    assert "now answering: base" in ended.out
    assert "base: " in ended.out
    assert "now answering: first*0.5" in ended.out
    assert "adapters: first" in ended.out
    assert "error" not in ended.err


def test_the_end_of_the_input_ends_the_conversation(talk):
    assert talk().code == 0
    assert talk("hello").code == 0


def test_what_is_not_known_is_said_and_the_conversation_goes_on(talk):
    ended = talk("/use nobody", "/use a**", "/nope", "/compare", "/use base")
    assert ended.code == 0
    errors = [line for line in ended.err.splitlines() if line.startswith("error: ")]
    assert "no adapter 'nobody'" in errors[0]
    assert "cannot be read at position" in errors[1]
    assert "/nope is not known" in errors[2]
    assert "no question yet" in errors[3]
    assert ended.out.splitlines()[-1] == "now answering: base"


def test_several_adapters_answer_under_their_names(talk, run_folder):
    ended = talk("/help", "/use legal*0.7+first*-0.3", "hello", more=("--adapter", f"legal={run_folder}"))
    assert "adapters: first, legal" in ended.out
    assert "now answering: legal*0.7+first*-0.3" in ended.out


def test_a_base_alone(scumble, letters_folder, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n/use first\n"))
    ended = scumble("chat", "--base", letters_folder, "--max-new-tokens", 4)
    assert ended.code == 0
    assert "now answering: base" in ended.err
    assert "the bank has no adapter 'first'" in ended.err


def test_bytes_that_are_no_text_are_no_failure(here, run_folder):
    script = "from scumble.cli.main import main; main()"
    ended = subprocess.run(
        [sys.executable, "-c", script, "chat", str(run_folder), "--max-new-tokens", "2"],
        input=b"\xff\xfe\n/use base\n",
        capture_output=True,
        cwd=here,
    )
    assert ended.returncode == 0, ended.stderr
    assert b"now answering: base" in ended.stdout


class Terminal:
    """The real command at a terminal of its own."""

    def __init__(self, cwd, *words):
        self.seen = ""
        self.ours, theirs = pty.openpty()
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "SCUMBLE_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", "from scumble.cli.main import main; main()", *map(str, words)],
            cwd=cwd, env=environment, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )  # fmt: skip
        os.close(theirs)

    def until(self, text, seconds=60.0):
        """Read until `text` was shown."""
        end = time.monotonic() + seconds
        while text not in self.seen:
            assert time.monotonic() < end, self.seen
            if select.select([self.ours], [], [], 0.2)[0]:
                self.seen += os.read(self.ours, 4096).decode(errors="replace")
        before, _, self.seen = self.seen.partition(text)
        return before

    def type(self, text):
        os.write(self.ours, text.encode())

    def ctrl_c(self):
        self.process.send_signal(signal.SIGINT)


def test_ctrl_c_ends_an_answer_and_at_the_prompt_the_program(here):
    # greedily, a random base goes round in circles and never comes to an end
    letters_model(max_position_embeddings=2_000_000).save_pretrained(here / "base")
    letters_tokenizer().save_pretrained(here / "base")
    terminal = Terminal(here, "chat", "--base", "./base", "--max-new-tokens", 1_000_000)
    terminal.until("> ")
    terminal.type("go on and on\n")
    terminal.until("\n")
    time.sleep(1.0)
    terminal.ctrl_c()
    assert "Traceback" not in terminal.until("the answer was stopped")
    terminal.until("> ")
    terminal.type("/use base\n")
    terminal.until("now answering: base")
    terminal.until("> ")
    time.sleep(0.5)  # until it waits for a line: the prompt is shown a moment before
    terminal.ctrl_c()
    assert terminal.process.wait(timeout=30) == 0
    os.close(terminal.ours)


def test_ctrl_c_while_the_base_is_loaded_is_one_line(here, run_folder):
    process = start("chat", run_folder, cwd=here, stdin=subprocess.PIPE)
    time.sleep(1.0)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    # where it was quicker than that it was at its prompt, and left quietly
    assert process.returncode == 0 or err.splitlines()[0] == "error: stopped by Ctrl-C"
    assert "Traceback" not in err
