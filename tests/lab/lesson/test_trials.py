"""What is kept of a run: a loss that is no number counts as none, before it is written as after it is read."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from scumble.lab.lesson import trials
from scumble.lab.lesson.claims import few, ranked
from scumble.lab.lesson.plan import WHOLE, Candidate
from scumble.lab.lesson.state import State
from scumble.lab.lesson.summary import table
from scumble.lab.lesson.trials import Trials, best_rates


def test_a_loss_that_is_no_number_chooses_no_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials, "mean_loss", lambda *args: math.nan)
    material: Any = SimpleNamespace(validation=[1, 2], few_encoded=[3])
    nothing: Any = None
    marking = Trials(nothing, WHOLE, material, nothing, nothing)
    found = marking._losses(few(4), torch.nn.Linear(1, 1))
    assert found == {"validation": None, "losses": [None, None], "train": None}
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    runs = [Candidate(few(4), rate, 0) for rate in (1e-3, 3e-3)]
    assert best_rates(runs, {run.name: found for run in runs}) == {}


def test_a_run_without_a_loss_has_no_results(tmp_path: Path) -> None:
    state = State(tmp_path, WHOLE.to_dict())
    for way, measures in ((ranked(8), ["right"]), (few(8), ["loss", "gap"])):
        state.chosen[way.name] = 1e-3
        for seed in WHOLE.seeds:
            name = Candidate(way, 1e-3, seed).name
            state.runs[name] = {"failed": None, "validation": 0.5, "train": 0.25, "losses": [0.25, 0.75]}
            state.scores[name] = "01"
        for measure in measures:
            assert table(state, WHOLE, way, measure) is not None  # type: ignore[arg-type]
        state.runs[name] |= {"validation": None, "train": None, "losses": [None, None]}
        for measure in measures:
            assert table(state, WHOLE, way, measure) is None  # type: ignore[arg-type]
