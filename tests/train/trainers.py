"""A trainer on a bank of one trainable slot, with a record in memory."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

from scumble.data.encoding import Encoded
from scumble.lora.bank import Bank
from scumble.lora.spec import LoraSpec
from scumble.models.base import Base
from scumble.progress import Reporter
from scumble.train.lane import Lane, Outcome
from scumble.train.loop import Trainer
from scumble.train.settings import Settings
from scumble.train.subject import AdapterSubject
from tests.bases import encoded, make_letters_base, sums

SLOT = "trained"


@dataclass
class Memory:
    """What the loop hands over: rows, (step, whether the best, parameters) of what is kept, and states."""

    bank: Bank
    rows: list[dict[str, Any]] = field(default_factory=list)
    kept: list[tuple[int, bool, dict[str, Tensor]]] = field(default_factory=list)
    states: list[dict[str, Any]] = field(default_factory=list)

    def metrics(self, row: dict[str, Any]) -> None:
        self.rows.append(row)

    def keep(self, step: int, *, best: bool) -> None:
        self.kept.append((step, best, parameters(self.bank)))

    def save(self, state: dict[str, Any]) -> None:
        self.states.append(copy.deepcopy({**state, "rows": self.rows}))

    def column(self, name: str) -> list[Any]:
        return [row[name] for row in self.rows if name in row]


class Alone(Lane):
    """A lane that is trained alone."""

    def run(self) -> Outcome:
        Trainer([self], self.reporter).run()
        return self.outcome


def parameters(bank: Bank) -> dict[str, Tensor]:
    return {key: tensor.detach().clone() for key, tensor in bank.parameters(SLOT).items()}


def gradients(bank: Bank) -> dict[str, Tensor]:
    return {key: tensor.grad.clone() for key, tensor in bank.parameters(SLOT).items()}  # type: ignore[union-attr]


def settings(**changed: Any) -> Settings:
    plain: dict[str, Any] = {
        "steps": 6, "steps_per_epoch": 3, "epochs": 2.0, "batch": 4, "accumulate": 1, "learning_rate": 1e-2,
        "schedule": "constant", "warmup": 0, "weight_decay": 0.0, "clip": 1e9, "seed": 0, "choices": (),
    }  # fmt: skip
    return Settings(**{**plain, **changed})


def make_trainer(
    base: Base | None = None,
    examples: list[Encoded] | None = None,
    validation: list[Encoded] | None = None,
    *,
    dropout: float = 0.0,
    spread: float = 0.0,
    **changed: Any,
) -> Alone:
    """A trainer; with `spread`, B is not zero, so that A has gradients too."""
    bank = Bank(base or make_letters_base())
    bank.trainable(SLOT, LoraSpec(rank=4, alpha=8.0, dropout=dropout), seed=changed.get("seed", 0))
    if spread:
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for key, tensor in bank.parameters(SLOT).items():
                if "lora_B" in key:
                    tensor.copy_(torch.randn(tensor.shape, generator=generator) * spread)
    return Alone(
        AdapterSubject(bank, SLOT),
        encoded(sums(12)) if examples is None else examples,
        encoded(sums(3, start=50)) if validation is None else validation,
        settings(**changed),
        Memory(bank),
        Reporter(quiet=True),
    )


def bank_of(trainer: Lane) -> Bank:
    """The bank whose slot is trained."""
    assert isinstance(trainer.subject, AdapterSubject)
    return trainer.subject.bank


def only_gradients(trainer: Alone) -> dict[str, Tensor]:
    """The gradients of the first step of a run, caught when the optimizer would use them."""
    caught: dict[str, Tensor] = {}

    def catch(optimizer: Any, args: Any, kwargs: Any) -> None:
        if not caught:
            caught.update(gradients(bank_of(trainer)))

    handle = register_optimizer_step_pre_hook(catch)
    try:
        trainer.run()
    finally:
        handle.remove()
    return caught
