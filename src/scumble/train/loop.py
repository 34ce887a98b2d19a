"""The training loop: one lane or many on one frozen model, from the first step to the last, or on from a checkpoint.

    each round: of every lane one optimizer step: the next examples of its seeded order; their gradient, of the mean over
        the supervised tokens of that lane's step; clip; AdamW; its schedule
    then: the lanes whose settings say so are evaluated, and what they train is kept as a folder
    then, and in between: a state, from which a lane goes on bit for bit where it was

A lane that is over leaves, and the next one that waits takes its place. What lanes share is the model's time and
memory, and nothing that decides a result: see `company`. The loop writes no file itself. The model stays in evaluation
mode: the dropout of the base itself would draw from a stream that the layout of a batch changes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from scumble.data.encoding import Encoded
from scumble.errors import TrainingError
from scumble.progress import Reporter
from scumble.train.company import Company
from scumble.train.engine import Ask, StepLoss
from scumble.train.lane import Lane
from scumble.train.memory import peak_bytes, start_peak
from scumble.train.signals import heeded


class Trainer:
    """Lanes in training.

    Args:
        lanes: in the order in which they begin; each is asked for when there is room for it.
        reporter: shows the progress of all.
        resident: lanes that are trained at once, at most.
        together: lanes whose rows are computed at once; None: on a GPU as many as there is memory for, else one.
        over: told of each lane that ends, as it does.
        deadline: by `time.monotonic`, after which all lanes are paused where they are, and none begins.
        total: steps of all lanes, for the progress bar; None: those of the lanes that begin at once.

    Attributes:
        interrupted: somebody stopped it, and lanes that still wait were not begun.
    """

    def __init__(
        self,
        lanes: Iterable[Lane],
        reporter: Reporter,
        *,
        resident: int = 1,
        together: int | None = None,
        over: Callable[[Lane], None] = lambda lane: None,
        total: int | None = None,
        deadline: float | None = None,
    ) -> None:
        self._waiting, self.reporter, self._resident = iter(lanes), reporter, resident
        self._over, self._total, self._together, self._deadline = over, total, together, deadline
        self.live: list[Lane] = []
        self._company: Company | None = None
        self.interrupted = False

    def run(self) -> None:
        """Train every lane to its last step.

        Each lane's outcome has `stopped` set where a signal or a loss that is not finite broke it off.
        """
        with heeded(self.reporter.note) as self.stop:
            try:
                if self._fill():
                    self._train()
            except KeyboardInterrupt:
                self.interrupted = True
                self._break_off(self.live, None)

    @property
    def company(self) -> Company:
        """The lanes' engines; there is one once a lane has begun."""
        assert self._company is not None
        return self._company

    def _train(self) -> None:
        start_peak(self.live[0].device)
        total = self._total or sum(lane.settings.steps for lane in self.live)
        engines, seen = [lane.engine for lane in self.live], self._seen()
        with self.company.running(engines, seen), self.reporter.bar("training", total):
            self.reporter.advance(sum(lane.outcome.steps for lane in self.live))
            self._evaluate(self.live)
            while self.live:
                self._round()

    def _seen(self) -> list[Sequence[Encoded]]:
        """Of each lane, all examples that it will see."""
        return [[*lane.examples, *lane.validation] for lane in self.live]

    def _fill(self) -> list[Lane]:
        """Let waiting lanes begin while there is room; those that did."""
        begun: list[Lane] = []
        while len(self.live) < self._resident and not self._late:
            lane = next(self._waiting, None)
            if lane is None:
                break
            lane.open()
            if self._company is None:
                self._company = Company(lane.subject.model, self.reporter, together=self._together)
            self.live.append(lane)
            begun.append(lane)
        return begun

    @property
    def _late(self) -> bool:
        """Whether the time that there was is spent."""
        return self._deadline is not None and time.monotonic() > self._deadline

    def _round(self) -> None:
        """One step of every lane; the lanes that are over leave, and others come."""
        for lane in [lane for lane in self.live if lane.over()]:
            self._leave(lane)
        begun = self._fill()
        if begun:
            self.company.join([lane.engine for lane in begun])
            self._evaluate(begun)
        steppers, many = [lane for lane in self.live if not lane.over()], self.company.together
        for first in range(0, len(steppers), many):
            self.stop.heed()
            self._step(steppers[first : first + many])
        self.company.forget()
        self._evaluate([lane for lane in self.live if lane.outcome.steps])
        for lane in list(self.live):
            if self._late and not lane.over():
                self._guarded(lane, lane.pause)
            elif lane.evaluated < lane.outcome.steps and lane.should_save:
                self._guarded(lane, lane.save)

    def _step(self, lanes: Sequence[Lane]) -> None:
        """One optimizer step of lanes whose gradients are made at once."""
        asks = [Ask(lane.engine, lane.outcome.steps, lane.next_examples()) for lane in lanes]
        started = time.perf_counter()
        try:
            found = self.company.gradients(asks)
        except TrainingError as error:
            self._break_off(lanes, error)
            return
        each = (time.perf_counter() - started) / len(lanes)
        for lane, ask, one in zip(lanes, asks, found, strict=True):
            self._guarded(lane, partial(self._learn, lane, ask, one, each))

    def _learn(self, lane: Lane, ask: Ask, found: StepLoss, seconds: float) -> None:
        again = lambda: self.company.gradients([ask])[0]  # noqa: E731
        row = lane.learn(found, again, time.perf_counter() - seconds)
        speed = lane.outcome.tokens / lane.outcome.seconds
        shown = f"loss {row['loss']:.3f}  rate {row['learning_rate']:.1e}  {speed:.0f} tokens/s"
        self.reporter.advance(shown=shown)

    def _evaluate(self, lanes: Sequence[Lane]) -> None:
        """The loss on the validation data of those that are due."""
        due = [lane for lane in lanes if lane.due]
        known = [lane.outcome.rungs.get(lane.outcome.steps) for lane in due]
        asks = [(lane.engine, lane.validation) for lane, loss in zip(due, known, strict=True) if loss is None]
        losses: list[float | None] = [None] * len(asks)
        if any(validation for _, validation in asks):
            with self.stop.at_once():
                losses = self.company.losses(asks)
        found = iter(losses)
        for lane, loss in zip(due, known, strict=True):
            self._guarded(lane, partial(self._judge, lane, next(found) if loss is None else loss))

    def _judge(self, lane: Lane, loss: float | None) -> None:
        with self.stop.at_once():
            metric = lane.metric(loss)
        lane.judge(loss, metric)

    def _guarded(self, lane: Lane, work: Callable[[], None]) -> None:
        """Do something of one lane; where that goes wrong, the others go on."""
        try:
            work()
        except TrainingError as error:
            self._break_off([lane], error)

    def _break_off(self, lanes: Sequence[Lane], error: TrainingError | None) -> None:
        """End lanes before their last step: by an error of theirs, or since somebody asked."""
        for lane in list(lanes):
            title = self.stop.title or "Ctrl-C"
            stopped = f"stopped by {title} after step {lane.outcome.steps}"
            lane.outcome.stopped = stopped if error is None else error.message
            lane.keep_what_there_is(interrupted=error is None)
            self._leave(lane)

    def _leave(self, lane: Lane) -> None:
        lane.subject.mark(None)
        lane.outcome.peak_bytes = max(lane.outcome.peak_bytes, peak_bytes(lane.device))
        self.live.remove(lane)
        self.company.leave(lane.engine)
        self._over(lane)
