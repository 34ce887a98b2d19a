"""Reading schedules: English words to a cron expression, and whether an expression is one.

Written without the generator's templates: a sentence is a time, which is taken out, and then days, months and
numbers found by their words. Knows nothing of how the sentences are made.
"""

from __future__ import annotations

import re

from scumble.errors import DataError

# The least and greatest value of each field; a week's day 7 is Sunday, as 0 is.
LIMITS = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 7))

_NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_WEEK = ("sunday", "monday", "tuesday", "wednesday", "thursday", "friday", "saturday")
_YEAR = [
    "january",
    "february",
    "march",
    "april",
    "may",
    "june",
    "july",
    "august",
    "september",
    "october",
    "november",
    "december",
]

_ATOM = re.compile(r"(?:(\*)|([0-9]{1,2})(?:-([0-9]{1,2}))?)(?:/([0-9]{1,2}))?")
_CLOCK = re.compile(r"\b([0-9]{1,2}):([0-9]{2})(?: ?(am|pm))?\b")
_FULL_HOUR = re.compile(r"\b([0-9]{1,2}) ?(am|pm)\b")
_SPOKEN = re.compile(rf"\b(half|quarter) past ({'|'.join(_NUMBERS)}) (am|pm)\b")
_NAMED = re.compile(r"\b(noon|midnight)\b")


def is_valid(expression: str) -> bool:
    """Whether the text is a cron expression of five fields with one space between each.

    Numbers, `*`, ranges, lists and steps are understood; names such as MON and words such as @daily are not.
    """
    fields = expression.split(" ")
    return len(fields) == len(LIMITS) and all(
        _is_atom(atom, *limits)
        for field, limits in zip(fields, LIMITS, strict=True)
        for atom in field.split(",")
    )


def _is_atom(atom: str, least: int, greatest: int) -> bool:
    """Whether one element of a field's list is `*`, a number or a range, with a step or without."""
    found = _ATOM.fullmatch(atom)
    if found is None:
        return False
    star, first, last, step = found.groups()
    # A single number has no steps to take: "5/10" is an extension that few crons know.
    if step is not None and (not 1 <= int(step) <= greatest or (star is None and last is None)):
        return False
    if star is not None:
        return True
    return least <= int(first) <= int(last or first) <= greatest


def parse(sentence: str) -> str:
    """The cron expression that a sentence of this data set means, found by reading its words.

    Raises:
        DataError: the sentence names no schedule that is understood.
    """
    text = " ".join(sentence.lower().replace(",", " ").split())
    week = _read_week(text)
    if found := re.search(r"\b(?:every|each) ([0-9]+) minutes\b|\b([0-9]+)-minute\b", text):
        return f"*/{found[1] or found[2]} * * * {week}"
    if re.search(r"\bhour(s|ly)?\b", text):
        minute = re.search(r"\bminute ([0-9]+)\b|\b([0-9]+) past\b", text)
        step = re.search(r"\b([0-9]+) hours\b", text)
        if minute is None:
            raise DataError(f"no minute is named in {sentence!r}", "say: every 2 hours at minute 5")
        return f"{minute[1] or minute[2]} {'*/' + step[1] if step else '*'} * * {week}"
    hour, minute_of_hour, rest = _take_time(text, sentence)
    # With the time gone, a number that is left can only be a day of the month.
    day = re.search(r"\b([0-9]{1,2})(?:st|nd|rd|th)?\b", rest)
    months = [str(i) for i, name in enumerate(_YEAR, 1) if re.search(rf"\b{name}\b", rest)]
    return f"{minute_of_hour} {hour} {day[1] if day else '*'} {','.join(months) or '*'} {week}"


def _read_week(text: str) -> str:
    """The fifth field: the days that are named, `*` where none is."""
    if re.search(r"\bweekdays?\b", text):
        return "1-5"
    if re.search(r"\bweekends?\b", text):
        return "0,6"
    named = [str(i) for i, name in enumerate(_WEEK) if re.search(rf"\b{name}s?\b", text)]
    return ",".join(named) or "*"


def _take_time(text: str, sentence: str) -> tuple[int, int, str]:
    """Hour, minute, and the text without the words that named them."""
    for pattern in (_CLOCK, _FULL_HOUR, _SPOKEN, _NAMED):
        if found := pattern.search(text):
            break
    else:
        raise DataError(f"no time is named in {sentence!r}", "say: every day at 9:30 am")
    rest = text[: found.start()] + " " + text[found.end() :]
    if pattern is _NAMED:
        return (12 if found[1] == "noon" else 0), 0, rest
    if pattern is _SPOKEN:
        hour, minute, half = _NUMBERS.index(found[2]) + 1, (30 if found[1] == "half" else 15), found[3]
    elif pattern is _FULL_HOUR:
        hour, minute, half = int(found[1]), 0, found[2]
    else:
        hour, minute, half = int(found[1]), int(found[2]), found[3]
    if half is not None:
        hour = hour % 12 + (12 if half == "pm" else 0)
    return hour, minute, rest
