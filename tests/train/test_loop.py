"""The loop: gradients against PEFT's, whatever the layout; what is evaluated and kept; how it stops."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from scumble.compare import loss as losses
from scumble.train import engine
from tests.bases import encoded, make_letters_base, sums
from tests.compare.test_loss import padded
from tests.train.trainers import SLOT, Memory, bank_of, make_trainer, only_gradients, parameters


def far(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    """The largest difference of any tensor, relative to its largest number."""
    assert found.keys() == wanted.keys()
    assert all(tensor.abs().max() > 0 for tensor in wanted.values())
    return max(float((found[k] - wanted[k]).abs().max() / wanted[k].abs().max()) for k in wanted)


def sixteen(batch: int, accumulate: int, dropout: float, **changed: Any) -> dict[str, Tensor]:
    trainer = make_trainer(
        make_letters_base(dtype=torch.float64), encoded(sums(16)), [], dropout=dropout, spread=0.3, steps=1,
        batch=batch, accumulate=accumulate, **changed,
    )  # fmt: skip
    return only_gradients(trainer)


# fp64: only the order of sums differs
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_accumulation_changes_no_gradient(dropout: float) -> None:
    whole = sixteen(16, 1, dropout)
    for batch, accumulate in ((4, 4), (1, 16), (5, 4)):
        assert far(sixteen(batch, accumulate, dropout), whole) < 1e-10
    if dropout:
        assert far(sixteen(16, 1, 0.0), whole) > 1e-2
        assert far(sixteen(16, 1, dropout, seed=1), whole) > 1e-2


def test_gradients_are_those_of_peft(tmp_path: Path) -> None:
    base = make_letters_base(dtype=torch.float64)
    plain = copy.deepcopy(base.model)
    examples = encoded(sums(16))
    trainer = make_trainer(base, examples, [], spread=0.3, steps=1, batch=4, accumulate=4)
    bank_of(trainer).save(SLOT, tmp_path / "adapter")
    found = only_gradients(trainer)
    model = PeftModel.from_pretrained(plain, tmp_path / "adapter", is_trainable=True)
    model.double().eval()
    model(**padded(examples)).loss.backward()
    wanted = {
        name.replace(".default", ""): p.grad for name, p in model.named_parameters() if p.grad is not None
    }
    # PEFT is handed all 16 on the right of their padding; its loss is widened to fp32 only
    assert far(found, wanted) < 1e-5


def test_a_step_is_that_of_adamw() -> None:
    trainer = make_trainer(
        None, encoded(sums(4)), [], spread=0.3, steps=1, steps_per_epoch=1, weight_decay=0.1
    )
    before = parameters(bank_of(trainer))
    caught = only_gradients(trainer)
    for key, value in before.items():
        by_hand = value.clone().requires_grad_()
        by_hand.grad = caught[key]
        decay = 0.0 if "lora_B" in key else 0.1
        torch.optim.AdamW([by_hand], lr=1e-2, weight_decay=decay).step()
        assert torch.equal(by_hand.detach(), parameters(bank_of(trainer))[key])


def test_the_gradient_is_clipped_and_its_norm_noted() -> None:
    free, clipped = make_trainer(steps=1), make_trainer(steps=1, clip=0.01)
    norms = []
    for trainer in (free, clipped):
        caught = only_gradients(trainer)
        norms.append(float(torch.cat([g.flatten() for g in caught.values()]).norm()))
    assert norms[1] == pytest.approx(0.01, rel=1e-4)
    for trainer in (free, clipped):
        assert trainer.record.column("grad_norm")[0] == pytest.approx(norms[0], rel=1e-4)  # type: ignore[attr-defined]


def test_only_the_adapter_learns() -> None:
    trainer = make_trainer(steps=30)
    base = {k: v.clone() for k, v in bank_of(trainer).model.state_dict().items() if ".slots." not in k}
    trainer.run()
    after = bank_of(trainer).model.state_dict()
    assert all(torch.equal(v, after[k]) for k, v in base.items())
    seen = trainer.outcome.losses
    assert sum(seen[-3:]) < 0.9 * sum(seen[:3])


def test_it_evaluates_at_the_start_after_every_epoch_and_at_the_end() -> None:
    trainer = make_trainer(steps=8)
    outcome = trainer.run()
    memory: Memory = trainer.record  # type: ignore[assignment]
    assert [step for step, _ in outcome.evals] == [0, 3, 6, 8]
    assert [(row["step"], row["eval_loss"]) for row in memory.rows if "eval_loss" in row] == outcome.evals
    assert [step for step, _, _ in memory.kept] == [step for step, _ in outcome.evals[1:]]
    measured = [loss for _, loss in outcome.evals[1:]]
    assert [best for _, best, _ in memory.kept] == [
        loss == min(measured[: i + 1]) for i, loss in enumerate(measured)
    ]
    assert [row["step"] for row in memory.rows] == [0, 1, 2, 3, 3, 4, 5, 6, 6, 7, 8, 8]
    assert memory.column("epoch")[-1] == pytest.approx(8 / 3, abs=1e-3)
    # the figures are those of the adapter at that step
    with bank_of(trainer).using(SLOT):
        last = losses.mean_loss(bank_of(trainer).model, trainer.validation, 2, torch.device("cpu"))
    assert last == pytest.approx(outcome.evals[-1][1], rel=1e-5)
    assert outcome.evals[0][1] != outcome.evals[-1][1]
    assert outcome.stopped is None


def test_every_example_is_seen_once_an_epoch_in_an_order_of_its_own() -> None:
    def order(seed: int, batch: int = 4, accumulate: int = 1) -> list[list[int]]:
        trainer = make_trainer(seed=seed, batch=batch, accumulate=accumulate)
        chunks = trainer._order(0)
        return [sorted(e.number for e in next(chunks)) for _ in range(6)]

    first = order(0)
    for epoch in (first[:3], first[3:]):
        assert sorted(n for step in epoch for n in step) == list(range(12))
    assert first[:3] != first[3:]
    assert order(0) == first
    assert order(0, 1, 4) == order(0, 2, 2) == first
    assert order(1) != first
    assert order(2**63 + 5) != first  # a big seed is one like any other


def test_tokens_are_counted_without_padding() -> None:
    trainer = make_trainer()
    outcome = trainer.run()
    assert outcome.tokens == 2 * sum(len(e.ids) for e in trainer.examples)
    assert outcome.steps == 6
    assert outcome.seconds > 0
    assert outcome.peak_bytes > 0
    assert outcome.losses == trainer.record.column("loss")  # type: ignore[attr-defined]


def break_loss(monkeypatch: pytest.MonkeyPatch, at: int, what: Any) -> None:
    """Let the loss of the `at`-th micro-batch be something else, or raise it."""
    true, count = losses.loss_sum, 0

    def broken(model: Any, batch: Any) -> Tensor:
        nonlocal count
        count += 1
        if count == at and isinstance(what, BaseException):
            raise what
        return true(model, batch) * (what if count >= at and isinstance(what, float) else 1.0)

    monkeypatch.setattr(engine, "loss_sum", broken)


@pytest.mark.parametrize("what", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_at_its_step(monkeypatch: pytest.MonkeyPatch, what: float) -> None:
    break_loss(monkeypatch, 5, what)
    trainer = make_trainer()
    outcome = trainer.run()
    memory: Memory = trainer.record  # type: ignore[assignment]
    assert outcome.stopped is not None
    assert outcome.stopped.startswith(f"step 5: the loss is {what}")
    assert outcome.steps == 4
    assert [step for step, _, _ in memory.kept] == [3]
    # the step that failed changed nothing
    assert all(bool(torch.isfinite(p).all()) for p in parameters(bank_of(trainer)).values())
    assert bank_of(trainer).routing.marks is None
    assert all(p.grad is None for p in bank_of(trainer).parameters(SLOT).values())


def test_where_there_is_no_checkpoint_yet_the_last_finite_adapter_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    break_loss(monkeypatch, 2, float("nan"))
    trainer = make_trainer()
    assert trainer.run().stopped
    assert [(step, best) for step, best, _ in trainer.record.kept] == [(1, True)]  # type: ignore[attr-defined]


def test_without_validation_a_bad_loss_does_not_replace_the_last_good_checkpoint(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    break_loss(monkeypatch, 5, float("nan"))
    trainer = make_trainer(validation=[])
    assert trainer.run().stopped
    assert [step for step, _, _ in trainer.record.kept] == [3]  # type: ignore[attr-defined]


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 1e9])
def test_an_adapter_that_could_not_be_loaded_is_never_kept(value: float) -> None:
    """Without validation data nothing else would notice, and what is written could not be read again."""
    trainer = make_trainer(validation=[])
    tensor = next(iter(bank_of(trainer).parameters(SLOT).values()))

    def overflow(optimizer: Any, args: Any, kwargs: Any) -> None:
        if trainer.outcome.steps == 2:  # after the third step, where an epoch ends
            tensor.data.fill_(value)

    handle = register_optimizer_step_post_hook(overflow)
    outcome = trainer.run()
    handle.remove()
    assert outcome.stopped == "step 3: the adapter's numbers have grown beyond all bounds"
    assert trainer.record.kept == []  # type: ignore[attr-defined]


def test_a_gradient_that_is_not_finite_stops_too(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer(spread=0.3)
    tensor = next(iter(bank_of(trainer).parameters(SLOT).values()))
    tensor.register_hook(lambda gradient: gradient * float("inf"))
    outcome = trainer.run()
    assert outcome.stopped is not None
    assert "step 1: the gradient's norm is" in outcome.stopped


def test_ctrl_c_keeps_the_adapter_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    break_loss(monkeypatch, 6, KeyboardInterrupt())
    trainer = make_trainer()
    outcome = trainer.run()
    assert outcome.stopped == "stopped by Ctrl-C after step 5"
    memory: Memory = trainer.record  # type: ignore[assignment]
    assert [(step, best) for step, best, _ in memory.kept] == [(3, True), (5, False)]
    assert [state["step"] for state in memory.states] == [3, 5]
    assert all(torch.equal(memory.kept[-1][2][k], v) for k, v in parameters(bank_of(trainer)).items())


def test_ctrl_c_before_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    break_loss(monkeypatch, 1, KeyboardInterrupt())
    trainer = make_trainer()
    assert trainer.run().stopped == "stopped by Ctrl-C after step 0"
    assert trainer.record.kept == []  # type: ignore[attr-defined]
