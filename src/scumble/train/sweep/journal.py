"""`Journal`: the folder of a sweep. `sweep.json` says what is planned and what came of it, and is never half written.

    DIR/sweep.json                     written before the first step, and anew as each trial ends
    DIR/trials/001-rank4-minimal/      an ordinary run, with the marks of its answers beside it in score.json
    DIR/best                           a link to the adapter of the best trial, or where links cannot be made a copy

Knows files, trials and lines, and nothing of training.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from scumble.config import TrainOptions, make
from scumble.errors import ConfigError, MissingFileError, OutputError
from scumble.files import new_folder, write_text
from scumble.train.sweep.asked import Asked
from scumble.train.sweep.lines import Line, best_of, lines_of
from scumble.train.sweep.trials import SweepTrial

NAME, TRIALS, BEST, SCORE = "sweep.json", "trials", "best", "score.json"
# what reading JSON of another kind than was written comes to, deep nesting and huge numbers among it
_DAMAGED = (ValueError, LookupError, TypeError, RecursionError, OverflowError)


class _Base(BaseModel):
    name: str
    hash: str


class _Data(BaseModel):
    source: str
    hash: str


class _Metric(BaseModel):
    name: str
    decides: bool
    part: str
    examples: int


class _Ground(BaseModel):
    base: _Base
    data: _Data
    validation: _Data
    metric: _Metric | None


class _Rung(BaseModel):
    share: float
    losses: dict[int, float | None]
    kept: list[int]


class _Times(BaseModel):
    started: str
    seconds: float
    peak_bytes: int | None


class _Document(BaseModel):
    """What `sweep.json` has to hold so that a sweep can be shown, and gone on with."""

    ground: _Ground
    trials: list[SweepTrial]
    rungs: list[_Rung]
    complete: bool
    times: _Times

    def check(self, asked: Asked) -> None:
        """Raise `ValueError` where its trials are not those of what was asked for."""
        lines = {trial.line for trial in self.trials}
        named = {line for rung in self.rungs for line in (*rung.losses, *rung.kept)}
        settings = {*asked.space.axes, "seed"}
        if lines != set(range(len(lines))) or not named <= lines:
            raise ValueError("a line of trials is missing")
        for trial in self.trials:
            if min(trial.of, trial.steps, trial.parameters or 0, trial.bytes or 0, trial.memory or 0) < 0:
                raise ValueError("a trial has less than nothing")
            if not settings <= {name for name, value in trial.settings.items() if value is not None}:
                raise ValueError("a setting of a trial is missing")
            for values in (trial.settings, trial.options):
                make(TrainOptions, **values)


@dataclass
class Journal:
    """What is known of a sweep.

    Attributes:
        folder: of it.
        asked: what was asked for.
        ground: what all trials share: base, data, validation data, each with its hash; the metric.
        trials: in the order of the plan.
        rungs: of halving, those that were decided: `share`, `losses` of the lines that came there, `kept` lines.
        complete: there is nothing left to do.
        times: when it was begun, seconds spent on it, the highest memory: what differs from one time to another.
    """

    folder: Path
    asked: Asked
    ground: dict[str, Any]
    trials: list[SweepTrial] = field(default_factory=list)
    rungs: list[dict[str, Any]] = field(default_factory=list)
    complete: bool = False
    times: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def begun(
        cls, folder: Path, asked: Asked, ground: dict[str, Any], trials: list[SweepTrial], *, force: bool
    ) -> Journal:
        """The journal of a new sweep; its folder appears whole, with the plan in it."""
        times = {"started": _now(), "seconds": 0.0, "peak_bytes": None}
        journal = cls(folder, asked, ground, trials, times=times)
        with new_folder(folder, force=force) as temporary:
            (temporary / TRIALS).mkdir()
            (temporary / NAME).write_text(journal._text(), encoding="utf-8")
        journal._since = time.monotonic()
        return journal

    @classmethod
    def opened(cls, folder: Path) -> Journal:
        """The journal of a sweep that was begun.

        Raises:
            MissingFileError: the folder holds none.
            ConfigError: it is damaged.
        """
        path = folder / NAME
        if not path.is_file():
            raise MissingFileError(f"{folder} is no sweep: it has no {NAME}", "choose another --out")
        try:
            text = path.read_text(encoding="utf-8")
            found, read = json.loads(text), _Document.model_validate_json(text, strict=True)
            asked = Asked.recorded(found)
            read.check(asked)
            journal = cls(
                folder, asked, found["ground"], read.trials, found["rungs"], read.complete, found["times"]
            )
        except _DAMAGED as error:
            raise ConfigError(f"{path} is damaged", "start over with --force") from error
        journal._since = time.monotonic()
        return journal

    def __post_init__(self) -> None:
        self._since = time.monotonic()

    @property
    def by_metric(self) -> bool:
        """Whether the metric decides on the best."""
        return bool(self.ground["metric"] and self.ground["metric"]["decides"])

    @property
    def left(self) -> int:
        """Trials that are not over, those that tpe has not drawn yet among them."""
        if self.complete:
            return 0
        many = len(self.trials)
        if self.asked.options.search == "tpe":
            many = max(many, self.asked.drawn * len(self.asked.space.seeds))
        return many - sum(trial.over for trial in self.trials)

    def place(self, trial: SweepTrial) -> Path:
        """The folder of its run."""
        return self.folder / TRIALS / trial.name

    def marks(self) -> dict[str, list[float]]:
        """Of each trial that was scored, the marks of its answers."""
        return {trial.name: found for trial in self.trials if (found := self._marks(trial)) is not None}

    def unmarked(self) -> list[SweepTrial]:
        """The trials that have an adapter, and whose answers are still to be marked."""
        done = [trial for trial in self.trials if trial.state in ("finished", "ended")]
        return [trial for trial in done if self.ground["metric"] and self._marks(trial) is None]

    def keep_marks(self, trial: SweepTrial, marks: list[float]) -> None:
        """Keep the marks of a trial's answers."""
        write_text(
            self.place(trial) / SCORE, json.dumps({"metric": self.ground["metric"], "marks": marks}) + "\n"
        )

    def lines(self) -> list[Line]:
        """Its settings, each over its seeds."""
        return lines_of(self.trials, self.marks())

    def best(self) -> tuple[Line, SweepTrial] | None:
        """The best line, and of its trials the one with the lowest loss; None where none came to its end."""
        found = best_of(self.lines(), by_metric=self.by_metric)
        if found is None:
            return None
        mine = [trial for trial in self.trials if trial.line == found.number]
        return found, min(mine, key=lambda trial: (trial.loss, trial.name))

    def write(self) -> None:
        """Write all of it down."""
        write_text(self.folder / NAME, self._text())

    def to_dict(self) -> dict[str, Any]:
        """The content of `sweep.json`."""
        lines, best = self.lines(), self.best()
        return {
            "scumble": metadata.version("scumble"),
            "ground": self.ground,
            **self.asked.to_dict(),
            "trials": [trial.to_dict() for trial in self.trials],
            "lines": [line.to_dict() for line in lines],
            "best": best and _best(*best),
            "rungs": self.rungs,
            "complete": self.complete,
            "times": {**self.times, "seconds": round(self.times["seconds"] + self._spent(), 3)},
        }

    def link_best(self) -> Path | None:
        """Let `best` lead to the best trial's adapter; None where there is none yet."""
        found, link = self.best(), self.folder / BEST
        if found is None:
            return None
        goal = Path(TRIALS) / found[1].name / "adapter"
        temporary = self.folder / f".{BEST}.{os.getpid()}"
        try:
            with contextlib.suppress(FileNotFoundError):
                temporary.unlink()
            temporary.symlink_to(goal, target_is_directory=True)
            if link.is_dir() and not link.is_symlink():
                shutil.rmtree(link)
            temporary.replace(link)
        except OSError:
            _copied(self.folder / goal, link)
        return link

    def check_ground(self, now: Mapping[str, Any]) -> None:
        """Refuse another base or other data than the sweep was begun with, those of the metric among them.

        Raises:
            ConfigError: with what differs, both values.
        """
        titles = {"base": "base", "data": "training data", "validation": "validation data"}
        if metric := self.ground["metric"]:
            titles["metric"] = f"{metric['part']} data"
        for what, title in titles.items():
            # an earlier version may have written no hash of what the metric is taken over
            found = (now[what] or {}).get("hash")
            before = self.ground[what].get("hash", found)
            if before != found:
                raise ConfigError(
                    f"the {title} is not what the sweep in {self.folder} was begun with: "
                    f"its hash is {found or 'none'}, and was {before}",
                    "give what it was begun with, or start over with --force",
                )

    def clear(self) -> None:
        """Remove what a write that was cut off left under its temporary name."""
        for path in (self.folder / TRIALS).glob(".*"):
            shutil.rmtree(path, ignore_errors=True)
        for pattern in (f".{NAME}.*", f".{BEST}.*", ".report.html.*"):
            for path in self.folder.glob(pattern):
                path.unlink() if not path.is_dir() or path.is_symlink() else shutil.rmtree(path)

    def _marks(self, trial: SweepTrial) -> list[float] | None:
        metric = self.ground["metric"]
        try:
            found = json.loads((self.place(trial) / SCORE).read_text(encoding="utf-8"))
            marks = [float(mark) for mark in found["marks"]]
            right = found["metric"] == metric and len(marks) == metric["examples"]
        except (OSError, *_DAMAGED):
            return None
        return marks if right and all(0 <= mark <= 1 for mark in marks) else None

    def _spent(self) -> float:
        return time.monotonic() - self._since

    def _text(self) -> str:
        return json.dumps(self.to_dict(), indent=1, default=str) + "\n"


def _best(line: Line, trial: SweepTrial) -> dict[str, Any]:
    return {
        "trial": trial.name,
        "settings": trial.settings,
        "adapter": f"{TRIALS}/{trial.name}/adapter",
        **{name: line.to_dict()[name] for name in ("loss", "metric", "interval", "parameters", "bytes")},
    }


def _copied(source: Path, goal: Path) -> None:
    """A copy of a folder, in place of a link to it."""
    if goal.is_symlink():
        goal.unlink()
    try:
        with new_folder(goal, force=True) as temporary:
            shutil.copytree(source, temporary, dirs_exist_ok=True)
    except OSError as error:
        raise OutputError(f"{goal} cannot be written: {error}", "make room") from error


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
