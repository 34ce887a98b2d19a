"""Random encoded examples that begin alike, for hypothesis: what the layout of a batch must be right for.

Every example goes on from a part of an earlier one, so that trees form, of any depth; tokens are few, so that they also
form by chance. Masks are any: several spans, one token, none, the first position. Duplicates, examples that are the
beginning of others and chains as of the turns of a conversation all come up.
"""

from __future__ import annotations

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
def forests(draw: st.DrawFn, most: int = 40, longest: int = 60, first: int = 3) -> list[Encoded]:
    """1 to `most` examples of 1 to `longest` tokens from `first` on."""
    tokens = st.integers(first, first + FEW)
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
        ids = [*start, *draw(st.lists(tokens, min_size=more, max_size=more))]
        made.append(example(ids, draw(masks(len(ids))), number))
    return made


def conversations(system: int, turns: int, length: int = 5) -> list[Encoded]:
    """The same conversation after each of its turns, the last of which has a loss, behind a system prompt."""
    ids = [3 + i % 40 for i in range(system)]
    made = []
    for turn in range(turns):
        ids = [*ids, *[3 + (turn * 7 + i) % 41 for i in range(length)]]
        made.append(example(ids, [i >= len(ids) - 2 for i in range(len(ids))], turn))
    return made
