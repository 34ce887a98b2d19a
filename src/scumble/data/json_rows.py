"""Rows of JSON files, read piece by piece: one object a line, a list, or an object with one list in it.

Knows JSON, and nothing of what its values mean.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from typing import BinaryIO

from scumble.data.rows import Report, Row, unreadable
from scumble.errors import clipped

LIMIT = 1 << 26  # bytes of one line, or of one entry of a list, or of a file that is one object: 64 MiB
PIECE = 1 << 20  # bytes read at once
SPACE = " \t\n\r"
UTF8 = "save the file as UTF-8"


def read_lines(file: BinaryIO, source: str, report: Report) -> Iterator[Row]:
    """One value a line; empty lines are passed over, and lines that are not JSON are reported."""
    # JSON lines end at \n only: other line separators may stand inside a string
    for number, raw in enumerate(iter(lambda: file.readline(LIMIT), b""), start=1):
        where = f"{source}, line {number}"
        if len(raw) == LIMIT and not raw.endswith(b"\n"):
            while (rest := file.readline(LIMIT)) and not rest.endswith(b"\n"):
                pass
            report(unreadable(where, f"longer than {LIMIT >> 20} MiB", "each line is one example", number))
            continue
        if number == 1:
            raw = raw.removeprefix(codecs.BOM_UTF8)
        try:
            line = raw.decode("utf-8")
            if not line.strip():
                continue
            value = json.loads(line)
        except UnicodeDecodeError as error:
            report(unreadable(where, f"not UTF-8 ({error.reason})", UTF8, number))
        except (ValueError, RecursionError) as error:
            reason = clipped(getattr(error, "msg", None) or error)
            report(unreadable(where, f"not JSON ({reason})", "each line is one JSON object", number))
        else:
            yield Row(value, where, number)
