"""Random encoded examples that begin alike, for hypothesis: what the layout of a batch must be right for.

Every example goes on from a part of an earlier one, so that trees form, of any depth; tokens are few, so that they also
form by chance. Masks are any: several spans, one token, none, the first position. Duplicates, examples that are the
beginning of others and chains as of the turns of a conversation all come up.
"""

from __future__ import annotations

import random

from hypothesis import strategies as st

from scumble.data.encoding import Encoded

FEW = 3  # tokens of the alphabet beyond the first


def example(ids: list[int], supervised: list[bool], number: int = 0) -> Encoded:
    return Encoded(tuple(ids), tuple(supervised), number, f"line {number + 1}")


@st.composite
def masks(draw: st.DrawFn, length: int) -> list[bool]:
    kind = draw(st.sampled_from(["end", "spans", "all", "none", "any"]))
    if kind == "any":
        return draw(st.lists(st.booleans(), min_size=length, max_size=length))
    if kind == "spans":
        edges = sorted(draw(st.lists(st.integers(0, length), min_size=4, max_size=4)))
        return [edges[0] <= i < edges[1] or edges[2] <= i < edges[3] for i in range(length)]
    first = {"end": draw(st.integers(0, length)), "all": 0, "none": length}[kind]
    return [i >= first for i in range(length)]


@st.composite
def forests(
    draw: st.DrawFn, most: int = 40, longest: int = 60, vocabulary: int | None = None
) -> list[Encoded]:
    """1 to `most` examples of 1 to `longest` tokens.

    Of few kinds; with a vocabulary drawn at random from all of it but the first three, as for gradients: where all
    tokens of an example are the same, attention looks at equal values, and its gradient is rounding alone.
    """
    chance = random.Random(draw(st.integers(0, 2**20)))
    made: list[Encoded] = []
    for number in range(draw(st.integers(1, most))):
        start: list[int] = []
        how = draw(st.sampled_from(["alone", "part", "chain", "same"])) if made else "alone"
        if how != "alone":
            earlier = made[-1] if how == "chain" else draw(st.sampled_from(made))
            cut = draw(st.integers(0, len(earlier.ids))) if how == "part" else len(earlier.ids)
            start = list(earlier.ids[:cut])
        room = longest - len(start)
        least = 0 if start else 1
        more = 0 if how == "same" else draw(st.integers(min(least, room), min(room, 25)))
        if vocabulary is None:
            ids = [*start, *draw(st.lists(st.integers(3, 3 + FEW), min_size=more, max_size=more))]
        else:
            ids = [*start, *(chance.randrange(3, vocabulary) for _ in range(more))]
        made.append(example(ids, draw(masks(len(ids))), number))
    return made


def forest(seed: int, most: int, longest: int, vocabulary: int = 48) -> list[Encoded]:
    """As many examples of which most begin alike, the same for the same seed; the last token of each has a loss."""
    chance = random.Random(seed)
    made: list[Encoded] = []
    while len(made) < most:
        earlier = chance.choice(made).ids if made and chance.random() < 0.75 else ()
        start = earlier[: chance.randint(0, len(earlier))]
        more = chance.randint(1, max(1, min(20, longest - len(start))))
        ids = [*start[: longest - more], *(chance.randrange(3, vocabulary) for _ in range(more))]
        first = chance.randint(max(0, len(ids) - 8), len(ids) - 1)
        made.append(example(ids, [i >= first for i in range(len(ids))], len(made)))
    return made


def conversations(system: int, turns: int, length: int = 5) -> list[Encoded]:
    """The same conversation after each of its turns, the last of which has a loss, behind a system prompt."""
    ids = [3 + i % 40 for i in range(system)]
    made = []
    for turn in range(turns):
        ids = [*ids, *[3 + (turn * 7 + i) % 41 for i in range(length)]]
        made.append(example(ids, [i >= len(ids) - 2 for i in range(len(ids))], turn))
    return made
