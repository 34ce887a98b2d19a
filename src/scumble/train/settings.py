"""What a run does in the end: the user's options, and for each that was left open a value with its reason.

Defaults are the lesson's where they hold, and adapt where they do not: an effective batch that leaves a
short run enough steps, a warm-up that ends within a tenth of the run, a learning rate by the base's width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from scumble.config import Choice, TrainOptions
from scumble.train.schedule import default_rate

EFFECTIVE = 16  # the lesson's effective batch
ENOUGH_STEPS = 300  # a run with fewer optimizer steps gets a smaller batch
SMALLEST = 4
MICRO = 8  # examples in a micro-step, where the effective batch allows
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

    @property
    def effective(self) -> int:
        """Examples in an optimizer step."""
        return self.batch * self.accumulate

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
        ]
        return {name: getattr(self, name) for name in names}


def settle(options: TrainOptions, examples: int, config: Any) -> Settings:
    """Settle what the user left open.

    Args:
        options: the user's.
        examples: in the training data.
        config: the base's configuration.
    """
    choices: list[Choice] = []
    batch, accumulate = _batch(options, examples, choices)
    per_epoch = math.ceil(examples / (batch * accumulate))
    steps = max(1, round(per_epoch * options.epochs))
    steps = min(steps, options.max_steps or steps)
    rate = options.learning_rate
    if rate is None:
        family = str(getattr(config, "model_type", "llama"))
        rate, reason = default_rate(int(getattr(config, "hidden_size", 2000)), family)
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
    )


def _batch(options: TrainOptions, examples: int, choices: list[Choice]) -> tuple[int, int]:
    """Examples in a micro-step, and micro-steps in an optimizer step."""
    if options.batch and options.accumulate:
        return options.batch, options.accumulate
    effective = EFFECTIVE
    while effective > SMALLEST and examples * options.epochs / effective < ENOUGH_STEPS:
        effective //= 2
    if options.batch:
        accumulate = max(1, effective // options.batch)
        reason = f"{options.batch * accumulate} examples in an optimizer step, for about {effective}"
        choices.append(Choice("accumulate", accumulate, reason))
        return options.batch, accumulate
    if options.accumulate:
        batch = max(1, effective // options.accumulate)
        reason = f"{batch * options.accumulate} examples in an optimizer step, for about {effective}"
        choices.append(Choice("batch", batch, reason))
        return batch, options.accumulate
    batch = min(MICRO, effective)
    reason = f"{effective} examples in an optimizer step"
    if effective < EFFECTIVE:
        reason += (
            f": with {EFFECTIVE} a run over {examples} examples would have fewer than {ENOUGH_STEPS} steps"
        )
    choices.append(Choice("batch", batch, reason))
    if effective > batch:
        choices.append(Choice("accumulate", effective // batch, reason))
    return batch, effective // batch


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
