"""`Space`: the settings that a sweep chooses from. An option with one value holds for all trials, one with several is an axis.

    grid      every combination of the axes' values, in their order
    random    so many different ones, drawn from a seed; the first k of n are those of a draw of k, unless n are all
              that there are: those come in the order of the grid

Combinations that come to the same options, as alpha `16` and `2r` do at rank 8, are one.

A range `1e-4..1e-2` of a number is an axis without end, for those who draw: evenly by its logarithm, or where it begins
at 0, by itself. Seeds are an axis apart: trials that differ in nothing else are one setting, tried several times.
"""

from __future__ import annotations

import itertools
import math
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scumble.complaints import flag
from scumble.config import LoraOptions, Options, TrainOptions, make
from scumble.errors import ConfigError
from scumble.lora.targets import ALL_LINEAR, TARGET_SETS

# what a trial may have of its own, in the order in which it is shown
VARIES = (
    "rank", "alpha", "targets", "learning_rate", "dropout", "rslora", "dora", "init", "epochs", "max_steps",
    "batch", "accumulate", "schedule", "warmup", "weight_decay", "optimizer", "lora_plus", "rates", "clip",
    "patience", "seed",
)  # fmt: skip
_BASE = ("base", "dtype", "device", "method")
_JUDGED = ("eval", "eval_limit", "format", "template", "train_on", "max_length", "keep_best")
_PATIENCE = 1000  # draws in a row that are known already, after which a space counts as used up
_RANGE = re.compile(r"\s*([^.\s][^\s]*?)\s*\.\.\s*([^\s]+)\s*")
_TIMES = re.compile(r"(\d+\.?\d*|\.\d+)r")

Combination = dict[str, Any]


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both among them; `whole` ones where the option is a whole number."""

    low: float
    high: float
    whole: bool

    @property
    def logarithmic(self) -> bool:
        """Whether equal ratios are equally likely."""
        return self.low > 0

    def draw(self, rng: random.Random) -> float:
        """One of them."""
        if self.whole and not self.logarithmic:
            return rng.randint(int(self.low), int(self.high))
        # a whole number stands for all that is rounded to it
        low, high = (self.low - 0.5, self.high + 0.5) if self.whole else (self.low, self.high)
        drawn = (
            math.exp(rng.uniform(math.log(low), math.log(high)))
            if self.logarithmic
            else rng.uniform(low, high)
        )
        drawn = min(max(drawn, self.low), self.high)
        return round(drawn) if self.whole else float(f"{drawn:.4g}")

    def __str__(self) -> str:
        return f"{self.low:g}..{self.high:g}"


@dataclass(frozen=True)
class Space:
    """What a sweep chooses from.

    Attributes:
        axes: values of each option that varies, seeds not among them.
        seeds: that each setting is trained with.
        fixed: what holds for all.
    """

    axes: Mapping[str, tuple[Any, ...] | Range]
    seeds: tuple[int, ...]
    fixed: Mapping[str, Any]

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Space:
        """The space of what was given: for each option one value, a range, or a list.

        Raises:
            ConfigError: an option has no such value, or may not vary.
        """
        read = {name: values_of(name, given) for name, given in values.items()}
        for name, found in read.items():
            if name not in VARIES and (isinstance(found, Range) or len(found) > 1):
                _refuse_varying(name, found)
        seeds = read.pop("seed", (0,))
        if isinstance(seeds, Range):
            raise ConfigError(f"--seed is {seeds}, and seeds are not drawn", "name each: --seed 0 --seed 1")
        axes: dict[str, tuple[Any, ...] | Range] = {}
        fixed: dict[str, Any] = {}
        for name in sorted(read, key=lambda name: VARIES.index(name) if name in VARIES else len(VARIES)):
            found = read[name]
            if isinstance(found, Range) or len(found) > 1:
                axes[name] = found
            else:
                fixed[name] = found[0]
        return cls(axes, seeds, fixed)

    @property
    def size(self) -> float:
        """How many different combinations there are; infinite with a range."""
        axes = {name: axis for name, axis in self.axes.items() if not isinstance(axis, Range)}
        if len(axes) < len(self.axes):
            return math.inf
        # only rank and alpha can come to the same: the others are counted, not gone through
        pair = {name: axes.pop(name) for name in ("rank", "alpha") if name in axes}
        different = {
            self.key(dict(zip(pair, values, strict=True))) for values in itertools.product(*pair.values())
        }
        return len(different) * math.prod(map(len, axes.values()))

    def grid(self) -> Iterator[Combination]:
        """Every different combination; the last axis changes fastest."""
        for name, axis in self.axes.items():
            if isinstance(axis, Range):
                raise ConfigError(
                    f"--{flag(name)[2:]} is {axis}, and a grid takes values",
                    "draw from it with --search random or tpe",
                )
        values = [tuple(axis) for axis in self.axes.values() if not isinstance(axis, Range)]
        known: set[str] = set()
        for each in itertools.product(*values):
            combination = dict(zip(self.axes, each, strict=True))
            if (key := self.key(combination)) not in known:
                known.add(key)
                yield combination

    def key(self, combination: Combination) -> str:
        """The options that a combination comes to, as one text."""
        return repr(options_of(combination, self.fixed))

    def random(self, count: int, seed: int = 0) -> list[Combination]:
        """`count` different combinations, or all where there are no more."""
        if self.size <= count:
            return list(self.grid())
        rng = random.Random(f"sweep/{seed}")
        found: dict[str, Combination] = {}
        missed = 0
        while len(found) < count and missed < _PATIENCE:
            drawn = {
                name: axis.draw(rng) if isinstance(axis, Range) else rng.choice(axis)
                for name, axis in self.axes.items()
            }
            key = self.key(drawn)
            missed = missed + 1 if key in found else 0
            found.setdefault(key, drawn)
        return list(found.values())

    def to_dict(self) -> dict[str, Any]:
        """What `sweep.json` holds of it, from which `of` makes it again."""
        axes = {
            name: str(axis) if isinstance(axis, Range) else list(axis) for name, axis in self.axes.items()
        }
        return {"axes": axes, "seeds": list(self.seeds), "fixed": dict(self.fixed)}


def options_of(combination: Mapping[str, Any], fixed: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a trial: an alpha such as `2r` becomes so many times its rank."""
    found = {**fixed, **combination}
    alpha = found.get("alpha")
    if isinstance(alpha, str) and (times := _TIMES.fullmatch(alpha)):
        found["alpha"] = float(times[1]) * int(found.get("rank", LoraOptions.model_fields["rank"].default))
    return found


def values_of(name: str, given: Any) -> tuple[Any, ...] | Range:
    """What was given for an option as it is meant: checked, numbers as numbers, each value once.

    Raises:
        ConfigError: a value is none that the option can have, or stands twice, or there is none.
    """
    values = list(given) if isinstance(given, list | tuple) else [given]
    if not values:
        raise ConfigError(f"{flag(name)} has no value, so that there are no trials", "give at least one")
    if len(values) == 1 and (found := _range(name, values[0])) is not None:
        return found
    read = [_value(name, value) for value in values]
    for number, value in enumerate(read):
        if value in read[:number]:
            raise ConfigError(f"{flag(name)} is {value} twice", "each value of a sweep counts once")
    return tuple(read)


def _value(name: str, value: Any) -> Any:
    times = _TIMES.fullmatch(value.strip()) if name == "alpha" and isinstance(value, str) else None
    if times and float(times[1]) > 0:
        return times[0]
    if name == "targets" and isinstance(value, list | tuple):
        value = ",".join(map(str, value))
    if isinstance(value, Options) or value is None:
        raise ConfigError(f"{flag(name)} has an empty value", "leave it out, or name one")
    if isinstance(value, str) and "," in value and name in VARIES:
        _refuse_joined(name, [part.strip() for part in value.split(",")], value)
    return getattr(make(TrainOptions, **{name: value}), name)


def _refuse_joined(name: str, parts: Sequence[str], value: str) -> None:
    """Refuse `4,16`, of which each part is a value; modules and their rates joined by commas are one."""
    if name == "rates" or (name == "targets" and not {*TARGET_SETS, ALL_LINEAR} & set(parts)):
        return
    for part in parts:
        try:
            _value(name, part)
        except ConfigError:
            return
    raise ConfigError(
        f"{flag(name)} is {value!r}, and several values are not joined by commas",
        f"give each: {' '.join(f'{flag(name)} {part}' for part in parts)}; in a file [{', '.join(parts)}]",
    )


def _range(name: str, value: Any) -> Range | None:
    """`LOW..HIGH` of a number; None for anything else."""
    kind = str(TrainOptions.model_fields[name].annotation) if name in TrainOptions.model_fields else ""
    found = _RANGE.fullmatch(value) if isinstance(value, str) else None
    if found is None or not re.search(r"\b(int|float)\b", kind) or "str" in kind or "dict" in kind:
        return None
    if "..." in value:  # of which the third would be a decimal point
        raise ConfigError(f"{flag(name)} is {value}, and a range has two dots", "write LOW..HIGH")
    low, high = _value(name, found[1]), _value(name, found[2])
    if isinstance(low, str) or isinstance(high, str) or not low < high or not math.isfinite(high):
        raise ConfigError(
            f"{flag(name)} is {value}, and a range goes from a number to a larger one", "write LOW..HIGH"
        )
    return Range(low, high, "int" in kind)


def _refuse_varying(name: str, found: tuple[Any, ...] | Range) -> None:
    shown = str(found) if isinstance(found, Range) else ", ".join(map(str, found))
    if name in _BASE:
        why = "all trials share one base"
    elif name in _JUDGED:
        why = "trials are judged by the same examples"
    else:
        why = "it is one for all trials"
    raise ConfigError(f"{flag(name)} has several values ({shown}), and {why}", "make a sweep of each")
