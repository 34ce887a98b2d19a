"""`train`: from a data set and options to a run folder.

Everything that can be wrong with the input is found before the folder is made: options, data, base, targets.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from scumble.config import LoraOptions, TrainOptions, make, read_yaml
from scumble.errors import ConfigError, NotSupportedError, OutputError, TrainingError
from scumble.files import refuse_existing, write_text
from scumble.lora.spec import LoraSpec
from scumble.models.base import Base
from scumble.models.threads import threads_for, with_threads
from scumble.progress import Reporter
from scumble.train.facts import announce, run_facts
from scumble.train.judging import BeforeAndAfter, measure
from scumble.train.loop import Outcome, Trainer
from scumble.train.material import encode_material, read_material, tokenizer_for
from scumble.train.opening import open_base, open_subject, shape_of
from scumble.train.optimizer import make_optimizer
from scumble.train.record import RunRecord
from scumble.train.report import render_report
from scumble.train.resume import Earlier, earlier_run
from scumble.train.settings import settle
from scumble.train.subject import Subject
from scumble.train.trackers import check_tracker, tracked


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        out: its folder.
        result: the folder of the best checkpoint: an adapter in the PEFT format, or a model of transformers.
        report: `report.html`.
        steps: optimizer steps made.
        tokens: of all examples seen, padding not counted.
        seconds: of training alone.
        loss: `first` and `last` training loss, and `best_eval`.
        peak_bytes: highest memory while training.
        best_step: after which the result is how the subject was.
        early: why it ended before its last step; None where it did not.
    """

    out: Path
    result: Path
    report: Path
    steps: int
    tokens: int
    seconds: float
    loss: dict[str, float | None]
    peak_bytes: int
    best_step: int | None = None
    early: str | None = None

    @property
    def model(self) -> Path | None:
        """The model folder where all weights were trained; None where an adapter was."""
        return self.result if self.result.name == "model" else None

    @property
    def adapter(self) -> Path:
        """The adapter's folder.

        Raises:
            NotSupportedError: all weights were trained, and there is none.
        """
        if self.model is not None:
            raise NotSupportedError(
                f"the run in {self.out} trained all weights and has no adapter",
                f"use its model: {self.result}",
            )
        return self.result

    @property
    def tokens_per_second(self) -> float:
        """Tokens seen for each second of training."""
        return self.tokens / self.seconds if self.seconds else 0.0

    def to_dict(self) -> dict[str, Any]:
        """What `--json` prints."""
        return {
            "out": str(self.out),
            "adapter": None if self.model else str(self.result),
            "model": str(self.result) if self.model else None,
            "report": str(self.report),
            **{
                name: getattr(self, name)
                for name in (
                    "steps",
                    "tokens",
                    "seconds",
                    "tokens_per_second",
                    "loss",
                    "peak_bytes",
                    "best_step",
                    "early",
                )
            },
        }


def train(
    data: Any,
    *,
    out: str | Path | None = None,
    base: Base | str | None = None,
    lora: LoraSpec | Any | None = None,
    config: str | Path | None = None,
    force: bool = False,
    resume: bool = False,
    quiet: bool = False,
    examples_in_report: int = 5,
    **options: Any,
) -> Run:
    """Train one adapter, or with `method="full"` all weights of the base.

    Args:
        data: a path, a shipped set's name, a list of examples, or a `datasets.Dataset`.
        out: folder of the run; a new numbered one under `runs/` where not told.
        base: a `Base`, or what `load_base` takes; by default the embedded one.
        lora: a `LoraSpec` or a `peft.LoraConfig`, instead of rank, alpha, targets and so on.
        config: a YAML file with options; those given here win over it.
        force: replace `out` where it exists.
        resume: go on with the run in `out` under the options that it was begun with, or start it where there is
            none; it ends in the same adapter as if it had never been cut off.
        quiet: say nothing on stderr.
        examples_in_report: validation examples answered before and after for the report.
        **options: the fields of `TrainOptions`.

    Returns:
        The run; `run.adapter` (with `method="full"` `run.model`) is the best checkpoint by validation loss, or by
        `keep_best`.

    Raises:
        ScumbleError: with one line on what is wrong, where, and what to do.
    """
    reporter = Reporter(quiet=quiet)
    given = _settled(config, options, base, lora)
    if resume and force:
        raise ConfigError("--resume and --force are both given", "go on with the run, or start over")
    earlier = earlier_run(out, given) if resume else None
    if earlier is not None and earlier.finished:
        reporter.note(f"the run in {earlier.folder} is finished")
        return _finished(earlier)
    shape = shape_of(earlier.options if earlier else given, lora, earlier)
    settled = shape.options
    reads = (data, config, settled.eval, settled.base, settled.template, settled.from_)
    if earlier is not None:
        folder = earlier.folder
    else:
        folder = refuse_existing(out, force=force, inputs=reads) if out is not None else _numbered(data)
    check_tracker(settled.track)
    material = read_material(data, settled)
    opened = open_base(base, shape, earlier)
    encoded, validation = encode_material(material, opened, settled, reporter)
    threads = earlier.threads if earlier else threads_for(opened.model)
    settings = settle(settled, len(encoded.examples), opened.model.config)
    tokenizer, own = tokenizer_for(opened, settled), opened is not base
    count = sum(parameter.numel() for parameter in opened.model.parameters())
    begun = open_subject(shape, opened, tokenizer, reporter, own=own, examples=encoded.examples)
    with with_threads(threads.train), closing(begun) as subject:
        make_optimizer(subject.parameters(), settings)  # what it refuses, it refuses before there is a folder
        facts = run_facts(settled, settings, opened, subject, count, material, encoded, validation, threads)
        facts |= shape.facts()
        announce(reporter, facts)
        subject.announce(reporter, folder)
        shown = BeforeAndAfter(subject, opened, tokenizer, material, examples_in_report, reporter)
        trainer = partial(
            Trainer,
            subject,
            encoded.examples,
            validation.examples,
            settings,
            reporter=reporter,
            measure=measure(settled, subject, tokenizer, material),
        )
        record = _record(folder, subject, facts, earlier, reporter, force=force)
        with closing(record), tracked(record, settled, opened.device, reporter) as kept:
            command = f"scumble train {material.source} --out {folder} --resume"
            outcome, result = _trained(trainer(record=kept, state=record.state), record, command)
            report = _reported(shown, result, folder)
            record.over()
    told = (outcome.steps, outcome.tokens, outcome.seconds, _losses(outcome), outcome.peak_bytes)
    return Run(folder, result, report, *told, record.best, outcome.early)


def _record(
    folder: Path,
    subject: Subject,
    facts: dict[str, Any],
    earlier: Earlier | None,
    reporter: Reporter,
    *,
    force: bool,
) -> RunRecord:
    """The record of a new run, or of an earlier one where that was cut off."""
    if earlier is None:
        return RunRecord.begun(folder, subject, facts, force=force)
    earlier.check(json.loads(json.dumps(facts, default=str)))
    for changed in earlier.changed_versions():
        reporter.warn(f"{changed}: the last digits may come out otherwise")
    record = RunRecord.resumed(folder, subject, earlier.facts, reporter.warn)
    threads = earlier.threads.train
    many = "1 thread" if threads == 1 else f"{threads} threads"
    where = (
        f"goes on after step {record.state['step']}" if record.state else "has no checkpoint yet, and starts"
    )
    reporter.note(f"the run in {folder} {where}, with {many} as it was begun")
    return record


def _finished(earlier: Earlier) -> Run:
    """A run that came to its end, from what it wrote down."""
    found, folder = earlier.facts["result"], earlier.folder
    result = folder / ("model" if earlier.options.method == "full" else "adapter")
    figures = (
        found.get(name) for name in ("steps", "tokens", "seconds", "loss", "peak_bytes", "best_step", "early")
    )
    return Run(folder, result, folder / "report.html", *figures)


def write_report(folder: Path, comparison: Mapping[str, Any] | None) -> Path:
    """Write `report.html` of a finished run from its files, with a comparison where there is one."""
    run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return write_text(folder / "report.html", render_report(run, rows, comparison))


def bytes_of(folder: Path) -> int:
    """The size of an adapter's weights on disk."""
    return (folder / "adapter_model.safetensors").stat().st_size


def _settled(
    config: str | Path | None, options: Mapping[str, Any], base: Base | str | None, lora: Any
) -> TrainOptions:
    """The user's options: those given over those of the file, and none that something else would overrule."""
    given = {name: value for name, value in options.items() if value is not None}
    name = base.name if isinstance(base, Base) else base
    named = {"base": name} if name or isinstance(base, str) else {}
    settled = make(TrainOptions, **{**(read_yaml(config) if config else {}), **given, **named})
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


def _losses(outcome: Outcome) -> dict[str, float | None]:
    trained = [loss for step, loss in outcome.evals if step]
    return {
        "first": outcome.losses[0] if outcome.losses else None,
        "last": outcome.losses[-1] if outcome.losses else None,
        "best_eval": min(trained) if trained else None,
    }


def _trained(trainer: Trainer, record: RunRecord, resume: str) -> tuple[Outcome, Path]:
    """Train and write the result; where the disk is full, say what of the run is there."""
    try:
        outcome = trainer.run()
        return outcome, _finish(record, outcome, resume)
    except OutputError as error:
        raise OutputError(
            f"{error.message}; {record.kept}", f"make room, then go on with: {resume}"
        ) from error


def _finish(record: RunRecord, outcome: Outcome, resume: str) -> Path:
    """Write the result; where the run was stopped, say so with what is left of it."""
    result = {
        "steps": outcome.steps,
        "tokens": outcome.tokens,
        "seconds": outcome.seconds,
        "tokens_per_second": outcome.tokens / outcome.seconds if outcome.seconds else 0.0,
        "loss": _losses(outcome),
        "peak_bytes": outcome.peak_bytes,
        "early": outcome.early,
        "stopped": outcome.stopped,
    }
    adapter = record.finish(result)
    if outcome.stopped or adapter is None:
        write_report(record.folder, None)
        raise TrainingError(
            f"{outcome.stopped or 'nothing was trained'}; {record.kept}", _advice(outcome.stopped, resume)
        )
    return adapter


def _advice(stopped: str | None, resume: str) -> str:
    if stopped and stopped.startswith("stopped by"):
        return f"go on with: {resume}"
    return "lower --learning-rate, or use --dtype fp32"


def _reported(shown: BeforeAndAfter, result: Path, folder: Path) -> Path:
    """The report, with the examples answered by what was kept."""
    try:
        comparison = shown.compare(result)
    except KeyboardInterrupt:
        write_report(folder, None)
        raise TrainingError(
            f"stopped by Ctrl-C after the last step; the {result.name} is kept as {result}",
            f"only the examples of its report are missing: scumble compare {folder} --data FILE",
        ) from None
    return write_report(folder, comparison.to_dict() | {"metric": None} if comparison else None)
