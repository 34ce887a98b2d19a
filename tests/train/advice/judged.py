"""Advice held against the truth: runs are made, advised on, and the command that was advised is followed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from scumble.models.base import Base
from scumble.train.advice.advise import Advice, advise
from scumble.train.advice.command import NextRun
from scumble.train.many import Trained, Trial, train_many
from tests.train.advice.worlds import TRUTHS, Family, Truth, data_of


@dataclass(frozen=True)
class Judged:
    """One run: what is true of it, what was said, and the best validation loss before and after following that."""

    truth: Truth
    seed: int
    advice: Advice
    before: float
    after: float | None

    @property
    def right(self) -> bool:
        return self.advice.verdict in self.truth.verdicts

    @property
    def better(self) -> bool | None:
        """Whether following it helped; None where there was nothing to follow."""
        return None if self.after is None else self.after < self.before


def judge(
    base: Base,
    family: Family,
    seeds: Iterable[int],
    folder: Path,
    *,
    truths: Sequence[Truth] = TRUTHS,
    follow: bool = True,
) -> list[Judged]:
    """Make a run of each truth and seed, all at once, and follow what is advised, all at once."""
    folder.mkdir(parents=True, exist_ok=True)
    cases, trials = [], []
    for truth in truths:
        for seed in seeds:
            data, held = data_of(truth, family, seed, folder)
            out = folder / f"{truth.name.replace(' ', '-')}-{seed}"
            cases.append((truth, seed))
            trials.append(Trial(out, {**truth.options, "eval": held, "seed": seed}, data=data))
    first = train_many(None, trials, base=base)
    advices = [advise(trial.out) for trial in trials]
    nexts = [advice.findings[0].next if advice.findings else None for advice in advices]
    second = _followed(base, [each for each in nexts if each]) if follow else {}
    return [
        Judged(truth, seed, advice, _loss(run), _loss(second[then.out]) if then and follow else None)
        for (truth, seed), advice, run, then in zip(cases, advices, first, nexts, strict=True)
    ]


def _followed(base: Base, nexts: Sequence[NextRun]) -> dict[Path, Trained]:
    trials = [Trial(each.out, {**each.options, "base": None}, data=each.data) for each in nexts]
    return {each.trial.out: each for each in train_many(None, trials, base=base)} if trials else {}


def _loss(trained: Trained) -> float:
    """The best validation loss; a run that broke off before it had one is as bad as can be."""
    return float("inf") if trained.loss is None else trained.loss


def table(judged: Sequence[Judged]) -> str:
    """The confusion table: a row a truth, with what was said how often, and how often following it helped."""
    rows = [
        "| truth | right | said | following it helped | validation loss, median before -> after |",
        "|---|---|---|---|---|",
    ]
    for truth in dict.fromkeys(each.truth for each in judged):
        own = [each for each in judged if each.truth == truth]
        said = Counter(each.advice.verdict or "nothing" for each in own).most_common()
        tried = [each for each in own if each.after is not None]
        helped = f"{sum(bool(each.better) for each in tried)} of {len(tried)}" if tried else ""
        change = ""
        if tried:
            before = sorted(each.before for each in tried)[len(tried) // 2]
            after = sorted(each.after or 0.0 for each in tried)[len(tried) // 2]
            change = f"{before:.3g} -> {after:.3g}"
        words = ", ".join(f"{verdict} {times}" for verdict, times in said)
        rows.append(
            f"| {truth.name} | {sum(e.right for e in own)} of {len(own)} | {words} | {helped} | {change} |"
        )
    return "\n".join(rows)
