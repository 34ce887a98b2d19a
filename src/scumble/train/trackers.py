"""Rows of figures handed to TensorBoard, Weights & Biases, MLflow or Trackio, through Accelerate.

`Tracked` is a record that hands every row on; what it keeps and saves is the record's own. A tracker that fails later on
(a network that is gone) is told of once and left out, and training goes on. Knows rows, and nothing of what they mean.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator, tracking

from scumble.config import TrainOptions
from scumble.errors import MissingExtraError
from scumble.progress import Reporter
from scumble.train.record import RunRecord

PROJECT = "scumble"


class Kept(Protocol):
    """The record that rows are kept in."""

    def metrics(self, row: dict[str, Any]) -> None:
        """Keep one row of figures."""

    def keep(self, step: int, *, best: bool) -> None:
        """Keep what is trained."""

    def save(self, state: dict[str, Any]) -> None:
        """Keep what the run needs to go on."""


def check_tracker(name: str | None) -> None:
    """Refuse a tracker whose library is not there; None is none.

    Raises:
        MissingExtraError: with what to install.
    """
    # Accelerate leaves out, with a warning, what it does not find
    if name is not None and name not in map(str, tracking.get_available_trackers()):
        raise MissingExtraError(f"--track {name} needs {name}, which is not installed", f"pip install {name}")


@contextmanager
def tracked(
    record: RunRecord, options: TrainOptions, device: torch.device, reporter: Reporter
) -> Iterator[Kept]:
    """The record itself, or one whose rows `--track` gets too until the end of the `with`."""
    if options.track is None:
        yield record
        return
    both = Tracked(record, options.track, record.folder, options.model_dump(), device, reporter)
    try:
        yield both
    finally:
        both.close()


class Tracked:
    """A record whose rows a tracker gets too.

    Args:
        record: that keeps all.
        name: `tensorboard`, `wandb`, `mlflow` or `trackio`.
        folder: of the run; TensorBoard's files go to `tensorboard/` in it.
        options: of the run, shown by the tracker where they are plain values.
        device: that the run trains on.
        reporter: is warned where the tracker fails.

    Raises:
        MissingExtraError: its library is not installed.
    """

    def __init__(
        self,
        record: Kept,
        name: str,
        folder: Path,
        options: Mapping[str, Any],
        device: torch.device,
        reporter: Reporter,
    ) -> None:
        check_tracker(name)
        self.record, self.name, self.reporter = record, name, reporter
        self._accelerator: Any = _accelerator(name, folder, device)
        plain = {key: value for key, value in options.items() if isinstance(value, int | float | str)}
        named = {"wandb": {"name": folder.name, "dir": str(folder)}, "mlflow": {"run_name": folder.name}}
        named["trackio"] = {"name": folder.name}
        project = name if name == "tensorboard" else PROJECT  # which TensorBoard makes a folder of
        self._try("init_trackers", project, config=plain, init_kwargs=named)

    def metrics(self, row: dict[str, Any]) -> None:
        """Keep a row, and hand it on; its step is the tracker's step."""
        self.record.metrics(row)
        self._try("log", {key: value for key, value in row.items() if key != "step"}, step=row["step"])

    def keep(self, step: int, *, best: bool) -> None:
        """The record keeps it."""
        self.record.keep(step, best=best)

    def save(self, state: dict[str, Any]) -> None:
        """The record saves it."""
        self.record.save(state)

    def close(self) -> None:
        """Tell the tracker that the run is over."""
        self._try("end_training")

    def _try(self, call: str, *args: Any, **kwargs: Any) -> None:
        if self._accelerator is None:
            return
        try:
            getattr(self._accelerator, call)(*args, **kwargs)
        except Exception as error:  # whatever a stranger's library raises must not end a run
            self._accelerator = None
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            self.reporter.warn(f"{self.name} gets no more figures: {reason}; metrics.jsonl has all of them")


def _accelerator(name: str, folder: Path, device: torch.device) -> Any:
    os.environ.setdefault("WANDB_SILENT", "true")  # it writes to stdout, which is the caller's
    return Accelerator(cpu=device.type == "cpu", mixed_precision="no", log_with=name, project_dir=str(folder))
