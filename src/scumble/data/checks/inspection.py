"""One source looked through: every example shown to every check, and what they found.

Knows the registry, and nothing of where examples come from.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator

# imported for what they enter in the registry
from scumble.data.checks import conversations, leakage, reading, texts, tokens, whole
from scumble.data.checks.check import CHECKS, LOOKS, Check, Lines, Seen, SetCheck, Setting, Source
from scumble.data.checks.finding import Finding
from scumble.data.encoding import Encoded
from scumble.data.example import Example
from scumble.errors import DataError

__all__ = ["CHECKS", "Inspection", "conversations", "leakage", "texts"]
_PLACE = re.compile(r", (\w+) (\d+)\b")


class Inspection:
    """Examples of one source, shown one after the other.

    Args:
        title: of the source.
        setting: what the data are meant for.
        of_training: whether these are trained on, and so also judged as a whole.

    Attributes:
        examples: how many were shown.
        tokens: of all of them.
        supervised: those that carry a loss.
        formats: how many examples are of which format.
    """

    def __init__(self, title: str, setting: Setting, *, of_training: bool) -> None:
        self.source, self.setting, self.of_training = Source(title), setting, of_training
        self.examples = self.tokens = self.supervised = 0
        self.formats: Counter[str] = Counter()
        self._lines: dict[str, Lines] = {}
        self._sets: list[SetCheck] = [tokens.Ends(), tokens.Lengths(setting)]
        if setting.tokenizer is not None:
            self._sets.append(tokens.Begins(setting.tokenizer))
        if of_training:
            self._sets += [whole.Repeats(), *whole.mixes()]

    def fails(self, error: DataError, example: Example | None = None) -> None:
        """Something that cannot be read, or an example that cannot be encoded."""
        place = _PLACE.search(example.where if example else error.message)
        if place:
            self.source.unit = place[1]
        line = error.line or (example.number if example else 0) or (int(place[2]) if place else 0)
        # the message says where already
        detail = error.message.partition(": ")[2] if place else error.message
        self._add(reading.check_of(error).name, line, detail or error.message)
        if example is None:
            self.source.total += 1

    def see(self, example: Example, encoded: Encoded | None = None, error: DataError | None = None) -> None:
        """One example, with its tokens, or with what it cannot be encoded for, where there is a tokenizer."""
        if not self.examples and (place := _PLACE.search(example.where)):
            self.source.unit = place[1]
        self.examples += 1
        self.source.total += 1
        self.formats[example.format] += 1
        if encoded is not None:
            self.tokens += len(encoded.ids)
            self.supervised += encoded.targets
        seen = Seen(example, example.number or self.examples, encoded, self.setting)
        disordered = False
        for check, look in LOOKS:
            detail = look(seen)
            if detail is not None:
                self._add(check.name, seen.line, detail)
                disordered = disordered or check.name == "role_order"
        if error is not None and not (disordered and error.kind in reading.EXPLAINED):
            self.fails(error, example)
        for each in self._sets:
            each.see(seen)

    def findings(self) -> Iterator[Finding]:
        """What was found, in no order."""
        for name, lines in self._lines.items():
            yield CHECKS[name].of_lines(self.source, lines.kept, lines.detail, lines.count)
        for each in self._sets:
            yield from each.found(self.source)
        if self.of_training:
            yield from whole.enough(self.setting, self.source, self.examples)

    def _add(self, name: str, line: int, detail: str) -> None:
        self._lines.setdefault(name, Lines()).add(line, detail)


def catalogue() -> list[Check]:
    """Every check there is: errors first, and of each what is found in reading first."""
    return sorted(
        CHECKS.values(), key=lambda each: (each.severity != "error", each.name not in reading.NAMES)
    )


def ordered(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Findings in the order of the catalogue."""
    places = {check.name: place for place, check in enumerate(catalogue())}
    return tuple(sorted(findings, key=lambda each: places[each.check]))
