"""Advice of a sweep: which option moved the loss most, against the noise between seeds; what rank is worth; what is next.

    effect    of an option: trials that differ in nothing else stand in one block. Within a block the loss of each value is
              taken against the block's mean; the effect is the highest of the values' means minus the lowest (a complete
              block design: Fisher 1935; Box, Hunter and Hunter, Statistics for Experimenters, chapter 4)
    noise     s, the standard deviation between seeds of one setting, pooled over the settings: s^2 is the sum of squares
              about the settings' means over n - settings
    error     of an effect over b blocks: s sqrt(2 / b). The option that moved most is the largest of several, hence
              4 errors for high confidence, 2 for medium

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
        error: of the size; None where no setting was run with two seeds.
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
            return "no setting was run with two seeds, so that there is no error to hold it against"
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
    missing = (
        [] if noise is not None else ["two seeds of one setting: --seed 0 --seed 1 tells effects from chance"]
    )
    reading = read_run(best.folder)
    held = len({_plain(member.settings.get("alpha")) for member in members}) == 1  # alpha, whatever the rank
    effects = sorted(effects_of(members, noise), key=lambda each: each.size, reverse=True)
    missing += _not_compared(members, {each.option for each in effects})
    found = [_largest(effects, noise, freedom, reading, held)] if effects else []
    found += [rank for each in effects if each.option == "rank" and (rank := _rank(each, reading, held))]
    return found, missing, about, best.folder


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
    """s between seeds, pooled, and its degrees of freedom; None where no setting has two."""
    groups: dict[str, list[float]] = defaultdict(list)
    for member in members:
        groups[member.key(_SEED)].append(member.loss)
    several = [losses for losses in groups.values() if len(losses) > 1]
    freedom = sum(len(losses) - 1 for losses in several)
    if not freedom:
        return None, 0
    squares = sum((loss - statistics.fmean(losses)) ** 2 for losses in several for loss in losses)
    return math.sqrt(squares / freedom), freedom


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
    against = "" if noise is None else f", {first.size / (noise or 1e-12):.1f} times the noise between seeds"
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
    values = list(effect.means)
    lowest, highest = values[0], values[-1]
    won = effect.means[lowest] - effect.means[effect.best]
    if effect.error is not None and won < LIKELY * effect.error and effect.best != lowest:
        saves = next_run(reading, **_with_rank(reading, int(lowest), held))
        return Finding(
            "rank wasted",
            f"rank {effect.best} is no better than rank {lowest}: {won:.3g}, within {LIKELY:g} errors",
            effect.evidence(),
            "medium",
            "no difference was seen, with these seeds",
            saves,
        )
    if effect.best == lowest:
        return None
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


def _with_rank(reading: Reading, rank: int, held: bool) -> dict[str, Any]:
    """Options of another rank: at the same alpha where the sweep held that, else at the same alpha over rank."""
    options = asked(reading)
    return (
        {"rank": rank}
        if held
        else {"rank": rank, "alpha": float(options["alpha"]) / int(options["rank"]) * rank}
    )
