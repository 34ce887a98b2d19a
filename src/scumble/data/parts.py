"""What the shipped data sets have in common: parts that share no values, drawn from a seed.

An example's *values* (a tuple such as ("time", 21, 15)) alone decide which part it belongs to, by their hash
where there are many of them, so no seed and no size lets a combination of the test part into training. Beside that, each data set keeps some
*phrasings* that only the test part uses. Knows nothing of any one data set.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from typing import Literal, get_args

from scumble.errors import DataError

Part = Literal["train", "validation", "test"]
PARTS: tuple[Part, ...] = get_args(Part)
Message = dict[str, str]
Example = dict[str, list[Message]]

# Shares of all value combinations, in percent; training has the rest.
TEST_SHARE = 25
VALIDATION_SHARE = 12
# In the test part every so many-th example is worded in a way that training never shows.
HELD_OUT_EVERY = 4
# How often in a row a draw may be of another part, or known already, before the set counts as used up.
PATIENCE = 3000


@dataclass(frozen=True)
class Draw:
    """One example before it becomes a chat.

    Attributes:
        prompt: what the user writes.
        answer: what the assistant should answer.
        part: the part that the example's values belong to.
        values: what decides the part.
        phrasings: the templates the prompt was made of.
    """

    prompt: str
    answer: str
    part: Part
    values: tuple[str | int, ...]
    phrasings: tuple[str, ...]


def part_of(values: tuple[str | int, ...]) -> Part:
    """The one part that a combination of values belongs to, the same on every machine and for every seed."""
    digest = blake2b(repr(values).encode(), digest_size=8).digest()
    place = int.from_bytes(digest, "big") % 100
    if place < TEST_SHARE:
        return "test"
    return "validation" if place < TEST_SHARE + VALIDATION_SHARE else "train"


def draw_distinct(
    part: Part, n: int, seed: int, draw: Callable[[random.Random, bool], Draw], name: str
) -> list[Draw]:
    """Draw `n` examples of `part` with different prompts.

    The first k of n examples are the same as a call for k examples gives.

    Args:
        part: "train", "validation" or "test".
        n: how many examples, 0 or more.
        seed: another seed gives other examples of the same part.
        draw: makes one example of any part from a random state; its second argument says whether to use
            the phrasings that are held out for the test part.
        name: the data set's name, for messages and so that two sets with one seed differ.

    Raises:
        DataError: `part` is not a part, `n` is negative, or the part has fewer than `n` examples.
    """
    if part not in PARTS:
        raise DataError(f"{name} has no part {part!r}", f"the parts are {', '.join(PARTS)}")
    if n < 0:
        raise DataError(f"{name} was asked for {n} examples", "ask for 0 or more")
    rng = random.Random(f"{name}/{part}/{seed}")
    drawn: list[Draw] = []
    prompts: set[str] = set()
    while len(drawn) < n:
        held_out = part == "test" and len(drawn) % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
        for _ in range(PATIENCE):
            one = draw(rng, held_out)
            if one.prompt not in prompts and one.part == part:
                break
        else:
            raise DataError(
                f"the {part} part of {name} has only about {len(drawn)} examples, and {n} were asked for",
                "ask for fewer",
            )
        prompts.add(one.prompt)
        drawn.append(one)
    return drawn


def as_chat(system: str, draw: Draw) -> Example:
    """The example as a chat of three messages: system, user, assistant."""
    return {
        "messages": [
            {"role": "system", "content": system},
            {"role": "user", "content": draw.prompt},
            {"role": "assistant", "content": draw.answer},
        ]
    }
