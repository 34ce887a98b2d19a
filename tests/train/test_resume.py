"""A run that is cut off and gone on with ends in the same bytes: killed, interrupted, with broken checkpoints."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import scumble
from scumble.errors import ConfigError, MissingFileError, OutputError, ScumbleError, TrainingError
from scumble.models.base import Base
from scumble.train.engine import Engine
from scumble.train.record import RunRecord
from scumble.train.result import Run
from tests.bases import letters_model, letters_tokenizer, make_letters_base, sums
from tests.train.test_loop import break_loss
from tests.train.test_run import facts, rows, weights

# dropout, a schedule and a warm-up: all that depends on where a run is
HARD: dict[str, Any] = {
    "batch": 2, "accumulate": 2, "learning_rate": 0.02, "epochs": 4, "dropout": 0.2, "schedule": "cosine",
    "eval": 0.25, "eval_every": 3, "save_every": 2, "quiet": True,
}  # fmt: skip


def train(folder: Path, data: Any = None, **options: Any) -> Run:
    given = {"base": make_letters_base(), **HARD, **options}
    return scumble.train(sums(16) if data is None else data, out=folder, **given)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """A forked process has none of its parent's threads, and OpenMP crashes where it would use them."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("SCUMBLE_THREADS", "1")
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The run that was never cut off."""
    return train(tmp_path_factory.mktemp("whole") / "run")


def figures(run: Run) -> list[dict[str, Any]]:
    """What was measured, the clock aside."""
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows(run.out)]


def assert_same(found: Run, wanted: Run) -> None:
    assert weights(found) == weights(wanted)
    assert figures(found) == figures(wanted)
    for key in ("steps", "tokens", "loss", "best_step", "early", "stopped"):
        assert facts(found)["result"][key] == facts(wanted)["result"][key], key
    names = [sorted(path.name for path in (run.out / "checkpoints").iterdir()) for run in (found, wanted)]
    assert names[0] == names[1]
    assert not list(found.out.rglob(".*"))


def break_step(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Interrupt the run once so many steps are made, however a step is laid out."""
    true = Engine.step

    def step(self: Engine, at: int, examples: Any) -> Any:
        if at == number:
            raise KeyboardInterrupt
        return true(self, at, examples)

    monkeypatch.setattr(Engine, "step", step)


# -- interrupted -----------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [1, 2, 5, 8, 13, 16])
def test_interrupted_anywhere_it_ends_in_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Run, at: int
) -> None:
    """`at` counts micro-batches, those of steps and those before the first one."""
    with monkeypatch.context() as patched:
        break_loss(patched, at, KeyboardInterrupt())
        with pytest.raises(TrainingError, match="stopped by Ctrl-C") as caught:
            train(tmp_path / "run")
    assert f"--out {tmp_path / 'run'} --resume" in caught.value.hint
    run = train(tmp_path / "run", resume=True)
    assert_same(run, whole)
    made = int(caught.value.message.partition("after step ")[2].partition(";")[0])
    assert facts(run)["resumed"][0]["step"] == made  # nothing that was done is lost


def test_interrupted_again_and_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Run) -> None:
    for at in (5, 5, 7, 1, 3):
        with monkeypatch.context() as patched:
            break_loss(patched, at, KeyboardInterrupt())
            with pytest.raises(TrainingError, match="stopped by Ctrl-C"):
                train(tmp_path / "run", resume=True)
    run = train(tmp_path / "run", resume=True)
    assert_same(run, whole)
    assert len(facts(run)["resumed"]) == 5


def test_an_error_that_nobody_foresaw_is_gone_on_from_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Run
) -> None:
    with monkeypatch.context() as patched:
        break_loss(patched, 11, MemoryError("all gone"))
        with pytest.raises(MemoryError):
            train(tmp_path / "run")
    assert not (tmp_path / "run" / "adapter").exists()
    assert_same(train(tmp_path / "run", resume=True), whole)


def test_where_there_is_no_run_it_starts(tmp_path: Path, whole: Run) -> None:
    assert_same(train(tmp_path / "run", resume=True), whole)


def test_a_finished_run_is_left_as_it_is(tmp_path: Path) -> None:
    first = train(tmp_path / "run", epochs=1)
    when = (first.adapter / "adapter_config.json").stat().st_mtime_ns
    again = scumble.train(sums(16), out=first.out, resume=True, quiet=True)
    assert again.to_dict() == first.to_dict()
    assert (first.adapter / "adapter_config.json").stat().st_mtime_ns == when


def test_a_recorded_number_of_threads_is_used_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patched:
        break_step(patched, 4)
        patched.setenv("SCUMBLE_THREADS", "2")
        with pytest.raises(TrainingError):
            train(tmp_path / "run")
    used: list[int] = []
    break_loss(monkeypatch, 10**9, used)
    from scumble.train import engine

    true = engine.loss_sum
    monkeypatch.setattr(
        engine, "loss_sum", lambda *args: (used.append(torch.get_num_threads()), true(*args))[1]
    )
    monkeypatch.setenv("SCUMBLE_THREADS", "1")
    train(tmp_path / "run", resume=True, quiet=False)
    assert set(used) == {2}
    assert "goes on after step 4, with 2 threads as it was begun" in capfd.readouterr().err


# -- what is not the same --------------------------------------------------------------------------


@pytest.fixture
def cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that was interrupted after step 8."""
    with monkeypatch.context() as patched:
        break_step(patched, 8)
        with pytest.raises(TrainingError):
            train(tmp_path / "run")
    return tmp_path / "run"


def test_options_that_were_not_given_are_those_of_the_run(cut: Path, whole: Run) -> None:
    run = scumble.train(sums(16), out=cut, base=make_letters_base(), resume=True, quiet=True)
    assert_same(run, whole)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"rank": 4}, "rank is 4, and the run in .* was begun with 8"),
        ({"seed": 1}, "seed is 1, .* begun with 0"),
        ({"learning_rate": 0.03}, "learning-rate is 0.03, .* begun with 0.02"),
        ({"base": Base(letters_model(seed=1), letters_tokenizer(), "letters")}, "the base is not what"),
        ({"base": make_letters_base(dtype=torch.float64)}, "the base is not what"),
        ({"data": sums(17)}, "data is not what the run"),
        ({"force": True}, "--resume and --force"),
    ],
)
def test_what_contradicts_the_run_is_refused(cut: Path, changed: dict[str, Any], said: str) -> None:
    before = {path: path.read_bytes() for path in cut.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match=said):
        train(cut, **{"resume": True, **changed})
    assert {path: path.read_bytes() for path in cut.rglob("*") if path.is_file()} == before


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with pytest.raises(MissingFileError, match="is no run"):
        train(tmp_path / "run", resume=True)
    with pytest.raises(ConfigError, match="--resume needs --out"):
        scumble.train(sums(16), resume=True, quiet=True)


def test_two_processes_do_not_train_into_one_folder(cut: Path) -> None:
    from scumble.train.record import locked

    handle = locked(cut)
    assert handle is not None
    with pytest.raises(OutputError, match="another process is training into"):
        train(cut, resume=True)
    os.close(handle)
    assert train(cut, resume=True).steps == 16


# -- broken checkpoints ----------------------------------------------------------------------------


def states(folder: Path) -> list[Path]:
    return sorted((folder / "checkpoints").glob("state-*"))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "harm", [flip, lambda p: p.write_bytes(p.read_bytes()[:-9]), lambda p: p.write_bytes(b"")]
)
def test_a_broken_one_falls_back_to_the_one_before(
    cut: Path, whole: Run, harm: Callable[[Path], Any], capfd: pytest.CaptureFixture[str]
) -> None:
    first, last = states(cut)
    harm(last)
    run = train(cut, resume=True, quiet=False)
    assert_same(run, whole)
    said = capfd.readouterr().err
    assert "warning: the checkpoint of step 8 cannot be used: its bytes are not those" in said
    assert f"goes on after step {int(first.name.split('-')[1])}" in said


def test_where_all_are_broken_it_never_starts_over_silently(cut: Path) -> None:
    for path in states(cut):
        flip(path)
    with pytest.raises(
        TrainingError, match=r"no checkpoint in .* can be used; the checkpoint of step 8"
    ) as caught:
        train(cut, resume=True)
    assert "--force" in caught.value.hint
    assert len(states(cut)) == 2


def test_a_best_adapter_that_is_gone_or_changed_is_noticed(cut: Path, whole: Run) -> None:
    flip(cut / "checkpoints" / "step-000006" / "adapter_model.safetensors")
    with pytest.raises(TrainingError, match=r"adapter_model\.safetensors is not what it was then"):
        train(cut, resume=True)


def test_metrics_that_were_cut_are_noticed(cut: Path) -> None:
    (cut / "metrics.jsonl").write_text("")
    with pytest.raises(TrainingError, match=r"metrics\.jsonl is shorter than it was then"):
        train(cut, resume=True)


# -- killed ----------------------------------------------------------------------------------------


def killed(folder: Path, when: Callable[[], bool]) -> bool:
    """Train in a process of its own and kill it at some moment; False where it came to its end before."""
    child = os.fork()
    if child == 0:
        try:
            train(folder, resume=True)
        except ScumbleError as error:
            os.write(2, f"{error}\n".encode())
            os._exit(3)
        finally:
            os._exit(0)
    while not when():
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            assert os.waitstatus_to_exitcode(status) == 0
            return False
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status) == -signal.SIGKILL


def after(seconds: float) -> Callable[[], bool]:
    until = time.monotonic() + seconds
    return lambda: time.monotonic() > until


def writing(folder: Path, number: int) -> Callable[[], bool]:
    """The `number`-th time that a temporary name is seen."""
    seen: set[str] = set()

    def now() -> bool:
        try:
            seen.update(p.name for p in folder.glob("checkpoints/.*"))
        except FileNotFoundError:
            return False
        return len(seen) >= number

    return now


def step_is(folder: Path, step: int) -> Callable[[], bool]:
    """As soon as so many steps are noted."""
    metrics = folder / "metrics.jsonl"

    def now() -> bool:
        try:
            return f'"step": {step},' in metrics.read_text()
        except FileNotFoundError:
            return False

    return now


@pytest.mark.parametrize("moment", ["before a checkpoint", "in a write", "after a step"])
def test_killed_it_ends_in_the_same_bytes(tmp_path: Path, whole: Run, moment: str) -> None:
    folder = tmp_path / "run"
    when = {
        "before a checkpoint": step_is(folder, 0),
        "in a write": writing(folder, 3),
        "after a step": step_is(folder, 9),
    }[moment]
    assert killed(folder, when)
    assert_same(train(folder, resume=True), whole)


@pytest.mark.soak
def test_killed_at_20_random_moments(tmp_path: Path, whole: Run) -> None:
    """Some in the middle of a write and before the first checkpoint, at least 15 after it; also when gone on with."""
    draw = random.Random(0)
    after_first = writes = 0
    for number in range(20):
        folder = tmp_path / f"run-{number}"
        kills = 0
        while kills < draw.choice([1, 1, 2]):
            if number < 3:
                when = step_is(folder, number) if kills == 0 else after(0.2)
            elif number < 9:
                when = writing(folder, draw.randint(1, 12))
            else:
                first = step_is(folder, draw.randint(2, 11))
                pause = draw.random() * 0.05
                when = lambda first=first, pause=pause: first() and (time.sleep(pause) or True)  # noqa: E731
            if not killed(folder, when):
                break
            kills += 1
            after_first += bool(states(folder))
            writes += bool(list(folder.glob("checkpoints/.*")))
        assert_same(train(folder, resume=True), whole)
    print(f"{after_first} after the first checkpoint, {writes} in the middle of a write")
    assert after_first >= 15
    assert writes >= 2


def test_killed_after_its_report_a_run_is_tidied_when_it_is_gone_on_with(tmp_path: Path, whole: Run) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(RunRecord, "over", lambda self: None)
        train(tmp_path / "run")
    assert states(tmp_path / "run")
    assert_same(train(tmp_path / "run", resume=True), whole)


def test_the_record_of_a_run_is_json(whole: Run) -> None:
    assert json.loads((whole.out / "run.json").read_text())["result"]["stopped"] is None
