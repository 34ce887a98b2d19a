"""The command of the next run: what the program itself reads out of it, and that nothing else changes with it."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st

from scumble.cli.main import app
from scumble.config import TrainOptions, make
from scumble.train.advice.command import longer, next_run
from scumble.train.advice.reading import Reading
from scumble.train.settings import settle
from tests.tiny import tiny_llama


def reading(
    folder: Path = Path("runs/one"), source: str = "cron", examples: int = 600, **options: Any
) -> Reading:
    asked = make(TrainOptions, **options)
    settings = settle(asked, examples, tiny_llama().config)
    facts = {
        "options": asked.model_dump(),
        "training": settings.to_dict(),
        "data": {"source": source, "examples": examples},
    }
    return Reading(folder, json.loads(json.dumps(facts)), (), (), None, None, ())


def read_back(command: str) -> tuple[dict[str, Any], TrainOptions]:
    """What `scumble train` takes a command line for."""
    words = shlex.split(command)
    assert words[:2] == ["scumble", "train"]
    train: Any = typer.main.get_command(app).commands["train"]
    given = train.make_context("train", words[2:]).params
    rest = {name: given.pop(name) for name in ("data", "out", "config", "force", "resume", "as_json")}
    given["eval"] = given.pop("eval_", None)
    return rest, make(TrainOptions, **given)


VALUES = {
    "rank": st.integers(1, 64),
    "alpha": st.floats(0.1, 100),
    "targets": st.sampled_from(["all-linear", "q_proj,v_proj", r".*mlp\.(up|down)_proj"]),
    "dropout": st.floats(0, 0.9),
    "rslora": st.booleans(),
    "dora": st.booleans(),
    "epochs": st.floats(0.1, 20),
    "max_steps": st.integers(1, 500),
    "batch": st.integers(1, 32),
    "learning_rate": st.floats(1e-7, 10),
    "eval": st.sampled_from(["my file.jsonl", "0.2", "0"]),
    "eval_every": st.sampled_from([0.25, 10.0]),
    "rates": st.sampled_from(["q_proj=1e-4", "mlp=0.1,q_proj=3e-05"]),
    "seed": st.integers(0, 2**32 - 1),
    "patience": st.integers(1, 5),
    "base": st.sampled_from(["some/base", "a folder"]),
}


@settings(max_examples=80, deadline=None)
@given(st.fixed_dictionaries({}, optional=VALUES))
def test_the_program_reads_out_of_it_what_was_asked(options):
    rest, found = read_back(next_run(reading(**options)).command)
    asked = make(TrainOptions, **options).model_dump()
    for name, value in found.model_dump().items():
        # twelve digits are written
        assert value == (pytest.approx(asked[name], rel=1e-11) if isinstance(value, float) else asked[name])
    assert rest["data"] == "cron"
    assert not rest["force"]


def test_a_change_stands_in_it_and_in_the_folders_name():
    found = next_run(reading(learning_rate=0.01), learning_rate=0.001)
    assert found.command == "scumble train cron --out runs/one-learning-rate-0.001 --learning-rate 0.001"


def test_the_folder_does_not_exist_yet(tmp_path):
    first = next_run(reading(tmp_path / "run"), rank=16)
    first.out.mkdir(parents=True)
    assert next_run(reading(tmp_path / "run"), rank=16).out == tmp_path / "run-rank-16-2"


@pytest.mark.parametrize("path", ["sweep/trials/001-rank4", "sweep/best"])
def test_the_next_run_of_a_trial_stands_outside_its_sweep(path, tmp_path, monkeypatch):
    (tmp_path / "sweep/trials/001-rank4").mkdir(parents=True)
    (tmp_path / "sweep/sweep.json").write_text("{}")
    (tmp_path / "sweep/best").symlink_to("trials/001-rank4")
    monkeypatch.chdir(tmp_path)
    assert next_run(reading(Path(path)), rank=16).out == Path("sweep-001-rank4-rank-16")
    assert next_run(reading(tmp_path / path), rank=16).out == tmp_path / "sweep-001-rank4-rank-16"
    monkeypatch.chdir(tmp_path / "sweep/trials")
    assert next_run(reading(Path("001-rank4")), rank=16).out == Path("../../sweep-001-rank4-rank-16")


@pytest.mark.parametrize(
    "options", [{}, {"max_steps": 40}, {"epochs": 1.5}, {"max_steps": 5000}, {"batch": 2}]
)
@pytest.mark.parametrize("factor", [2.0, 0.25])
def test_longer_and_shorter_runs_change_the_steps_and_nothing_else(options, factor):
    run = reading(**options)
    _, found = read_back(longer(run, factor).command)
    settled = settle(found, 600, tiny_llama().config)
    before = run.training
    assert settled.steps == pytest.approx(factor * before["steps"], abs=1)
    assert (settled.batch, settled.accumulate) == (before["batch"], before["accumulate"])
    assert settled.learning_rate == before["learning_rate"]


def test_data_that_came_from_python_have_no_name():
    assert next_run(reading(source="list")).command.startswith("scumble train DATA --out")
    assert next_run(reading(source="list")).data is None
