"""What came of a run: `Run`, its figures, and its report.

Knows what a run wrote down, and nothing of how to train.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scumble.errors import NotSupportedError
from scumble.files import write_text
from scumble.train.lane import Outcome
from scumble.train.record import tidied
from scumble.train.report import render_report
from scumble.train.resume import Earlier


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


def finished_run(earlier: Earlier) -> Run:
    """A run that came to its end, from what it wrote down."""
    found, folder = earlier.facts["result"], earlier.folder
    tidied(folder, found.get("best_step"))
    result = folder / ("model" if earlier.options.method == "full" else "adapter")
    figures = (
        found.get(name) for name in ("steps", "tokens", "seconds", "loss", "peak_bytes", "best_step", "early")
    )
    return Run(folder, result, folder / "report.html", *figures)


def losses_of(outcome: Outcome) -> dict[str, float | None]:
    """The first and last training loss, and the best on the validation data, as `run.json` has them."""
    trained = [loss for step, loss in outcome.evals if step]
    return {
        "first": outcome.losses[0] if outcome.losses else None,
        "last": outcome.losses[-1] if outcome.losses else None,
        "best_eval": min(trained) if trained else None,
    }


def write_report(folder: Path, comparison: Mapping[str, Any] | None) -> Path:
    """Write `report.html` of a finished run from its files, with a comparison where there is one."""
    run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return write_text(folder / "report.html", render_report(run, rows, comparison))
