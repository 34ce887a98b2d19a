"""What is trained to test the lesson: ways to train, each once however many claims ask for it, and how long that takes.

    first:  every way, with each of three learning rates, on the first seed; where the best is the lowest or highest of
            them, also with the next one beyond
    later:  every way with the rate that was best by validation loss, on the other seeds

so that of three seeds a way has five runs or six. The quick form stays with three rates. All runs have the same number of optimizer steps. Knows names and numbers,
and nothing of how to train.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from scumble.errors import ConfigError

# Highest rates that are tried. For all weights a tenth of LoRA's, as Schulman et al. (2025) found.
RATES: dict[str, tuple[float, ...]] = {"lora": (1e-3, 3e-3, 9e-3), "full": (1e-4, 3e-4, 9e-4)}
# Tokens a second on two quiet cores of an Intel Xeon, of training by what is trained, in steps of 4 examples of 40 tokens,
# and of scoring: measured in a quick run and a whole one.
SPEEDS = {"minimal": 310.0, "standard": 300.0, "comprehensive": 260.0, "full": 125.0, "scoring": 880.0}
STEP = 3.0  # from one rate to the next
AT_END = 1 / 3  # of the ways, whose best rate is expected at an end of those tried
BEGINNING = 110.0  # seconds of loading the base, reading data and measuring memory
SPECTRUM = 45.0  # seconds of the singular values of one model's update
GENERATED = 1.5  # seconds of generating one answer


@dataclass(frozen=True)
class Configuration:
    """A way to train.

    Attributes:
        rank, alpha, targets: of the adapter; of no meaning where all weights are trained.
        data: all examples, each seen once, or few of them, each seen often.
        method: an adapter, or all weights.
    """

    rank: int = 8
    alpha: float = 16.0
    targets: str = "minimal"
    data: Literal["all", "few"] = "all"
    method: Literal["lora", "full"] = "lora"

    @property
    def name(self) -> str:
        """What its runs are called: r8-a16-minimal."""
        shape = "full" if self.method == "full" else f"r{self.rank}-a{self.alpha:g}-{self.targets}"
        return shape if self.data == "all" else f"{shape}-few"

    @property
    def title(self) -> str:
        """As people read it."""
        if self.method == "full":
            return "all weights"
        where = {"minimal": "q, v", "standard": "attention", "comprehensive": "all modules"}[self.targets]
        return f"r = {self.rank}, alpha = {self.alpha:g}, {where}"

    def options(self) -> dict[str, Any]:
        """Fields of `TrainOptions`."""
        if self.method == "full":
            return {"method": "full"}
        return {"rank": self.rank, "alpha": self.alpha, "targets": self.targets}


FULL = Configuration(method="full")


@dataclass(frozen=True)
class Candidate:
    """One run: a way to train, a learning rate and a seed."""

    configuration: Configuration
    rate: float
    seed: int

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.configuration.name}-{self.rate:g}-s{self.seed}"


@dataclass(frozen=True)
class Scope:
    """How much is done.

    Attributes:
        name: quick or whole.
        seeds: the first of them decides on rates.
        steps: optimizer steps of every run.
        batch: examples in a step.
        few: examples of the small training set.
        scored: unseen examples that are scored.
        validated: examples that decide on rates.
        sampled: of the scored ones, those that are also answered by generation.
    """

    name: str
    seeds: tuple[int, ...]
    steps: int
    batch: int = 4
    few: int = 48
    scored: int = 400
    validated: int = 60
    sampled: int = 40

    @property
    def quick(self) -> bool:
        """Whether it is the short form, of one seed."""
        return self.name == "quick"

    @property
    def examples(self) -> int:
        """Examples that are seen once in a run."""
        return self.steps * self.batch

    def to_dict(self) -> dict[str, Any]:
        """What `lab.json` holds of it."""
        return {**vars(self), "seeds": list(self.seeds), "examples": self.examples}


QUICK = Scope("quick", (0,), steps=76, sampled=20)
WHOLE = Scope("whole", (0, 1, 2), steps=92)


def scope_of(document: Mapping[str, Any]) -> Scope:
    """The scope that `to_dict` gave."""
    try:
        fields = {name: document[name] for name in Scope.__dataclass_fields__}
        return Scope(**{**fields, "seeds": tuple(fields["seeds"])})
    except (KeyError, TypeError) as error:
        raise ConfigError(
            "lab.json is damaged: it does not say what was asked", "start over with --force"
        ) from error


def unique(configurations: Sequence[Configuration]) -> list[Configuration]:
    """Each once, in the order in which they were first asked for."""
    return list(dict.fromkeys(configurations))


def rates_of(configuration: Configuration, scope: Scope) -> tuple[float, ...]:
    """The rates that a way to train is tried with; the quick form tries one of all weights, whose runs take longest."""
    rates = RATES[configuration.method]
    return rates[1:2] if scope.quick and configuration.method == "full" else rates


def first_runs(configurations: Sequence[Configuration], scope: Scope) -> list[Candidate]:
    """The runs that rates are chosen by; the chosen ones count as those of the first seed."""
    seed = scope.seeds[0]
    return [Candidate(c, rate, seed) for c in unique(configurations) for rate in rates_of(c, scope)]


def further_runs(
    configurations: Sequence[Configuration], scope: Scope, chosen: Mapping[str, float]
) -> list[Candidate]:
    """The runs of one rate more, for each way whose best of three is the lowest or highest.

    Args:
        configurations: all of them.
        scope: how much is done; in the quick form there are none.
        chosen: the best rate of each so far, by its name.
    """
    found = []
    for way in unique(configurations) if not scope.quick else []:
        rates, best = rates_of(way, scope), chosen.get(way.name)
        if best in (rates[0], rates[-1]):
            beyond = best * STEP if best == rates[-1] else best / STEP
            found.append(Candidate(way, float(f"{beyond:.3g}"), scope.seeds[0]))
    return found


def later_runs(
    configurations: Sequence[Configuration], scope: Scope, chosen: Mapping[str, float]
) -> list[Candidate]:
    """The runs of the other seeds.

    Args:
        configurations: all of them.
        scope: whose first seed is done.
        chosen: the rate of each by its name; those that have none broke off at every rate, and are left out.
    """
    kept = [c for c in unique(configurations) if c.name in chosen]
    return [Candidate(c, chosen[c.name], seed) for seed in scope.seeds[1:] for c in kept]


@dataclass(frozen=True)
class Time:
    """Planned seconds, by what they go to.

    Attributes:
        training: of all runs.
        scoring: of validation and unseen examples, generation included.
        rest: loading, planning memory, singular values, the page.
        runs: how many there are.
    """

    training: float
    scoring: float
    rest: float
    runs: int

    @property
    def seconds(self) -> float:
        """In all."""
        return self.training + self.scoring + self.rest

    def to_dict(self) -> dict[str, Any]:
        """The same by name."""
        return {**vars(self), "seconds": self.seconds}


def planned_time(configurations: Sequence[Configuration], scope: Scope, tokens: float) -> Time:
    """How long it will take on two quiet cores such as those that `SPEEDS` was measured on.

    Args:
        configurations: all of them.
        scope: how much is done.
        tokens: of an example, on average.
    """
    ways = unique(configurations)
    training = scoring = 0.0
    runs = 0.0
    each = tokens * scope.examples
    for way in ways:
        count = len(rates_of(way, scope)) + len(scope.seeds) - 1 + (0 if scope.quick else AT_END)
        speed = SPEEDS["full" if way.method == "full" else way.targets]
        training += count * each / speed
        validated = count * scope.validated * (2 if way.data == "few" else 1)
        scored = len(scope.seeds) * scope.scored if way.data == "all" else 0
        scoring += (validated + scored) * tokens / SPEEDS["scoring"]
        runs += count
    spectra = 0.0 if FULL not in ways else (len(rates_of(FULL, scope)) + len(scope.seeds) - 1) * SPECTRUM
    return Time(training, scoring + scope.sampled * GENERATED, BEGINNING + spectra, round(runs))
