"""The data sets that come with the package, by name, with what training and comparing need to know of each.

Knows nothing of how they are made, nor of metrics beyond their names.
"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from typing import Protocol

from scumble.data import cron, tickets
from scumble.data.parts import Example, Part
from scumble.errors import DataError


class Generate(Protocol):
    """How a shipped data set is made."""

    def __call__(self, part: Part, n: int | None = None, seed: int = 0) -> list[Example]:
        """The first `n` examples of a part for a seed; `n` None is the default size."""


@dataclass(frozen=True)
class ShippedSet:
    """A data set of the package.

    Attributes:
        name: what the command line calls it.
        title: one line on what is asked and what is answered.
        system: the system message of every example.
        metric: the name of the metric that its answers are scored with.
        max_new_tokens: enough for every answer and its end token, about twice the longest.
        sizes: how many examples each part has by default.
        generate: makes the examples of a part from a seed.
    """

    name: str
    title: str
    system: str
    metric: str
    max_new_tokens: int
    sizes: dict[Part, int]
    generate: Generate


SHIPPED: dict[str, ShippedSet] = {
    "cron": ShippedSet(
        name=cron.NAME,
        title="a schedule in words -> a cron expression",
        system=cron.SYSTEM,
        metric="exact_match",
        max_new_tokens=24,
        sizes=cron.SIZES,
        generate=cron.generate,
    ),
    "tickets": ShippedSet(
        name=tickets.NAME,
        title="a customer's message -> a JSON ticket",
        system=tickets.SYSTEM,
        metric="json_exact_match",
        max_new_tokens=64,
        sizes=tickets.SIZES,
        generate=tickets.generate,
    ),
}


def load_shipped(name: str, part: Part) -> list[Example]:
    """The examples of one part of a shipped data set, in its default size and with its default seed.

    Raises:
        DataError: there is no such data set or part.
    """
    if name not in SHIPPED:
        near = get_close_matches(name, SHIPPED, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {' and '.join(SHIPPED)}"
        raise DataError(f"no data set {name!r} comes with the package", hint)
    return SHIPPED[name].generate(part)
