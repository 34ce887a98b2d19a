"""`Asked`: what a sweep was asked for, from the command line, a YAML file or Python, and from `sweep.json` again.

Knows options and where they come from, and nothing of data, bases and training.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationInfo, create_model, field_validator

from scumble.compare.metrics import metric_named
from scumble.complaints import flag
from scumble.config import Options, SweepOptions, TrainOptions, make
from scumble.errors import ConfigError
from scumble.options_file import read_yaml
from scumble.train.judging import metric_name
from scumble.train.sweep.space import Space, values_of

MOST = 512  # trials of a grid that nobody asked for by number
DRAWN = 16  # settings that are drawn where nobody said how many
_LIMIT = 10_000  # what --trials may be at most
_DIFFERS = "leave it out, or start over with --force"


class _Given(SweepOptions):
    """Options of training that may have several values each, beside those of the sweep."""

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        name = str(info.field_name)
        if name in SweepOptions.model_fields:
            if isinstance(value, bool) and name != "halving":
                raise ValueError("must not be true or false")
            return value
        try:
            values_of(name, value)
        except ConfigError as error:
            raise ValueError(error.message.partition(", and ")[2] or error.message) from None
        return value


_FIELDS: Any = {
    name: (Any, Field(field.default, description=field.description))
    for name, field in TrainOptions.model_fields.items()
}
# an option group like those of `scumble.config`, so that a file is read as theirs are, and a wrong name finds the nearest
Given: type[Options] = create_model("Given", __base__=_Given, **_FIELDS)


@dataclass(frozen=True)
class Asked:
    """A sweep that is asked for.

    Attributes:
        space: what is chosen from.
        options: how, and what it is judged by.
        named: the options that somebody gave, by their names.
    """

    space: Space
    options: SweepOptions
    named: frozenset[str]

    @classmethod
    def of(
        cls, given: Mapping[str, Any], config: str | Path | None, base: Any = None, *, whole: bool = True
    ) -> Asked:
        """Read what was given; what is None was not, and wins over the file where it was.

        Args:
            given: options by name.
            config: a YAML file with more of them.
            base: the name of one.
            whole: it is all of a sweep; False: the rest was written down when that was begun.

        Raises:
            ConfigError: an option is not known or has no such value, or two contradict each other.
        """
        values = read_yaml(config, Given) if config else {}
        values |= {name: value for name, value in given.items() if value is not None}
        if base is not None:
            values["base"] = base
        own = {name: value for name, value in values.items() if name in SweepOptions.model_fields}
        theirs = {name: value for name, value in values.items() if name not in own}
        for name in sorted(set(theirs) - set(TrainOptions.model_fields)):
            make(Given, **{name: theirs[name]})  # names the nearest
        found = cls(Space.of(theirs), make(SweepOptions, **_single(own)), frozenset(values))
        if whole:
            found._check()
        return found

    @classmethod
    def recorded(cls, facts: Mapping[str, Any]) -> Asked:
        """What `to_dict` gave."""
        space = facts["space"]
        values = {**space["axes"], "seed": space["seeds"], **space["fixed"]}
        return cls(Space.of(values), make(SweepOptions, **facts["search"]), frozenset())

    @property
    def drawn(self) -> int:
        """Settings that random and tpe draw."""
        return int(min(self.options.trials or DRAWN, self.space.size))

    def to_dict(self) -> dict[str, Any]:
        """What `sweep.json` holds of it; the budget is one of a single call."""
        return {"space": self.space.to_dict(), "search": self.options.model_dump(exclude={"budget"})}

    def check_same(self, before: Asked, folder: Path) -> None:
        """Refuse to go on with `before` where what was given here says otherwise.

        Raises:
            ConfigError: with what differs, both values.
        """
        for name in sorted(self.named - {"budget", "base"}):
            now, was = self._shown(name), before._shown(name)
            if now != was:
                raise ConfigError(
                    f"{flag(name)} is {now}, and the sweep in {folder} was begun with {was}", _DIFFERS
                )

    def metric(self, source: str) -> tuple[str | None, bool]:
        """The metric to take over the data called `source`, None for none; and whether it decides on the best."""
        if self.options.score == 0:
            return None, False
        if self.options.metric:
            return metric_named(self.options.metric)[0], True
        options = make(TrainOptions, keep_best=self.space.fixed.get("keep_best"))
        if (name := metric_name(options, source)) is not None:
            return name, True
        # not the set's own where that is another: what one forward pass can say is whether the text is the same
        from scumble.data.shipped import SHIPPED

        return ("exact_match" if source in SHIPPED else None), False

    def _shown(self, name: str) -> str:
        if name in SweepOptions.model_fields:
            found = getattr(self.options, name)
        elif name == "seed":
            found = self.space.seeds
        else:
            found = self.space.axes.get(name, self.space.fixed.get(name))
        if found is None:
            return "the default"
        return ", ".join(map(str, found)) if isinstance(found, tuple) else str(found)

    def _check(self) -> None:
        options, fixed = self.options, self.space.fixed
        if fixed.get("method", "lora") != "lora":
            raise ConfigError(
                "--method full cannot be swept: each trial would need a base of its own",
                "train one after another",
            )
        if fixed.get("eval") == 0:
            raise ConfigError("--eval 0 leaves nothing to compare trials by", "leave it out")
        if options.search == "tpe" and options.halving:
            raise ConfigError(
                "--halving and --search tpe are both given: each decides on what goes on by results of the other",
                "give one of them",
            )
        if options.metric is not None:
            metric_named(options.metric)
            if options.score == 0:
                raise ConfigError(
                    "--metric is given with --score 0, which takes none", "leave one of them out"
                )
        if options.search == "grid":
            next(self.space.grid())  # refuses a range
            many, most = self.space.size * len(self.space.seeds), options.trials or MOST
            if many > most:
                said = f"--trials is {most}" if options.trials else f"more than {MOST} have to be meant"
                draw = f"draw some with --search random --trials {min(most, 100)}"
                raise ConfigError(
                    f"the grid has {many:,} trials, and {said}",
                    f"say --trials {many}, or {draw}" if many <= _LIMIT else draw,
                )
        elif not self.space.axes:
            raise ConfigError(
                f"--search {options.search} has nothing to draw: no option has several values",
                "give an option twice, or a range such as --learning-rate 1e-4..1e-2",
            )


def _single(own: Mapping[str, Any]) -> dict[str, Any]:
    """The options of the sweep itself, which have one value each; the command line gives each as a list."""
    found = dict(own)
    for name, value in own.items():
        if not isinstance(value, list | tuple):
            continue
        if len(value) != 1:
            raise ConfigError(
                f"{flag(name)} has several values, and it is one for the sweep", "give one of them"
            )
        found[name] = value[0]
    return found
