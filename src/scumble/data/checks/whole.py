"""Checks of a data set as a whole: what repeats, what contradicts, what is mixed, and whether there is enough.

Of each example a few numbers are kept, so that a million of them fit. Knows nothing of tokens.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from scumble.data.checks.check import CHECKS, Lines, Seen, Setting, Source, known
from scumble.data.checks.finding import Finding
from scumble.data.checks.language import language_of
from scumble.data.checks.series import Series, digest
from scumble.data.json_values import loads

PER_RANK = 8  # examples for each of the adapter's ranks, below which there are too few
FEWEST = 50
PASSES = 10  # epochs beyond which a set should be larger: FEWEST for each of them
DOMINANT = 0.8  # share from which on the rest of a mix stands out
ENOUGH = 20  # examples below which a mix says little
SMALLEST_BATCH = 4  # training makes optimizer steps of at least so many examples where it is not told

known(
    "duplicates",
    "warning",
    "examples that are there already",
    "They count twice: the model leans towards them, and remembers them word for word.",
    "keep one of each, or leave them where a weight of two is meant",
)
known(
    "conflicting_answers",
    "warning",
    "the same question with different answers",
    "The model learns to mix them, and no training can lower the loss on all.",
    "keep the right answer, or say in the question what decides between them",
)
known(
    "one_answer",
    "warning",
    "one answer to most questions",
    "The model learns to say it whatever it is asked, and looks right while it does.",
    "add examples with other answers, or remove some of these",
)
known(
    "mixed_languages",
    "warning",
    "answers in another language than most",
    "The model may change the language where nobody asked for it.",
    "say in the question which language is wanted, or remove them",
)
known(
    "mixed_answers",
    "warning",
    "answers of another form than most",
    "A program that reads the answers will fail on some of them.",
    "write all answers in one form (JSON, a block of code, plain text), or say in the question which is wanted",
)
known(
    "mixed_formats",
    "warning",
    "examples of another format than most",
    "Files were joined; what belongs together may say the same thing in two ways.",
    "convert them to one format with `scumble data convert`, or name the format with --format",
)
known(
    "mixed_system_messages",
    "warning",
    "examples without the system message that most have",
    "The model learns that the system message makes no difference.",
    "give all examples the system message that will be used later, or none of them",
)
known(
    "too_few_examples",
    "warning",
    "few examples for this rank and so many epochs",
    "The adapter remembers the examples and learns little that holds for others.",
    "add examples, or lower --rank or --epochs",
)
known(
    "too_few_steps",
    "warning",
    "fewer optimizer steps than warm-up",
    "The learning rate would not reach the value that was asked for.",
    "lower --warmup, --batch or --accumulate, or raise --epochs",
)


class Repeats:
    """Examples that are there twice, and questions that have two answers."""

    def __init__(self) -> None:
        self.series = Series("line", "example", "prompt", "answer")

    def see(self, seen: Seen) -> None:
        """Note what the example, its question and its answer are."""
        example = seen.example
        whole = example.hash
        if example.text is not None:
            self.series.add(seen.line, whole, whole, 0)
            return
        # a conversation of several answers has as its question all that comes before the last
        asked = json.dumps([example.prompt, example.tools], sort_keys=True, default=str)
        last = example.messages[len(example.prompt)]
        answer = json.dumps([last.get("content"), last.get("tool_calls")], sort_keys=True, default=str)
        self.series.add(seen.line, whole, digest(asked), digest(answer))

    def found(self, source: Source) -> Iterator[Finding]:
        """Duplicates, conflicts, and an answer that is nearly all there is."""
        if not len(self.series):
            return
        lines, whole, prompts, answers = self.series.columns()
        values, places, group = np.unique(whole, return_index=True, return_inverse=True)
        again = np.ones(len(whole), bool)
        again[places] = False
        if again.any():
            first = int(np.argmax(again))
            detail = f"as in {source.unit} {lines[places[group[first]]]}"
            yield CHECKS["duplicates"].of_lines(source, lines[again].tolist(), detail)
        differing = _with_several(prompts, answers)
        if differing.any():
            first = int(np.argmax(differing))
            other = differing & (prompts == prompts[first]) & (answers != answers[first])
            detail = f"also in {source.unit} {lines[int(np.argmax(other))]}"
            yield CHECKS["conflicting_answers"].of_lines(source, lines[differing].tolist(), detail)
        if len(values) >= ENOUGH:
            yield from self._dominating(source, lines, whole, answers)

    def _dominating(self, source: Source, lines: Any, whole: Any, answers: Any) -> Iterator[Finding]:
        known_answers = answers[answers != 0]
        if not len(known_answers):
            return
        values, counts = np.unique(known_answers, return_counts=True)
        most = int(np.argmax(counts))
        same = answers == values[most]
        if counts[most] > DOMINANT * len(answers) and len(np.unique(whole[same])) >= ENOUGH:
            yield CHECKS["one_answer"].of_lines(source, lines[same].tolist())


def _with_several(keys: Any, values: Any) -> Any:
    """Which rows have a key that has another value elsewhere, (rows,) bool."""
    order = np.lexsort((values, keys))
    sorted_keys, sorted_values = keys[order], values[order]
    begins = np.r_[True, sorted_keys[1:] != sorted_keys[:-1]]
    group = np.cumsum(begins) - 1
    starts = np.flatnonzero(begins)
    ends = np.r_[starts[1:], len(order)] - 1
    several = sorted_values[starts] != sorted_values[ends]
    found = np.zeros(len(keys), bool)
    found[order] = several[group]
    return found


class Mix:
    """Kinds of which most examples are one and some are another."""

    def __init__(self, check: str, kind_of: Any, threshold: float = DOMINANT) -> None:
        self.check, self.kind_of, self.threshold = check, kind_of, threshold
        self.kinds: dict[str, Lines] = {}

    def see(self, seen: Seen) -> None:
        """Note which kind it is of."""
        kind = self.kind_of(seen)
        if kind is not None:
            self.kinds.setdefault(kind, Lines()).add(seen.line)

    def found(self, source: Source) -> Iterator[Finding]:
        """The examples of the lesser kinds, where one kind has most."""
        counted = sum(lines.count for lines in self.kinds.values())
        if len(self.kinds) < 2 or counted < ENOUGH:
            return
        most = max(self.kinds, key=lambda kind: self.kinds[kind].count)
        if self.kinds[most].count < self.threshold * counted:
            return
        others = {kind: lines for kind, lines in self.kinds.items() if kind != most}
        lines = sorted(line for each in others.values() for line in each.kept)
        count = sum(each.count for each in others.values())
        least = min(others, key=lambda kind: others[kind].kept[0])
        detail = f"{least}, and {self.kinds[most].count:,} are {most}"
        yield CHECKS[self.check].of_lines(source, lines, detail, count)


def mixes() -> list[Mix]:
    """The mixes that are looked for."""
    return [
        Mix("mixed_languages", lambda seen: language_of(_answer(seen))),
        Mix("mixed_answers", lambda seen: _form_of(_answer(seen))),
        Mix("mixed_formats", lambda seen: seen.example.format, threshold=0.0),
        Mix("mixed_system_messages", _system_of, threshold=0.5),
    ]


def _answer(seen: Seen) -> str:
    if seen.example.text is not None:
        return seen.example.text
    return seen.example.expected


def _form_of(answer: str) -> str | None:
    """Whether an answer is JSON, a block of code, or plain text; None where it is empty."""
    answer = answer.strip()
    if not answer:
        return None
    if answer[0] in "{[":
        try:
            loads(answer)
            return "JSON"
        except ValueError:
            return "plain text"
    return "a block of code" if re.fullmatch(r"```.*```", answer, re.DOTALL) else "plain text"


def _system_of(seen: Seen) -> str | None:
    if not seen.example.messages:
        return None
    first = seen.example.messages[0]["role"]
    return "with a system message" if first in ("system", "developer") else "without one"


def enough(setting: Setting, source: Source, examples: int) -> Iterator[Finding]:
    """Whether there are examples enough for the rank, the epochs, and the warm-up.

    The rule of thumb is 8 examples for each of the rank, 50 at least, and 50 for each epoch beyond 10.
    """
    wanted = max(FEWEST, PER_RANK * setting.rank)
    if setting.epochs > PASSES:
        wanted = max(wanted, math.ceil(FEWEST * setting.epochs))
    if 0 < examples < wanted:
        message = (
            f"{examples:,} examples for rank {setting.rank} and {setting.epochs:g} epochs: "
            f"{wanted:,} or more is the rule of thumb"
        )
        yield CHECKS["too_few_examples"].finding(source, message)
    # without a batch, the most steps that there can be
    batch = setting.batch or SMALLEST_BATCH
    steps = max(1, round(math.ceil(examples / batch) * setting.epochs))
    steps = min(steps, setting.max_steps or steps)
    if examples and setting.warmup is not None and steps < setting.warmup:
        message = f"{steps:,} optimizer steps, and {setting.warmup:,} of warm-up"
        yield CHECKS["too_few_steps"].finding(source, message)
