"""The training loop: one subject, from the first step to the last.

    for each optimizer step: the next examples of the seeded order, in micro-batches;
        the loss is the mean over the supervised tokens of the whole step; clip; AdamW; the schedule
    at the start and after every epoch: the loss on the validation data, and a checkpoint

Which examples share a step is decided by the seed alone. The loop knows a subject, encoded examples and
settings; what it measures it hands to a record, and it writes no file itself. The model stays in evaluation
mode: the dropout of the base itself would draw from a stream that the layout of a batch changes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin
from torch import Tensor

from scumble.compare.loss import loss_sum, mean_loss
from scumble.data.batches import Batch, collate
from scumble.data.encoding import Encoded
from scumble.errors import TrainingError
from scumble.lora.dropout import TokenMarks
from scumble.progress import Reporter
from scumble.train.memory import peak_bytes, start_peak
from scumble.train.schedule import factor
from scumble.train.settings import Settings
from scumble.train.subject import Subject


class Record(Protocol):
    """Where the loop leaves what it measures."""

    def metrics(self, row: dict[str, Any]) -> None:
        """Keep one row of figures."""

    def checkpoint(self, step: int, eval_loss: float | None) -> None:
        """Keep what is trained as it is after `step` steps."""


@dataclass
class Outcome:
    """What a run came to.

    Attributes:
        steps: optimizer steps made.
        tokens: of all examples seen, padding not counted.
        seconds: of training alone.
        losses: mean training loss of each step.
        evals: (step, loss) of each evaluation.
        peak_bytes: highest memory while training.
        stopped: why it ended early, in one line; None where it did not.
    """

    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)
    evals: list[tuple[int, float]] = field(default_factory=list)
    peak_bytes: int = 0
    stopped: str | None = None


@dataclass
class Trainer:
    """One subject in training."""

    subject: Subject
    examples: Sequence[Encoded]
    validation: Sequence[Encoded]
    settings: Settings
    record: Record
    reporter: Reporter

    def run(self) -> Outcome:
        """Train from the first step to the last.

        Returns:
            What it came to; `stopped` is set where Ctrl-C or a loss that is not finite ended it early.
        """
        self.outcome = Outcome()
        self.device = next(self.subject.model.parameters()).device
        self.kept = False
        # the base is on its device already, and frozen: Accelerate moves nothing and wraps the optimizer only.
        # --dtype alone decides on precision: no autocast and no scaler, whatever ACCELERATE_MIXED_PRECISION says
        self.accelerator = Accelerator(
            cpu=self.device.type == "cpu",
            mixed_precision="no",
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        )
        parameters = list(self.subject.parameters().values())
        self.optimizer = self.accelerator.prepare(
            torch.optim.AdamW(
                parameters, lr=self.settings.learning_rate, weight_decay=self.settings.weight_decay
            )
        )
        start_peak(self.device)
        interrupted = False
        try:
            with self.subject.using(), self.reporter.bar("training", self.settings.steps):
                self._steps(parameters)
        except KeyboardInterrupt:
            interrupted = True
            self.outcome.stopped = f"stopped by Ctrl-C after step {self.outcome.steps}"
        except TrainingError as error:
            self.outcome.stopped = error.message
        finally:
            self.subject.mark(None)
            self.outcome.peak_bytes = peak_bytes(self.device)
        # after a loss that is not finite what is trained is kept only where there is nothing better
        if (
            self.outcome.stopped
            and self.outcome.steps
            and (interrupted or not self.kept)
            and self.subject.sound()
        ):
            self.record.checkpoint(self.outcome.steps, None)
        return self.outcome

    def _steps(self, parameters: Sequence[Tensor]) -> None:
        self._evaluate(0)
        chunks = self._order()
        for step in range(self.settings.steps):
            started = time.perf_counter()
            batches = [collate(chunk).to(self.device) for chunk in next(chunks)]
            row = self._step(step, batches, parameters)
            seconds = time.perf_counter() - started
            self._note(step, batches, row, seconds)
            done = step + 1
            if done % self.settings.steps_per_epoch == 0 or done == self.settings.steps:
                self._evaluate(done)

    def _order(self) -> Iterator[list[list[Encoded]]]:
        """The micro-batches of each optimizer step: a new order each epoch, decided by the seed alone."""
        effective, micro = self.settings.effective, self.settings.batch
        epoch = 0
        while True:
            generator = torch.Generator().manual_seed((self.settings.seed * 1_000_003 + epoch) % 2**63)
            order: list[int] = torch.randperm(len(self.examples), generator=generator).tolist()
            for start in range(0, len(order), effective):
                # similar lengths share a micro-batch; which do changes the padding and nothing else
                step = sorted(
                    (self.examples[i] for i in order[start : start + effective]), key=lambda e: len(e.ids)
                )
                yield [step[i : i + micro] for i in range(0, len(step), micro)]
            epoch += 1

    def _step(self, step: int, batches: list[Batch], parameters: Sequence[Tensor]) -> dict[str, float]:
        """One optimizer step; nothing is changed where its loss or gradient is not finite."""
        targets = sum(batch.targets for batch in batches)
        total = 0.0
        for batch in batches:
            self.subject.mark(TokenMarks(batch.examples, batch.positions, step))
            loss = loss_sum(self.subject.model, batch) / targets
            self.accelerator.backward(loss)
            total += float(loss.detach())
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, self.settings.clip))
        if not math.isfinite(total) or not math.isfinite(norm):
            what = f"the loss is {total}" if not math.isfinite(total) else f"the gradient's norm is {norm}"
            self.optimizer.zero_grad(set_to_none=True)
            raise TrainingError(f"step {step + 1}: {what}", "lower --learning-rate, or use --dtype fp32")
        rate = self.settings.learning_rate * factor(
            step, self.settings.steps, self.settings.warmup, self.settings.schedule
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.subject.mark(None)
        return {"loss": total, "learning_rate": rate, "grad_norm": norm}

    def _note(self, step: int, batches: list[Batch], row: dict[str, float], seconds: float) -> None:
        outcome = self.outcome
        outcome.steps = step + 1
        outcome.tokens += sum(batch.tokens for batch in batches)
        outcome.seconds += seconds
        outcome.losses.append(row["loss"])
        epoch = round((step + 1) / self.settings.steps_per_epoch, 4)
        figures = {
            "step": step + 1,
            "epoch": epoch,
            **row,
            "tokens": outcome.tokens,
            "seconds": round(outcome.seconds, 3),
        }
        self.record.metrics(figures)
        speed = outcome.tokens / outcome.seconds
        self.reporter.advance(
            shown=f"loss {row['loss']:.3f}  rate {row['learning_rate']:.1e}  {speed:.0f} tokens/s"
        )

    def _evaluate(self, step: int) -> None:
        """The loss on the validation data, noted; a checkpoint for every step but the start."""
        loss: float | None = None
        if self.validation:
            loss = mean_loss(self.subject.model, self.validation, self.settings.batch, self.device)
            if not math.isfinite(loss):
                raise TrainingError(
                    f"step {step}: the loss on the validation data is {loss}", "lower --learning-rate"
                )
            self.outcome.evals.append((step, loss))
            epoch = round(step / self.settings.steps_per_epoch, 4)
            self.record.metrics({"step": step, "epoch": epoch, "eval_loss": loss})
            when = f"after step {step}" if step else "before training"
            self.reporter.note(f"validation loss {loss:.4f} {when}")
        if step:
            if not self.subject.sound():
                raise TrainingError(
                    f"step {step}: the {self.subject.title}'s numbers have grown beyond all bounds",
                    "lower --learning-rate",
                )
            self.record.checkpoint(step, loss)
            self.kept = True
