"""The lesson's claims that training can test: what each says, which ways to train it needs, and what is compared.

A comparison is a sum of ways to train with weights that add up to zero, such as 1 for r = 16 and -1 for r = 8, of the
share of right answers or of the loss. Knows ways to train by name, and nothing of results.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from scumble.lab.lesson.plan import FULL, Configuration, Scope, unique
from scumble.lora.targets import TARGET_SETS

MARGIN = (
    0.05  # of right answers: a difference that nobody would choose by, decided before anything was measured
)
RANKS = (4, 8, 16, 32, 64)

Measure = Literal["right", "loss", "gap", "held"]


@dataclass(frozen=True)
class Comparison:
    """A sum of results with weights, and what of it would speak for the claim.

    Attributes:
        title: what is compared, in words that stay true whatever comes out.
        weights: of ways to train.
        kind: `more`: that it is above 0; `not less`: that it is above -margin; `alike`: that it is between -margin and
            margin; `differs`: that it is not 0.
        measure: the share of right answers on unseen examples; the loss on validation examples, in nats for each
            token; the gap of that to the loss on the training examples; the share of an update's squared norm that
            the rank in `weights`'s first way would hold, less a half.
        margin: see `kind`.
    """

    title: str
    weights: tuple[tuple[Configuration, float], ...]
    kind: Literal["more", "not less", "alike", "differs"] = "more"
    measure: Measure = "right"
    margin: float = 0.0


@dataclass(frozen=True)
class Claim:
    """One claim of the lesson.

    Attributes:
        name: short, for `lab.json`.
        says: the claim, as the lesson puts it.
        comparisons: all of them must speak for it.
        quick: it is tested in the quick form too.
        elsewhere: what others found.
        also: ways to train that are shown beside, and decide nothing; not in the quick form.
    """

    name: str
    says: str
    comparisons: tuple[Comparison, ...]
    quick: bool = True
    elsewhere: str = ""
    also: tuple[Configuration, ...] = ()

    @property
    def needs(self) -> list[Configuration]:
        """The ways to train that it compares, each once."""
        return unique([way for each in self.comparisons for way, _ in each.weights])


def ranked(rank: int, targets: str = "minimal") -> Configuration:
    """A rank with twice as much alpha."""
    return Configuration(rank, 2.0 * rank, targets)


def few(rank: int) -> Configuration:
    """The same on few examples, each seen often."""
    return Configuration(rank, 2.0 * rank, data="few")


def versus(first: Configuration, second: Configuration) -> tuple[tuple[Configuration, float], ...]:
    """The first less the second."""
    return ((first, 1.0), (second, -1.0))


def trend(ranks: tuple[int, ...]) -> tuple[tuple[Configuration, float], ...]:
    """The slope over log2 of the rank: what a rank twice as high adds, by least squares."""
    logs = [math.log2(rank) for rank in ranks]
    middle = sum(logs) / len(logs)
    square = sum((log - middle) ** 2 for log in logs)
    return tuple((ranked(rank), (log - middle) / square) for rank, log in zip(ranks, logs, strict=True))


def claims(scope: Scope) -> list[Claim]:
    """The claims that are tested."""
    ranks = (4, 8, 64) if scope.quick else RANKS
    found = [*_of_rank(ranks), *_of_alpha(), *_of_targets(), *_of_overfitting(), *_of_full()]
    return [each for each in found if each.quick or not scope.quick]


def _of_rank(ranks: tuple[int, ...]) -> list[Claim]:
    above = [rank for rank in ranks if rank > 8]
    return [
        Claim(
            "start at 8",
            "Rank 8 is the default to start with.",
            tuple(
                Comparison(f"r = 8 loses at most 5 points to r = {rank}", versus(ranked(8), ranked(rank)), "not less", margin=MARGIN)
                for rank in above
            ),
            elsewhere="Usable; capacity should exceed the information in the data.",
        ),
        Claim(
            "more rank, more learned",
            "4 is minimal, 8 the default, 16 strong, 32 near full fine-tuning: more rank does more.",
            (Comparison("what a rank twice as high adds", trend(ranks)),),
            elsewhere="Learning rate, targets and epochs come first.",
        ),
        Claim(
            "64 rarely needed",
            "Rank 64 and above is rarely needed.",
            (Comparison("r = 32 loses at most 5 points to r = 64", versus(ranked(32), ranked(64)), "not less", margin=MARGIN),),
            quick=False,
        ),
    ]  # fmt: skip


def _of_alpha() -> list[Claim]:
    low, high, other = ranked(4), ranked(64), Configuration(64, 16.0)
    return [
        Claim(
            "the ratio matters",
            "The ratio alpha / r matters more than the values.",
            (
                Comparison("at alpha / r = 2, r = 4 and 64 are alike within 5 points", versus(low, high), "alike", margin=MARGIN),
                Comparison("at r = 64, alpha = 16 differs from alpha = 128", versus(high, other), "differs"),
            ),
            also=(Configuration(4, 16.0),),
            elsewhere="Learning rate and ratio trade off: with the rate chosen for each, little may be left of either.",
        )
    ]  # fmt: skip


def _of_targets() -> list[Claim]:
    everywhere, attention = ranked(8, "comprehensive"), ranked(32, "standard")
    return [
        Claim(
            "start with q and v",
            "Start with q and v, add modules if needed.",
            (
                Comparison("q, v loses at most 5 points to attention, both r = 8", versus(ranked(8), ranked(8, "standard")), "not less", margin=MARGIN),
                Comparison("q, v loses at most 5 points to all modules, both r = 8", versus(ranked(8), everywhere), "not less", margin=MARGIN),
            ),
            elsewhere="Outdated: MLP layers carry most; all layers at a low rank match full fine-tuning on moderate data (Schulman et al. 2025).",
        ),
        Claim(
            "r = 8 everywhere before 32",
            "Low rank on many modules beats high rank on few: r = 8 everywhere against r = 32 on attention.",
            (Comparison("r = 8 on all modules less r = 32 on attention", versus(everywhere, attention)),),
            elsewhere="Direction supported. Beforehand, one seed, one rate, 40 examples: 82.5 % against 65 %.",
        ),
        Claim(
            "r = 16 everywhere before 32",
            "The same with r = 16 everywhere against r = 32 on attention.",
            (Comparison("r = 16 on all modules less r = 32 on attention", versus(ranked(16, "comprehensive"), attention)),),
            quick=False,
        ),
    ]  # fmt: skip


def _of_overfitting() -> list[Claim]:
    return [
        Claim(
            "lower the rank against overfitting",
            "Lower the rank if it overfits.",
            (
                Comparison("validation loss of r = 64 less that of r = 4, few examples seen often", versus(few(64), few(4)), measure="loss"),
                Comparison("gap between validation and training loss, r = 64 less r = 4", versus(few(64), few(4)), measure="gap"),
            ),
            also=(few(16),),
            elsewhere="Weak evidence: data, epochs and regularisation matter more.",
        )
    ]  # fmt: skip


def _of_full() -> list[Claim]:
    return [
        Claim(
            "32 near full",
            "Rank 32 is near full fine-tuning.",
            (Comparison("r = 32 on q, v loses at most 5 points to all weights", versus(ranked(32), FULL), "not less", margin=MARGIN),),
            quick=False,
        ),
        Claim(
            "low rank everywhere near full",
            "(Not the lesson's, but Schulman et al.'s:) all modules at a low rank match full fine-tuning.",
            (Comparison("r = 16 on all modules loses at most 5 points to all weights", versus(ranked(16, "comprehensive"), FULL), "not less", margin=MARGIN),),
            quick=False,
        ),
        Claim(
            "a thin layer is enough",
            "A thin correction layer on a frozen model can hold what fine-tuning changes.",
            (Comparison("share of a full fine-tuning's update that rank 16 would hold, less a half", ((FULL, 1.0),), measure="held"),),
            elsewhere="Hu et al. (2021) supposed that the update has a low intrinsic rank; this is the update itself.",
        ),
    ]  # fmt: skip


def configurations(scope: Scope) -> list[Configuration]:
    """All ways to train that the claims need, each once; those that take longest last."""
    tested = claims(scope)
    shown = [way for claim in tested for way in claim.also if not scope.quick]
    ways = unique([*(way for claim in tested for way in claim.needs), *shown])
    return sorted(ways, key=_place)


def _place(way: Configuration) -> tuple[object, ...]:
    return way.method == "full", way.data == "few", list(TARGET_SETS).index(way.targets), way.rank, way.alpha
