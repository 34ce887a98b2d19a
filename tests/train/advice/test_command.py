"""The command of the next run: what the program itself reads out of it, and that nothing else changes with it."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st

from scumble.cli.main import app
from scumble.config import LoraOptions, TrainOptions, make
from scumble.lora.spec import LoraSpec
from scumble.train.advice.command import longer, next_run
from scumble.train.advice.reading import Reading
from scumble.train.opening import _going_on, shape_of
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
    "options",
    # 450 steps without another word
    [{}, {"max_steps": 40}, {"epochs": 1.5}, {"max_steps": 5000}, {"max_steps": 500}, {"batch": 2}],
)
@pytest.mark.parametrize("factor", [2.0, 0.25])
def test_longer_and_shorter_runs_keep_the_batch_and_the_rate(options, factor):
    run = reading(**options)
    _, found = read_back(longer(run, factor).command)
    settled = settle(found, 600, tiny_llama().config)
    before = run.training
    assert settled.steps == pytest.approx(factor * before["steps"], abs=1)
    assert (settled.batch, settled.accumulate) == (before["batch"], before["accumulate"])
    assert settled.learning_rate == before["learning_rate"]


@pytest.mark.parametrize(
    ("options", "before", "after"),
    [
        ({"max_steps": 400}, 40, 80),  # a tenth
        ({"epochs": 40}, 100, 100),  # a hundred at most
        ({"max_steps": 400, "warmup": 30}, 30, 30),
        ({"max_steps": 200, "warmup": 30}, 20, 30),  # in so far as it fits in a tenth
    ],
)
def test_a_longer_run_warms_up_by_the_same_rule(options, before, after):
    run = reading(**options)
    assert run.training["warmup"] == before
    _, found = read_back(longer(run, 2.0).command)
    assert settle(found, 600, tiny_llama().config).warmup == after


SPEC = LoraSpec(
    rank=4,
    alpha=11.313708498984761,  # more digits than are written
    targets=("k_proj", "q_proj"),
    dropout=0.1,
    rslora=True,
    rank_pattern={"layers.0.self_attn.q_proj": 2},
)


def gone_on(dropout: float = 0.1) -> Reading:
    """A run that went on from an adapter of `SPEC`."""
    run = reading(
        from_="earlier/adapter",
        rank=SPEC.rank,
        alpha=SPEC.alpha,
        targets=list(SPEC.targets),
        dropout=dropout,
        rslora=True,
    )
    lora = replace(SPEC, dropout=dropout).to_peft()
    return replace(run, facts={**run.facts, "lora": lora, "base": {"name": "some/base"}})


def asked_of_the_shape(options: TrainOptions) -> list[str]:
    return sorted(options.model_fields_set & set(LoraOptions.model_fields))


@pytest.mark.parametrize("changes", [{"rank": 8, "alpha": 22.6}, {"targets": "all-linear"}])
def test_another_shape_begins_anew_on_the_same_base(changes):
    found = next_run(gone_on(), **changes)
    _, options = read_back(found.command)
    assert options.from_ is None
    assert options.base == "some/base"
    spec = shape_of(options, None, None).spec
    kept = {"rank": 4, "alpha": pytest.approx(SPEC.alpha, rel=1e-11), "targets": SPEC.targets}
    for name, value in {**kept, "dropout": 0.1, "rslora": True, **changes}.items():
        assert getattr(spec, name) == value
    assert found.changed == {**changes, "from_": None, "base": "some/base"}
    assert "base" not in found.out.name


@pytest.mark.parametrize("dropout", [0.1, 0.0])
def test_the_same_shape_goes_on_again_as_training_takes_it(dropout):
    run = gone_on(dropout)
    for found in (next_run(run, learning_rate=0.001), longer(run, 2.0)):
        _, options = read_back(found.command)
        assert options.from_ == "earlier/adapter"
        assert _going_on(options, SPEC, asked_of_the_shape(options)) == replace(SPEC, dropout=dropout)


def test_a_shape_that_python_gave_whole_is_in_the_command():
    run = reading()
    lora = LoraSpec(rank=8, alpha=64, targets=("k_proj",), dropout=0.2, rslora=True).to_peft()
    _, options = read_back(next_run(replace(run, facts={**run.facts, "lora": lora}), seed=1).command)
    assert (options.rank, options.alpha, options.targets) == (8, 64, "k_proj")
    assert (options.dropout, options.rslora) == (0.2, True)


def test_a_set_of_targets_keeps_its_name():
    run = reading(targets="standard")
    facts = {**run.facts, "lora": LoraSpec(targets="standard").to_peft()}
    assert "--targets standard" in next_run(replace(run, facts=facts), seed=1).command


def test_data_that_came_from_python_have_no_name():
    assert next_run(reading(source="list")).command.startswith("scumble train DATA --out")
    assert next_run(reading(source="list")).data is None
