"""`train_many`: many adapters at once on one frozen base, each with options, data and a run folder of its own.

What comes out is what each would come to alone, and every folder is that of an ordinary run. The base is loaded once,
data that several trials share are read and encoded once, and as many adapters are trained at the same time as there is
memory for; the rest wait. A trial may be paused after a step and gone on with later.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from torch import nn

from scumble.errors import ConfigError, OutputError, TrainingError
from scumble.lora.adapter import Adapter
from scumble.lora.bank import Bank
from scumble.lora.fit import reached
from scumble.lora.layer import BankLayer
from scumble.lora.routing import Routing
from scumble.lora.spec import LoraSpec
from scumble.models.base import Base
from scumble.models.threads import with_threads
from scumble.progress import Reporter
from scumble.train.job import Begun, Ground, Job, Seen, ask_for
from scumble.train.lane import Lane
from scumble.train.loop import Trainer
from scumble.train.material import Material, read_material
from scumble.train.memory import free_bytes
from scumble.train.opening import beginning_of
from scumble.train.result import Run, finished_run
from scumble.train.settings import settle

BYTES_PER_NUMBER = (
    16  # bytes that a trained number takes: itself, its gradient, and AdamW's two moments, in fp32
)
_SHARE = 0.3  # of the free memory that those may take; the rest is for activations
_READ = ("eval", "format", "template", "train_on", "max_length")  # options that decide what is read
_ONE = ("method", "base", "dtype", "device")  # options that all trials have in common


@dataclass(frozen=True)
class Trial:
    """One adapter to train.

    Attributes:
        out: folder of its run.
        options: fields of `TrainOptions`.
        data: what it is trained on, where that is not what the others are.
        lora: a `LoraSpec` or `peft.LoraConfig` instead of rank, alpha, targets and so on.
        until: the step to pause after, with the loss it came to there; None: train to the last.
        end: where it has come to `until`, end it there for good, for this reason.
    """

    out: Path
    options: Mapping[str, Any] = field(default_factory=dict)
    data: Any = None
    lora: LoraSpec | Any | None = None
    until: int | None = None
    end: str | None = None


@dataclass(frozen=True)
class Trained:
    """What came of a trial.

    Attributes:
        trial: which.
        run: its run; None where it is paused, or broke off.
        steps: optimizer steps made.
        loss: the best on the validation data so far, where it is paused that at `until` among them; None where there
            was no evaluation.
        seconds: of training.
        failed: why it broke off and what to do, in one line; None where it did not.
    """

    trial: Trial
    run: Run | None
    steps: int
    loss: float | None
    seconds: float
    failed: str | None = None

    @property
    def paused(self) -> bool:
        """Whether it can be gone on with."""
        return self.run is None and self.failed is None


def train_many(
    data: Any,
    trials: Sequence[Trial],
    *,
    base: Base | str | None = None,
    force: bool = False,
    resume: bool = False,
    reporter: Reporter | None = None,
    ended: Callable[[int, Trained], None] = lambda number, trained: None,
    resident: int | None = None,
    together: int | None = None,
    deadline: float | None = None,
) -> list[Trained]:
    """Train many adapters at once.

    Args:
        data: as `train` takes it, for the trials that have none of their own.
        trials: at least one, of one base.
        base: as `train` takes it.
        force: replace folders that exist.
        resume: go on with those that were begun; what is finished is not made again.
        reporter: shows the progress of all; None: nothing is said.
        ended: told of each trial that is finished, paused or broken off, with its number, as it is.
        resident: adapters in training at once, at most; None: as many as there is memory for.
        together: adapters whose rows are computed at once; None: as `Trainer` has it.
        deadline: by `time.monotonic`, after which all are paused, and none is begun.

    Returns:
        What came of each, in the order given; those that were not begun are paused at step 0.

    Raises:
        ScumbleError: a trial cannot be trained as asked, before any folder is made; or the disk is full.
        TrainingError: somebody stopped it; what there is can be gone on with.
    """
    reporter = reporter or Reporter(quiet=True)
    jobs = [
        ask_for(
            data if trial.data is None else trial.data,
            trial.options,
            out=trial.out,
            base=base,
            lora=trial.lora,
            force=force,
            resume=resume and trial.out.exists(),
        )
        for trial in trials
    ]
    _check(jobs)
    many = _Many(trials, jobs, reporter, ended)
    waiting = [number for number, job in enumerate(jobs) if not many.finished(number, job)]
    if waiting:
        many.train(waiting, base, resident=resident, together=together, deadline=deadline)
    return many.results()


class _Many:
    """Trials under way: their jobs, and what came of them so far."""

    def __init__(
        self,
        trials: Sequence[Trial],
        jobs: Sequence[Job],
        reporter: Reporter,
        ended: Callable[[int, Trained], None],
    ) -> None:
        self.trials, self.jobs, self.reporter, self._ended = trials, jobs, reporter, ended
        self._found: dict[int, Trained] = {}
        self._begun: dict[int, tuple[int, Begun]] = {}  # by the lane's identity
        self._read: dict[Any, Material] = {}
        self._seen: dict[Any, Seen] = {}

    def finished(self, number: int, job: Job) -> bool:
        """Whether a trial came to its end before; then that is what came of it."""
        if job.earlier is None or not job.earlier.finished:
            return False
        run = finished_run(job.earlier)
        self._end(number, Trained(self.trials[number], run, run.steps, run.loss["best_eval"], run.seconds))
        return True

    def train(
        self,
        waiting: Sequence[int],
        base: Base | str | None,
        *,
        resident: int | None,
        together: int | None,
        deadline: float | None,
    ) -> None:
        """Train the trials of these numbers."""
        for number in waiting:
            self._material(number)  # what cannot be read is said before the base is loaded
        ground = Ground.of(self.jobs[waiting[0]], base)
        with with_threads(ground.threads.train), closing(Bank(ground.base)) as bank:
            steps = {number: self._check(number, ground, bank) for number in waiting}
            # of the base alone, before an adapter is beside it
            beginnings = {
                number: beginning_of(
                    self.jobs[number].shape, ground.base, self._see(number, ground).encoded.examples
                )
                for number in waiting
            }
            resident = resident or _room_for([self.jobs[number] for number in waiting], bank, ground)
            trainer = Trainer(
                self._lanes(beginnings, ground, bank),
                self.reporter,
                resident=resident,
                together=together,
                over=self._over,
                total=sum(steps.values()),
                deadline=deadline,
            )
            try:
                trainer.run()
            except OutputError as error:
                for _, begun in list(self._begun.values()):
                    begun.close()
                done = f"{sum(each.run is not None for each in self._found.values())} of {len(self.trials)}"
                raise OutputError(
                    f"{error.message}; {done} trials are finished", "make room, then go on with --resume"
                ) from error
        if trainer.interrupted:
            finished = sum(each.run is not None for each in self._found.values())
            title = trainer.stop.title or "Ctrl-C"
            raise TrainingError(
                f"stopped by {title}; {finished} of {len(self.trials)} trials are finished, and what the others "
                "came to is kept",
                "go on with --resume",
            )

    def results(self) -> list[Trained]:
        """Of every trial, in order."""
        return [
            self._found.get(number, Trained(trial, None, 0, None, 0.0))
            for number, trial in enumerate(self.trials)
        ]

    def _check(self, number: int, ground: Ground, bank: Bank) -> int:
        """Refuse a trial that cannot be trained, before anything is written; its steps."""
        job, seen = self.jobs[number], self._see(number, ground)
        assert job.shape.spec is not None
        reached(job.shape.spec, bank.modules, _head(ground))
        settings = settle(job.options, len(seen.encoded.examples), ground.base.model.config)
        until = self.trials[number].until
        return settings.steps if until is None else min(settings.steps, until)

    def _lanes(self, beginnings: Mapping[int, Adapter | None], ground: Ground, bank: Bank) -> Iterator[Lane]:
        quiet = Reporter(quiet=True)
        for number, beginning in beginnings.items():
            job, trial = self.jobs[number], self.trials[number]
            begun = job.begin(
                self._see(number, ground),
                ground,
                quiet,
                bank=bank,
                slot=f"trial{number}",
                beginning=beginning,
                examples_in_report=0,
                told=False,
            )
            begun.lane.until, begun.lane.ends = trial.until, trial.end is not None
            self._begun[id(begun.lane)] = (number, begun)
            yield begun.lane

    def _over(self, lane: Lane) -> None:
        """Write the result of a lane that ended, and let its memory go."""
        number, begun = self._begun.pop(id(lane))
        trial, outcome = self.trials[number], lane.outcome
        with closing(begun):
            last = outcome.steps >= lane.settings.steps or outcome.early is not None
            if trial.end and not last and not outcome.stopped:
                outcome.early, last = trial.end, True
            run, failed = None, None
            if last or outcome.stopped:
                try:
                    run = begun.finish()
                except TrainingError as error:
                    failed = str(error)
        if outcome.stopped and outcome.stopped.startswith("stopped by"):
            failed = None  # by somebody, who will go on with it
        losses = [loss for step, loss in outcome.evals if step]
        if run is None:
            losses += outcome.rungs.values()
        best = min(losses, default=None)
        self._end(number, Trained(trial, run, outcome.steps, best, outcome.seconds, failed))

    def _end(self, number: int, trained: Trained) -> None:
        self._found[number] = trained
        self._ended(number, trained)

    def _material(self, number: int) -> Material:
        job = self.jobs[number]
        key = self._key(job)
        if key not in self._read:
            self._read[key] = read_material(job.data, job.options)
        return self._read[key]

    def _see(self, number: int, ground: Ground) -> Seen:
        job = self.jobs[number]
        key = self._key(job)
        if key not in self._seen:
            self._seen[key] = Seen.of(self._material(number), job, ground, self.reporter)
        return self._seen[key]

    @staticmethod
    def _key(job: Job) -> tuple[Any, ...]:
        """What decides which examples a job sees."""
        source = str(job.data) if isinstance(job.data, str | Path) else id(job.data)
        return (source, *(getattr(job.options, name) for name in _READ))


def _check(jobs: Sequence[Job]) -> None:
    """Refuse trials that cannot be trained side by side."""
    folders = [job.folder.absolute() for job in jobs]
    twice = next((folder for number, folder in enumerate(folders) if folder in folders[:number]), None)
    if twice is not None:
        raise ConfigError(f"two trials would be written to {twice}", "give each a folder of its own")
    for name in _ONE:
        values = {getattr(job.options, name) for job in jobs}
        if len(values) > 1:
            raise ConfigError(
                f"{name} differs between trials: {', '.join(sorted(map(str, values)))}",
                "trials of one sweep share one base: make a sweep of each",
            )
    if any(job.options.method != "lora" for job in jobs):
        raise ConfigError(
            "--method full cannot be swept: each trial would need a base of its own",
            "train one after another",
        )


def _room_for(jobs: Sequence[Job], bank: Bank, ground: Ground) -> int:
    """How many adapters fit in memory at once, with their gradients and moments; one at least."""
    free = free_bytes(ground.base.device)
    if free is None:
        return len(jobs)
    sizes = sorted((BYTES_PER_NUMBER * _numbers(job, bank, ground) for job in jobs), reverse=True)
    fits, taken = 0, 0
    for size in sizes:
        taken += size
        if taken > _SHARE * free:
            break
        fits += 1
    return max(1, fits)


def _numbers(job: Job, bank: Bank, ground: Ground) -> int:
    """Numbers of A and B."""
    spec = job.shape.spec
    assert spec is not None
    paths = reached(spec, bank.modules, _head(ground))
    shapes = {path: BankLayer(bank.modules[path], path, Routing()).shape() for path in paths}
    return sum(spec.rank_of(path) * (out + width) for path, (out, width) in shapes.items())


def _head(ground: Ground) -> nn.Module | None:
    model: Any = ground.base.model
    return cast("nn.Module | None", model.get_output_embeddings())
