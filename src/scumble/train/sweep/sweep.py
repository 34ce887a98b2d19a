"""`sweep`: from a data set and options with several values each to a folder that says which are best, and what they cost.

Knows the order in which things happen; the parts are in the files beside it.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from scumble.config import TrainOptions
from scumble.errors import ConfigError, TrainingError
from scumble.files import refuse_existing, write_text
from scumble.models.base import Base
from scumble.progress import Reporter
from scumble.train.record import held, unused
from scumble.train.sweep.asked import DRAWN, Asked
from scumble.train.sweep.ground import SweepGround
from scumble.train.sweep.halving import shares, steps_at
from scumble.train.sweep.journal import BEST, Journal
from scumble.train.sweep.lines import Line
from scumble.train.sweep.live import LiveReporter
from scumble.train.sweep.page import render_sweep
from scumble.train.sweep.running import Running, late
from scumble.train.sweep.space import Combination
from scumble.train.sweep.table import result_table
from scumble.train.sweep.table import said as why
from scumble.train.sweep.tpe import Tpe
from scumble.train.sweep.trials import SweepTrial, trials_of

REPORT = "report.html"


@dataclass(frozen=True)
class Sweep:
    """What came of a sweep.

    Attributes:
        out: its folder.
        trials: each run, in the order of the plan.
        lines: each setting over its seeds, in the order of the plan.
        best: what `sweep.json` says of the best: `trial`, `settings`, `adapter`, `loss`, `metric`; None where no
            setting came to its end.
        metric: what `sweep.json` says of the metric; None where none is taken.
        complete: there is nothing left to do.
        left: trials that are not over, those that tpe has not drawn yet among them.
        report: the page.
    """

    out: Path
    trials: list[SweepTrial]
    lines: list[Line]
    best: dict[str, Any] | None
    metric: dict[str, Any] | None
    complete: bool
    left: int
    report: Path
    document: dict[str, Any]

    @property
    def adapter(self) -> Path | None:
        """The folder of the best adapter."""
        return self.out / BEST if self.best is not None else None

    def table(self) -> Table:
        """The settings, the best first."""
        best = next(
            (line.number for line in self.lines if self.best and self.best["trial"] in line.trials), None
        )
        return result_table(self.lines, list(self.document["space"]["axes"]), self.metric, best=best)

    def words(self) -> list[str]:
        """What is to be said below the table: who ended early and why, what is open, the best, and what can be done next."""
        said = [f"{line.trials[0]}: {note}" for line in self.lines if (note := why(line))]
        if not self.complete:
            many = self.left + sum(trial.over for trial in self.trials)
            said.append(f"not finished: {self.left} of {many} trials; go on with --resume")
        if self.best is not None:
            said.append(f"best adapter: {self.adapter}, of {self.best['trial']}")
        said.append(f"report: {self.report}")
        if self.best is not None:
            best = shlex.quote(str(self.out / BEST))
            said.append(f"next: scumble compare {best} --data FILE    or    scumble chat {best}")
        return said

    def to_dict(self) -> dict[str, Any]:
        """What `--json` prints: the content of `sweep.json`, and where things are."""
        adapter = str(self.adapter) if self.adapter else None
        return {"out": str(self.out), "adapter": adapter, "report": str(self.report), **self.document}


def sweep(
    data: Any,
    *,
    out: str | Path,
    base: Base | str | None = None,
    config: str | Path | None = None,
    force: bool = False,
    resume: bool = False,
    quiet: bool = False,
    **options: Any,
) -> Sweep:
    """Train many settings at once on one base, and say which is best.

    Args:
        data: as `scumble.train` takes it.
        out: folder of the sweep.
        base: as `scumble.train` takes it.
        config: a YAML file with options; those given here win over it.
        force: replace `out` where it exists.
        resume: go on with the sweep in `out` under the options that it was begun with, or start it where there is none;
            it comes to the same end as if it had never been cut off.
        quiet: say nothing on stderr.
        **options: the fields of `SweepOptions`, and those of `TrainOptions` with one value or a list of them each. A
            number may be a range such as `"1e-4..1e-2"` to draw from; `alpha` may be a multiple of the rank: `"2r"`.

    Returns:
        The sweep; `sweep.adapter` is the best adapter.

    Raises:
        ScumbleError: with one line on what is wrong, where, and what to do.
        TrainingError: somebody stopped it, and it can be gone on with; or no setting came to its end.
    """
    if resume and force:
        raise ConfigError("--resume and --force are both given", "go on with the sweep, or start over")
    folder = Path(out).expanduser()
    begun = resume and os.path.lexists(folder)
    asked = Asked.of(options, config, None if isinstance(base, Base) else base, whole=not begun)
    reporter, deadline = LiveReporter(quiet=quiet), late(asked.options.budget)
    given = base if isinstance(base, Base) else None
    with ExitStack() as stack:
        if begun:
            stack.enter_context(held(folder))  # before it is read what there is
            journal = Journal.opened(folder)
            asked.check_same(journal.asked, folder)
            if journal.complete and not journal.unmarked():
                reporter.note(f"the sweep in {folder} is finished")
                return _result(journal)
            tpe = _tpe(journal.asked)
            ground = SweepGround.of(data, journal.asked, given, reporter)
        else:
            fixed = asked.space.fixed
            reads = (data, config, *(fixed.get(name) for name in ("eval", "base", "template", "from_")))
            refuse_existing(folder, force=force, inputs=reads)
            tpe = _tpe(asked)
            ground = SweepGround.of(data, asked, given, reporter)
            with unused(folder):
                journal = Journal.begun(folder, asked, ground.facts(), _planned(asked, ground), force=force)
                stack.enter_context(held(folder))
        return _run(data, journal, ground, reporter, deadline, tpe)


def _run(
    data: Any,
    journal: Journal,
    ground: SweepGround,
    reporter: LiveReporter,
    deadline: float | None,
    tpe: Tpe | None,
) -> Sweep:
    """Train what is left, mark it, and write it down."""
    journal.check_ground(ground.facts())
    journal.clear()
    _announce(journal, reporter)
    _say_choices(journal, ground, reporter)
    with reporter.showing(journal):
        Running(data, journal, ground, reporter, deadline=deadline, tpe=tpe).run()
    journal.link_best()
    write_text(journal.folder / REPORT, render_sweep(journal))
    if not journal.complete:
        over = sum(trial.over for trial in journal.trials)
        reporter.note(
            f"the budget is spent: {over} of {over + journal.left} trials are over; go on with --resume"
        )
    return _result(journal)


def _tpe(asked: Asked) -> Tpe | None:
    """The search by results, where that is asked for."""
    return Tpe(asked.space, asked.options.trials or DRAWN) if asked.options.search == "tpe" else None


def _planned(asked: Asked, ground: SweepGround) -> list[SweepTrial]:
    """The trials of all settings that are known beforehand; all can be trained."""
    combinations = _combinations(asked)
    if asked.options.search == "tpe":
        ends = [{name: values[at] for name, values in _ends(asked).items()} for at in (0, -1)]
        ground.settled(ends, asked)  # what cannot be trained is better said before the first step
        return []
    trials = trials_of(combinations, asked.space, ground.settled(combinations, asked))
    if asked.options.halving:
        at = shares(len(combinations), asked.options.eta)
        for trial in trials:
            steps_at(trial.of, at, trial.name)
    return trials


def _combinations(asked: Asked) -> Sequence[Combination]:
    if asked.options.search == "grid":
        return list(asked.space.grid())
    return asked.space.random(asked.drawn) if asked.options.search == "random" else []


def _ends(asked: Asked) -> dict[str, Any]:
    """The first and the last value of each axis."""
    return {
        name: values if isinstance(values, tuple) else _whole(name, values.low, values.high)
        for name, values in asked.space.axes.items()
    }


def _whole(name: str, *values: float) -> tuple[float, ...]:
    whole = "int" in str(TrainOptions.model_fields[name].annotation)
    return tuple(int(value) if whole else value for value in values)


def _announce(journal: Journal, reporter: Reporter) -> None:
    """Say what will be trained."""
    ground, space, trials = journal.ground, journal.asked.space, journal.trials
    lines = len({trial.line for trial in trials})
    seeds = f", each with {len(space.seeds)} seeds" if len(space.seeds) > 1 else ""
    many = f"{lines} settings{seeds}" if trials else f"settings drawn by tpe{seeds}"
    axes = "; ".join(
        f"{name.replace('_', ' ')} {', '.join(map(str, axis)) if isinstance(axis, tuple) else axis}"
        for name, axis in space.axes.items()
    )
    reporter.note(
        f"base {ground['base']['name']}, data {ground['data']['source']}; {many}{axes and ': '}{axes}"
    )
    ranks = {trial.options.get("rank") for trial in trials}
    if len(ranks) > 1 and "alpha" not in space.axes and "alpha" not in space.fixed:
        reporter.note(
            "alpha is 16 for every rank, so that a larger rank is scaled by less; --alpha 2r is twice the rank"
        )
    if metric := ground["metric"]:
        decides = ", and decides" if metric["decides"] else ""
        reporter.note(
            f"{metric['name']} is taken over {metric['examples']} {metric['part']} examples{decides}"
        )
        if metric["decides"] and journal.asked.options.halving:
            reporter.note(
                f"halving ends trials by validation loss; {metric['name']} decides among those "
                "that come to their end"
            )
    if done := sum(trial.over for trial in trials):
        reporter.note(
            f"the sweep in {journal.folder} goes on: {done} of {done + journal.left} trials are over"
        )


def _say_choices(journal: Journal, ground: SweepGround, reporter: Reporter) -> None:
    """Say what was decided for the user, where it is the same for all trials, with the reason."""
    every = [set(ground.choices(trial)) for trial in journal.trials]
    for choice in ground.choices(journal.trials[0]) if every else []:
        if all(choice in choices for choices in every):
            reporter.note(f"{choice.option} = {choice.value}: {choice.reason}")


def _result(journal: Journal) -> Sweep:
    document = journal.to_dict()
    failed = [trial for trial in journal.trials if trial.state == "failed"]
    if journal.complete and document["best"] is None and failed:
        raise TrainingError(
            f"no setting came to its end: {len(failed)} of {len(journal.trials)} trials failed, "
            f"{failed[0].name} with: {failed[0].reason}",
            f"lower --learning-rate, or use --dtype fp32; all reasons are in {journal.folder / REPORT}",
        )
    return Sweep(
        out=journal.folder,
        trials=journal.trials,
        lines=journal.lines(),
        best=document["best"],
        metric=journal.ground["metric"],
        complete=journal.complete,
        left=journal.left,
        report=journal.folder / REPORT,
        document=document,
    )
