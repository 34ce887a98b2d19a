"""Advice of a sweep: which option moved the loss most, against the noise between seeds; what rank is worth; what is next.

    effect    of an option: trials that differ in nothing else stand in one block. Within a block the loss of each value is
              taken against the block's mean; the effect is the highest of the values' means minus the lowest (a complete
              block design: Fisher 1935; Box, Hunter and Hunter, Statistics for Experimenters, chapter 4)
    noise     s, the standard deviation between seeds of one setting, pooled over the settings: s^2 is the sum of squares
              about the settings' means over n - settings. Seeds that all came to the same loss show none
    error     of an effect over b blocks: s sqrt(2 / b). The option that moved most is the largest of several, hence
              4 errors for high confidence, 2 for medium
    wasted    more rank is where what it won, and 2 errors more, are below 2 % of the loss. Within 2 errors alone nothing is
              decided: few seeds, or noisy ones, see no difference whether or not there is one

Only trials that came to their end are compared: one that was given up early has a loss of another step. Of
`sweep.json` it reads `trials` (`name`, `settings`, `loss`, `state`) and of `best` the `trial`. Knows nothing
of how a sweep is made.
"""

from __future__ import annotations

import json
import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scumble.errors import ConfigError
from scumble.train.advice.command import NextRun, asked, next_run
from scumble.train.advice.finding import Confidence, Finding
from scumble.train.advice.reading import SWEEP_DAMAGED, Reading, finite, read_json, read_run

SURE, LIKELY = 4.0, 2.0  # errors of an effect
LITTLE = 0.02  # share of the loss: as much as an evaluation may lie above the lowest and count as no worse (`diagnoses`)
_NUMERIC = ("rank", "learning_rate")  # options that can be taken beyond what was tried
_SEED = "seed"


@dataclass(frozen=True)
class Member:
    """A trial: where it is, its settings and its best validation loss."""

    folder: Path
    settings: Mapping[str, Any]
    loss: float

    def key(self, *left_out: str) -> str:
        """Its settings as one text, without some."""
        kept = {name: value for name, value in self.settings.items() if name not in left_out}
        return json.dumps(kept, sort_keys=True, default=str)


@dataclass(frozen=True)
class Effect:
    """What an option moved.

    Attributes:
        means: from each value to the mean loss over the blocks that have all values.
        size: the highest minus the lowest.
        blocks: how many.
        error: of the size; None where the noise is not known.
    """

    option: str
    means: Mapping[Any, float]
    size: float
    blocks: int
    error: float | None

    @property
    def best(self) -> Any:
        """The value of the lowest loss."""
        return min(self.means, key=lambda value: self.means[value])

    @property
    def confidence(self) -> Confidence:
        """By how many errors it is."""
        if self.error is None or self.size < LIKELY * self.error:
            return "low"
        return "high" if self.size >= SURE * self.error else "medium"

    @property
    def rule(self) -> str:
        """Why it is so sure."""
        if self.error is None:
            return "the noise between seeds is not known, so that there is no error to hold it against"
        return {
            "low": f"the effect is below {LIKELY:g} errors; medium would need them, high {SURE:g}",
            "medium": f"the effect is {LIKELY:g} errors or more; high would need {SURE:g}",
            "high": f"the effect is {SURE:g} errors or more",
        }[self.confidence]

    def evidence(self) -> dict[str, Any]:
        """Its figures."""
        return {
            "effect": self.size,
            "error": self.error,
            "blocks": self.blocks,
            **{f"loss at {value}": mean for value, mean in self.means.items()},
        }


def advise_sweep(folder: Path) -> tuple[list[Finding], list[str], str, Path | None]:
    """What trials say of each other, what is missing, what was looked at, and the folder of the best trial.

    Raises:
        ConfigError: `sweep.json` is damaged.
        MissingFileError: there is none.
    """
    document = read_json(folder / "sweep.json", folder, "sweep")
    members, count = _members(folder, document)
    about = f"{count} trials, {len(members)} of them came to their end with a validation loss"
    few = ["two trials that came to their end, to compare them"]
    if not members:
        return [], few, about, None
    best, why = _best(document, members)
    about += f"; looked at {best.folder.name}, {why}"
    if len(members) < 2:
        return [], few, about, best.folder
    noise, freedom = noise_of(members)
    missing = _no_noise(freedom) if noise is None else []
    reading = read_run(best.folder)
    held = len({_plain(member.settings.get("alpha")) for member in members}) == 1  # alpha, whatever the rank
    effects = sorted(effects_of(members, noise), key=lambda each: each.size, reverse=True)
    missing += _not_compared(members, {each.option for each in effects})
    found = [_largest(effects, noise, freedom, reading, held)] if effects else []
    for each in effects:
        if each.option == "rank":
            rank = _rank(each, reading, held)
            found += [rank] if rank else []
            missing += [_more_seeds(each, members)] if _undecided(each) else []
    return found, missing, about, best.folder


def _no_noise(freedom: int) -> list[str]:
    """What to say where there is no noise to hold effects against."""
    if freedom:
        return [
            "seeds that differ in their loss: those of each setting came to the same, which says nothing of chance"
        ]
    return ["two seeds of one setting: --seed 0 --seed 1 tells effects from chance"]


def _best(document: Mapping[str, Any], members: Sequence[Member]) -> tuple[Member, str]:
    """The sweep's own best, by the mean over seeds or the metric, else the lowest loss; and which it is."""
    best = document.get("best")
    named = best.get("trial") if isinstance(best, dict) else None
    for member in members:
        if member.folder.name == named:
            return member, "the best by sweep.json"
    return min(
        members, key=lambda member: member.loss
    ), "the one of the lowest loss: sweep.json names no best of them"


def _not_compared(members: Sequence[Member], compared: set[str]) -> list[str]:
    """What to say where options vary and no block has all their values, as of settings that were drawn."""
    names = {name for member in members for name in member.settings} - {_SEED, *_tied("rank", members)}
    vary = {name for name in names if len({_plain(member.settings.get(name)) for member in members}) > 1}
    if not vary:
        return ["two settings, to compare them: these trials differ in their seed alone"]
    left = ", ".join(sorted(vary - compared))
    return (
        [f"no trials differ in one option alone, for {left}: --search grid makes such trials"] if left else []
    )


def _members(folder: Path, document: Mapping[str, Any]) -> tuple[list[Member], int]:
    """The trials that can be compared, and how many there are."""
    trials = document.get("trials")
    if not isinstance(trials, list) or not all(isinstance(each, dict) for each in trials):
        raise ConfigError(f"{folder / 'sweep.json'} is damaged: it has no trials", SWEEP_DAMAGED)
    members = []
    for trial in trials:
        loss, settings = trial.get("loss"), trial.get("settings")
        at = folder / "trials" / str(trial.get("name", ""))
        over = trial.get("state", "finished") == "finished"
        whole = over and isinstance(settings, dict) and (at / "run.json").is_file()
        if whole and isinstance(loss, int | float) and finite(loss):
            members.append(Member(at, settings, float(loss)))
    return members, len(trials)


def noise_of(members: Sequence[Member]) -> tuple[float | None, int]:
    """s between seeds, pooled, and its degrees of freedom; None where no setting has two, or none that differ."""
    groups: dict[str, dict[Any, float]] = defaultdict(dict)
    for member in members:  # a setting may stand there twice with one seed, whose losses say nothing of noise
        groups[member.key(_SEED)][_plain(member.settings.get(_SEED))] = member.loss
    several = [list(losses.values()) for losses in groups.values() if len(losses) > 1]
    freedom = sum(len(losses) - 1 for losses in several)
    if all(len(set(losses)) == 1 for losses in several):
        return None, freedom
    squares = sum((loss - statistics.fmean(losses)) ** 2 for losses in several for loss in losses)
    return math.sqrt(squares / freedom) or None, freedom


def effects_of(members: Sequence[Member], noise: float | None) -> list[Effect]:
    """What each option that varies moved; without those that have no block in common."""
    names = sorted({name for member in members for name in member.settings} - {_SEED})
    found = (_effect(name, members, noise) for name in names)
    return [each for each in found if each is not None]


def _effect(option: str, members: Sequence[Member], noise: float | None) -> Effect | None:
    values = {_plain(member.settings.get(option)) for member in members}
    if len(values) < 2:
        return None
    with_it = _tied(option, members)
    blocks: dict[str, dict[Any, float]] = defaultdict(dict)
    for member in members:
        blocks[member.key(option, *with_it)][_plain(member.settings.get(option))] = member.loss
    whole = [block for block in blocks.values() if len(block) == len(values)]
    if not whole:
        return None
    ordered = sorted(values, key=lambda value: (isinstance(value, str), value))
    means = {value: statistics.fmean(block[value] for block in whole) for value in ordered}
    error = None if noise is None else noise * math.sqrt(2 / len(whole))
    return Effect(option, means, max(means.values()) - min(means.values()), len(whole), error)


def _tied(option: str, members: Sequence[Member]) -> tuple[str, ...]:
    """Options that follow from this one: alpha, where each rank has one."""
    if option != "rank":
        return ()
    pairs = {
        (_plain(member.settings.get("rank")), _plain(member.settings.get("alpha"))) for member in members
    }
    return ("alpha",) if len(pairs) == len({rank for rank, _ in pairs}) else ()


def _plain(value: Any) -> Any:
    return value if isinstance(value, int | float | str) else json.dumps(value, default=str)


def _largest(
    effects: Sequence[Effect], noise: float | None, freedom: int, reading: Reading, held: bool
) -> Finding:
    """The option that moved the loss most, and where to look next."""
    first = effects[0]
    against = "" if noise is None else f", {first.size / noise:.1f} times the noise between seeds"
    evidence = {**first.evidence(), "noise_between_seeds": noise, "degrees_of_freedom": freedom}
    evidence |= {f"effect of {each.option}": each.size for each in effects[1:]}
    few = freedom < 3 and first.confidence == "high"
    sure: Confidence = "medium" if few else first.confidence
    return Finding(
        "option",
        f"{first.option} moved the loss most: by {first.size:.3g}{against}; best at {first.best}",
        evidence,
        sure,
        f"{first.rule}; high would need three degrees of freedom" if few else first.rule,
        _beyond(first, reading, held),
    )


def _beyond(effect: Effect, reading: Reading, held: bool) -> NextRun | None:
    """The best trial with the option beyond the edge of what was tried; None where the best is not at an edge."""
    values = list(effect.means)
    if effect.option not in _NUMERIC or effect.best not in (values[0], values[-1]):
        return None
    up = effect.best == values[-1]
    if effect.option == "rank":
        rank = int(effect.best) * 2 if up else max(1, int(effect.best) // 2)
        return None if rank == effect.best else next_run(reading, **_with_rank(reading, rank, held))
    return next_run(reading, learning_rate=float(f"{float(effect.best) * (3 if up else 1 / 3):.2g}"))


def _rank(effect: Effect, reading: Reading, held: bool) -> Finding | None:
    """What rank is worth, measured between trials that differ in it alone."""
    lowest, *_, highest = effect.means
    if effect.best == lowest or _undecided(effect):
        return None
    won = _won(effect)
    if _no_more(effect):
        saves = next_run(reading, **_with_rank(reading, int(lowest), held))
        return Finding(
            "rank wasted",
            f"rank {effect.best} is hardly better than rank {lowest}: the loss fell by {won:.3g}",
            effect.evidence(),
            "medium",
            f"what was won and {LIKELY:g} errors more are below {LITTLE:.0%} of the loss",
            saves,
        )
    edge = effect.best == highest
    return Finding(
        "rank",
        f"more rank helped: from rank {lowest} to {effect.best} the loss fell by {won:.3g}"
        + (", and higher ranks were not tried" if edge else f", and not from there to {highest}"),
        effect.evidence(),
        effect.confidence,
        f"measured; {effect.rule}",
        _beyond(effect, reading, held),
    )


def _won(effect: Effect) -> float:
    """What the best of the higher ranks won on the lowest; below 0 where it lost."""
    first, *more = effect.means.values()
    return first - min(more)


def _no_more(effect: Effect) -> bool:
    """Whether more rank brings next to nothing, whatever the noise hides."""
    first = next(iter(effect.means.values()))
    return effect.error is not None and _won(effect) + LIKELY * effect.error < LITTLE * first


def _undecided(effect: Effect) -> bool:
    """Whether the noise hides if more rank helps."""
    return effect.error is not None and _won(effect) < LIKELY * effect.error and not _no_more(effect)


def _more_seeds(effect: Effect, members: Sequence[Member]) -> str:
    """What would decide it: twice the seeds."""
    seeds = len({_plain(member.settings.get(_SEED)) for member in members})
    more = " ".join(f"--seed {seed}" for seed in range(2 * seeds))
    return (
        f"whether more rank helps is not decided: it won {_won(effect):.3g} with an error of {effect.error:.3g}; "
        f"more seeds would tell: {more}"
    )


def _with_rank(reading: Reading, rank: int, held: bool) -> dict[str, Any]:
    """Options of another rank: at the same alpha where the sweep held that, else at the same alpha over rank."""
    options = asked(reading)
    return (
        {"rank": rank}
        if held
        else {"rank": rank, "alpha": float(options["alpha"]) / int(options["rank"]) * rank}
    )
