"""Whether a way to train fits in so much memory, the largest that does, and what to change where it does not.

    found = fit(peak, shape, setup, find_card("rtx 4090").usable)
    found.fits, found.largest.batch, [(each.options, each.saving) for each in found.suggestions]

Nothing is claimed that the plan does not show: every setup that is said to fit was planned. Changes are taken up one
after another, the cheapest in quality first and each at its strongest, until it fits; those that turn out not to be
needed are dropped, and the others made as mild as they can be. Knows how to ask for the peak of a setup, and nothing
of how that is found.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Any, Protocol

from scumble.errors import ScumbleError
from scumble.plan.changes import Change, changes, with_batch, with_length, with_rank
from scumble.plan.setup import Setup
from scumble.plan.shape import Shape

MOST_EXAMPLES = 4096  # at once, beyond which no batch is looked for
MOST_TOKENS = 2**20  # of the longest example, where the model sets no limit
MOST_RANK = 4096


class Peaked(Protocol):
    """A plan of memory."""

    @property
    def peak(self) -> int:
        """The most bytes that are held at once."""


Peak = Callable[[Setup], Peaked]
Chosen = list[tuple[Change, Any]]  # changes and their values, in the order in which they are made


@dataclass(frozen=True)
class Largest:
    """The largest value of each, the others as they are; 0 where none fits, and None for what is not there.

    Attributes:
        batch: examples at once, at most `MOST_EXAMPLES`.
        length: tokens of the longest example, at most as many as the model has positions.
        rank: at most the width of the model; None where all weights are trained.
    """

    batch: int
    length: int
    rank: int | None


@dataclass(frozen=True)
class Suggestion:
    """A change that saves memory.

    Attributes:
        change: what is changed: `batch`, `gradient_checkpointing`, ..., `base`.
        options: what to type.
        cost: what is lost by it, in words.
        saving: bytes by which the peak falls, after the suggestions before it.
        peak: bytes that are left then.
        fits: with this and those before it.
        exact: the result stays the same.
        here: the project trains that way.
    """

    change: str
    options: str
    cost: str
    saving: int
    peak: int
    fits: bool
    exact: bool
    here: bool


@dataclass(frozen=True)
class Fit:
    """The answer.

    Attributes:
        limit: bytes that there are.
        peak: bytes that are needed.
        fits: peak is at most the limit.
        largest: what fits where one thing is changed, larger or smaller than asked for.
        suggestions: to be followed together, in this order; none where it fits. The last one says whether they suffice.
        alone: every change by itself, at its strongest where the mildest that fits does not exist.
    """

    limit: int
    peak: int
    fits: bool
    largest: Largest
    suggestions: tuple[Suggestion, ...]
    alone: tuple[Suggestion, ...]

    @property
    def options(self) -> str:
        """What to type for all suggestions together."""
        return " ".join(each.options for each in self.suggestions)

    def to_dict(self) -> dict[str, Any]:
        """The same by name."""
        return {**asdict(self), "options": self.options}


def fit(
    peak: Peak,
    shape: Shape,
    setup: Setup,
    limit: int,
    lengths: Sequence[int] = (),
    smaller: Mapping[str, Peak] | None = None,
) -> Fit:
    """Say whether a setup fits, and what would.

    Args:
        peak: plans the memory of a setup.
        shape: of the base.
        setup: as asked for.
        limit: bytes.
        lengths: tokens of each example, where the data are known: how many a shorter length loses.
        smaller: how the memory is planned of other bases, by name, the best first: the last resort.
    """
    if not isinstance(setup.targets, str):
        setup = replace(setup, targets=tuple(setup.targets))  # so that plans can be remembered
    search = _Search(cache(lambda each: peak(each).peak), setup, limit, changes(lengths))
    needed = search.peak(setup)
    suggestions = () if needed <= limit else search.together()
    if needed > limit and not (suggestions and suggestions[-1].fits):
        suggestions = _smaller_base(smaller or {}, setup, limit, needed) or suggestions
    return Fit(
        limit=limit,
        peak=needed,
        fits=needed <= limit,
        largest=search.largest(shape),
        suggestions=suggestions,
        alone=() if needed <= limit else search.alone(),
    )


def largest(fits: Callable[[int], bool], most: int) -> int:
    """The largest number from 1 to `most` that fits, by doubling and then halving the gap; 0 where 1 does not.

    The number found fits, and the next one does not (or is above `most`), whatever `fits` is like in between.
    """
    good, bad = 0, 1
    while bad <= most and fits(bad):
        good, bad = bad, 2 * bad
    bad = min(bad, most + 1)
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if fits(middle) else (good, middle)
    return good


class _Search:
    """Changes taken up in turn, for one setup and one limit."""

    def __init__(
        self, peak: Callable[[Setup], int], setup: Setup, limit: int, known: tuple[Change, ...]
    ) -> None:
        self.peak, self.setup, self.limit, self.known = peak, setup, limit, known

    def largest(self, shape: Shape) -> Largest:
        """The largest batch, length and rank, each with the others as they are."""

        def of(change: Callable[[Setup, int], Setup], most: int) -> int:
            return largest(lambda value: self._peak_or_none(change(self.setup, value)) <= self.limit, most)

        rank = None
        if self.setup.method != "full":
            rank = of(with_rank, min(shape.hidden, MOST_RANK))
        return Largest(
            of(with_batch, MOST_EXAMPLES), of(with_length, shape.positions_limit or MOST_TOKENS), rank
        )

    def together(self) -> tuple[Suggestion, ...]:
        """The changes that make it fit together, or all that help where they do not."""
        chosen: Chosen = []
        now = self.setup
        for change in self.known:
            value = self._strongest(change, now)
            if value is None:
                continue
            chosen.append((change, value))
            now = change.apply(now, value)
            if self.peak(now) <= self.limit:
                break
        # what is changed twice (the method, from full over lora to qlora) is changed at once
        chosen = list({each[0].name: each for each in chosen}.values())
        if self._fits(chosen):
            for exact in (False, True):  # quality is given back before time is
                chosen = self._mildest(self._needed(chosen, exact), exact)
        return tuple(self._told(chosen))

    def alone(self) -> tuple[Suggestion, ...]:
        """Every change that saves memory by itself."""
        found: list[Suggestion] = []
        for change in self.known:
            value = self._strongest(change, self.setup)
            if value is not None:
                one = [(change, value)]
                found += self._told(self._mildest(one, change.exact) if self._fits(one) else one)
        return tuple(found)

    def _strongest(self, change: Change, setup: Setup) -> Any:
        """The strongest value that can be planned and saves memory; None where there is none."""
        values = change.values(setup)
        if not len(values):
            return None
        then = self._peak_or_none(change.apply(setup, values[-1]))
        return values[-1] if then < self.peak(setup) else None

    def _needed(self, chosen: Chosen, exact: bool) -> Chosen:
        """Without the exact, or the other, changes that are not needed, the costliest dropped first."""
        for each in reversed(chosen):
            rest = [other for other in chosen if other is not each]
            if each[0].exact == exact and self._fits(rest):
                chosen = rest
        return chosen

    def _mildest(self, chosen: Chosen, exact: bool) -> Chosen:
        """The exact, or the other, changes as mild as they can be while all of them fit, the costliest first."""
        for n, (change, _) in reversed(list(enumerate(chosen))):
            if change.exact == exact:
                chosen = self._milder(chosen[:n], change, chosen[n + 1 :])
        return chosen

    def _milder(self, before: Chosen, change: Change, after: Chosen) -> Chosen:
        """One change as mild as it can be among others, with which it fits at its strongest."""
        values = change.values(self._after(before))

        def tried(mild: int) -> Chosen:
            return [*before, (change, values[-mild]), *after]

        return tried(largest(lambda mild: self._fits(tried(mild)), len(values)))

    def _fits(self, chosen: Chosen) -> bool:
        """Whether it fits with these changes, each of which is one where its turn comes."""
        setup = self.setup
        for change, value in chosen:
            if value not in change.values(setup):
                return False
            setup = change.apply(setup, value)
        return self._peak_or_none(setup) <= self.limit

    def _after(self, chosen: Chosen) -> Setup:
        setup = self.setup
        for change, value in chosen:
            setup = change.apply(setup, value)
        return setup

    def _told(self, chosen: Chosen) -> list[Suggestion]:
        told = []
        before = self.setup
        for change, value in chosen:
            after = change.apply(before, value)
            peak = self.peak(after)
            told.append(
                Suggestion(
                    change=change.name,
                    options=change.options(before, value),
                    cost=change.cost(before, value),
                    saving=self.peak(before) - peak,
                    peak=peak,
                    fits=peak <= self.limit,
                    exact=change.exact,
                    here=change.here,
                )
            )
            before = after
        return told

    def _peak_or_none(self, setup: Setup) -> float:
        """The peak; without end where there is no such plan, as for targets that the model does not have."""
        try:
            return self.peak(setup)
        except ScumbleError:
            return float("inf")


def _smaller_base(
    smaller: Mapping[str, Peak], setup: Setup, limit: int, needed: int
) -> tuple[Suggestion, ...]:
    """The first of other bases that fits with the setup as asked for."""
    for name, peak in smaller.items():
        left = peak(setup).peak
        if left <= limit:
            return (
                Suggestion(
                    change="base",
                    options=f"--base {name}",
                    cost="a smaller model knows less; with it, the setup fits as it was asked for",
                    saving=needed - left,
                    peak=left,
                    fits=True,
                    exact=False,
                    here=True,
                ),
            )
    return ()
