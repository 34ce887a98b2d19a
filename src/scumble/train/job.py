"""`Job`: one run that is asked for, from its options to its folder, however many others are trained beside it.

    job = ask_for(data, options, out=...)        everything that needs neither data nor base is settled, or refused
    ground = Ground.of(job, base)                the base, loaded; one for all jobs
    seen = Seen.of(material, job, ground, ...)   the examples, checked and encoded; one for all jobs that see the same
    begun = job.begin(seen, ground, ...)         a lane for the loop, and its record
    run = begun.finish()                         the result, the report, and what came of it

Everything that can be wrong with the input is found before the folder is made: options, data, base, targets.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scumble.config import LoraOptions, TrainOptions, make
from scumble.data.encoding import EncodedSet
from scumble.errors import ConfigError, OutputError, TrainingError
from scumble.files import refuse_existing
from scumble.lora.adapter import Adapter
from scumble.lora.bank import Bank
from scumble.lora.spec import LoraSpec
from scumble.models.base import Base
from scumble.models.threads import ThreadChoice, threads_for
from scumble.options_file import read_yaml
from scumble.progress import Reporter
from scumble.train.facts import announce, run_facts
from scumble.train.judging import BeforeAndAfter, measure
from scumble.train.lane import Lane, Outcome
from scumble.train.material import Material, encode_material, tokenizer_for
from scumble.train.opening import SLOT, Shape, open_base, open_subject, shape_of
from scumble.train.optimizer import make_optimizer
from scumble.train.record import RunRecord
from scumble.train.result import Run, losses_of, write_report
from scumble.train.resume import Earlier, earlier_run
from scumble.train.settings import settle
from scumble.train.subject import Subject
from scumble.train.trackers import check_tracker, tracked


@dataclass(frozen=True)
class Job:
    """One run that is asked for.

    Attributes:
        data: to train on, as the user gave it.
        folder: of the run.
        shape: of what is trained, and all options.
        earlier: what the folder holds of it already; None where it starts.
        force: replace the folder.
    """

    data: Any
    folder: Path
    shape: Shape
    earlier: Earlier | None
    force: bool

    @property
    def options(self) -> TrainOptions:
        """All of them, those of an adapter that is gone on from among them."""
        return self.shape.options

    def begin(
        self,
        seen: Seen,
        ground: Ground,
        reporter: Reporter,
        *,
        bank: Bank | None = None,
        slot: str = SLOT,
        beginning: Adapter | None = None,
        examples_in_report: int = 5,
        told: bool = True,
    ) -> Begun:
        """Make what is trained, its record and its lane; to be closed.

        Args:
            seen: what it learns from and is judged by.
            ground: what it is made of.
            reporter: is told what is trained on what.
            bank: of the base, where others are trained beside it; None: a bank of its own.
            slot: its name there.
            beginning: what it begins as, where others are beside the base already.
            examples_in_report: validation examples answered before and after for the report.
            told: say what is trained on what.
        """
        options, base, examples = self.options, ground.base, seen.encoded.examples
        settings = settle(options, len(examples), base.model.config)
        tokenizer = tokenizer_for(base, options)
        with ExitStack() as stack:
            place: dict[str, Any] = {"bank": bank, "slot": slot, "beginning": beginning}
            how = {"own": ground.own, "examples": examples, **place}
            subject = open_subject(self.shape, base, tokenizer, reporter, **how)
            stack.callback(subject.close)
            make_optimizer(
                subject.parameters(), settings
            )  # what it refuses, it refuses before there is a folder
            material, data = seen.material, (seen.material, seen.encoded, seen.validation)
            facts = run_facts(options, settings, base, subject, ground.parameters, *data, ground.threads)
            facts |= self.shape.facts()
            if told:
                announce(reporter, facts)
                subject.announce(reporter, self.folder)
            shown = BeforeAndAfter(subject, base, tokenizer, material, examples_in_report, reporter)
            metric = measure(options, subject, tokenizer, material)
            record = self._record(subject, facts, reporter)
            stack.callback(record.close)
            kept = stack.enter_context(tracked(record, options, base.device, reporter))
            lane = Lane(
                subject, examples, seen.validation.examples, settings, kept, reporter, metric, record.state
            )
            return Begun(self, lane, record, shown, stack.pop_all())

    def _record(self, subject: Subject, facts: dict[str, Any], reporter: Reporter) -> RunRecord:
        """The record of a new run, or of an earlier one where that was cut off."""
        if self.earlier is None:
            return RunRecord.begun(self.folder, subject, facts, force=self.force)
        self.earlier.check(json.loads(json.dumps(facts, default=str)))
        for changed in self.earlier.changed_versions():
            reporter.warn(f"{changed}: the last digits may come out otherwise")
        record = RunRecord.resumed(self.folder, subject, self.earlier.facts, reporter.warn)
        threads = self.earlier.threads.train
        many = "1 thread" if threads == 1 else f"{threads} threads"
        where = (
            f"goes on after step {record.state['step']}"
            if record.state
            else "has no checkpoint yet, and starts"
        )
        reporter.note(f"the run in {self.folder} {where}, with {many} as it was begun")
        return record


@dataclass(frozen=True)
class Ground:
    """What runs are made of.

    Attributes:
        base: loaded.
        own: it was loaded for them, and nobody wants it back.
        parameters: of the base alone.
        threads: that training takes.
    """

    base: Base
    own: bool
    parameters: int
    threads: ThreadChoice

    @classmethod
    def of(cls, job: Job, base: Base | str | None) -> Ground:
        """The base that a job asks for, or the one given; before anything is beside it."""
        opened = open_base(base, job.shape, job.earlier)
        return cls(
            opened,
            opened is not base,
            sum(parameter.numel() for parameter in opened.model.parameters()),
            job.earlier.threads if job.earlier else threads_for(opened.model),
        )


@dataclass(frozen=True)
class Seen:
    """What a run learns from and is judged by.

    Attributes:
        material: the examples as they were read.
        encoded: those to learn from, as tokens.
        validation: those to be judged by.
    """

    material: Material
    encoded: EncodedSet
    validation: EncodedSet

    @classmethod
    def of(cls, material: Material, job: Job, ground: Ground, reporter: Reporter) -> Seen:
        """The tokens of what was read for a job."""
        return cls(material, *encode_material(material, ground.base, job.options, reporter))


@dataclass
class Begun:
    """A run under way.

    Attributes:
        job: what was asked for.
        lane: of the loop.
        record: what is written of it.
    """

    job: Job
    lane: Lane
    record: RunRecord
    _shown: BeforeAndAfter
    _open: ExitStack

    @property
    def command(self) -> str:
        """What goes on with it."""
        source, folder = str(self.record.facts["data"]["source"]), str(self.job.folder)
        return shlex.join(["scumble", "train", source, "--out", folder, "--resume"])

    def finish(self) -> Run:
        """Write the result and the report of a lane that came to its end.

        Raises:
            TrainingError: it broke off; with what is left of it.
            OutputError: the disk is full; likewise.
        """
        outcome, folder = self.lane.outcome, self.job.folder
        try:
            result = self._result(outcome)
        except OutputError as error:
            raise self.no_room(error) from error
        report = self._reported(result)
        self.record.over()
        told = (outcome.steps, outcome.tokens, outcome.seconds, losses_of(outcome), outcome.peak_bytes)
        return Run(folder, result, report, *told, self.record.best, outcome.early)

    def no_room(self, error: OutputError) -> OutputError:
        """The same error, with what of the run is there."""
        return OutputError(
            f"{error.message}; {self.record.kept}", f"make room, then go on with: {self.command}"
        )

    def close(self) -> None:
        """Give the base back, and let other processes write to the folder."""
        self._open.close()

    def _result(self, outcome: Outcome) -> Path:
        """Write the result; where the run was stopped, say so with what is left of it."""
        result = {
            "steps": outcome.steps,
            "tokens": outcome.tokens,
            "seconds": outcome.seconds,
            "tokens_per_second": outcome.tokens / outcome.seconds if outcome.seconds else 0.0,
            "loss": losses_of(outcome),
            "peak_bytes": outcome.peak_bytes,
            "early": outcome.early,
            "stopped": outcome.stopped,
        }
        found = self.record.finish(result)
        if outcome.stopped or found is None:
            write_report(self.record.folder, None)
            raise TrainingError(
                f"{outcome.stopped or 'nothing was trained'}; {self.record.kept}",
                self._advice(outcome.stopped),
            )
        return found

    def _advice(self, stopped: str | None) -> str:
        if stopped and stopped.startswith("stopped by"):
            return f"go on with: {self.command}"
        return "lower --learning-rate, or use --dtype fp32"

    def _reported(self, result: Path) -> Path:
        """The report, with the examples answered by what was kept."""
        folder = self.job.folder
        try:
            comparison = self._shown.compare(result)
        except KeyboardInterrupt:
            write_report(folder, None)
            raise TrainingError(
                f"stopped by Ctrl-C after the last step; the {result.name} is kept as {result}",
                f"only the examples of its report are missing: scumble compare {folder} --data FILE",
            ) from None
        return write_report(folder, comparison.to_dict() | {"metric": None} if comparison else None)


def ask_for(
    data: Any,
    options: Mapping[str, Any],
    *,
    out: str | Path | None,
    base: Base | str | None = None,
    lora: LoraSpec | Any | None = None,
    config: str | Path | None = None,
    force: bool = False,
    resume: bool = False,
) -> Job:
    """Settle all of a run that needs neither its data nor its base.

    Args:
        options: fields of `TrainOptions`; None is as if not given.
        others: as `train` takes them.

    Raises:
        ConfigError: an option is not known or has no such value, or two of them contradict each other.
        OutputExistsError: the folder exists.
    """
    given = _settled(config, options, base, lora)
    if resume and force:
        raise ConfigError("--resume and --force are both given", "go on with the run, or start over")
    earlier = earlier_run(out, given) if resume else None
    if earlier is not None and earlier.finished:
        return Job(data, earlier.folder, Shape(None, None, earlier.options), earlier, force)
    shape = shape_of(earlier.options if earlier else given, lora, earlier)
    settled = shape.options
    reads = (data, config, settled.eval, settled.base, settled.template, settled.from_)
    if earlier is not None:
        folder = earlier.folder
    else:
        folder = refuse_existing(out, force=force, inputs=reads) if out is not None else _numbered(data)
    check_tracker(settled.track)
    return Job(data, folder, shape, earlier, force)


def _settled(
    config: str | Path | None, options: Mapping[str, Any], base: Base | str | None, lora: Any
) -> TrainOptions:
    """The user's options: those given over those of the file, and none that something else would overrule."""
    given = {name: value for name, value in options.items() if value is not None}
    name = base.name if isinstance(base, Base) else base
    named = {"base": name} if name or isinstance(base, str) else {}
    settled = make(TrainOptions, **{**(read_yaml(config, TrainOptions) if config else {}), **given, **named})
    twice = sorted(settled.model_fields_set & set(LoraOptions.model_fields))
    if lora is not None and twice:
        raise ConfigError(
            f"{', '.join(twice)} and lora are both given", "lora says all of it: give one of them"
        )
    return settled


def _numbered(data: Any) -> Path:
    """The first free `runs/NAME-001`, named after the data."""
    stem = re.sub(r"[^A-Za-z0-9_.-]+", "-", Path(data).stem) if isinstance(data, str | Path) else "run"
    number = 1
    while (folder := Path("runs") / f"{stem}-{number:03d}").exists():
        number += 1
    return folder
