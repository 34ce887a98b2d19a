"""`train`: from a data set and options to a run folder."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

from scumble.errors import OutputError
from scumble.lora.spec import LoraSpec
from scumble.models.base import Base
from scumble.models.threads import with_threads
from scumble.progress import Reporter
from scumble.train.job import Ground, Seen, ask_for
from scumble.train.loop import Trainer
from scumble.train.material import read_material
from scumble.train.result import Run, finished_run


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
    asked: dict[str, Any] = {"out": out, "base": base, "lora": lora, "config": config}
    job = ask_for(data, options, **asked, force=force, resume=resume)
    if job.earlier is not None and job.earlier.finished:
        reporter.note(f"the run in {job.folder} is finished")
        return finished_run(job.earlier)
    material = read_material(data, job.options)
    ground = Ground.of(job, base)
    seen = Seen.of(material, job, ground, reporter)
    with (
        with_threads(ground.threads.train),
        closing(job.begin(seen, ground, reporter, examples_in_report=examples_in_report)) as begun,
    ):
        try:
            Trainer([begun.lane], reporter).run()
        except OutputError as error:
            raise begun.no_room(error) from error
        return begun.finish()
