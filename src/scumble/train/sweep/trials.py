"""`SweepTrial`: one run of a sweep, planned before it is trained, and what came of it, as `sweep.json` holds it.

Knows settings and figures, and nothing of files beyond the name of a folder, nor of training.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from scumble.config import TrainOptions, make
from scumble.train.settings import Settings
from scumble.train.sweep.space import Combination, Space, options_of

State = Literal["waiting", "paused", "finished", "ended", "failed"]
_LONGEST = 60  # letters of a folder's name


@dataclass(frozen=True)
class SweepTrial:
    """One run of a sweep.

    Attributes:
        name: of its folder below `trials/`.
        line: the number of the setting that it tries, from 0; trials of one line differ in their seed alone.
        settings: the options that vary, and those that people ask for first; the learning rate as it was settled.
        options: all options that were given for it.
        of: optimizer steps of the whole run.
        state: `finished` where it came to its end, `ended` where it was given up for others, `paused` where it can be
            gone on with, `failed` where it cannot.
        steps: that were made.
        loss: the lowest on the validation data; None before there is one.
        metric: None where none is taken, or there is nothing to take it of.
        parameters: trained numbers.
        bytes: of the adapter's file.
        memory: bytes that its own numbers take in training: they, their gradients and AdamW's two moments, in fp32.
        seconds: of training.
        reason: why it ended before its last step, or failed; in one line.
    """

    name: str
    line: int
    settings: dict[str, Any]
    options: dict[str, Any]
    of: int
    state: State = "waiting"
    steps: int = 0
    loss: float | None = None
    metric: float | None = None
    parameters: int | None = None
    bytes: int | None = None
    memory: int | None = None
    seconds: float = 0.0
    reason: str | None = None

    @property
    def seed(self) -> int:
        """Its seed."""
        return int(self.settings["seed"])

    @property
    def over(self) -> bool:
        """Whether there is no more to be made of it."""
        return self.state in ("finished", "ended", "failed")

    def with_(self, **changes: Any) -> SweepTrial:
        """The same with other figures."""
        return replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """What `sweep.json` holds of it."""
        return asdict(self)


def trials_of(
    combinations: Sequence[Combination],
    space: Space,
    settled: Sequence[Settings],
    *,
    first: int = 0,
) -> list[SweepTrial]:
    """The trials of some settings, each with every seed.

    Args:
        combinations: values of the axes.
        space: that they are of.
        settled: of each combination what a run of it does.
        first: lines that there were before.
    """
    many = len(space.seeds)
    made = []
    for line, (combination, settings) in enumerate(zip(combinations, settled, strict=True), start=first):
        for place, seed in enumerate(space.seeds):
            options = {**options_of(combination, space.fixed), "seed": seed}
            varying = {**combination, **({"seed": seed} if many > 1 else {})}
            made.append(
                SweepTrial(
                    name=_name(line * many + place + 1, varying),
                    line=line,
                    settings=_settings(combination, options, settings),
                    options=options,
                    of=settings.steps,
                )
            )
    return made


def _settings(combination: Combination, options: Mapping[str, Any], settled: Settings) -> dict[str, Any]:
    """The axes first; then what people ask for, whether it varies or not."""
    made = make(TrainOptions, **options)
    # an adapter that is gone on from has a shape of its own, and its defaults are not those of a fresh one
    names = [name for name in ("rank", "alpha", "targets") if name in options or made.from_ is None]
    asked = {**{name: getattr(made, name) for name in names}, "learning_rate": settled.learning_rate}
    return {**{name: options[name] for name in combination}, **asked, "seed": options["seed"]}


def _name(number: int, varying: Mapping[str, Any]) -> str:
    """`001-rank4-minimal`: a word is its own name, a number has its option's before it."""
    parts = [
        str(value) if name == "targets" else f"{name.replace('_', '-')}{_short(value)}"
        for name, value in varying.items()
    ]
    text = re.sub(r"[^A-Za-z0-9.+-]+", "-", "-".join(parts)).strip("-.")
    return f"{number:03d}-{text[:_LONGEST].rstrip('-.')}" if text else f"{number:03d}"


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
