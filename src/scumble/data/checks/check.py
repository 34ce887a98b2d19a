"""What a check is, and the registry of them all.

A check of single examples is a function that is shown one example at a time and says what is wrong with it; a
check of the whole is a class that is shown all of them and says at the end. Both are described by a `Check`,
from which messages and the table in the docs are made. Knows no single check.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from typing import Any, Protocol

from scumble.data.checks.finding import KEPT, Finding, Severity
from scumble.data.encoding import Encoded
from scumble.data.example import Example
from scumble.errors import clipped, printable


@dataclass
class Source:
    """Where examples are from.

    Attributes:
        title: the file, or what the data are called.
        unit: what its examples are numbered by, such as `line`.
        total: how many examples it has, those that cannot be read among them.
    """

    title: str
    unit: str = "line"
    total: int = 0


@dataclass(frozen=True)
class Check:
    """One thing that can be wrong with data.

    Attributes:
        name: what it is called everywhere.
        severity: an error stops training, a warning does not.
        title: what was found, as a noun.
        consequence: one sentence on what goes wrong if it is ignored.
        fix: what to do.
    """

    name: str
    severity: Severity
    title: str
    consequence: str
    fix: str

    def finding(
        self,
        source: Source,
        message: str,
        lines: Iterable[int] = (),
        count: int = 0,
        fix: str | None = None,
    ) -> Finding:
        """What it found in a source; `fix` where more can be said than always holds."""
        kept = tuple(islice(lines, KEPT))
        said = clipped(message, 480)  # it may quote what is in a stranger's file
        fix = fix or self.fix
        return Finding(self.name, self.severity, source.title, kept, count, said, self.consequence, fix)

    def of_lines(
        self,
        source: Source,
        lines: Sequence[int],
        detail: str = "",
        count: int | None = None,
        fix: str | None = None,
    ) -> Finding:
        """The finding about some of the examples of a source, `detail` being of the first of them."""
        count = len(lines) if count is None else count
        where = f"{source.title}, {source.unit} {lines[0]}" if lines and lines[0] else ""
        message = f"{self.title}: {count:,} of {source.total:,} examples"
        if where:
            message += f", {'the first being ' if count > 1 else ''}{where}"
        message += f": {detail}" if detail else ""
        found = self.finding(source, message, lines, count, fix)
        return replace(found, where=printable(where), detail=printable(detail))


@dataclass(frozen=True)
class Setting:
    """What the data are meant for; what is None is not known, and the checks that need it are left out.

    Attributes:
        tokenizer: of the base.
        max_length: tokens of the longest example that is trained on.
        positions: tokens of the longest that the base can read.
        rank: of the adapter.
        epochs: passes over the data.
        warmup: steps of warm-up that were asked for.
        batch: examples in an optimizer step, where that is settled.
        max_steps: optimizer steps at most.
    """

    tokenizer: Any = None
    max_length: int = 2048
    rank: int = 8
    epochs: float = 3.0
    warmup: int | None = None
    batch: int | None = None
    max_steps: int | None = None
    positions: int | None = None

    @property
    def limit(self) -> int:
        """Tokens of the longest example that is trained on, whatever the reason."""
        return min(self.max_length, self.positions or self.max_length)


@dataclass
class Seen:
    """One example as the checks see it.

    Attributes:
        example: the example.
        line: its line, or its number in its source, from 1.
        encoded: its tokens; None where there is no tokenizer, or it cannot be encoded.
        setting: what the data are meant for.
    """

    example: Example
    line: int
    encoded: Encoded | None
    setting: Setting

    @cached_property
    def texts(self) -> list[tuple[str, str]]:
        """(where in the example, text) of every text in it."""
        if self.example.text is not None:
            return [("the text", self.example.text)]
        return [
            (f"message {i}, {message['role']}", content)
            for i, message in enumerate(self.example.messages, start=1)
            if isinstance(content := message.get("content"), str)
        ]

    @cached_property
    def whole(self) -> str:
        """All its texts, for looking once where most have nothing to find."""
        return "\n".join(text for _, text in self.texts)


Look = Callable[[Seen], str | None]


class SetCheck(Protocol):
    """A check of a data set as a whole, fresh for each set."""

    def see(self, seen: Seen) -> None:
        """Look at one example."""

    def found(self, source: Source) -> Iterator[Finding]:
        """What was found, after all examples of the source."""


# Everything that can be found, by name, in the order in which it is reported.
CHECKS: dict[str, Check] = {}
# The checks of single examples.
LOOKS: list[tuple[Check, Look]] = []


def known(name: str, severity: Severity, title: str, consequence: str, fix: str) -> Check:
    """Enter a check in the registry."""
    assert name not in CHECKS, name
    CHECKS[name] = Check(name, severity, title, consequence, fix)
    return CHECKS[name]


def each(name: str, severity: Severity, title: str, consequence: str, fix: str) -> Callable[[Look], Look]:
    """Enter a check of single examples, which returns a detail where it finds something, else None."""

    def enter(look: Look) -> Look:
        LOOKS.append((known(name, severity, title, consequence, fix), look))
        return look

    return enter


@dataclass
class Lines:
    """The lines at which one check found something: the first `KEPT` numbers, the count, one detail."""

    count: int = 0
    kept: array[int] = field(default_factory=lambda: array("q"))
    detail: str = ""

    def add(self, line: int, detail: str = "") -> None:
        """One line more."""
        if not self.count:
            self.detail = detail
        self.count += 1
        if len(self.kept) < KEPT:
            self.kept.append(line)
