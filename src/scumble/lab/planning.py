"""`plan` with what only this machine can say: a real step beside the planned one, and how long an epoch takes.

The plan itself loads nothing and knows no machine (`scumble.plan.plan`).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from scumble.lab.calibrated import calibrate as calibrated
from scumble.lab.calibrated import recalled
from scumble.lab.planned import measure_plan, random_examples
from scumble.plan import plan as planning
from scumble.plan.plan import Plan
from scumble.plan.timing import Epoch, epoch_time
from scumble.progress import Reporter


def plan(
    base: str | Path | None = None,
    *,
    data: Any = None,
    lora: Any | None = None,
    measure: bool = False,
    calibrate: bool = False,
    quiet: bool = False,
    **options: Any,
) -> Plan:
    """Plan a way to train: parameters exactly, memory part by part, time, and what to change where it does not fit.

    Args:
        base: alias, folder, hub name, GGUF file, config.json, adapter or run; None for the default base.
        data: what would be trained on: a path, the name of a shipped set, a list of examples, a `datasets.Dataset`.
            Without it, every example has `max_length` tokens.
        lora: the adapter's configuration, as a `LoraSpec` or a `peft.LoraConfig`, instead of rank, alpha and targets.
        measure: make a real step here, with random weights, and hold it against the plan.
        calibrate: measure for a few seconds how fast this machine trains such a model, and say how long an epoch takes.
            A calibration is kept, and used by later plans of the same way to train.
        quiet: say nothing on stderr.
        options: those of `PlanOptions`, by name. With `measure` or `calibrate` the device is this machine's own.

    Raises:
        As `scumble.plan.plan.plan`.
        NotSupportedError: what is to be measured is not trained here.
        ConfigError: there is too little memory to measure in.
    """
    if (measure or calibrate) and options.get("device") is None:
        options["device"] = "cuda" if torch.cuda.is_available() else "cpu"
    found = planning.plan(base, data=data, lora=lora, **options)
    reporter = Reporter(quiet=quiet)
    if measure:
        found = replace(found, measured=measure_plan(found, reporter))
    if calibrate or found.examples:
        found = _timed(found, calibrate=calibrate, seed=options.get("seed") or 0, reporter=reporter)
    return found


def _timed(found: Plan, *, calibrate: bool, seed: int, reporter: Reporter) -> Plan:
    """With the time of an epoch, or without data of an optimizer step; by an earlier calibration where there is one."""
    setup = found.setup
    examples = found.examples or random_examples(setup, found.shape.vocabulary)
    calibration = None if calibrate else recalled(found.shape, setup)
    if calibration is None and not calibrate:
        return found
    epoch = Epoch.of(examples, setup, seed)
    if calibration is None:
        calibration = calibrated(found.shape, setup, epoch.micro_batches, reporter=reporter)
    elif not calibration.covers(epoch):
        return found
    return replace(found, time=epoch_time(calibration, found.shape, setup, epoch), calibration=calibration)
