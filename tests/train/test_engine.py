"""The engine beside its gradients, which test_engine_exact.py holds against PEFT's: memory that runs out, what is said."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from scumble.errors import TrainingError
from scumble.progress import Reporter
from scumble.train import engine
from scumble.train.engine import Engine
from scumble.train.room import Need
from tests.bases import chat, encoded, make_letters_base, sums
from tests.train.trainers import bank_of, gradients, make_trainer


def make(batch: int, said: list[str], *, dropout: float = 0.0) -> tuple[Engine, Any]:
    trainer = make_trainer(make_letters_base(dtype=torch.float64), spread=0.3, dropout=dropout)
    reporter = Reporter(quiet=True)
    reporter.note = said.append  # type: ignore[method-assign]
    return Engine(trainer.subject, batch, repeat=0, reporter=reporter), trainer


def run_out_above(monkeypatch: pytest.MonkeyPatch, tokens: int) -> None:
    true = engine.loss_sum

    def loss(model: Any, batch: Any) -> torch.Tensor:
        if batch.computed > tokens:
            raise torch.OutOfMemoryError("on purpose")
        return true(model, batch)

    monkeypatch.setattr(engine, "loss_sum", loss)


def test_where_memory_runs_out_the_step_is_made_again_with_half_as_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    examples = encoded(sums(12))
    longest = max(len(e.ids) for e in examples)
    found = []
    for tokens in (10**6, 2 * longest):
        said: list[str] = []
        worker, trainer = make(12, said)
        with monkeypatch.context() as patch:
            run_out_above(patch, tokens)
            with trainer.subject.using(), worker.running(examples):
                found.append((worker.step(0, examples), gradients(bank_of(trainer))))
    assert worker.batch <= 3
    assert any("memory ran out" in each for each in said)
    assert found[1][0].loss == pytest.approx(found[0][0].loss, rel=1e-12)
    for key, wanted in found[0][1].items():
        assert (found[1][1][key] - wanted).norm() <= 1e-12 * wanted.norm()


def test_where_one_example_is_too_much_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    run_out_above(monkeypatch, 1)
    examples = encoded(sums(4))
    worker, trainer = make(4, [])
    with (
        pytest.raises(
            TrainingError, match=r"step 3: memory ran out with one example at once, .* of \d+ tokens"
        ),
        trainer.subject.using(),
        worker.running(examples),
    ):
        worker.step(2, examples)


def test_it_says_what_is_shared() -> None:
    alike = encoded(
        [chat(f"the same long beginning, {i}", "yes", system="a system prompt") for i in range(4)]
    )
    for examples, dropout, wanted in (
        (alike, 0.0, "computed once for several examples"),
        (alike, 0.1, "dropout differs between examples"),
        (alike[:1], 0.0, "share too little"),
    ):
        said: list[str] = []
        worker, trainer = make(4, said, dropout=dropout)
        with trainer.subject.using(), worker.running(examples):
            step = worker.step(0, examples)
        assert any(wanted in each for each in said), said
        assert step.tokens == sum(len(e.ids) for e in examples)
        assert (step.computed < step.tokens) == (examples is alike and not dropout)


def test_layers_are_computed_twice_only_where_memory_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    examples = encoded(sums(4))
    for repeat in (0, 1):
        monkeypatch.setattr(engine, "measure_need", lambda *args, n=repeat: Need(100, 10**9, 10**8, 2, n))
        said: list[str] = []
        worker, trainer = make(4, said)
        worker.repeat = None
        with trainer.subject.using(), worker.running(examples):
            assert worker.repeat == repeat
        assert any("1 of 2 layers are computed twice" in each for each in said) == bool(repeat)
