"""Ctrl-C and a full disk in the real command: what is kept is whole, and one line says what it is."""

import importlib
import json
import os
import resource
import signal
import subprocess
import time

import pytest

from scumble.errors import ScumbleError
from scumble.lora.adapter import Adapter
from tests.bases import sums
from tests.cli.conftest import start, write_rows

LONG = ("--epochs", 100_000, "--batch", 4, "--accumulate", 1)


def wait_for(process: subprocess.Popen, condition) -> None:
    until = time.monotonic() + 90
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < until, "it did not come to that in 90 s"
        time.sleep(0.02)


def told(process: subprocess.Popen) -> list[str]:
    """The lines of the failure."""
    _, err = process.communicate(timeout=90)
    assert process.returncode == 1, err
    assert "Traceback" not in err
    lines = err.splitlines()
    return lines[next(i for i, line in enumerate(lines) if line.startswith("error: ")) :]


@pytest.fixture
def hidden(here):
    """Names that start with a dot anywhere: what a write that was cut off would leave."""
    return lambda: list(here.rglob(".*"))


def test_ctrl_c_keeps_the_last_checkpoint_and_says_so(here, letters_folder, hidden):
    process = start("train", "good.jsonl", "--out", "run", "--base", letters_folder, *LONG, cwd=here)
    run = here / "run"
    wait_for(process, lambda: any(run.glob("checkpoints/step-*")))
    process.send_signal(signal.SIGINT)
    first, second = told(process)
    assert first.startswith("error: stopped by Ctrl-C after step ")
    assert "is kept as run/adapter" in first
    assert second == "  hint: go on with: scumble train good.jsonl --out run --resume"
    assert Adapter.load(run).factors
    facts = json.loads((run / "run.json").read_text())
    assert facts["result"]["stopped"].startswith("stopped by Ctrl-C")
    kept = facts["result"]["best_step"]
    assert f"the checkpoint of step {kept} is kept" in first
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] >= kept
    assert (run / "report.html").stat().st_size > 0
    assert hidden() == []


def test_ctrl_c_before_the_first_checkpoint(here, letters_folder, hidden):
    write_rows(here / "many.jsonl", sums(3000))  # one epoch, and so the first checkpoint, takes long
    process = start("train", "many.jsonl", "--out", "run", "--base", letters_folder, *LONG, cwd=here)
    metrics = here / "run" / "metrics.jsonl"
    wait_for(process, lambda: metrics.exists() and '"loss"' in metrics.read_text())
    process.send_signal(signal.SIGINT)
    first, _ = told(process)
    assert first.startswith("error: stopped by Ctrl-C after step ")
    # the steps made are not lost: they are a checkpoint of their own
    assert "is kept as run/adapter" in first
    assert Adapter.load(here / "run").factors
    assert hidden() == []


def test_ctrl_c_before_the_first_step_leaves_nothing_to_mistake_for_an_adapter(here, letters_folder, hidden):
    write_rows(here / "many.jsonl", sums(20_000))  # reading and encoding take a while
    process = start("train", "many.jsonl", "--out", "run", "--base", letters_folder, *LONG, cwd=here)
    time.sleep(4)
    process.send_signal(signal.SIGINT)
    first, _ = told(process)
    assert "stopped by Ctrl-C" in first
    assert not (here / "run" / "adapter").exists() or Adapter.load(here / "run").factors
    assert hidden() == []


def test_ctrl_c_after_the_last_step_says_that_the_adapter_is_kept(fails, here, letters_folder, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(importlib.import_module("scumble.train.judging"), "compare_in_bank", interrupted)
    words = ("train", "good.jsonl", "--out", "run", "--base", letters_folder, "--max-steps", 1)
    message, hint = fails(*words)
    assert message == "stopped by Ctrl-C after the last step; the adapter is kept as run/adapter"
    assert "scumble compare run" in hint
    assert Adapter.load(here / "run").factors
    assert (here / "run" / "report.html").exists()


def test_ctrl_c_in_a_comparison_is_one_line(fails, run_folder, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("scumble.compare.run.compare_in_bank", interrupted)
    assert fails("compare", run_folder, "--data", "good.jsonl")[0] == "stopped by Ctrl-C"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_stopped_by_whatever_it_is_gone_on_with(here, letters_folder, hidden, number):
    words = ("train", "good.jsonl", "--base", letters_folder, "--epochs", 40, "--save-every", 7, "--out")
    whole = start(*words, "whole", cwd=here)
    process = start(*words, "run", cwd=here)
    run = here / "run"
    wait_for(process, lambda: any(run.glob("checkpoints/state-*")))
    process.send_signal(number)
    _, err = process.communicate(timeout=90)
    if number == signal.SIGTERM:
        assert process.returncode == 1
        assert "error: stopped by SIGTERM after step " in err
        assert "hint: go on with: scumble train good.jsonl --out run --resume" in err
    else:
        assert process.returncode == -signal.SIGKILL
    again = start("train", "good.jsonl", "--out", "run", "--resume", cwd=here)
    _, err = again.communicate(timeout=90)
    assert again.returncode == 0, err
    assert "the run in run goes on after step " in err
    whole.communicate(timeout=90)
    assert whole.returncode == 0
    weights = [
        (here / name / "adapter" / "adapter_model.safetensors").read_bytes() for name in ("run", "whole")
    ]
    assert weights[0] == weights[1]
    assert hidden() == []


# -- a full disk -----------------------------------------------------------------------------------


def limit_files(size: int):
    """The kernel refuses to let any file grow beyond `size` bytes, as it would on a full disk."""

    def before() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return before


def test_a_checkpoint_that_does_not_fit_is_one_line(here, letters_folder, hidden):
    words = ("--base", letters_folder, "--rank", 64, "--targets", "comprehensive", "--max-steps", 1)
    process = start("train", "good.jsonl", "--out", "run", *words, cwd=here, before=limit_files(60_000))
    first, second = told(process)
    assert "run/checkpoints/step-000001 cannot be written: File too large" in first
    assert "there was no checkpoint yet" in first
    assert "make room" in second
    assert list((here / "run" / "checkpoints").iterdir()) == []
    assert hidden() == []


def test_a_run_folder_that_does_not_fit_leaves_nothing(here, letters_folder):
    words = ("train", "good.jsonl", "--out", "deep/run", "--base", letters_folder)
    process = start(*words, cwd=here, before=limit_files(100))
    first, _ = told(process)
    assert "deep/run cannot be written: File too large" in first
    assert sorted(path.name for path in here.iterdir()) == ["good.jsonl"]


@pytest.fixture
def small_disk(here):
    """A file system with room for 250 kB."""
    folder = here / "disk"
    folder.mkdir()
    mounted = (
        os.geteuid() == 0
        and not subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=250k", "tmpfs", folder], capture_output=True
        ).returncode
    )
    if not mounted:
        pytest.skip("only root can mount a small file system")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_disk_that_fills_up_while_training_keeps_what_was_whole(here, letters_folder, small_disk):
    # metrics fill the disk line by line, after some checkpoints
    process = start("train", "good.jsonl", "--out", "disk/run", "--base", letters_folder, *LONG, cwd=here)
    first, second = told(process)
    assert "No space left on device" in first
    assert "is kept as disk/run/checkpoints/step-" in first
    assert "make room" in second
    kept = here / first.partition("is kept as ")[2].split()[0].rstrip(";")
    assert Adapter.load(kept).factors
    assert not list((here / "disk" / "run" / "checkpoints").glob(".*"))


def test_a_disk_that_is_full_from_the_start(here, letters_folder, small_disk):
    with pytest.raises(OSError, match="No space"), (small_disk / "fill").open("wb") as file:
        file.write(b"x" * 1_000_000)
    process = start("train", "good.jsonl", "--out", "disk/run", "--base", letters_folder, cwd=here)
    first, _ = told(process)
    assert "disk/run cannot be written: No space left on device" in first
    assert [path.name for path in small_disk.iterdir()] == ["fill"]


def test_saving_an_adapter_to_a_full_disk_is_our_error(run_folder, small_disk):
    adapter = Adapter.load(run_folder)
    (small_disk / "fill").write_bytes(b"x" * 248_000)
    with pytest.raises(ScumbleError, match="cannot be written"):
        adapter.save(small_disk / "adapter")
    assert [path.name for path in small_disk.iterdir()] == ["fill"]
