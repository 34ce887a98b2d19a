"""What a run does in the end: the user's options, and for each that was left open a value with its reason.

Defaults are the lesson's where they hold, and adapt where they do not: an effective batch that leaves a
short run enough steps, a warm-up that ends within a tenth of the run, a learning rate by the base's width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from scumble.config import Choice, TrainOptions
from scumble.plan.batch import settle_batch
from scumble.plan.rate import default_rate

_REPEATED = {"auto": None, "none": 0, "all": 10_000}  # layers that are computed twice, at most
WARMUP = 100  # the lesson's, cut to a tenth of the run


@dataclass(frozen=True)
class Settings:
    """What decides a run, all of it settled.

    Attributes:
        steps: optimizer steps.
        steps_per_epoch: of which one pass over the data takes so many.
        batch: examples in a micro-step.
        accumulate: micro-steps in an optimizer step.
        learning_rate: the highest.
        warmup: steps of it.
        eval_every: optimizer steps from one evaluation to the next; may be no whole number.
        patience: evaluations in a row without a better one, after which the run ends; None: never.
        keep_best: what the best checkpoint is chosen by: `loss`, or the name of a metric.
        repeat: layers that are computed again in the backward pass, to save memory; None: as memory asks for.
        optimizer, lora_plus, rates: see `scumble.train.optimizer`.
        save_every: steps from one state to go on from to the next; None: by time.
        choices: what was decided for the user, and why.
    """

    steps: int
    steps_per_epoch: int
    epochs: float
    batch: int
    accumulate: int
    learning_rate: float
    schedule: Literal["linear", "cosine", "constant"]
    warmup: int
    weight_decay: float
    clip: float
    seed: int
    choices: tuple[Choice, ...]
    eval_every: float = 0.0
    patience: int | None = None
    keep_best: str = "loss"
    save_every: int | None = None
    repeat: int | None = None
    optimizer: str = "adamw"
    lora_plus: float | None = None
    rates: Mapping[str, float] = field(default_factory=dict)

    @property
    def effective(self) -> int:
        """Examples in an optimizer step."""
        return self.batch * self.accumulate

    def evaluates(self, step: int) -> bool:
        """Whether there is an evaluation after `step` steps: at the start, at the end, and every so often."""
        every = self.eval_every or self.steps_per_epoch
        # a tenth of 30 steps is a little more than 3
        return step in (0, self.steps) or int(step / every + 1e-9) > int((step - 1) / every + 1e-9)

    def to_dict(self) -> dict[str, Any]:
        """What `run.json` holds of it."""
        names = [
            "steps",
            "epochs",
            "batch",
            "accumulate",
            "learning_rate",
            "schedule",
            "warmup",
            "weight_decay",
            "clip",
            "seed",
            "eval_every",
            "patience",
            "keep_best",
            "optimizer",
            "lora_plus",
            "rates",
        ]
        found = {name: getattr(self, name) for name in names}
        return {name: value for name, value in found.items() if value is not None}


def settle(options: TrainOptions, examples: int, config: Any) -> Settings:
    """Settle what the user left open.

    Args:
        options: the user's.
        examples: in the training data.
        config: the base's configuration.
    """
    batch, accumulate, choices = settle_batch(options, examples)
    per_epoch = math.ceil(examples / (batch * accumulate))
    steps = max(1, round(per_epoch * options.epochs))
    steps = min(steps, options.max_steps or steps)
    rate = options.learning_rate
    if rate is None:
        family = str(getattr(config, "model_type", "llama"))
        rate, reason = default_rate(int(getattr(config, "hidden_size", 2000)), family)
        if options.method == "full":
            rate, reason = rate / 10, f"a tenth of LoRA's {rate:g}, since every weight moves"
        choices.append(Choice("learning_rate", rate, reason))
    return Settings(
        steps=steps,
        steps_per_epoch=per_epoch,
        epochs=options.epochs,
        batch=batch,
        accumulate=accumulate,
        learning_rate=rate,
        schedule=options.schedule,
        warmup=_warmup(options, steps, choices),
        weight_decay=options.weight_decay,
        clip=options.clip,
        seed=options.seed,
        choices=tuple(choices),
        eval_every=_eval_every(options, per_epoch),
        patience=options.patience,
        keep_best=options.keep_best,
        save_every=options.save_every,
        repeat=_REPEATED.get(options.gradient_checkpointing),
        optimizer=options.optimizer,
        lora_plus=options.lora_plus,
        rates=options.rates,
    )


def _eval_every(options: TrainOptions, per_epoch: int) -> float:
    """Steps from one evaluation to the next; a number below 1 is a share of an epoch."""
    every = options.eval_every
    if every is None:
        return per_epoch
    return max(1.0, every * per_epoch) if every < 1 else every


def _warmup(options: TrainOptions, steps: int, choices: list[Choice]) -> int:
    most = steps // 10
    wanted = WARMUP if options.warmup is None else options.warmup
    if wanted > most:
        asked = f"{wanted} were asked for" if options.warmup is not None else f"{wanted} are usual"
        choices.append(
            Choice("warmup", most, f"{asked}, and a warm-up ends within a tenth of the run's {steps} steps")
        )
        return most
    return wanted
