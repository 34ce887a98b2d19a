"""`Lane`: one subject in training, a step at a time, and all that is its own.

Its examples and their order, its optimizer, schedule and clipping, its loss scale, its evaluations and when they are
good enough, its record. Which other lanes are trained beside it, it does not know: nothing here is shared. The gradient
of a step is made by whoever makes those of all lanes. Nothing here draws random numbers from a stream that would have
to be put back.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin

from scumble.data.encoding import Encoded
from scumble.data.order import order_of
from scumble.errors import TrainingError
from scumble.progress import Reporter
from scumble.train.best import Best
from scumble.train.engine import Engine, StepLoss
from scumble.train.memory import peak_bytes
from scumble.train.optimizer import make_optimizer, set_rates
from scumble.train.scaling import LossScale
from scumble.train.schedule import factor
from scumble.train.settings import Settings
from scumble.train.subject import Subject

SAVE_SECONDS = 60.0  # of training that a kill may cost, where nobody said how often a state is written
SAVE_SHARE = 0.02  # of the time that writing states may take


class Record(Protocol):
    """Where a lane leaves what it measures."""

    def metrics(self, row: dict[str, Any]) -> None:
        """Keep one row of figures."""

    def keep(self, step: int, *, best: bool) -> None:
        """Keep what is trained as it is after `step` steps, and as the best so far."""

    def save(self, state: dict[str, Any]) -> None:
        """Keep what the run needs to go on from here."""


@dataclass
class Outcome:
    """What a run came to.

    Attributes:
        steps: optimizer steps made.
        tokens: of all examples seen, padding not counted.
        seconds: of training alone.
        losses: mean training loss of each step.
        evals: (step, loss) of each evaluation.
        rungs: by step, the loss on the validation data that was asked for from outside, which decides nothing here.
        peak_bytes: highest memory while training.
        early: why it ended before its last step as it should, in one line; None where it did not.
        stopped: why it broke off, in one line; None where it did not.
    """

    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)
    evals: list[tuple[int, float]] = field(default_factory=list)
    rungs: dict[int, float] = field(default_factory=dict)
    peak_bytes: int = 0
    early: str | None = None
    stopped: str | None = None


@dataclass
class Lane:
    """One subject in training.

    Attributes:
        measure: the metric that the best checkpoint is chosen by, of the subject as it is; None: the loss.
        state: what `Record.save` was given, with the `rows` noted up to then; None: from the start.
        until: the step to pause after, with the loss that it came to there; None: train to the last.
        ends: what is `until` is its last step.
        outcome: what it came to so far.
    """

    subject: Subject
    examples: Sequence[Encoded]
    validation: Sequence[Encoded]
    settings: Settings
    record: Record
    reporter: Reporter
    measure: Callable[[], float] | None = None
    state: Mapping[str, Any] | None = None
    until: int | None = None
    ends: bool = False
    outcome: Outcome = field(default_factory=Outcome)

    def open(self) -> None:
        """Make its optimizer and engine, and where there is a state, go back to it."""
        self.best = Best(self.measure is not None)
        self.device = next(self.subject.model.parameters()).device
        self.evaluated = -1  # the last step after which there was an evaluation
        self.paused = False  # whatever step it is at
        self.half = False  # an optimizer step is under way, and has changed some of the numbers
        self.saved, self.saving = (
            time.monotonic(),
            0.0,
        )  # when a state was written last, and how long that took
        # the base is on its device already: Accelerate moves nothing and wraps the optimizer only.
        # --dtype alone decides on precision: no autocast and no scaler, whatever ACCELERATE_MIXED_PRECISION says
        accelerator = Accelerator(
            cpu=self.device.type == "cpu",
            mixed_precision="no",
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        )
        self.parameters = self.subject.parameters()
        self.engine = Engine(
            self.subject, self.settings.batch, repeat=self.settings.repeat, reporter=self.reporter
        )
        self.scale = LossScale.of(self.subject.model, self.reporter)
        self.engine.scale = self.scale.value
        self.optimizer = accelerator.prepare(make_optimizer(self.parameters, self.settings))
        if self.state is not None:
            self._restore(self.state)
        self._steps = self._order(self.outcome.steps)

    def over(self) -> bool:
        """Whether there is no further step to make: the last was made, or enough evaluations were no better."""
        outcome = self.outcome
        last = self.settings.steps if self.until is None else min(self.settings.steps, self.until)
        if outcome.stopped or self.paused or outcome.steps >= last:
            return True
        patience = self.settings.patience
        if not patience or self.best.stale < patience:
            return False
        many = "the evaluation" if patience == 1 else f"{patience} evaluations"
        outcome.early = f"{many} after step {self.best.step} were no better"
        return True

    # -- a step ------------------------------------------------------------------------------------

    def next_examples(self) -> list[Encoded]:
        """Those of the next optimizer step."""
        return next(self._steps)

    def _order(self, start: int) -> Iterator[list[Encoded]]:
        """The examples of each optimizer step from `start` on: a new order each epoch, decided by the seed alone."""
        effective = self.settings.effective
        epoch, skipped = divmod(start, math.ceil(len(self.examples) / effective))
        while True:
            order = order_of(len(self.examples), self.settings.seed, epoch)
            for first in range(skipped * effective, len(order), effective):
                yield [self.examples[i] for i in order[first : first + effective]]
            epoch, skipped = epoch + 1, 0

    def learn(self, found: StepLoss, again: Callable[[], StepLoss], started: float) -> dict[str, float]:
        """One optimizer step by the gradient that is there, noted.

        Args:
            found: what the gradient was made with, under the scale that the engine had.
            again: makes the gradient anew, under the scale that the engine has by then (fp16 that overflowed).
            started: when the step was begun, by `time.perf_counter`.

        Raises:
            TrainingError: the loss or the gradient is not finite; nothing was changed.
        """
        first = [found]

        def scaled(scale: float) -> StepLoss:
            if first:
                return first.pop()
            self.engine.scale = scale
            return again()

        found = self.scale.step(scaled, self.parameters.values())
        self.engine.scale = self.scale.value
        row = self._step(self.outcome.steps, found)
        self._note(found, row, time.perf_counter() - started)
        return row

    def _step(self, step: int, found: StepLoss) -> dict[str, float]:
        """One optimizer step by the gradient that is there; nothing is changed where it or the loss is not finite."""
        total = found.loss
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.settings.clip))
        if not math.isfinite(total) or not math.isfinite(norm):
            what = f"the loss is {total}" if not math.isfinite(total) else f"the gradient's norm is {norm}"
            self.optimizer.zero_grad(set_to_none=True)
            raise TrainingError(f"step {step + 1}: {what}", "lower --learning-rate, or use --dtype fp32")
        share = factor(step, self.settings.steps, self.settings.warmup, self.settings.schedule)
        set_rates(self.optimizer, share)
        self.half = True
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        rate = self.settings.learning_rate * share
        return {"loss": total, "learning_rate": rate, "grad_norm": norm}

    def _note(self, found: StepLoss, row: dict[str, float], seconds: float) -> None:
        outcome = self.outcome
        outcome.steps += 1
        outcome.tokens += found.tokens
        outcome.seconds += seconds
        outcome.losses.append(row["loss"])
        figures = {
            "step": outcome.steps,
            "epoch": self._epoch(),
            **row,
            "tokens": outcome.tokens,
            "seconds": round(outcome.seconds, 3),
        }
        self.record.metrics(figures)
        self.half = False

    def _epoch(self) -> float:
        return round(self.outcome.steps / self.settings.steps_per_epoch, 4)

    # -- evaluating and keeping --------------------------------------------------------------------

    @property
    def due(self) -> bool:
        """Whether there should be an evaluation now."""
        return self.evaluated < self.outcome.steps and (self._of_its_own or self._at_rung)

    @property
    def _of_its_own(self) -> bool:
        """Whether it would be evaluated now if nobody paused it; the last step of one that ends here is such a one."""
        steps = self.outcome.steps
        return self.settings.evaluates(steps) or (self.ends and steps == self.until)

    @property
    def _at_rung(self) -> bool:
        return self.outcome.steps == self.until and self.until not in self.outcome.rungs

    def metric(self, loss: float | None) -> float | None:
        """The metric of the subject as it is; None where none decides, or there is no use in answering."""
        if self.measure is None or loss is None or not math.isfinite(loss) or not self._of_its_own:
            return None
        with self.subject.using():
            return self.measure()

    def judge(self, loss: float | None, metric: float | None) -> None:
        """Note an evaluation; after every step but the start, what is trained is kept.

        Where it is due from outside alone, the loss and a state are kept and nothing else: a run that is paused comes to
        what it would have come to without.

        Args:
            loss: on the validation data; None where there are none.
            metric: likewise, where one decides.

        Raises:
            TrainingError: the loss, or what is trained, is not finite.
        """
        step = self.outcome.steps
        row: dict[str, Any] = {"step": step, "epoch": self._epoch()}
        if not self._of_its_own:
            if loss is not None:
                self.record.metrics(row | {"rung_loss": self._finite(step, loss)})
                self.outcome.rungs[step] = loss
            self.save()
            return
        if loss is not None:
            row |= self._judged(step, loss, metric)
            self.outcome.evals.append((step, row["eval_loss"]))
            self.record.metrics(row)
        self.evaluated = step
        if step == 0:
            return
        if not self.subject.sound():
            raise TrainingError(
                f"step {step}: the {self.subject.title}'s numbers have grown beyond all bounds",
                "lower --learning-rate",
            )
        better = self.best.see(step, row.get("eval_metric", row.get("eval_loss")))
        self.record.keep(step, best=better)
        self.save()

    def _judged(self, step: int, loss: float, metric: float | None) -> dict[str, float]:
        """The loss on the validation data, and the metric where one decides."""
        found = {"eval_loss": self._finite(step, loss)}
        said = f"validation loss {loss:.4f}"
        if metric is not None:
            found["eval_metric"] = metric
            said += f", {self.settings.keep_best} {metric:.4f}"
        self.reporter.note(f"{said} after step {step}" if step else f"{said} before training")
        return found

    def _finite(self, step: int, loss: float) -> float:
        if not math.isfinite(loss):
            raise TrainingError(
                f"step {step}: the loss on the validation data is {loss}", "lower --learning-rate"
            )
        return loss

    def pause(self) -> None:
        """Make no further step now; what it has come to is kept, so that it can be gone on with."""
        self.paused = True
        if self.outcome.steps and not self.outcome.stopped:
            self.save()

    @property
    def should_save(self) -> bool:
        """Whether so much was done since the last state that another one should be written."""
        if self.settings.save_every:
            return self.outcome.steps % self.settings.save_every == 0
        return time.monotonic() - self.saved > max(SAVE_SECONDS, self.saving / SAVE_SHARE)

    def save(self) -> None:
        """Write down all that decides how the lane goes on."""
        started = time.monotonic()
        self.record.save(
            {
                "step": self.outcome.steps,
                "evaluated": self.evaluated,
                "tokens": self.outcome.tokens,
                "seconds": self.outcome.seconds,
                "peak_bytes": max(self.outcome.peak_bytes, peak_bytes(self.device)),
                "best": self.best.to_dict(),
                # how a step is laid out changes the last digits
                "layout": {"batch": self.engine.batch, "repeat": self.engine.repeat},
                "scale": self.scale.to_dict(),
                "parameters": dict(self.parameters),
                "optimizer": self.optimizer.state_dict(),
            }
        )
        self.saved = time.monotonic()
        self.saving = self.saved - started

    def _restore(self, state: Mapping[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(state["parameters"][name])
        self.scale.restore(state["scale"])
        self.engine.scale = self.scale.value
        self.best, self.evaluated = Best(**state["best"]), state["evaluated"]
        self.engine.batch, self.engine.repeat = state["layout"]["batch"], state["layout"]["repeat"]
        self.outcome = Outcome(
            steps=state["step"],
            tokens=state["tokens"],
            seconds=state["seconds"],
            losses=[row["loss"] for row in state["rows"] if "loss" in row],
            evals=[(row["step"], row["eval_loss"]) for row in state["rows"] if "eval_loss" in row],
            rungs={row["step"]: row["rung_loss"] for row in state["rows"] if "rung_loss" in row},
            peak_bytes=state["peak_bytes"],
        )

    def keep_what_there_is(self, *, interrupted: bool) -> None:
        """Keep a run that broke off: as a folder, and where its last step is whole, to go on from."""
        # after a loss that is not finite what is trained is kept only where there is nothing better
        if not self.outcome.steps or not (interrupted or self.best.step is None) or not self.subject.sound():
            return
        if self.best.step is None:
            self.best.step = self.outcome.steps
        self.record.keep(self.outcome.steps, best=self.best.step == self.outcome.steps)
        if not self.half:
            self.save()
