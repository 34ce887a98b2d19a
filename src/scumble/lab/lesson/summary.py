"""What the runs came to, by way to train: tables of results by seed and example, and a line of figures for each.

Knows the state and names of runs, and nothing of claims or pages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from scumble.lab.lesson.claims import Measure
from scumble.lab.lesson.plan import Candidate, Configuration, Scope
from scumble.lab.lesson.state import State
from scumble.lab.lesson.statistics import estimate
from scumble.lab.lesson.trials import read_bits

HELD = "16"  # the rank whose share of an update is a claim's
HALF = 0.5


def table(state: State, scope: Scope, way: Configuration, measure: Measure) -> np.ndarray | None:
    """The results of a way to train with the rate that was chosen for it, (seeds, examples); None where one is missing.

    Args:
        state: what was found.
        scope: whose seeds.
        way: which.
        measure: as `Comparison` has it; a gap and a share are one number for each seed.
    """
    rate = state.chosen.get(way.name)
    if rate is None:
        return None
    rows = [_row(state, Candidate(way, rate, seed).name, measure) for seed in scope.seeds]
    found = [row for row in rows if row is not None]
    return np.array(found, dtype=float) if len(found) == len(rows) else None


def _row(state: State, name: str, measure: Measure) -> list[float] | None:
    run = state.runs.get(name)
    if run is None or run["failed"] is not None or run["validation"] is None:
        return None
    if measure == "right":
        return read_bits(state.scores[name]) if name in state.scores else None
    if measure == "loss":
        return run.get("losses")
    if measure == "gap":
        return None if run.get("train") is None else [run["validation"] - run["train"]]
    return [state.spectra[name]["held"][HELD] - HALF] if name in state.spectra else None


def ways(state: State, scope: Scope, configurations: Sequence[Configuration]) -> list[dict[str, Any]]:
    """A line of figures for each way to train, those that broke off at every rate among them."""
    return [_way(state, scope, each) for each in configurations]


def _way(state: State, scope: Scope, way: Configuration) -> dict[str, Any]:
    rate = state.chosen.get(way.name)
    first = [run for run in state.runs.values() if run["way"] == way.name and run["seed"] == scope.seeds[0]]
    by_rate = {run["rate"]: run["validation"] for run in sorted(first, key=lambda run: float(run["rate"]))}
    tried = list(by_rate)
    runs = [state.runs[Candidate(way, rate, seed).name] for seed in scope.seeds] if rate is not None else []
    right = table(state, scope, way, "right")
    return {
        "way": way.name,
        "title": way.title,
        "data": way.data,
        "method": way.method,
        "rank": way.rank,
        "alpha": way.alpha,
        "targets": way.targets,
        "rate": rate,
        "tried": tried,
        # a rate at the end of those tried may have a better one beyond it
        "at_edge": rate is not None and len(tried) > 1 and rate in (tried[0], tried[-1]),
        "by_rate": {f"{each:g}": loss for each, loss in by_rate.items()},
        "parameters": runs[0].get("parameters") if runs else None,
        "bytes": runs[0].get("bytes") if runs else None,
        "validation": _each(runs, "validation"),
        "train": _each(runs, "train"),
        **_share(right),
    }


def _each(runs: Sequence[Mapping[str, Any]], key: str) -> list[float]:
    return [run[key] for run in runs if run.get(key) is not None]


def _share(right: np.ndarray | None) -> dict[str, Any]:
    """The share of right answers with its interval, and that of each seed."""
    if right is None:
        return {"mean": None, "low": None, "high": None, "seeds": []}
    found = estimate(right, most=1.0)
    return {
        "mean": found.mean,
        "low": max(0.0, found.low),
        "high": min(1.0, found.high),
        "seeds": [float(each) for each in right.mean(axis=1)],
    }
