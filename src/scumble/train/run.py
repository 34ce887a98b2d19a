"""`train`: from a data set and options to a run folder.

Everything that can be wrong with the input is found before the folder is made: options, data, base, targets.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scumble.compare.comparison import Comparison, compare_in_bank
from scumble.config import CompareOptions, LoraOptions, TrainOptions, make, read_yaml
from scumble.errors import ConfigError, OutputError, TrainingError
from scumble.files import refuse_existing, write_text
from scumble.lora.adapter import Adapter
from scumble.lora.bank import Bank
from scumble.lora.spec import LoraSpec
from scumble.models.base import Base, load_base
from scumble.models.threads import threads_for, with_threads
from scumble.models.weights import device_named, dtype_named
from scumble.progress import Reporter
from scumble.train.facts import announce, run_facts
from scumble.train.loop import Outcome, Trainer
from scumble.train.material import Material, encode_material, read_material, tokenizer_for
from scumble.train.record import RunRecord
from scumble.train.report import render_report
from scumble.train.resume import Earlier, earlier_run
from scumble.train.settings import settle
from scumble.train.subject import AdapterSubject, Subject

SLOT = "trained"


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        out: its folder.
        adapter: the folder of the best checkpoint, in the PEFT format.
        report: `report.html`.
        steps: optimizer steps made.
        tokens: of all examples seen, padding not counted.
        seconds: of training alone.
        loss: `first` and `last` training loss, and `best_eval`.
        peak_bytes: highest memory while training.
    """

    out: Path
    adapter: Path
    report: Path
    steps: int
    tokens: int
    seconds: float
    loss: dict[str, float | None]
    peak_bytes: int

    @property
    def tokens_per_second(self) -> float:
        """Tokens seen for each second of training."""
        return self.tokens / self.seconds if self.seconds else 0.0

    def to_dict(self) -> dict[str, Any]:
        """What `--json` prints."""
        return {
            "out": str(self.out),
            "adapter": str(self.adapter),
            "report": str(self.report),
            **{
                name: getattr(self, name)
                for name in ("steps", "tokens", "seconds", "tokens_per_second", "loss", "peak_bytes")
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
    """Train one adapter.

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
        The run; `run.adapter` is the checkpoint with the lowest validation loss.

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
    settled = earlier.options if earlier else given
    reads = (data, config, settled.eval, settled.base, settled.template)
    if earlier is not None:
        folder = earlier.folder
    else:
        folder = refuse_existing(out, force=force, inputs=reads) if out is not None else _numbered(data)
    material = read_material(data, settled)
    start = Adapter.load(settled.from_) if settled.from_ else None
    spec = _spec(settled, lora, earlier, start)
    base = _base(base if base is not None else _name_of(settled, start), settled, earlier)
    encoded, validation = encode_material(material, base, settled, reporter)
    threads = earlier.threads if earlier else threads_for(base.model)
    with with_threads(threads.train), closing(Bank(base)) as bank:
        bank.trainable(SLOT, spec, seed=settled.seed, start=start)
        subject = AdapterSubject(bank, SLOT)
        settings = settle(settled, len(encoded.examples), base.model.config)
        facts = run_facts(settled, settings, base, bank, material, encoded, validation, threads)
        facts["lora"] = spec.to_peft()
        announce(reporter, facts)
        record = _record(folder, subject, facts, earlier, reporter, force=force)
        try:
            trainer = Trainer(
                subject, encoded.examples, validation.examples, settings, record, reporter, state=record.state
            )
            outcome, adapter = _trained(
                trainer, record, f"scumble train {material.source} --out {folder} --resume"
            )
            tokenizer = tokenizer_for(base, settled)
            comparison = _before_and_after(
                bank, base, tokenizer, material, adapter, examples_in_report, reporter
            )
            report = write_report(folder, comparison.to_dict() | {"metric": None} if comparison else None)
            record.close(over=True)
        finally:
            record.close(over=False)
    told = (outcome.steps, outcome.tokens, outcome.seconds, _losses(outcome), outcome.peak_bytes)
    return Run(folder, adapter, report, *told)


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
    figures = (found[name] for name in ("steps", "tokens", "seconds", "loss", "peak_bytes"))
    return Run(folder, folder / "adapter", folder / "report.html", *figures)


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


def _name_of(options: TrainOptions, start: Adapter | None) -> str | None:
    """The base by name: that of the options, or of the adapter to go on from."""
    return options.base or (start.spec.base_name if start is not None else None)


def _base(base: Base | str | None, options: TrainOptions, earlier: Earlier | None) -> Base:
    if not isinstance(base, Base):
        device = options.device or (earlier.facts["base"]["device"] if earlier else None)
        return load_base(base, dtype=options.dtype, device=device)
    # one place decides on precision: a base that is there already is what it is
    if options.dtype is not None and dtype_named(options.dtype, base.device) not in (None, base.dtype):
        has = str(base.dtype).removeprefix("torch.")
        raise ConfigError(f"dtype is {options.dtype}, and the base given is {has}", "load it in that type")
    if options.device is not None and device_named(options.device).type != base.device.type:
        raise ConfigError(f"device is {options.device}, and the base given is on {base.device}", "move it")
    return base


def _numbered(data: Any) -> Path:
    """The first free `runs/NAME-001`, named after the data."""
    stem = re.sub(r"[^A-Za-z0-9_.-]+", "-", Path(data).stem) if isinstance(data, str | Path) else "run"
    number = 1
    while (folder := Path("runs") / f"{stem}-{number:03d}").exists():
        number += 1
    return folder


def _spec(options: TrainOptions, lora: Any, earlier: Earlier | None, start: Adapter | None) -> LoraSpec:
    """The shape of the adapter: as given, as the adapter has it that is gone on from, or as the run was begun."""
    if lora is not None:
        return lora if isinstance(lora, LoraSpec) else LoraSpec.from_peft(lora)
    if earlier is not None:
        return LoraSpec.from_peft(earlier.facts["lora"])
    targets = options.targets if isinstance(options.targets, str) else tuple(options.targets)
    return LoraSpec(options.rank, options.alpha, targets, options.dropout, options.rslora, options.dora)


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


def _before_and_after(
    bank: Bank, base: Base, tokenizer: Any, material: Material, adapter: Path, n: int, reporter: Reporter
) -> Comparison | None:
    """The first validation examples answered with and without the adapter, for the report."""
    examples = [each for each in material.validation[:n] if each.text is None]  # a text answers nothing
    if not examples:
        return None
    bank.swap(SLOT, adapter)  # the best checkpoint, which may not be the last
    longest = max(len(tokenizer(example.expected)["input_ids"]) for example in examples)
    reporter.note(f"answering {len(examples)} validation examples before and after")
    try:
        return compare_in_bank(
            bank,
            SLOT,
            tokenizer,
            examples,
            options=CompareOptions(n=n, max_new_tokens=min(256, 2 * longest + 8)),
            sizes=(bytes_of(adapter), base.bytes_on_disk, base.source_bytes),
            source=material.validation_source,
        )
    except KeyboardInterrupt:
        run = adapter.parent
        write_report(run, None)
        raise TrainingError(
            f"stopped by Ctrl-C after the last step; the adapter is kept as {adapter}",
            f"only the examples of its report are missing: scumble compare {run} --data FILE",
        ) from None
