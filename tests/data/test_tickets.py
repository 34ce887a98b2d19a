"""The tickets data set: its labels follow from the text, its parts share nothing, remembering does not help."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scumble.data import tickets
from scumble.data.nearest import nearest_score
from scumble.data.parts import HELD_OUT_EVERY, PARTS
from scumble.data.shipped import SHIPPED, load_shipped
from scumble.data.tickets_reading import FIELDS, ISSUE_WORDS, PRIORITIES, PRODUCTS
from scumble.errors import DataError

DRAWN = {part: tickets.draws(part) for part in PARTS}
PAIRS = list(itertools.combinations(PARTS, 2))
HELD_OUT = {
    *tickets.HELD_OUT_OPENINGS,
    *tickets.HELD_OUT_OPENINGS_WITHOUT_ORDER,
    *itertools.chain(*tickets.HELD_OUT_ISSUES.values(), *tickets.HELD_OUT_CLOSINGS.values()),
}
KNOWN = {
    *tickets.OPENINGS,
    *tickets.OPENINGS_WITHOUT_ORDER,
    *itertools.chain(*tickets.ISSUES.values(), *tickets.CLOSINGS.values()),
}


def answers(part):
    return [json.loads(draw.answer) for draw in DRAWN[part]]


@pytest.mark.parametrize("part", PARTS)
def test_examples_are_chats_of_the_default_size(part):
    examples = tickets.generate(part)
    assert len(examples) == tickets.SIZES[part]
    for example in examples:
        assert list(example) == ["messages"]
        assert [m["role"] for m in example["messages"]] == ["system", "user", "assistant"]
        assert example["messages"][0]["content"] == tickets.SYSTEM
    assert len({e["messages"][1]["content"] for e in examples}) == len(examples)


@pytest.mark.parametrize("part", PARTS)
def test_every_label_follows_from_the_words(part):
    for draw in tickets.draws(part, 2000, seed=1) + DRAWN[part]:
        assert tickets.parse(draw.prompt) == draw.answer, draw.prompt
        assert tickets.is_valid(draw.answer)
        assert 15 <= len(draw.prompt.split()) <= 40
        fields = json.loads(draw.answer)
        assert list(fields) == list(FIELDS)
        assert f" {fields['product']}" in draw.prompt
        assert fields["order"] is None or fields["order"] in draw.prompt


@given(seed=st.integers(), part=st.sampled_from(PARTS))
@settings(max_examples=30, deadline=None)
def test_labels_are_right_for_any_seed(seed, part):
    for draw in tickets.draws(part, 20, seed):
        assert tickets.parse(draw.prompt) == draw.answer


@given(seed=st.integers(), n=st.integers(0, 20), part=st.sampled_from(PARTS))
@settings(max_examples=20, deadline=None)
def test_the_same_seed_gives_the_same_and_fewer_is_a_beginning_of_more(seed, n, part):
    more = tickets.generate(part, 20, seed)
    assert tickets.generate(part, 20, seed) == more
    assert tickets.generate(part, n, seed) == more[:n]


@given(seeds=st.tuples(st.integers(), st.integers()), parts=st.sampled_from(PAIRS))
@settings(max_examples=20, deadline=None)
def test_parts_stay_apart_for_any_seeds(seeds, parts):
    one, other = (tickets.draws(part, 60, seed) for part, seed in zip(parts, seeds, strict=True))
    assert not {d.prompt for d in one} & {d.prompt for d in other}
    assert not {d.answer for d in one} & {d.answer for d in other}
    assert not {d.values for d in one} & {d.values for d in other}


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_parts_share_no_product_with_its_issue_and_no_order(one, other):
    pairs, orders = (
        [{pick(a) for a in answers(part)} - {None} for part in (one, other)]
        for pick in (lambda a: (a["product"], a["issue"]), lambda a: a["order"])
    )
    assert all(pairs)
    assert all(orders)
    assert not pairs[0] & pairs[1]
    assert not orders[0] & orders[1]


def test_training_knows_every_value_that_the_test_part_combines():
    for field, values in (("product", PRODUCTS), ("issue", ISSUE_WORDS), ("priority", PRIORITIES)):
        for part in ("train", "test"):
            assert {a[field] for a in answers(part)} == set(values), (part, field)
    assert {a["issue"] for a in answers("validation")} == set(ISSUE_WORDS)
    for part in PARTS:
        without = sum(a["order"] is None for a in answers(part)) / len(DRAWN[part])
        assert 0.05 < without < 0.3


def test_a_quarter_of_the_test_part_is_worded_as_training_never_is():
    assert not HELD_OUT & KNOWN
    for part in ("train", "validation"):
        assert {p for d in tickets.draws(part, 1000) for p in d.phrasings} <= KNOWN
    used = [set(d.phrasings) <= HELD_OUT for d in DRAWN["test"]]
    assert sum(used) == len(used) // HELD_OUT_EVERY
    assert {p for d in tickets.draws("test", 2000) for p in d.phrasings} == HELD_OUT | KNOWN


@pytest.mark.parametrize("similarity", ["jaccard", "char3"])
def test_the_nearest_training_answer_is_seldom_right(similarity):
    assert nearest_score(tickets.generate("train"), tickets.generate("test"), similarity) < 0.2


@pytest.mark.parametrize("similarity", ["jaccard", "char3"])
def test_it_is_not_the_order_number_alone_that_defeats_remembering(similarity):
    def without_order(part):
        chats = tickets.generate(part)
        for chat in chats:
            ticket = json.loads(chat["messages"][2]["content"])
            chat["messages"][2]["content"] = json.dumps({**ticket, "order": None})
        return chats

    assert nearest_score(without_order("train"), without_order("test"), similarity) < 0.2


@pytest.mark.parametrize(
    ("message", "ticket"),
    [
        (
            "My router from order A-4821 is awful, refund it. This is urgent!",
            '{"product":"router","issue":"refund","priority":"high","order":"A-4821"}',
        ),
        (
            "The invoice for the phone is wrong.",
            '{"product":"phone","issue":"billing","priority":"normal","order":null}',
        ),
        (
            "Repair my camera (B-1000) whenever you like.",
            '{"product":"camera","issue":"repair","priority":"low","order":"B-1000"}',
        ),
    ],
)
def test_messages_written_by_hand_are_read(message, ticket):
    assert tickets.parse(message) == ticket


@pytest.mark.parametrize(
    "message",
    [
        "Please refund it.",
        "I have a phone.",
        "Please refund the phone and the tablet.",
        "Please refund or repair the phone.",
        "Please refund the phone, it is urgent, but take your time.",
    ],
)
def test_what_is_not_one_ticket_is_refused(message):
    with pytest.raises(DataError):
        tickets.parse(message)


GOOD = {"product": "phone", "issue": "refund", "priority": "low", "order": "A-1234"}


def test_a_ticket_may_be_spaced_and_ordered_freely():
    assert tickets.is_valid(json.dumps(GOOD, indent=2))
    assert tickets.is_valid(json.dumps(dict(reversed(GOOD.items()))))
    assert tickets.is_valid(json.dumps({**GOOD, "order": None}))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "phone",
        "null",
        "[]",
        "[" * 100_000,
        json.dumps(GOOD)[:-1],
        json.dumps({**GOOD, "more": 1}),
        json.dumps({k: v for k, v in GOOD.items() if k != "order"}),
        *(json.dumps({**GOOD, field: wrong}) for field in GOOD for wrong in ("boat", "", 1, [], {})),
        json.dumps({**GOOD, "issue": None}),
        json.dumps({**GOOD, "order": "A-12345"}),
    ],
)
def test_what_is_no_ticket(text):
    assert not tickets.is_valid(text)


def test_impossible_requests_are_refused():
    with pytest.raises(DataError, match="no part"):
        tickets.generate("dev")
    with pytest.raises(DataError):
        tickets.generate("train", -1)


def test_it_ships():
    ticket_set = SHIPPED["tickets"]
    assert (ticket_set.name, ticket_set.metric, ticket_set.max_new_tokens) == (
        "tickets",
        "json_exact_match",
        64,
    )
    assert ticket_set.system == tickets.SYSTEM
    for part in PARTS:
        assert load_shipped("tickets", part) == tickets.generate(part)
