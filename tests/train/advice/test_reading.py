"""What is said of folders that are no run, of runs that were cut off, and of files that are damaged."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from scumble.config import TrainOptions, make
from scumble.errors import ConfigError, MissingFileError
from scumble.lora.spec import LoraSpec
from scumble.train.advice.advise import advise
from scumble.train.advice.reading import read_run
from scumble.train.settings import settle
from tests.tiny import tiny_llama
from tests.train.advice.made import an_adapter, write_run

LOSSES = [4.0 / (1 + step / 10) for step in range(100)]
ROW = '{"step": 7, "epoch": "x", "loss": 1, "learning_rate": 0.1, "grad_norm": 1}'
EVALS = {0: 4.0, 25: 1.4, 50: 0.8, 75: 0.6, 100: 0.5}


def test_no_folder_and_no_run(tmp_path):
    with pytest.raises(MissingFileError, match="nowhere does not exist"):
        advise(tmp_path / "nowhere")
    with pytest.raises(MissingFileError, match=r"is no run: it has no run\.json"):
        advise(tmp_path)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"options": {}}', '{"options": 3, "data": {}, "training": {}}']
)
def test_a_damaged_run_is_named(tmp_path, text):
    folder = write_run(tmp_path / "run", LOSSES, EVALS)
    (folder / "run.json").write_text(text)
    with pytest.raises(ConfigError, match=r"run\.json is damaged"):
        advise(folder)


GONE: Any = object()
DAMAGES = [
    ("options.rank", GONE, "options has no rank"),
    ("options.alpha", None, "options has no alpha"),
    ("options.rank", "eight", "rank of options is 'eight'"),
    ("options.rank", 2.5, "rank is 2.5"),
    ("options.max_steps", "many", "max-steps is 'many'"),
    ("options.dropout", [], "dropout is"),
    ("data.examples", GONE, "data has no examples"),
    ("data.examples", 0, "examples of data is 0"),
    ("data.examples", {}, "examples of data is a dict"),
    *((f"training.{name}", GONE, f"training has no {name}") for name in ("steps", "epochs", "batch")),
    ("training.accumulate", 1.5, "accumulate of training is 1.5"),
    ("training.learning_rate", GONE, "training has no learning_rate"),
    ("training.learning_rate", float("nan"), "learning_rate of training is nan"),
    ("training.learning_rate", True, "learning_rate of training is True"),
    ("adapter", 3, "adapter is 3"),
    ("lora", [1], "lora is a list"),
    ("lora", {"r": "x"}, ""),
    ("result", "over", "result is 'over'"),
    ("result.best_step", "last", "best_step of result is 'last'"),
]


@pytest.mark.parametrize(("where", "value", "said"), DAMAGES)
def test_a_part_that_is_missing_or_of_another_kind_is_named(tmp_path, where, value, said):
    folder = write_run(tmp_path / "run", LOSSES, EVALS, adapter=an_adapter())
    facts = json.loads((folder / "run.json").read_text())
    *parts, name = where.split(".")
    inside = facts[parts[0]] if parts else facts
    inside[name] = value
    if value is GONE:
        del inside[name]
    (folder / "run.json").write_text(json.dumps(facts))
    with pytest.raises(ConfigError, match=rf"run\.json is damaged: .*{re.escape(said)}") as caught:
        advise(folder)
    assert "\n" not in caught.value.message
    assert "train again" in caught.value.hint


@pytest.mark.parametrize("steps", [10, 11, 40, 149, 1000])
def test_the_evaluations_that_are_asked_for_come_within_the_run(tmp_path, steps):
    options = {"max_steps": steps, "batch": 4, "accumulate": 1}
    found = advise(
        write_run(tmp_path / "run", LOSSES[:steps], {0: 4.0, steps: 0.5}, examples=6000, **options)
    )
    hint = next(each for each in found.missing if "evaluation" in each)
    every = float(hint.split("--eval-every ")[1].split()[0])
    settled = settle(make(TrainOptions, **options, eval_every=every), 6000, tiny_llama().config)
    assert settled.steps == steps
    assert 4 <= sum(settled.evaluates(step) for step in range(1, steps + 1)) <= 11


@pytest.mark.parametrize(
    "line",
    [
        *("{", "[1]", "{}", '{"step": "x", "loss": 1}'),
        *('{"step": 7, "loss": 1}', '{"step": 7, "loss": "a"}', ROW),
        ROW.replace('"x"', "1" + 400 * "0"),  # a number, but beyond every float
    ],
)
def test_a_damaged_line_is_named(tmp_path, line):
    folder = write_run(tmp_path / "run", LOSSES, EVALS)
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    lines[6] = line
    (folder / "metrics.jsonl").write_text("\n".join(lines))
    with pytest.raises(ConfigError, match=r"metrics\.jsonl, line 7: no row of figures"):
        advise(folder)


def test_half_a_last_line_of_a_run_that_was_cut_off_is_left_out(tmp_path):
    folder = write_run(tmp_path / "run", LOSSES, EVALS, finished=False)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 101, "lo')
    found = advise(folder)
    assert len(read_run(folder).steps) == 100
    assert any("has not come to its end" in each for each in found.missing)
    facts = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(facts | {"result": {"stopped": None}}))
    with pytest.raises(ConfigError, match="line 106"):
        advise(folder)


def test_what_only_python_can_say_is_named(tmp_path):
    folder = write_run(tmp_path / "run", LOSSES, EVALS)
    facts = json.loads((folder / "run.json").read_text())
    for given, said in (
        ({}, False),
        ({"rank_pattern": {"q_proj": 4}, "modules_to_save": ("lm_head",)}, True),
    ):
        facts["lora"] = LoraSpec(rank=8, targets=("q_proj", "v_proj"), **given).to_peft()
        (folder / "run.json").write_text(json.dumps(facts))
        found = [each for each in advise(folder).missing if "from Python" in each]
        assert len(found) == said
        assert all("rank_pattern, modules_to_save" in each for each in found)


def test_no_step_and_few_steps_are_silence(tmp_path):
    none = advise(write_run(tmp_path / "none", [], finished=False))
    few = advise(write_run(tmp_path / "few", [4.0, 3.0, 2.0], EVALS))
    for found, said in ((none, "no step was made"), (few, "3 steps were made")):
        assert found.verdict is None
        assert any(each.startswith(said) for each in found.missing)


def test_without_metrics_there_is_silence(tmp_path):
    folder = write_run(tmp_path / "run", LOSSES, EVALS)
    (folder / "metrics.jsonl").unlink()
    assert advise(folder).verdict is None


def test_without_validation_data_overfitting_is_not_told(tmp_path):
    # three passes over the same examples: that the training loss falls says nothing
    found = advise(write_run(tmp_path / "run", LOSSES, examples=500))
    assert found.verdict is None
    assert any("no validation data" in each for each in found.missing)


def test_the_last_checkpoint_stands_for_an_adapter_that_is_not_there_yet(tmp_path):
    folder = write_run(tmp_path / "run", LOSSES, EVALS, finished=False)
    assert read_run(folder).adapter is None
    for step in (25, 75):
        an_adapter(rank=4).save(folder / f"checkpoints/step-{step:06d}")
    assert read_run(folder).adapter_step == 75


def test_a_damaged_adapter_leaves_the_curves(tmp_path):
    folder = write_run(tmp_path / "run", LOSSES, EVALS, adapter=an_adapter())
    path = folder / "adapter/adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    found = advise(folder)
    assert found.verdict
    assert any("the adapter cannot be read" in each for each in found.missing)


def test_figures_that_are_not_finite_are_no_damage(tmp_path):
    folder = write_run(
        tmp_path / "run", [*LOSSES[:30], float("nan")], {0: 4.0}, stopped="step 31: the loss is nan"
    )
    found = advise(folder)
    assert found.verdict == "diverged"
    assert "--learning-rate 0.001" in found.findings[0].command
