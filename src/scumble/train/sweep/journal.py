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

from scumble.errors import ConfigError, MissingFileError, OutputError
from scumble.files import new_folder, write_text
from scumble.train.sweep.asked import Asked
from scumble.train.sweep.lines import Line, best_of, lines_of
from scumble.train.sweep.trials import SweepTrial

NAME, TRIALS, BEST, SCORE = "sweep.json", "trials", "best", "score.json"


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
            found = json.loads(path.read_text(encoding="utf-8"))
            trials = [SweepTrial.from_dict(each) for each in found["trials"]]
            asked = Asked.recorded(found)
            journal = cls(
                folder, asked, found["ground"], trials, found["rungs"], found["complete"], found["times"]
            )
        except (ValueError, LookupError, TypeError) as error:
            raise ConfigError(f"{path} is damaged", "start over with --force") from error
        journal._since = time.monotonic()
        return journal

    def __post_init__(self) -> None:
        self._since = time.monotonic()

    @property
    def by_metric(self) -> bool:
        """Whether the metric decides on the best."""
        return bool(self.ground["metric"] and self.ground["metric"]["decides"])

    def place(self, trial: SweepTrial) -> Path:
        """The folder of its run."""
        return self.folder / TRIALS / trial.name

    def marks(self) -> dict[str, list[float]]:
        """Of each trial that was scored, the marks of its answers."""
        return {trial.name: found for trial in self.trials if (found := self._marks(trial)) is not None}

    def scored(self, trial: SweepTrial) -> bool:
        """Whether a trial's answers were marked."""
        return self._marks(trial) is not None

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
        """Refuse another base or other data than the sweep was begun with.

        Raises:
            ConfigError: with what differs, both values.
        """
        for what, title in (("base", "base"), ("data", "training data"), ("validation", "validation data")):
            before, found = self.ground[what]["hash"], now[what]["hash"]
            if before != found:
                raise ConfigError(
                    f"the {title} is not what the sweep in {self.folder} was begun with: "
                    f"its hash is {found}, and was {before}",
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
        try:
            found = json.loads((self.place(trial) / SCORE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return list(found["marks"]) if found["metric"] == self.ground["metric"] else None

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
