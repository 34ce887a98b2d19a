"""`Line`: a setting of a sweep with all its seeds, which the table and the plots show as one; the best; the Pareto front.

Knows trials and their marks, and nothing of how they were made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from scumble.train.sweep.interval import interval
from scumble.train.sweep.trials import State, SweepTrial

_ORDER: tuple[State, ...] = ("failed", "waiting", "paused", "ended", "finished")


@dataclass(frozen=True)
class Line:
    """A setting, over its seeds.

    Attributes:
        number: from 0, in the order of the plan.
        settings: the seed not among them.
        trials: their names.
        state: that of the trial that is furthest from its end.
        steps, of: made by that trial, and of its whole run.
        loss: the mean of the trials' lowest validation losses; None where one has none.
        losses: of each trial.
        metric: the mean over seeds and examples.
        interval: of that, 95 %, over both.
        parameters, bytes, memory: of one trial.
        seconds: of training, of one trial on average.
        reason: why it ended early, or failed.
    """

    number: int
    settings: dict[str, Any]
    trials: tuple[str, ...]
    state: State
    steps: int
    of: int
    loss: float | None
    losses: tuple[float | None, ...]
    metric: float | None
    interval: tuple[float, float] | None
    parameters: int | None
    bytes: int | None
    memory: int | None
    seconds: float
    reason: str | None

    @classmethod
    def of_trials(cls, trials: Sequence[SweepTrial], marks: Mapping[str, Sequence[float]]) -> Line:
        """The trials of one line, in the order of their seeds; `marks` are those of the examples, by trial."""
        furthest = min(trials, key=lambda trial: _ORDER.index(trial.state))
        losses = [trial.loss for trial in trials]
        judged = [marks[trial.name] for trial in trials if trial.name in marks]
        whole = bool(judged) and len(judged) == len(trials)
        known = [loss for loss in losses if loss is not None]
        return cls(
            number=trials[0].line,
            settings={name: value for name, value in trials[0].settings.items() if name != "seed"},
            trials=tuple(trial.name for trial in trials),
            state=furthest.state,
            steps=furthest.steps,
            of=furthest.of,
            loss=fmean(known) if len(known) == len(losses) else None,
            losses=tuple(losses),
            metric=fmean(fmean(each) for each in judged) if whole else None,
            interval=interval(judged) if whole else None,
            parameters=furthest.parameters,
            bytes=furthest.bytes,
            memory=furthest.memory,
            seconds=fmean(trial.seconds for trial in trials),
            reason=furthest.reason,
        )

    def to_dict(self) -> dict[str, Any]:
        """What `sweep.json` holds of it."""
        found = asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}


def lines_of(trials: Sequence[SweepTrial], marks: Mapping[str, Sequence[float]]) -> list[Line]:
    """All lines, in the order of the plan."""
    by: dict[int, list[SweepTrial]] = {}
    for trial in trials:
        by.setdefault(trial.line, []).append(trial)
    return [Line.of_trials(by[number], marks) for number in sorted(by)]


def ranked(lines: Sequence[Line], *, by_metric: bool) -> list[Line]:
    """The best first: those that came to their end, then the others; of equals the smaller, then the one planned first."""

    def place(line: Line) -> tuple[Any, ...]:
        done = -_ORDER.index(line.state)
        loss = float("inf") if line.loss is None else line.loss
        metric = -line.metric if by_metric and line.metric is not None else 0.0
        return (done, metric, loss, line.parameters or 0, line.number)

    return sorted(lines, key=place)


def best_of(lines: Sequence[Line], *, by_metric: bool) -> Line | None:
    """The best of those that came to their end; None where none did."""
    first = next(iter(ranked(lines, by_metric=by_metric)), None)
    return first if first is not None and first.state == "finished" and first.loss is not None else None


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """The points that no other beats: of (cost, good), none is as cheap and better, or as good and cheaper.

    Returns:
        Their numbers, by rising cost; of points that are the same, the first.
    """
    order = sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1], i))
    front: list[int] = []
    for i in order:
        if not front or points[i][1] > points[front[-1]][1]:
            front.append(i)
    return front
