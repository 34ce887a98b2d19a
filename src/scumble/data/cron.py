"""The `cron` data set: a schedule in English words, and the cron expression that means it.

    "at 9:30 pm on Mondays"  ->  "30 21 * * 1"      (minute, hour, day of month, month, day of week)

Nine families of schedules, each with a few phrasings, some of which only the test part uses. A time of day
that the test part names is never named in training; noon and midnight, which everybody needs, are kept apart
together with their day instead. So an answer can only be put together from what is read, not remembered.
Knows nothing of models or of `cron_reading`, which reads the sentences independently to check the labels.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from scumble.data.cron_reading import is_valid, parse
from scumble.data.parts import Draw, Example, Part, as_chat, draw_distinct, part_of

__all__ = ["NAME", "SIZES", "SYSTEM", "draws", "generate", "is_valid", "parse"]

NAME = "cron"
SYSTEM = "Write the cron expression."
SIZES: dict[Part, int] = {"train": 600, "validation": 60, "test": 200}

Values = tuple[str | int, ...]
NOON, MIDNIGHT = (12, 0), (0, 0)
HOURS = ["twelve", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven"]
MONTHS = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
]
DAYS = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"]
# What stands in the fifth field, with its singular and plural.
DAY_WORDS = {str(i): (day, f"{day}s") for i, day in enumerate(DAYS)} | {
    "1-5": ("weekday", "weekdays"),
    "0,6": ("weekend day", "weekends"),
}
# Steps that divide the hour and the day: with others, cron's "every N" is not what the words say.
MINUTE_STEPS = (2, 3, 4, 5, 6, 10, 12, 15, 20, 30)
HOUR_STEPS = (2, 3, 4, 6, 8, 12)


@dataclass(frozen=True)
class Schedule:
    """One schedule of a family: what decides its part, the words for its slots, its expression."""

    values: Values
    words: dict[str, str]
    expression: str


@dataclass(frozen=True)
class Family:
    """One kind of schedule: how often it is drawn, how it is said, how its values are drawn."""

    name: str
    weight: int
    phrasings: tuple[str, ...]
    held_out: tuple[str, ...]
    draw: Callable[[random.Random], Schedule]


def generate(part: Part, n: int | None = None, seed: int = 0) -> list[Example]:
    """Examples of one part, as chats of a system, a user and an assistant message.

    Args:
        part: "train", "validation" or "test"; parts share no example, whatever the seeds.
        n: how many; by default `SIZES[part]`.
        seed: the same seed gives the same examples.

    Raises:
        DataError: no such part, a negative `n`, or more examples than the part has.
    """
    return [as_chat(SYSTEM, draw) for draw in draws(part, n, seed)]


def draws(part: Part, n: int | None = None, seed: int = 0) -> list[Draw]:
    """The same examples with the values and the phrasing each was made of."""
    return draw_distinct(part, SIZES.get(part, 0) if n is None else n, seed, _draw, NAME)


def _draw(rng: random.Random, held_out: bool) -> Draw:
    family = rng.choices(FAMILIES, [family.weight for family in FAMILIES])[0]
    schedule = family.draw(rng)
    phrasing = rng.choice(family.held_out if held_out else family.phrasings)
    prompt = phrasing.format(**schedule.words)
    values = (NAME, *schedule.values)
    return Draw(prompt, schedule.expression, part_of(values), values, (phrasing,))


# Times of day.


def _draw_time(rng: random.Random) -> tuple[int, int]:
    """An hour and a minute; noon and midnight, full, half and quarter hours more often than chance."""
    kind = rng.random()
    if kind < 0.06:
        return rng.choice((NOON, MIDNIGHT))
    hour = rng.randrange(24)
    if kind < 0.18:
        return hour, 0
    if kind < 0.28:
        return hour, rng.choice((15, 30))
    return hour, rng.randrange(1, 60)


def _say_time(rng: random.Random, hour: int, minute: int) -> str:
    """One of the ways to say a time of day, none of which could mean another one."""
    if (hour, minute) in (NOON, MIDNIGHT):
        return "noon" if hour else "midnight"
    half = "am" if hour < 12 else "pm"
    # Most times are on the 24-hour clock, which is copied: a small model finds "pm" harder.
    ways = [f"{hour:02d}:{minute:02d}"] * 2
    # An hour after midnight or noon, "12:10 am" puzzles people too: only the 24-hour clock says those.
    if hour % 12:
        ways.append(f"{hour % 12} {half}" if minute == 0 else f"{hour % 12}:{minute:02d} {half}")
        if minute in (15, 30):
            fraction = "half" if minute == 30 else "quarter"
            ways.append(f"{fraction} past {HOURS[hour % 12]} {half}")
    return rng.choice(ways)


def _timed(rng: random.Random, date: str, **words: str) -> Schedule:
    """A schedule at a time of day on some date, which is the expression's last three fields."""
    hour, minute = _draw_time(rng)
    named = (hour, minute) in (NOON, MIDNIGHT)
    values: Values = ("named", hour, date) if named else ("time", hour, minute)
    return Schedule(values, {"time": _say_time(rng, hour, minute), **words}, f"{minute} {hour} {date}")


# The families' values.


def _minutes(rng: random.Random) -> Schedule:
    step = rng.choice(MINUTE_STEPS)
    day = rng.choice(("*", *DAY_WORDS)) if rng.random() < 0.7 else "*"
    on = "" if day == "*" else f" on {DAY_WORDS[day][1]}"
    return Schedule(("minutes", step, day), {"n": str(step), "on": on}, f"*/{step} * * * {day}")


def _hours(rng: random.Random) -> Schedule:
    step, minute = rng.choice(HOUR_STEPS), rng.randrange(60)
    words = {"n": str(step), "minute": str(minute)}
    return Schedule(("hours", step, minute), words, f"{minute} */{step} * * *")


def _hourly(rng: random.Random) -> Schedule:
    minute = rng.randrange(60)
    return Schedule(("hourly", minute), {"minute": str(minute)}, f"{minute} * * * *")


def _daily(rng: random.Random) -> Schedule:
    return _timed(rng, "* * *")


def _weekly(rng: random.Random) -> Schedule:
    number = rng.choice((*DAY_WORDS, "1-5", "0,6"))
    day, days = DAY_WORDS[number]
    return _timed(rng, f"* * {number}", day=day, days=days)


def _two_days(rng: random.Random) -> Schedule:
    a, b = sorted(rng.sample(range(7), 2))
    return _timed(rng, f"* * {a},{b}", a=DAYS[a], b=DAYS[b])


def _monthly(rng: random.Random) -> Schedule:
    day = rng.randrange(1, 32)
    return _timed(rng, f"{day} * *", n=str(day), nth=_ordinal(day))


def _dated(rng: random.Random) -> Schedule:
    # To the 28th: every month has those days.
    day, month = rng.randrange(1, 29), rng.randrange(1, 13)
    return _timed(rng, f"{day} {month} *", n=str(day), nth=_ordinal(day), month=MONTHS[month - 1])


def _in_month(rng: random.Random) -> Schedule:
    month = rng.randrange(1, 13)
    return _timed(rng, f"* {month} *", month=MONTHS[month - 1])


def _ordinal(n: int) -> str:
    ending = "th" if n in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(n % 10, "th")
    return f"{n}{ending}"


FAMILIES = (
    Family(
        "minutes",
        10,
        ("every {n} minutes{on}", "once every {n} minutes{on}", "run every {n} minutes{on}"),
        ("each {n} minutes{on}", "at {n}-minute intervals{on}"),
        _minutes,
    ),
    Family(
        "hours",
        12,
        ("every {n} hours at minute {minute}", "at minute {minute} every {n} hours"),
        ("once every {n} hours, at minute {minute}", "at {minute} past the hour, every {n} hours"),
        _hours,
    ),
    Family(
        "hourly",
        8,
        ("every hour at minute {minute}", "hourly at minute {minute}", "at minute {minute} of every hour"),
        ("each hour at minute {minute}", "once an hour, at minute {minute}"),
        _hourly,
    ),
    Family(
        "daily",
        20,
        ("every day at {time}", "daily at {time}", "at {time} every day", "at {time} daily"),
        ("each day at {time}", "once a day, at {time}"),
        _daily,
    ),
    Family(
        "weekly",
        26,
        ("every {day} at {time}", "on {days} at {time}", "at {time} every {day}", "at {time} on {days}"),
        ("each {day}, at {time}", "{days}, {time}"),
        _weekly,
    ),
    Family(
        "two days",
        4,
        ("every {a} and {b} at {time}", "on {a}s and {b}s at {time}", "at {time} on {a}s and {b}s"),
        ("each {a} and {b}, {time}", "at {time} every {a} and every {b}"),
        _two_days,
    ),
    Family(
        "monthly",
        10,
        (
            "on the {nth} of every month at {time}",
            "at {time} on the {nth} of every month",
            "monthly on day {n} at {time}",
        ),
        ("the {nth} of each month, at {time}", "once a month, on day {n}, at {time}"),
        _monthly,
    ),
    Family(
        "dated",
        5,
        ("on {month} {n} at {time}", "at {time} on {month} {n}", "every {month} {nth} at {time}"),
        ("each year on {month} {n} at {time}", "on the {nth} of {month} at {time}"),
        _dated,
    ),
    Family(
        "in a month",
        5,
        ("every day in {month} at {time}", "in {month}, daily at {time}", "at {time} every day in {month}"),
        ("each day of {month} at {time}", "all through {month}, daily at {time}"),
        _in_month,
    ),
)
