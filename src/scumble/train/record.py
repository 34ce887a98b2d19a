"""A run as files: `run.json`, `metrics.jsonl`, `checkpoints/`, and the best of those as `adapter/`, or `model/`.

What decides a result is written down before the first step. In `checkpoints/`, the folders `step-N` are what was
trained and can be loaded; the files `state-N` are what the run goes on from. Knows files, and nothing of how to train.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from scumble.errors import OutputError
from scumble.files import new_folder, refuse_existing, write_text
from scumble.models.threads import available_cores
from scumble.train.checkpoints import State, hash_of, read_state, remove_states, to_disk, write_state
from scumble.train.subject import Subject

PACKAGES = ("torch", "transformers", "accelerate", "peft", "safetensors", "numpy")
CHECKPOINTS, METRICS = "checkpoints", "metrics.jsonl"


class RunRecord:
    """The folder of one run, which no other process writes to meanwhile.

    Attributes:
        folder: of the run.
        result: the folder that the best checkpoint becomes.
        facts: the content of `run.json`.
        best: the step of the checkpoint that the result will hold; None before the first.
        state: where the run goes on from, with the rows noted up to there; None where it starts.
    """

    def __init__(self, folder: Path, subject: Subject, facts: dict[str, Any]) -> None:
        self.folder, self.subject = folder, subject
        self.result = folder / subject.title
        self.facts = facts
        self.best: int | None = None
        self.state: State | None = None
        self._lock = locked(folder)
        self._hashes: dict[int | None, str] = {}  # of what was kept, by step
        self._bests: dict[int, int | None] = {}  # the best there was, by the step of a checkpoint

    @classmethod
    def begun(cls, folder: Path, subject: Subject, facts: Mapping[str, Any], *, force: bool) -> RunRecord:
        """The record of a new run; the folder appears whole, with the facts in it, and replaces an old one only now."""
        refuse_existing(folder, force=force)
        facts = {"scumble": metadata.version("scumble"), "started": _now(), **facts, **machine()}
        with unused(folder), new_folder(folder, force=force) as temporary:
            (temporary / CHECKPOINTS).mkdir()
            (temporary / "run.json").write_text(_json(facts), encoding="utf-8")
            (temporary / METRICS).touch()
        return cls(folder, subject, facts)

    @classmethod
    def resumed(
        cls, folder: Path, subject: Subject, facts: Mapping[str, Any], warn: Callable[[str], None]
    ) -> RunRecord:
        """The record of a run that was cut off, as it was at its last whole checkpoint.

        Args:
            folder: of the run.
            subject: what is trained; it is not changed here.
            facts: the content of its `run.json`.
            warn: told of each checkpoint that cannot be used.

        Raises:
            TrainingError: there are checkpoints, and none can be used.
            OutputError: another process is writing to the folder.
        """
        record = cls(folder, subject, {key: value for key, value in facts.items() if key != "result"})
        record._clear()
        (folder / CHECKPOINTS).mkdir(exist_ok=True)
        found, passed = read_state(folder / CHECKPOINTS, record._wrong)
        for reason in passed:
            warn(reason)
        held: dict[str, Any] = found["record"] if found else {"best": None, "hash": "", "bytes": 0}
        rows = record._cut_metrics(held["bytes"])
        if found is not None:
            record.best = held["best"]
            record.state = {**found["loop"], "rows": rows}
            record._hashes[record.best] = held["hash"]
        step = record.state["step"] if record.state else 0
        record._bests[step] = record.best
        for path in (folder / CHECKPOINTS).glob("step-*"):
            # what was kept after that is made again
            if path != record._path(record.best or 0):
                shutil.rmtree(path)
        record.facts["resumed"] = [*record.facts.get("resumed", []), {"step": step, "at": _now()}]
        write_text(folder / "run.json", _json(record.facts))
        return record

    def metrics(self, row: dict[str, Any]) -> None:
        """Append one row of figures to `metrics.jsonl`."""
        try:
            with (self.folder / METRICS).open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:
            raise OutputError(
                f"{self.folder / METRICS} cannot be written: {error.strerror}",
                "the checkpoints so far are kept",
            ) from error

    def keep(self, step: int, *, best: bool) -> None:
        """Keep what is trained after `step` steps as a folder that can be loaded, and as the best one so far."""
        path = self._path(step)
        if not path.exists():
            self.subject.save(path)
            for file in path.iterdir():
                to_disk(file)
            self._hashes[step] = hash_of(path / self.subject.weights_name)
        if best:
            self.best = step

    def save(self, state: State) -> None:
        """Write down all that the run needs to go on from here, and remove checkpoints that nothing needs any more."""
        metrics = self.folder / METRICS
        to_disk(metrics)
        held = {"best": self.best, "hash": self._hashes.get(self.best), "bytes": metrics.stat().st_size}
        steps = write_state(self.folder / CHECKPOINTS, state["step"], {"record": held, "loop": state})
        self._bests[state["step"]] = self.best
        # what an earlier checkpoint calls the best is needed while that one may still be fallen back to
        self._rotate({self._bests.get(step) for step in steps})

    @property
    def kept(self) -> str:
        """What of the run can be used, in words."""
        if self.best is None:
            return "there was no checkpoint yet"
        path = self.result if self.result.is_dir() else self._path(self.best)
        return f"the checkpoint of step {self.best} is kept as {path}"

    def finish(self, result: dict[str, Any]) -> Path | None:
        """Write the best checkpoint as the result, and its figures into `run.json`; the result's folder."""
        if self.best is not None:
            with new_folder(self.result, force=True) as temporary:
                self.subject.copy(self._path(self.best), temporary)
            weights = self.result / self.subject.weights_name
            self.facts[self.subject.title]["bytes"] = weights.stat().st_size
        self.facts["result"] = {**result, "best_step": self.best}
        write_text(self.folder / "run.json", _json(self.facts))
        return self.result if self.best is not None else None

    def over(self) -> None:
        """Remove what the run would have gone on from: it came to its end."""
        remove_states(self.folder / CHECKPOINTS)
        self._rotate({self.best})

    def close(self) -> None:
        """Let other processes write to the folder."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _path(self, step: int) -> Path:
        return self.folder / CHECKPOINTS / _name(step)

    def _rotate(self, steps: set[int | None]) -> None:
        """Remove the folders of other steps than these and the last one."""
        _rotate(self.folder / CHECKPOINTS, {_name(step) for step in steps if step is not None})

    def _wrong(self, state: State) -> str | None:
        """What of a checkpoint is not there any more, or not as it was."""
        held = state["record"]
        if (self.folder / METRICS).stat().st_size < held["bytes"]:
            return f"{METRICS} is shorter than it was then"
        if held["best"] is None:
            return None
        weights = self._path(held["best"]) / self.subject.weights_name
        if not weights.exists():
            return f"{weights} is not there"
        return None if hash_of(weights) == held["hash"] else f"{weights} is not what it was then"

    def _cut_metrics(self, size: int) -> list[dict[str, Any]]:
        """Leave of `metrics.jsonl` what was noted up to the checkpoint."""
        path = self.folder / METRICS
        path.touch()
        os.truncate(path, size)
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]

    def _clear(self) -> None:
        """Remove what a write that was cut off left under its temporary name."""
        names = (f".{self.subject.title}.", ".run.json.", ".report.html.")
        for path in [*self.folder.glob(".*"), *(self.folder / CHECKPOINTS).glob(".*")]:
            if path.name.startswith((*names, ".step-", ".state-")):
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def tidied(folder: Path, best: int | None) -> None:
    """Remove what a run would have gone on from, which was killed after its report and before it did so itself."""
    checkpoints = folder / CHECKPOINTS
    if checkpoints.is_dir():
        with held(folder):
            remove_states(checkpoints)
            _rotate(checkpoints, set() if best is None else {_name(best)})


def _name(step: int) -> str:
    return f"step-{step:06d}"


def _rotate(checkpoints: Path, kept: set[str]) -> None:
    for path in sorted(checkpoints.glob("step-*"))[:-1]:
        if path.name not in kept:
            shutil.rmtree(path)


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep other processes from training into a folder in the body of a `with`.

    Raises:
        OutputError: one does.
    """
    handle = locked(folder)
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)


def unused(folder: Path) -> AbstractContextManager[None]:
    """What is to be replaced in the body of a `with`: where it is there already, no other process trains into it."""
    return held(folder) if folder.is_dir() else nullcontext()


def locked(folder: Path) -> int | None:
    """Keep other processes from training into a folder while this one does; the lock goes with the process.

    Returns:
        What to close when it is over; None where the system knows no such lock.

    Raises:
        OutputError: another process holds it.
    """
    try:
        import fcntl
    except ImportError:
        return None
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # what cannot be read is found out by who reads it
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        raise OutputError(
            f"another process is training into {folder}", "wait until it ends, or stop it"
        ) from error
    except OSError:  # some file systems have none
        os.close(handle)
        return None
    return handle


def _json(facts: dict[str, Any]) -> str:
    return json.dumps(facts, indent=2, default=str) + "\n"


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def machine() -> dict[str, Any]:
    """The versions and the machine, on which the last digits of a result depend too."""
    return {
        "versions": {
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in PACKAGES},
        },
        "machine": {"platform": platform.platform(), "cores": available_cores()},
    }
