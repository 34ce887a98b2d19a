"""`train`: from a data set and options to a run folder.

Everything that can be wrong with the input is found before the folder is made: options, data, base, targets.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scumble.compare.comparison import Comparison, compare_in_bank
from scumble.config import CompareOptions, LoraOptions, TrainOptions, make, read_yaml
from scumble.errors import ConfigError, OutputError, TrainingError
from scumble.files import refuse_existing, write_text
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
from scumble.train.settings import settle
from scumble.train.subject import AdapterSubject

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
        quiet: say nothing on stderr.
        examples_in_report: validation examples answered before and after for the report.
        **options: the fields of `TrainOptions`.

    Returns:
        The run; `run.adapter` is the checkpoint with the lowest validation loss.

    Raises:
        ScumbleError: with one line on what is wrong, where, and what to do.
    """
    settled = _settled(config, options, base, lora)
    reporter = Reporter(quiet=quiet)
    spec = _spec(settled, lora)
    reads = (data, config, settled.eval, settled.base, settled.template)
    folder = refuse_existing(out, force=force, inputs=reads) if out is not None else _numbered(data)
    material = read_material(data, settled)
    base = _base(base, settled)
    encoded, validation = encode_material(material, base, settled, reporter)
    threads = threads_for(base.model)
    bank = Bank(base)
    try:
        bank.trainable(SLOT, spec, seed=settled.seed)
        settings = settle(settled, len(encoded.examples), base.model.config)
        facts = run_facts(settled, settings, base, bank, material, encoded, validation, threads)
        announce(reporter, facts)
        subject = AdapterSubject(bank, SLOT)
        record = RunRecord(folder, subject, facts, force=force)
        with with_threads(threads.train):
            trainer = Trainer(subject, encoded.examples, validation.examples, settings, record, reporter)
            outcome, adapter = _trained(trainer, record)
            tokenizer = tokenizer_for(base, settled)
            comparison = _before_and_after(
                bank, base, tokenizer, material, adapter, examples_in_report, reporter
            )
    finally:
        bank.close()
    report = write_report(folder, comparison.to_dict() | {"metric": None} if comparison else None)
    told = (outcome.steps, outcome.tokens, outcome.seconds, _losses(outcome), outcome.peak_bytes)
    return Run(folder, adapter, report, *told)


def write_report(folder: Path, comparison: Mapping[str, Any] | None) -> Path:
    """Write `report.html` of a finished run from its files, with a comparison where there is one."""
    import json

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


def _base(base: Base | str | None, options: TrainOptions) -> Base:
    if not isinstance(base, Base):
        return load_base(options.base, dtype=options.dtype, device=options.device)
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


def _spec(options: TrainOptions, lora: Any) -> LoraSpec:
    if lora is not None:
        return lora if isinstance(lora, LoraSpec) else LoraSpec.from_peft(lora)
    targets = options.targets if isinstance(options.targets, str) else tuple(options.targets)
    return LoraSpec(options.rank, options.alpha, targets, options.dropout, options.rslora, options.dora)


def _losses(outcome: Outcome) -> dict[str, float | None]:
    trained = [loss for step, loss in outcome.evals if step]
    return {
        "first": outcome.losses[0] if outcome.losses else None,
        "last": outcome.losses[-1] if outcome.losses else None,
        "best_eval": min(trained) if trained else None,
    }


def _trained(trainer: Trainer, record: RunRecord) -> tuple[Outcome, Path]:
    """Train and write the result; where the disk is full, say what of the run is there."""
    try:
        outcome = trainer.run()
        return outcome, _finish(record, outcome)
    except OutputError as error:
        raise OutputError(
            f"{error.message}; {record.kept}", "make room, then train again with --force"
        ) from error


def _finish(record: RunRecord, outcome: Outcome) -> Path:
    """Write the result; where the run was stopped, say so with what is left of it."""
    result = {
        "steps": outcome.steps,
        "tokens": outcome.tokens,
        "seconds": outcome.seconds,
        "tokens_per_second": outcome.tokens / outcome.seconds if outcome.seconds else 0.0,
        "loss": _losses(outcome),
        "peak_bytes": outcome.peak_bytes,
        "stopped": outcome.stopped,
    }
    adapter = record.finish(result)
    if outcome.stopped or adapter is None:
        write_report(record.folder, None)
        raise TrainingError(
            f"{outcome.stopped or 'nothing was trained'}; {record.kept}", _advice(outcome.stopped)
        )
    return adapter


def _advice(stopped: str | None) -> str:
    if stopped and "Ctrl-C" in stopped:
        return "train again with --force to start over"
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
