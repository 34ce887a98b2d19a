"""When a run is judged and by what: intervals, patience, the best by a metric; and going on from an adapter."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch

from scumble.config import TrainOptions, make
from scumble.errors import ConfigError
from scumble.lora.adapter import Adapter
from scumble.train.best import Best
from scumble.train.company import Company
from scumble.train.settings import settle
from tests.bases import make_letters_base, sums
from tests.train.test_run import facts, rows, train
from tests.train.trainers import settings


def test_evaluations_are_at_the_start_the_end_and_every_so_often() -> None:
    def steps(every: float, total: int = 10, per_epoch: int = 5) -> list[int]:
        given = settings(steps=total, steps_per_epoch=per_epoch, eval_every=every)
        return [step for step in range(total + 1) if given.evaluates(step)]

    assert steps(0.0) == [0, 5, 10]
    assert steps(3) == [0, 3, 6, 9, 10]
    assert steps(1) == list(range(11))
    assert steps(2.5) == [0, 3, 5, 8, 10]
    assert steps(0.1 * 30, 30, 30) == list(range(0, 31, 3))


def test_a_number_below_one_is_a_share_of_an_epoch() -> None:
    def every(value: Any) -> float:
        return settle(make(TrainOptions, eval_every=value, batch=4, accumulate=1), 40, None).eval_every

    assert every(None) == 10
    assert every(0.5) == 5
    assert every(0.01) == 1  # not more often than every step
    assert every(7) == 7
    with pytest.raises(ConfigError, match="a whole number of steps, or a share"):
        make(TrainOptions, eval_every=1.5)


@pytest.mark.parametrize("higher", [False, True])
def test_the_first_of_equal_ones_is_the_best(higher: bool) -> None:
    best, sign = Best(higher), 1 if higher else -1
    seen = [best.see(step, sign * score) for step, score in enumerate([1.0, 2.0, 2.0, 1.5, 3.0], start=1)]
    assert seen == [True, True, False, False, True]
    assert (best.step, best.stale) == (5, 0)
    plain = Best()
    assert [plain.see(step, None) for step in (1, 2)] == [True, True]


def dictate(monkeypatch: pytest.MonkeyPatch, *losses: float) -> None:
    said = iter(losses)
    monkeypatch.setattr(Company, "losses", lambda self, asks: [next(said) for _ in asks])


def test_patience_ends_a_run_as_it_should(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dictate(monkeypatch, 5.0, 4.0, 3.0, 3.5, 3.2, 1.0)
    run = train(tmp_path, epochs=6, eval_every=1, patience=2)
    assert run.steps == 4
    result = facts(run)["result"]
    assert result["best_step"] == 2
    assert result["stopped"] is None
    assert result["early"] == "2 evaluations after step 2 were no better"
    assert run.report.exists()


def test_the_best_by_a_metric_is_the_highest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # by loss the last would be the best
    dictate(monkeypatch, 5.0, 4.0, 3.0, 2.0)
    said = iter(["none right", "half", "all", "half"])
    judging = importlib.import_module("scumble.train.judging")

    def answer(model: Any, tokenizer: Any, prompts: Any, **how: Any) -> list[str]:
        right = {"none right": 0, "half": 1, "all": 2}[next(said)]
        return [expected if i < right else "?" for i, expected in enumerate(wanted)]

    wanted = ["10", "12"]
    data = [{"prompt": f"say {w}", "completion": w} for w in wanted]
    monkeypatch.setattr(judging, "answer", answer)
    import json

    file = tmp_path / "validation.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in data))
    run = train(tmp_path, eval=str(file), epochs=2, max_steps=3, eval_every=1, keep_best="exact_match")
    assert facts(run)["result"]["best_step"] == 2
    assert [row["eval_metric"] for row in rows(run.out) if "eval_metric" in row] == [0.0, 0.5, 1.0, 0.5]
    assert "where the metric was highest" in run.report.read_text()


def test_a_metric_is_really_measured(tmp_path: Path) -> None:
    run = train(tmp_path, epochs=1, keep_best="metric", eval_limit=2)
    assert all(0 <= row["eval_metric"] <= 1 for row in rows(run.out) if "eval_loss" in row)


def test_what_cannot_be_judged_is_refused(tmp_path: Path) -> None:
    for wrong, said in (
        ({"patience": 2, "eval": 0}, "--patience 2 needs validation data"),
        ({"keep_best": "metric", "eval": 0}, "--keep-best metric needs validation data"),
        ({"keep_best": "bleu"}, "bleu"),
    ):
        with pytest.raises(ConfigError, match=said):
            train(tmp_path, **wrong)  # type: ignore[arg-type]
        assert not (tmp_path / "run").exists()


# -- going on from an adapter ----------------------------------------------------------------------


def test_an_adapter_is_gone_on_from(tmp_path: Path) -> None:
    first = train(tmp_path / "1", rank=3, alpha=6, targets=["k_proj"], dropout=0.1)
    run = train(tmp_path / "2", from_=str(first.out), epochs=1, eval=0.25)
    spec = Adapter.load(run.out).spec
    assert (spec.rank, spec.alpha, tuple(spec.targets), spec.dropout) == (3, 6, ("k_proj",), 0.1)
    evals = [row["eval_loss"] for row in rows(run.out) if "eval_loss" in row]
    best = min(row["eval_loss"] for row in rows(first.out) if row.get("eval_loss") and row["step"])
    assert evals[0] == pytest.approx(best, rel=1e-5)  # it starts where the other one was the best
    found = facts(run)
    assert found["from"]["path"] == str(first.adapter)
    assert (found["options"]["rank"], found["options"]["targets"]) == (3, ["k_proj"])


def test_only_its_dropout_may_be_another(tmp_path: Path) -> None:
    first = train(tmp_path / "1", rank=3, epochs=1)
    for wrong, said in (
        ({"rank": 4}, "rank is 4, and the adapter .* has 3"),
        ({"targets": "standard"}, "targets is standard, and the adapter .* has q_proj, v_proj"),
        ({"dora": True}, "dora is True"),
    ):
        with pytest.raises(ConfigError, match=said):
            train(tmp_path / "2", from_=str(first.out), **wrong)  # type: ignore[arg-type]
    same = train(tmp_path / "3", from_=str(first.out), rank=3, targets="minimal", dropout=0.2, epochs=1)
    assert Adapter.load(same.out).spec.dropout == 0.2


def test_over_another_base_it_says_so(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    first = train(tmp_path / "1", epochs=1)
    other = make_letters_base()
    with torch.no_grad():
        other.model.model.norm.weight.add_(0.1)
    other = type(other)(other.model, other.tokenizer, "letters")
    train(tmp_path / "2", sums(16), base=other, from_=str(first.out), epochs=1, quiet=False)
    assert "was trained on a base with hash" in capfd.readouterr().err
