"""A run as files: `run.json`, `metrics.jsonl`, `checkpoints/`, and the best of those as `adapter/`, or `model/`.

What decides a result is written down before the first step. Knows files, and nothing of how to train.
"""

from __future__ import annotations

import json
import platform
import shutil
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from scumble.errors import OutputError
from scumble.files import new_folder, refuse_existing, write_text
from scumble.models.threads import available_cores
from scumble.train.subject import Subject

PACKAGES = ("torch", "transformers", "accelerate", "peft", "safetensors", "numpy")


class RunRecord:
    """The folder of one run.

    Attributes:
        folder: of the run.
        best: (step, validation loss) of the checkpoint that the result will hold; None before the first.
    """

    def __init__(self, folder: Path, subject: Subject, facts: dict[str, Any], *, force: bool) -> None:
        self.folder = refuse_existing(folder, force=force)
        self.subject = subject
        self.result = self.folder / subject.title
        self.best: tuple[int, float | None] | None = None
        self.facts = {"scumble": metadata.version("scumble"), "started": _now(), **facts, **_machine()}
        self.rows: list[dict[str, Any]] = []
        # the folder appears whole, with the facts in it, and replaces an old one only now
        with new_folder(self.folder, force=force) as temporary:
            (temporary / "checkpoints").mkdir()
            (temporary / "run.json").write_text(_json(self.facts), encoding="utf-8")
            (temporary / "metrics.jsonl").touch()

    def metrics(self, row: dict[str, Any]) -> None:
        """Append one row of figures to `metrics.jsonl`."""
        self.rows.append(row)
        try:
            with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:
            raise OutputError(
                f"{self.folder / 'metrics.jsonl'} cannot be written: {error.strerror}",
                "the checkpoints so far are kept",
            ) from error

    def checkpoint(self, step: int, eval_loss: float | None) -> None:
        """Keep what is trained after `step` steps; it becomes the best where its loss is the lowest so far.

        Without validation data the last checkpoint is the best. One made because the run had to stop has no
        loss, and is the best only where there is no other.
        """
        path = self._path(step)
        if not path.exists():
            self.subject.save(path)
        old = self.best
        if (
            old is None
            or (old[1] is None and eval_loss is None)
            or (eval_loss is not None and (old[1] is None or eval_loss < old[1]))
        ):
            self.best = (step, eval_loss)
        self._rotate(step)

    @property
    def kept(self) -> str:
        """What of the run can be used, in words."""
        if self.best is None:
            return "there was no checkpoint yet"
        path = self.result if self.result.is_dir() else self._path(self.best[0])
        return f"the checkpoint of step {self.best[0]} is kept as {path}"

    def finish(self, result: dict[str, Any]) -> Path | None:
        """Write the best checkpoint as the result, and its figures into `run.json`; the result's folder."""
        if self.best is not None:
            with new_folder(self.result, force=True) as temporary:
                shutil.copytree(self._path(self.best[0]), temporary, dirs_exist_ok=True)
            weights = self.result / self.subject.weights_name
            self.facts[self.subject.title]["bytes"] = weights.stat().st_size
        self.facts["result"] = {**result, "best_step": self.best[0] if self.best else None}
        write_text(self.folder / "run.json", _json(self.facts))
        return self.result if self.best is not None else None

    def _path(self, step: int) -> Path:
        return self.folder / "checkpoints" / f"step-{step:06d}"

    def _rotate(self, last: int) -> None:
        """Keep the best checkpoint and the last one."""
        kept = {self._path(last), self._path(self.best[0]) if self.best else None}
        for path in (self.folder / "checkpoints").glob("step-*"):
            if path not in kept:
                shutil.rmtree(path)


def _json(facts: dict[str, Any]) -> str:
    return json.dumps(facts, indent=2, default=str) + "\n"


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _machine() -> dict[str, Any]:
    return {
        "versions": {
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in PACKAGES},
        },
        "machine": {"platform": platform.platform(), "cores": available_cores()},
    }
