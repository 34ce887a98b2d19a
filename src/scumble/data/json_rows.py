"""Rows of JSON files, read piece by piece: one object a line, a list, or an object with one list in it.

Knows JSON, and nothing of what its values mean.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from typing import Any, BinaryIO

from scumble.data.json_values import SPACE, loads, parsed
from scumble.data.rows import Report, Row, unreadable
from scumble.errors import clipped

LIMIT = 1 << 26  # bytes of one line, or of one entry of a list, or of a file that is one object: 64 MiB
PIECE = 1 << 20  # characters read at once
UTF8 = "save the file as UTF-8"
LINES = "each line is one JSON object"
MiB = f"{LIMIT >> 20} MiB"


def read_lines(file: BinaryIO, source: str, report: Report) -> Iterator[Row]:
    """One value a line; empty lines are passed over, and lines that are not JSON are reported."""
    # JSON lines end at \n only: other line separators may stand inside a string
    for number, raw in enumerate(bounded_lines(file), start=1):
        where = f"{source}, line {number}"
        if raw is None:
            report(unreadable(where, f"longer than {MiB}", "each line is one example", number))
            continue
        if number == 1:
            raw = raw.removeprefix(codecs.BOM_UTF8)
        try:
            line = raw.decode("utf-8")
            if not line.strip():
                continue
            value = loads(line)
        except UnicodeDecodeError as error:
            report(unreadable(where, f"not UTF-8 ({error.reason})", UTF8, number))
        except ValueError as error:
            report(unreadable(where, f"not JSON ({_reason(error)})", LINES, number))
        else:
            yield Row(value, where, number)


def bounded_lines(file: BinaryIO) -> Iterator[bytes | None]:
    """The lines of a file, and None for each that is longer than `LIMIT` bytes, which is passed over."""
    while raw := file.readline(LIMIT):
        if len(raw) < LIMIT or raw.endswith(b"\n"):
            yield raw
            continue
        while (rest := file.readline(LIMIT)) and not rest.endswith(b"\n"):
            pass
        yield None


def read_json(file: BinaryIO, source: str, report: Report) -> Iterator[Row]:
    """The entries of a list; or of the one list of an object; or, in a file of lines, one value a line.

    Of an object without a list it is the object itself. What is no JSON ends the reading where it stands, since
    nothing tells where the next entry begins.
    """
    listed = file.read(PIECE).removeprefix(codecs.BOM_UTF8).lstrip()[:1] == b"["
    file.seek(0)
    if not listed and _holds_lines(file):
        yield from read_lines(file, source, report)
        return
    text = _Text(file)
    try:
        if text.is_empty():
            return
        values: Iterator[Any] = text.entries() if listed else iter(_within(text.whole()))
        for number, value in enumerate(values, start=1):
            yield Row(value, f"{source}, example {number}", number)
    except _BrokenError as error:
        report(unreadable(f"{source}, line {error.line}", error.reason, error.hint, error.line))


class _BrokenError(Exception):
    """What is no JSON, and its line; `read_json` reports it."""

    def __init__(
        self, line: int, reason: str, hint: str = "write a list of objects, or one object a line"
    ) -> None:
        self.line, self.reason, self.hint = line, reason, hint


class _Text:
    """The text of a file, of which only what is being parsed is held.

    Attributes:
        text: what is held.
        at: where in it the next value begins.
        lines: line breaks in what is held no more.
        ended: all of the file has been read.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._decoder = file, codecs.getincrementaldecoder("utf-8-sig")()
        self.text, self.at, self.lines, self.ended = "", 0, 0, False

    def entries(self) -> Iterator[Any]:
        """The entries of a list, one after the other."""
        self._take("[")
        if self._next() == "]":
            self._take("]")
        else:
            while True:
                self._next()
                yield self._value()
                if self._next() != ",":
                    break
                self._take(",")
            self._take("]")
        self._expect_end()

    def whole(self) -> Any:
        """The one value of the file."""
        self._next()
        value = self._value()
        self._expect_end()
        return value

    def is_empty(self) -> bool:
        """Whether nothing but white space remains."""
        return not self._next()

    def _value(self) -> Any:
        """The value that begins here; where what is held ends within it, more is read, each time as much again."""
        while True:
            try:
                value, end = parsed(self.text, self.at)
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated") or error.pos > len(self.text) - 12
                if self.ended or not cut:
                    raise _BrokenError(self._line(error.pos), f"not JSON ({error.msg})") from error
            except ValueError as error:
                raise _BrokenError(self._line(self.at), f"not JSON ({_reason(error)})") from error
            else:
                # a number may go on, "1" as "1.5e3"; after 12 characters it would have been taken whole
                if self.ended or len(self.text) - end > 12 or self.text[end : end + 1] in (*SPACE, ",", "]"):
                    self.at = end
                    return value
            if len(self.text) - self.at > LIMIT:
                raise _BrokenError(
                    self._line(self.at), f"an entry longer than {MiB}", "write one object a line"
                )
            self._more()

    def _next(self) -> str:
        """The next character that is no space, or nothing at the end."""
        while True:
            while self.at < len(self.text):
                if self.text[self.at] not in SPACE:
                    return self.text[self.at]
                self.at += 1
            if self.ended:
                return ""
            self._more()

    def _take(self, expected: str) -> None:
        found = self._next()
        if found != expected:
            raise _BrokenError(self._line(self.at), f"not JSON ({expected!r} expected, {found!r} found)")
        self.at += 1

    def _expect_end(self) -> None:
        if self._next():
            raise _BrokenError(self._line(self.at), "not JSON (more text after the end)")

    def _more(self) -> None:
        self.lines += self.text.count("\n", 0, self.at)
        self.text, self.at = self.text[self.at :], 0
        raw = self._file.read(max(PIECE, len(self.text)))
        self.ended = not raw
        try:
            self.text += self._decoder.decode(raw, final=self.ended)
        except UnicodeDecodeError as error:
            line = self._line(len(self.text)) + error.object.count(b"\n", 0, error.start)
            raise _BrokenError(line, f"not UTF-8 ({error.reason})", UTF8) from error

    def _line(self, at: int) -> int:
        return self.lines + self.text.count("\n", 0, at) + 1


def _within(value: Any) -> list[Any]:
    """The entries of the one list of objects that an object holds; without one, the object is the only entry."""
    if not isinstance(value, dict):
        return [value]
    lists = [key for key, inner in value.items() if isinstance(inner, list) and key not in OWN_LISTS]
    if not lists:
        return [value]
    if len(lists) > 1:
        names = ", ".join(clipped(key, 40) for key in lists[:5])
        raise _BrokenError(1, f"an object with {len(lists)} lists: {names}", "keep one list of examples")
    found: list[Any] = value[lists[0]]
    return found


# lists that stand within one example
OWN_LISTS = ("messages", "conversations", "prompt", "completion", "tools", "history")


def _holds_lines(file: BinaryIO) -> bool:
    """Whether the first line is a value by itself and others follow; the file is then at its beginning again."""
    lines = (line for line in bounded_lines(file) if line is None or line.strip())
    try:
        loads((next(lines, None) or b"").decode("utf-8-sig"))
        return next(lines, b"") != b""
    except ValueError:
        return False
    finally:
        file.seek(0)


def _reason(error: Exception) -> str:
    return clipped(getattr(error, "msg", None) or error)
