"""`Reading`: what a run's folder says, read once: `run.json`, `metrics.jsonl`, and the adapter, or the last checkpoint.

A run that was cut off is read as far as it came. Knows files, and nothing of what the figures mean.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scumble.config import TrainOptions, make
from scumble.errors import AdapterError, ConfigError, ManifestError, MissingFileError, ScumbleError, shown
from scumble.lora.adapter import Adapter
from scumble.lora.spec import LoraSpec

_DAMAGED = "train again with --force; a run that is damaged cannot be told apart from a bad one"
SWEEP_DAMAGED = "sweep again with --force"
# of run.json, without which nothing can be said
_NEEDED = {
    "options": ("rank", "alpha"),
    "data": ("examples",),
    "training": ("steps", "batch", "accumulate", "epochs", "learning_rate"),
}
_COUNTS = ("examples", "steps", "batch", "accumulate")
_FIGURES = ("loss", "eval_loss", "learning_rate", "grad_norm", "epoch")  # of metrics.jsonl
_MAY_LACK = ("adapter", "lora", "base", "validation", "result")


@dataclass(frozen=True)
class Reading:
    """One run.

    Attributes:
        folder: of the run.
        facts: the content of `run.json`.
        steps: rows of steps, in order: `step`, `loss`, `learning_rate`, `grad_norm`.
        evals: (step, loss) of the evaluations, the start included.
        adapter: what was kept; None where there is none that can be read.
        adapter_step: the step after which the adapter was so.
        missing: what could not be read, in one line each.
    """

    folder: Path
    facts: Mapping[str, Any]
    steps: tuple[Mapping[str, float], ...]
    evals: tuple[tuple[int, float], ...]
    adapter: Adapter | None
    adapter_step: int | None
    missing: tuple[str, ...]

    @property
    def options(self) -> Mapping[str, Any]:
        """What was asked for."""
        return dict(self.facts["options"])

    @property
    def training(self) -> Mapping[str, Any]:
        """What was settled."""
        return dict(self.facts["training"])

    @property
    def result(self) -> Mapping[str, Any]:
        """What it came to; empty where it has not come to an end."""
        return dict(self.facts.get("result") or {})

    @property
    def passes(self) -> float:
        """How often the data were seen."""
        return float(self.steps[-1].get("epoch", 0.0)) if self.steps else 0.0


def read_run(folder: Path) -> Reading:
    """Read a run's folder.

    Raises:
        MissingFileError: it is no run.
        ConfigError: one of its files is damaged, with the line.
    """
    facts = read_json(folder / "run.json", folder, "run")
    _check(folder / "run.json", facts)
    rows = _rows(folder / "metrics.jsonl", over=facts.get("result") is not None)
    steps = {int(row["step"]): row for row in rows if "loss" in row}
    evals = {int(row["step"]): float(row["eval_loss"]) for row in rows if "eval_loss" in row}
    adapter, step, why = _adapter(folder, facts)
    missing = [why] if why else []
    return Reading(
        folder,
        facts,
        tuple(steps[number] for number in sorted(steps)),
        tuple(sorted(evals.items())),
        adapter,
        step,
        tuple(missing),
    )


def _check(path: Path, facts: Mapping[str, Any]) -> None:
    """Refuse what lacks a part that is read, or has one of another kind.

    Raises:
        ConfigError: with the part.
    """
    for part in _NEEDED:
        if not isinstance(facts.get(part), dict):
            raise ConfigError(f"{path} is damaged: it has no {part}", _DAMAGED)
    for part in _MAY_LACK:
        if not isinstance(facts.get(part), dict | None):
            raise ConfigError(f"{path} is damaged: {part} is {shown(facts[part])}", _DAMAGED)
    for part, name in [(part, name) for part, names in _NEEDED.items() for name in names]:
        value = facts[part].get(name)
        if value is None:
            raise ConfigError(f"{path} is damaged: {part} has no {name}", _DAMAGED)
        kinds = int if name in _COUNTS else int | float
        # up to the highest rate that there is: far above it what is reckoned is no number
        if isinstance(value, bool) or not isinstance(value, kinds) or not 0 < value <= 1e37:
            raise ConfigError(f"{path} is damaged: {name} of {part} is {shown(value)}", _DAMAGED)
    best = (facts.get("result") or {}).get("best_step")
    if best is not None and not isinstance(best, int):
        raise ConfigError(f"{path} is damaged: best_step of result is {shown(best)}", _DAMAGED)
    try:
        make(TrainOptions, **{k: v for k, v in facts["options"].items() if k in TrainOptions.model_fields})
        if facts.get("lora"):
            LoraSpec.from_peft(facts["lora"])
    except ScumbleError as error:
        raise ConfigError(f"{path} is damaged: {error.message}", _DAMAGED) from error


def read_json(path: Path, folder: Path, what: str) -> dict[str, Any]:
    """An object of JSON in a file.

    Raises:
        MissingFileError: there is no such file.
        ConfigError: it holds none.
    """
    again = SWEEP_DAMAGED if what == "sweep" else _DAMAGED
    if not folder.exists():
        raise MissingFileError(f"{folder} does not exist", "name the folder of a run or of a sweep")
    if not path.is_file():
        raise MissingFileError(
            f"{folder} is no {what}: it has no {path.name}",
            "name a folder that `scumble train` or `scumble sweep` wrote",
        )
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is damaged: it is no JSON", again) from error
    if not isinstance(found, dict):
        raise ConfigError(f"{path} is damaged: it holds no object", again)
    return found


def _rows(path: Path, *, over: bool) -> list[dict[str, Any]]:
    """The rows of `metrics.jsonl`; the last line of a run that was cut off may be half a line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read", _DAMAGED) from error
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            figures = [row[key] for key in _FIGURES if key in row]
            sound = isinstance(row["step"], int) and all(isinstance(each, int | float) for each in figures)
            list(map(float, [row["step"], *figures]))  # a whole number may be beyond every float
            sound = sound and ("loss" not in row or {"learning_rate", "grad_norm"} <= row.keys())
        except (ValueError, LookupError, TypeError, OverflowError):
            sound = False
        if sound:
            rows.append(row)
        elif over or number < len(lines):
            raise ConfigError(f"{path}, line {number}: no row of figures", _DAMAGED)
    return rows


def _adapter(folder: Path, facts: Mapping[str, Any]) -> tuple[Adapter | None, int | None, str]:
    """The adapter that was kept, or else the last checkpoint; its step; and what is wrong where there is none."""
    if "adapter" not in facts:
        return None, None, "all weights were trained, so that there is no update of low rank to look at"
    best = (facts.get("result") or {}).get("best_step")
    found: list[tuple[Path, int]] = [(folder / "adapter", int(best))] if best is not None else []
    for path in sorted((folder / "checkpoints").glob("step-*"), reverse=True):
        step = path.name.removeprefix("step-")
        if step.isdigit():
            found.append((path, int(step)))
    for path, number in found:
        try:
            return Adapter.load(path), number, ""
        except MissingFileError:
            continue
        except (AdapterError, ManifestError) as error:
            return None, None, f"the adapter cannot be read: {error.message}"
    return None, None, "no adapter was kept yet"


def finite(value: float) -> bool:
    """Whether a figure is a number that one can reckon with."""
    return math.isfinite(value)
