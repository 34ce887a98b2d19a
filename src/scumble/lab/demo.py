"""The lesson's exercise: rank 8, alpha 16, q and v, 3 epochs on `cron`, and before and after on unseen examples."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scumble.compare.comparison import Comparison
from scumble.compare.run import compare
from scumble.files import refuse_existing
from scumble.models.base import load_base
from scumble.progress import Reporter
from scumble.train.result import Run, write_report
from scumble.train.run import train

DATA = "cron"


@dataclass(frozen=True)
class Demo:
    """What the demo gives: the run, the comparison on the test part, and the seconds it took in all."""

    run: Run
    comparison: Comparison
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """What `--json` prints: the comparison's keys, with the run beside them."""
        return {**self.comparison.to_dict(), "run": self.run.to_dict(), "seconds": self.seconds}


def demo(out: str | Path | None = None, *, force: bool = False, quiet: bool = False) -> Demo:
    """Run the exercise on the embedded base.

    Args:
        out: folder of the run; a new numbered one where not told.
        force: replace `out` where it exists.
        quiet: say nothing on stderr.
    """
    folder = refuse_existing(out, force=force) if out is not None else _numbered()
    started = time.perf_counter()
    base = load_base("smollm2")
    run = train(
        DATA,
        out=folder,
        base=base,
        rank=8,
        alpha=16,
        targets="minimal",
        epochs=3,
        force=force,
        quiet=quiet,
        examples_in_report=0,
    )
    reporter = Reporter(quiet=quiet)
    reporter.note("answering the unseen test examples, with the base and with the adapter")
    comparison = compare(run, data=DATA, base=base, n=5, quiet=quiet)
    write_report(run.out, comparison.to_dict())
    return Demo(run, comparison, time.perf_counter() - started)


def _numbered() -> Path:
    """The first free `demo-001` here."""
    number = 1
    while (folder := Path(f"demo-{number:03d}")).exists():
        number += 1
    return folder
