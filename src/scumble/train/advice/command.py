"""`NextRun`: the exact command of the next run: what a run was asked for, with changes, in a folder of its own.

The batch was settled for the user by the length of the run, and is written out: twice the epochs would
otherwise mean another one. A warm-up is settled anew by the same rule: what was asked for, else 100 steps, a
tenth of the run at most. Knows options, and nothing of why they should change.
"""

from __future__ import annotations

import math
import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scumble.complaints import flag
from scumble.config import TrainOptions
from scumble.data.shipped import SHIPPED
from scumble.lora.spec import LoraSpec
from scumble.lora.targets import expand_targets
from scumble.train.advice.reading import Reading

_SHAPE = ("rank", "alpha", "targets", "rslora", "dora")  # what an adapter keeps that is gone on from
_ONLY_IN_PYTHON = (
    "lora_bias",
    "bias",
    "rank_pattern",
    "alpha_pattern",
    "layers_to_transform",
    "layers_pattern",
    "exclude_modules",
    "modules_to_save",
    "trainable_token_indices",
)
_TAG = 40  # letters of what a folder's name says of the change


@dataclass(frozen=True)
class NextRun:
    """A run to make next.

    Attributes:
        data: its training data; None where the run had them from Python, and the command says DATA.
        out: its folder, which does not exist yet.
        options: of `TrainOptions`, those that are not the default.
        changed: those of them that differ from the run's.
    """

    data: str | None
    out: Path
    options: Mapping[str, Any]
    changed: Mapping[str, Any]

    @property
    def command(self) -> str:
        """The whole command line."""
        words = ["scumble", "train", self.data or "DATA", "--out", str(self.out)]
        for name, value in self.options.items():
            words += _words(name, value)
        return shlex.join(words)

    def to_dict(self) -> dict[str, Any]:
        """The same by name."""
        return {
            "data": self.data,
            "out": str(self.out),
            "options": dict(self.options),
            "changed": dict(self.changed),
        }


def next_run(reading: Reading, **changes: Any) -> NextRun:
    """The run of a reading with other options; None takes an option back to its default.

    A run that went on from an adapter goes on from it again, and leaves out the shape, which is its own;
    with another shape it begins anew, on the same base.
    """
    fields = TrainOptions.model_fields
    options = asked(reading)
    goes_on = bool(options.get("from_"))
    if goes_on and changes.keys() & set(_SHAPE):
        goes_on = False
        # the base was the adapter's where nobody named one
        base = options.get("base") or (reading.facts.get("base") or {}).get("name")
        changes |= {"from_": None} | ({} if base == options.get("base") else {"base": base})
    options |= (dict.fromkeys(_SHAPE) if goes_on else {}) | changes
    default = {name: field.get_default(call_default_factory=True) for name, field in fields.items()}
    if goes_on:
        del default["dropout"]  # it is the adapter's where nobody says it
    kept = {
        name: value
        for name, value in options.items()
        if name in fields and value is not None and value != default.get(name)
    }
    return NextRun(_source(reading), _folder(reading.folder, changes), kept, changes)


def longer(reading: Reading, factor: float, **changes: Any) -> NextRun:
    """The run of a reading that makes `factor` times its steps, with the same batch."""
    training = reading.training
    steps = max(1, round(int(training["steps"]) * factor))
    # a pass over the data takes so many steps
    a_pass = _steps_per_pass(reading)
    held: dict[str, Any] = {"batch": training["batch"], "accumulate": training["accumulate"]}
    most = reading.options.get("max_steps")
    if most is not None and int(training["steps"]) == int(most):
        held["max_steps"] = steps
        if steps > a_pass * float(training["epochs"]):
            held["epochs"] = float(math.ceil(steps / a_pass))
    else:
        held["epochs"] = round(steps / a_pass, 4)
        if most is not None and int(most) < steps:
            held["max_steps"] = None  # it was beyond the end, and would now come before it
    return next_run(reading, **{**held, **changes})


def _steps_per_pass(reading: Reading) -> int:
    training, examples = reading.training, int(reading.facts["data"]["examples"])
    return max(1, math.ceil(examples / (int(training["batch"]) * int(training["accumulate"]))))


def asked(reading: Reading) -> dict[str, Any]:
    """The run's own options; the shape as it was trained, which Python may have given as a whole."""
    options = dict(reading.options)
    told = reading.facts.get("lora")
    if not told:
        return options
    spec = LoraSpec.from_peft(told)
    for name in ("rank", "alpha", "dropout", "rslora", "dora"):
        options[name] = getattr(spec, name)
    given = options.get("targets")
    if given is None or _names(expand_targets(given)) != _names(spec.targets):
        options["targets"] = spec.targets if isinstance(spec.targets, str) else list(spec.targets)
    return options


def unsaid(reading: Reading) -> list[str]:
    """What Python gave of the adapter's shape that a command line has no options for, by their names."""
    told = reading.facts.get("lora")
    spec, usual = LoraSpec.from_peft(told) if told else LoraSpec(), LoraSpec()
    return [name for name in _ONLY_IN_PYTHON if getattr(spec, name) != getattr(usual, name)]


def _names(targets: str | tuple[str, ...]) -> str | set[str]:
    return targets if isinstance(targets, str) else set(targets)


def _source(reading: Reading) -> str | None:
    """What names the training data on a command line."""
    source = str(reading.facts["data"].get("source") or "")
    known = source in SHIPPED or "/" in source or "." in source or Path(source).exists()
    return source if source and known else None


def _folder(folder: Path, changes: Mapping[str, Any]) -> Path:
    """A folder beside the run's, or beside the sweep of a trial, that says what changed, and does not exist yet."""
    said = [
        f"{name.rstrip('_').replace('_', '-')}-{_short(value)}"
        for name, value in changes.items()
        if name not in ("batch", "accumulate", "alpha", "base") and value is not None
    ]
    whole = folder.resolve()
    beside, first = folder.parent, whole.name
    if len(whole.parents) > 2 and (whole.parents[1] / "sweep.json").is_file():
        # a sweep's folder belongs to the sweep: --resume and --force would come upon a stranger there
        outside = whole.parents[2]
        beside = outside if folder.is_absolute() else Path(os.path.relpath(outside))
        first = f"{whole.parents[1].name}-{whole.name}"
    name = "-".join([first, *said])[: len(first) + _TAG].rstrip("-.")
    path, number = beside / name, 2
    while path.exists():
        path, number = beside / f"{name}-{number}", number + 1
    return path


def _short(value: Any) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", f"{value:g}" if isinstance(value, float) else str(value))


def _words(name: str, value: Any) -> list[str]:
    """An option as words of a command line."""
    option = flag(name)
    if isinstance(value, bool):
        return [option] if value else []
    if isinstance(value, Mapping):
        return [option, ",".join(f"{key}={each:.12g}" for key, each in value.items())]
    if isinstance(value, list | tuple):
        return [option, ",".join(str(each) for each in value)]
    return [option, f"{value:.12g}" if isinstance(value, float) else str(value)]
