"""Whether a claim holds, from the results of its ways to train.

    holds           every interval lies above zero, over several seeds
    does not hold   no interval lies above zero, and at least one below
    depends         anything else; and everything that one seed was asked

Where every way to train gets next to nothing right, or next to everything, none can lose much to another: a
comparison of that kind speaks neither way then, and a claim that needs it depends.

The intervals of a claim hold together: each has the level 1 - 0.05 / (comparisons of the claim). A claim needs one
side of them, so that as far as they cover what they say, one that is false is said to hold in at most one of forty
cases; claims are not corrected for one another. Knows tables of results, and nothing of how they came about.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from scumble.lab.lesson.claims import Claim, Comparison, Measure
from scumble.lab.lesson.plan import Configuration
from scumble.lab.lesson.statistics import Estimate, estimate, mcnemar, sign_flip

Verdict = Literal["holds", "does not hold", "depends"]
ERROR = 0.05  # that a claim is said to hold, or not to, where neither is so
# the results of a way to train, of shape (seeds, examples); None where there are none
Results = Callable[[Configuration, Measure], np.ndarray | None]


@dataclass(frozen=True)
class Found:
    """What came of a comparison.

    Attributes:
        comparison: which.
        raw: the sum itself.
        evidence: the same so turned and moved that above zero speaks for the claim.
        tests: further tests by name, each with its p.
        forced: why it could not have come out otherwise; empty where it could.
    """

    comparison: Comparison
    raw: Estimate
    evidence: Estimate
    tests: dict[str, float]
    forced: str = ""

    def to_dict(self) -> dict[str, Any]:
        """What `lab.json` holds of it."""
        each = self.comparison
        return {
            "title": each.title,
            "kind": each.kind,
            "measure": each.measure,
            "margin": each.margin,
            "difference": self.raw.to_dict(),
            "evidence": self.evidence.to_dict(),
            "p": self.tests,
        }


@dataclass(frozen=True)
class Judged:
    """A claim with its verdict.

    Attributes:
        claim: which.
        verdict: see the module.
        why: in a sentence.
        found: of each comparison; fewer than the claim has where results are missing.
    """

    claim: Claim
    verdict: Verdict
    why: str
    found: tuple[Found, ...]

    def to_dict(self) -> dict[str, Any]:
        """What `lab.json` holds of it."""
        return {
            "name": self.claim.name,
            "says": self.claim.says,
            "elsewhere": self.claim.elsewhere,
            "verdict": self.verdict,
            "why": self.why,
            "comparisons": [each.to_dict() for each in self.found],
        }


def judge(claim: Claim, results: Results) -> Judged:
    """Judge one claim."""
    level = 1 - ERROR / len(claim.comparisons)
    found = [one for each in claim.comparisons if (one := _compared(each, results, level)) is not None]
    if len(found) < len(claim.comparisons):
        why = "Not decided: a way to train that it needs broke off at every rate, or on a later seed."
        return Judged(claim, "depends", why, tuple(found))
    forced = [each.forced for each in found if each.forced]
    free = [each.evidence for each in found if not each.forced]
    verdict, why = decide(free) if free else ("depends", "")
    if forced and verdict != "does not hold":
        verdict, why = "depends", forced[0]
    return Judged(claim, verdict, why, tuple(found))


def decide(evidence: Sequence[Estimate]) -> tuple[Verdict, str]:
    """The verdict on intervals in which above zero speaks for a claim.

    Args:
        evidence: at least one.
    """
    above = sum(each.low > 0 for each in evidence)
    below = sum(each.high < 0 for each in evidence)
    many = len(evidence)
    if min(each.seeds for each in evidence) < 2:
        return "depends", _of_one_seed(above, below, many)
    if above == many:
        return "holds", "The interval leaves out zero." if many == 1 else "All intervals leave out zero."
    if below and not above:
        return "does not hold", "The figures speak against it, and the interval leaves out zero."
    if not above and not below:
        return "depends", "Nothing was decided: the interval holds zero."
    told = f"{above} of {many} comparisons speak for it, {below} against it, the others neither way."
    return "depends", told


def _of_one_seed(above: int, below: int, many: int) -> str:
    sides = {(many, 0): "for it", (0, many): "against it", (0, 0): "neither way"}
    side = sides.get((above, below), f"{above} of {many} for it and {below} against it")
    return f"On this one seed the figures speak {side}; nothing is said of other seeds."


def _compared(each: Comparison, results: Results, level: float) -> Found | None:
    tables = [(results(way, each.measure), weight) for way, weight in each.weights]
    if any(table is None for table, _ in tables):
        return None
    seeds = min(len(table) for table, _ in tables if table is not None)
    total = np.asarray(sum(weight * table[:seeds] for table, weight in tables if table is not None))
    # the weights of right answers add up to zero: one example adds at most those on one side
    most = sum(weight for _, weight in tables if weight > 0) if each.measure == "right" else 0.0
    raw = estimate(total, level, most)
    forced = _forced(each, [float(table.mean()) for table, _ in tables if table is not None])
    return Found(each, raw, turned(raw, each.kind, each.margin), _tests(each, total), forced)


def _forced(each: Comparison, shares: Sequence[float]) -> str:
    """Why no difference can be larger than the margin, given the share of right answers of each way."""
    if each.measure != "right" or each.kind not in ("not less", "alike"):
        return ""
    if max(shares) <= each.margin:
        got, where = f"at most {each.margin:.0%}", "so little was learned"
    elif min(shares) >= 1 - each.margin:
        got, where = f"at least {1 - each.margin:.0%}", "so little is left to learn"
    else:
        return ""
    most = f"none can lose more than {100 * each.margin:g} points to another"
    return f"Not decided. In a comparison every way to train got {got} right: {most} where {where}."


def turned(raw: Estimate, kind: str, margin: float) -> Estimate:
    """The interval of a difference as evidence: above zero it speaks for a comparison of that kind."""
    if kind in ("more", "not less"):
        mean, low, high = raw.mean + margin, raw.low + margin, raw.high + margin
    else:
        # the interval of the size of the difference, which begins at zero where the difference's holds zero
        size, most = abs(raw.mean), max(abs(raw.low), abs(raw.high))
        least = 0.0 if raw.low <= 0 <= raw.high else min(abs(raw.low), abs(raw.high))
        mean, low, high = (
            (size, least, most) if kind == "differs" else (margin - size, margin - most, margin - least)
        )
    return Estimate(mean, low, high, raw.level, raw.seeds)


def _tests(each: Comparison, total: np.ndarray) -> dict[str, float]:
    """Tests of no difference at all that assume less, where the results are right or wrong answers."""
    if each.measure != "right":
        return {}
    found = {"sign flip": sign_flip(total)}
    if len(each.weights) == 2 and len(total) == 1:
        found["McNemar"] = mcnemar(int((total > 0.5).sum()), int((total < -0.5).sum()))
    return {name: p for name, p in found.items() if math.isfinite(p)}
