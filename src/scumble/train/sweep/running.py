"""`Running`: the trials of a sweep trained, all at once, rung by rung, or round by round; then marked.

    grid, random   all settings are planned, and trained at once
    halving        the same, to one rung after the other; who does not go on is ended with its reason
    tpe            a round is planned by what came of those before, and trained at once

Whatever is written down is not done again, and what is decided by results is decided by those that are written down:
so a sweep that was killed goes on to the same end. Knows `train_many`, and nothing of how a step is computed.
"""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from statistics import fmean
from typing import Any

from scumble.errors import ConfigError, TrainingError
from scumble.lora.bank import Bank
from scumble.models.threads import threads_for, with_threads
from scumble.progress import Reporter
from scumble.train.many import BYTES_PER_NUMBER, Trained, Trial, train_many
from scumble.train.sweep.ground import SweepGround
from scumble.train.sweep.halving import going_on, reason, shares, steps_at
from scumble.train.sweep.journal import SCORE, Journal
from scumble.train.sweep.tpe import Tpe
from scumble.train.sweep.trials import State, trials_of

_HALVED = "halving: "


class Running:
    """A sweep under way.

    Args:
        data: to train on, as the user gave it.
        journal: of it.
        ground: what its trials share.
        reporter: shows the progress.
        deadline: by `time.monotonic`, after which all are paused.
        tpe: the search, where results decide on settings.
    """

    def __init__(
        self,
        data: Any,
        journal: Journal,
        ground: SweepGround,
        reporter: Reporter,
        *,
        deadline: float | None,
        tpe: Tpe | None,
    ) -> None:
        self.data, self.journal, self.ground, self.reporter = data, journal, ground, reporter
        self.deadline, self.tpe = deadline, tpe

    def run(self) -> None:
        """Train what there is to be trained, mark it, and write it down.

        Raises:
            TrainingError: somebody stopped it; what there is can be gone on with.
        """
        if self.tpe is not None:
            self._search(self.tpe)
        elif self.journal.asked.options.halving:
            self._halve()
        else:
            self._train(range(len(self.journal.trials)))
        try:
            self._score()
        except KeyboardInterrupt:
            done = "all that was trained is kept; only the metric of some is missing"
            raise TrainingError(
                f"stopped by Ctrl-C while answers were marked; {done}", self._command()
            ) from None
        self.journal.complete = self.tpe_over() and all(trial.over for trial in self.journal.trials)
        self.journal.write()

    def tpe_over(self) -> bool:
        """Whether no further setting would be drawn."""
        return self.tpe is None or self.tpe.left == 0

    # -- ways through the settings -----------------------------------------------------------------

    def _search(self, tpe: Tpe) -> None:
        trials, many = self.journal.trials, len(self.journal.asked.space.seeds)
        first = 0
        while combinations := tpe.ask():
            known = {trial.line for trial in trials}
            last = first + len(combinations)
            if first not in known:
                settled = self.ground.settled(combinations, self.journal.asked)
                trials += trials_of(combinations, self.journal.asked.space, settled, first=first)
                self.journal.write()
            self._check_proposed(combinations, first)
            if not self._train(range(first * many, last * many)):
                tpe.left = 1  # at least
                return
            if self.journal.by_metric:
                self._score()
            tpe.tell(self._results(range(first, last)), combinations)
            first = last

    def _check_proposed(self, combinations: Sequence[Mapping[str, Any]], first: int) -> None:
        """Optuna asks again for what it asked for when the sweep was begun; another version of it may not."""
        for line, combination in enumerate(combinations, start=first):
            trial = next(trial for trial in self.journal.trials if trial.line == line)
            if any(trial.options[name] != value for name, value in combination.items() if name != "alpha"):
                raise ConfigError(
                    f"optuna proposes other settings than trial {trial.name} was begun with",
                    "install the version it was begun with, or start over with --force",
                )

    def _results(self, lines: Sequence[int]) -> dict[int, float | None]:
        """Of each line, from 0, what should be low; None where it failed."""
        found: dict[int, float | None] = {}
        known = self.journal.lines()
        for place, number in enumerate(lines):
            line = known[number]
            value = line.loss
            if self.journal.by_metric:
                value = None if line.metric is None else -line.metric
            found[place] = value if line.state == "finished" else None
        return found

    def _halve(self) -> None:
        trials, rungs, eta = self.journal.trials, self.journal.rungs, self.journal.asked.options.eta
        at = shares(len({trial.line for trial in trials}), eta)
        steps = [steps_at(trial.of, at, trial.name) for trial in trials]
        live = sorted({trial.line for trial in trials})
        for rung, share in enumerate(at[:-1]):
            if rung < len(rungs):
                live = rungs[rung]["kept"]
                continue
            numbers = [number for number, trial in enumerate(trials) if trial.line in live]
            if not self._train(numbers, until={number: steps[number][rung] for number in numbers}):
                return
            losses = {line: self._loss(line) for line in live}
            kept = going_on(losses, eta)
            named = {str(line): loss for line, loss in losses.items()}
            rungs.append({"share": share, "losses": named, "kept": kept})
            self.journal.write()
            self._end_losers(steps, rung, losses, kept)
            live = kept
        for rung, decided in enumerate(rungs):
            known = {int(line): loss for line, loss in decided["losses"].items()}
            self._end_losers(steps, rung, known, decided["kept"])
        self._train([number for number, trial in enumerate(trials) if trial.line in live])

    def _end_losers(
        self,
        steps: Sequence[Sequence[int]],
        rung: int,
        losses: Mapping[int, float | None],
        kept: Sequence[int],
    ) -> None:
        """End those that came to a rung and do not go on, for good; each has its result, and why it has no better one."""
        judged = sorted((loss, line) for line, loss in losses.items() if loss is not None)
        places = {line: place for place, (_, line) in enumerate(judged, start=1)}
        ends = {}
        for number, trial in enumerate(self.journal.trials):
            if trial.line not in losses or trial.line in kept or trial.over:
                continue
            loss = losses[trial.line]
            ends[number] = (
                _HALVED + "another seed of it failed"
                if loss is None
                else reason(steps[number][rung], loss, places[trial.line], len(judged), len(kept))
            )
        self._train(list(ends), until={number: steps[number][rung] for number in ends}, ends=ends)

    def _loss(self, line: int) -> float | None:
        """The mean over its seeds; None where one failed."""
        trials = [trial for trial in self.journal.trials if trial.line == line]
        losses = [trial.loss for trial in trials if trial.loss is not None and trial.state != "failed"]
        return fmean(losses) if len(losses) == len(trials) else None

    # -- training and marking ----------------------------------------------------------------------

    def _train(
        self,
        numbers: Sequence[int],
        *,
        until: Mapping[int, int] | None = None,
        ends: Mapping[int, str] | None = None,
    ) -> bool:
        """Train trials to a step, or to their end; whether all came there."""
        goals, ends = until or {}, ends or {}
        waiting = [number for number in numbers if not self.journal.trials[number].over]
        if not waiting:
            return True
        trials = [
            Trial(
                out=self.journal.place(trial := self.journal.trials[number]),
                options={name: value for name, value in trial.options.items() if name != "base"},
                until=goals.get(number),
                end=ends.get(number),
            )
            for number in waiting
        ]
        try:
            found = train_many(
                self.data,
                trials,
                base=self.ground.base,
                resume=True,
                # to end what has come there is no work to show
                reporter=Reporter(quiet=True) if ends else self.reporter,
                ended=lambda place, trained: self._ended(waiting[place], trained),
                deadline=None if ends else self.deadline,
            )
        except TrainingError as error:
            # of all trials, and not of those alone that were trained now
            stopped, over = error.message.partition("; ")[0], sum(trial.over for trial in self.journal.trials)
            many = f"{over} of {over + self.journal.left} trials are over"
            raise TrainingError(
                f"{stopped}; {many}, and what the others came to is kept", self._command()
            ) from error
        return all(
            not trained.paused or (number in goals and trained.steps >= goals[number])
            for number, trained in zip(waiting, found, strict=True)
        )

    def _ended(self, number: int, trained: Trained) -> None:
        """Write down what came of a trial."""
        trial = self.journal.trials[number]
        facts = json.loads((self.journal.place(trial) / "run.json").read_text(encoding="utf-8"))
        parameters = facts["adapter"]["parameters"]
        state, why = _state(trained, facts)
        self.journal.trials[number] = trial.with_(
            state=state,
            steps=trained.steps,
            loss=trained.loss,
            parameters=parameters,
            memory=BYTES_PER_NUMBER * parameters,
            bytes=facts["adapter"]["bytes"] if trained.run is not None else None,
            seconds=round(trained.seconds, 3),
            reason=why,
        )
        peak = (facts.get("result") or {}).get("peak_bytes") or 0
        self.journal.times["peak_bytes"] = max(peak, self.journal.times["peak_bytes"] or 0)
        self.journal.write()

    def _score(self) -> None:
        """Mark the answers of every trial that has an adapter and no marks yet."""
        scoring, trials = self.ground.scoring, self.journal.trials
        if scoring is None:
            return
        waiting = self.journal.unmarked()
        for trial in waiting:
            if (path := self.journal.place(trial) / SCORE).exists():
                self.reporter.warn(f"{path} does not hold this sweep's marks: the answers are marked anew")
        base = self.ground.base
        if waiting:
            total = len(waiting) * len(scoring.examples)
            with (
                with_threads(threads_for(base.model).train),
                closing(Bank(base)) as bank,
                self.reporter.bar(scoring.name, total),
            ):
                for trial in waiting:
                    bank.add("trial", self.journal.place(trial) / "adapter")
                    marks = self.ground.marks(bank, "trial", self.reporter.advance)
                    bank.remove("trial")
                    self.journal.keep_marks(trial, marks)
        known = self.journal.marks()
        for number, trial in enumerate(trials):
            if trial.name in known:
                trials[number] = trial.with_(metric=fmean(known[trial.name]))
        self.journal.write()

    def _command(self) -> str:
        folder = str(self.journal.folder)
        if not isinstance(self.data, str | Path):
            return f"go on with: sweep(..., out={folder!r}, resume=True)"
        return f"go on with: {shlex.join(['scumble', 'sweep', str(self.data), '--out', folder, '--resume'])}"


def _state(trained: Trained, facts: Mapping[str, Any]) -> tuple[State, str | None]:
    """What has become of a trial, and why it ended before its last step."""
    if trained.failed is not None:
        return "failed", str(facts["result"]["stopped"])
    if trained.run is None:
        return "paused", None
    early = trained.run.early
    return ("ended" if early and early.startswith(_HALVED) else "finished"), early


def late(budget: float | None) -> float | None:
    """When a budget of seconds is spent, by `time.monotonic`."""
    return None if budget is None else time.monotonic() + budget
