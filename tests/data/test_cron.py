"""The cron data set: its labels are right, its parts share nothing, and remembering does not help."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scumble.data import cron
from scumble.data.nearest import NearestAnswers, nearest_answer, nearest_score
from scumble.data.parts import HELD_OUT_EVERY, PARTS, Draw, draw_distinct
from scumble.data.shipped import SHIPPED, load_shipped
from scumble.errors import DataError

DRAWN = {part: cron.draws(part) for part in PARTS}
PAIRS = list(itertools.combinations(PARTS, 2))


def prompts(part):
    return [draw.prompt for draw in DRAWN[part]]


def times(part):
    """(minute, hour) of every label that has both as numbers, noon and midnight left out."""
    found = (re.match(r"(\d+) (\d+) ", draw.answer) for draw in DRAWN[part])
    return {m.groups() for m in found if m} - {("0", "12"), ("0", "0")}


@pytest.mark.parametrize("part", PARTS)
def test_examples_are_chats_of_the_default_size(part):
    examples = cron.generate(part)
    assert len(examples) == cron.SIZES[part]
    for example in examples:
        assert list(example) == ["messages"]
        assert [m["role"] for m in example["messages"]] == ["system", "user", "assistant"]
        assert example["messages"][0]["content"] == cron.SYSTEM
    assert len({e["messages"][1]["content"] for e in examples}) == len(examples)


@pytest.mark.parametrize("part", PARTS)
def test_every_label_is_what_reading_the_sentence_gives(part):
    # Ten times the default size, so that rare pairs of phrasing and value are read too.
    for draw in cron.draws(part, 10 * cron.SIZES[part], seed=1) + DRAWN[part]:
        assert cron.parse(draw.prompt) == draw.answer, draw.prompt
        assert cron.is_valid(draw.answer), draw.answer


@given(seed=st.integers(), part=st.sampled_from(PARTS))
@settings(max_examples=50, deadline=None)
def test_labels_are_right_for_any_seed(seed, part):
    for draw in cron.draws(part, 20, seed):
        assert cron.parse(draw.prompt) == draw.answer
        assert cron.is_valid(draw.answer)


@given(seed=st.integers(), n=st.integers(0, 30), part=st.sampled_from(PARTS))
@settings(max_examples=30, deadline=None)
def test_the_same_seed_gives_the_same_and_fewer_is_a_beginning_of_more(seed, n, part):
    more = cron.generate(part, 30, seed)
    assert cron.generate(part, 30, seed) == more
    assert cron.generate(part, n, seed) == more[:n]


def test_another_process_gives_the_same():
    code = "from scumble.data import cron; print(cron.generate('test', 50))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == str(cron.generate("test", 50))


def test_seeds_differ():
    assert cron.generate("train", 20, 0) != cron.generate("train", 20, 1)


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_parts_share_no_sentence_answer_or_value(one, other):
    assert not set(prompts(one)) & set(prompts(other))
    assert not {d.answer for d in DRAWN[one]} & {d.answer for d in DRAWN[other]}
    assert not {d.values for d in DRAWN[one]} & {d.values for d in DRAWN[other]}


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_parts_share_no_time_of_day(one, other):
    assert times(one)
    assert not times(one) & times(other)


@given(seeds=st.tuples(st.integers(), st.integers()), parts=st.sampled_from(PAIRS))
@settings(max_examples=25, deadline=None)
def test_parts_stay_apart_for_any_seeds(seeds, parts):
    one, other = (cron.draws(part, 60, seed) for part, seed in zip(parts, seeds, strict=True))
    assert not {d.values for d in one} & {d.values for d in other}
    assert not {d.answer for d in one} & {d.answer for d in other}


def test_a_quarter_of_the_test_part_is_worded_as_training_never_is():
    held_out = {phrasing for family in cron.FAMILIES for phrasing in family.held_out}
    known = {phrasing for family in cron.FAMILIES for phrasing in family.phrasings}
    assert not held_out & known
    for part in ("train", "validation"):
        assert {p for d in cron.draws(part, 2000) for p in d.phrasings} <= known
    used = [d.phrasings[0] in held_out for d in DRAWN["test"]]
    assert sum(used) == len(used) // HELD_OUT_EVERY
    assert {p for d in cron.draws("test", 2000) for p in d.phrasings} == held_out | known


def test_every_family_is_in_train_and_test():
    for part in ("train", "test"):
        for family in cron.FAMILIES:
            used = sum(d.phrasings[0] in family.phrasings + family.held_out for d in DRAWN[part])
            assert used, (part, family.name)


@pytest.mark.parametrize("similarity", ["jaccard", "char3"])
def test_the_nearest_training_answer_is_seldom_right(similarity):
    train, test = cron.generate("train"), cron.generate("test")
    assert nearest_score(train, test, similarity) < 0.2
    # The baseline itself works: what it has seen, it answers.
    nearest = NearestAnswers(train, similarity)
    assert all(nearest.answer(draw.prompt) == draw.answer for draw in DRAWN["train"][:100])


def test_nearest_answer_takes_the_most_similar_prompt():
    train = cron.generate("train", 5)
    for example in train:
        prompt = example["messages"][1]["content"]
        assert nearest_answer(train, prompt + "!") == example["messages"][2]["content"]
    for similarity in ("jaccard", "char3"):
        assert nearest_answer(train, "", similarity) == train[0]["messages"][2]["content"]
    with pytest.raises(DataError):
        nearest_answer([], "every day at noon")
    with pytest.raises(DataError):
        nearest_answer(train, "every day at noon", "edit")
    with pytest.raises(DataError):
        nearest_score(train, [])


@pytest.mark.parametrize(
    ("sentence", "expression"),
    [
        ("every 15 minutes", "*/15 * * * *"),
        ("Every 5 minutes on weekends", "*/5 * * * 0,6"),
        ("at 20-minute intervals on Mondays", "*/20 * * * 1"),
        ("hourly at minute 7", "7 * * * *"),
        ("at 40 past the hour, every 3 hours", "40 */3 * * *"),
        ("daily at 9:30 am", "30 9 * * *"),
        ("daily at 9:30 pm", "30 21 * * *"),
        ("every day at 12:05 am", "5 0 * * *"),
        ("every day at 12:05 pm", "5 12 * * *"),
        ("every day at 07:05", "5 7 * * *"),
        ("at half past nine pm on weekdays", "30 21 * * 1-5"),
        ("at quarter past one am every Sunday", "15 1 * * 0"),
        ("on Sundays and Wednesdays at midnight", "0 0 * * 0,3"),
        ("once a month, on day 14, at noon", "0 12 14 * *"),
        ("on the 31st of every month at 11 pm", "0 23 31 * *"),
        ("on May 3 at 21:15", "15 21 3 5 *"),
        ("on the 22nd of March at 00:10", "10 0 22 3 *"),
        ("in February, daily at 8 am", "0 8 * 2 *"),
    ],
)
def test_sentences_written_by_hand_are_read(sentence, expression):
    assert cron.parse(sentence) == expression


@pytest.mark.parametrize("sentence", ["", "now and then", "every day", "every 2 hours"])
def test_what_names_no_schedule_is_refused(sentence):
    with pytest.raises(DataError):
        cron.parse(sentence)


@pytest.mark.parametrize(
    "expression",
    ["* * * * *", "0 0 1 1 0", "59 23 31 12 7", "*/15 9-17 1,15 * 1-5", "0-30/10 * * * 0,6", "05 7 * * *"],
)
def test_valid_expressions(expression):
    assert cron.is_valid(expression)


@pytest.mark.parametrize(
    "expression",
    """
    |* * * *|* * * * * *|60 * * * *|* 24 * * *|* * 0 * *|* * 32 * *|* * * 0 *|* * * 13 *|* * * * 8
    |*/0 * * * *|*/60 * * * *|5/10 * * * *|30-10 * * * *|1,,2 * * * *|, * * * *|*  * * * *| * * * * *
    |* * * * MON|@daily|-1 * * * *|1- * * * *|\u0663 * * * *|* * * * *.|100 * * * *""".replace(
        "\n    ", ""
    ).split("|"),
)
def test_invalid_expressions(expression):
    assert not cron.is_valid(expression)


@given(st.text(max_size=30))
def test_is_valid_answers_for_any_text(text):
    assert cron.is_valid(text) in (True, False)


@given(
    st.tuples(
        st.integers(0, 99), st.integers(0, 99), st.integers(0, 99), st.integers(0, 99), st.integers(0, 99)
    )
)
def test_plain_numbers_are_valid_when_each_is_within_its_limits(numbers):
    limits = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 7))
    within = all(a <= x <= b for x, (a, b) in zip(numbers, limits, strict=True))
    assert cron.is_valid(" ".join(map(str, numbers))) == within


def test_impossible_requests_are_refused():
    with pytest.raises(DataError, match="no part"):
        cron.generate("dev")
    with pytest.raises(DataError):
        cron.generate("train", -1)


def test_more_examples_than_there_are_is_refused():
    def draw(rng, held_out):
        number = str(rng.randrange(10))
        return Draw(number, number, "train", (number,), ())

    assert len(draw_distinct("train", 10, 0, draw, "digits")) == 10
    with pytest.raises(DataError, match="only about 10 examples, and 11 were"):
        draw_distinct("train", 11, 0, draw, "digits")
    with pytest.raises(DataError, match="only about 0"):
        draw_distinct("test", 1, 0, draw, "digits")


def test_it_ships():
    cron_set = SHIPPED["cron"]
    assert (cron_set.name, cron_set.metric, cron_set.max_new_tokens) == ("cron", "exact_match", 24)
    assert cron_set.system == cron.SYSTEM
    assert load_shipped("cron", "test") == cron.generate("test")
    with pytest.raises(DataError, match="corn") as raised:
        load_shipped("corn", "train")
    assert "cron" in raised.value.hint


def test_no_torch_is_needed():
    code = (
        "import sys, scumble.data.shipped; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
