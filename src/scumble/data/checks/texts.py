"""Checks of the characters of an example: what cannot be meant, and what was damaged on its way.

Each first looks at all texts of an example at once, since most have nothing to find. Knows nothing of tokens.
"""

from __future__ import annotations

import re

from scumble.data.checks.check import Seen, each

# Control characters but tab and line breaks, marks that turn the direction of writing, and marks of no width
# (but the joiners, which emoji and several scripts need).
_CONTROL = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200b\u2028\u2029\u202a-\u202e\u2060\u2066-\u2069\ufeff]"
)
# The replacement character, half surrogates, and code points that are no characters.
_BROKEN = re.compile("[\ufffd\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")
# What follows the first byte of a character in UTF-8, read as Windows-1252 or as Latin-1; quotes, dashes and the
# ellipsis, which may well stand after a letter, only where one such character follows another.
_LONE = "\x80-\xbf\u20ac\u201a\u0192\u201e\u2020\u2021\u02c6\u2030\u0160\u2039\u0152\u017d\u2022\u02dc\u2122\u0161\u203a\u0153\u017e\u0178"
_ANY = "[" + _LONE + "\u2018\u2019\u201c\u201d\u2013\u2014\u2026]"
_LEADS = f"(?:[\u00c2-\u00df]{_ANY}|[\u00e0-\u00ef]{_ANY}{{2}}|\u00f0{_ANY}{{3}})"
_MOJIBAKE = re.compile(
    f"{_LEADS}{{2,}}|[\u00c2\u00c3][{_LONE}]|\u00e2\u20ac{_ANY}|\u00f0\u0178{_ANY}{{2}}|\u00ef\u00bb\u00bf"
)


@each(
    "control_characters",
    "warning",
    "control characters",
    "The model learns to write what nobody can see.",
    "remove them; they often come from copied web pages, terminals and PDF files",
)
def control_characters(seen: Seen) -> str | None:
    """A control character, or one that turns the direction of writing or has no width."""
    return _first(seen, _CONTROL)


@each(
    "broken_unicode",
    "warning",
    "characters that were lost",
    "The model learns to write the mark of a lost character.",
    "read the source again in the encoding that it was written in",
)
def broken_unicode(seen: Seen) -> str | None:
    """The replacement character, half a surrogate pair, or a code point that is no character."""
    return _first(seen, _BROKEN)


@each(
    "mojibake",
    "warning",
    "text in UTF-8 that was read as something else",
    "The model learns to write `Ã©` for `é`.",
    "decode the source as UTF-8, or repair the text with a library such as ftfy",
)
def mojibake(seen: Seen) -> str | None:
    """Characters whose bytes are other characters when read as UTF-8."""
    if seen.whole.isascii():
        return None
    for where, text in seen.texts:
        for match in _MOJIBAKE.finditer(text):
            if _repaired(match[0]):
                return f"{where}: {match[0]} for {_repaired(match[0])}"
    return None


def _repaired(text: str) -> str | None:
    """What this was in UTF-8; None where it was none."""
    for encoding in ("cp1252", "latin-1"):
        try:
            return text.encode(encoding).decode("utf-8")
        except UnicodeError:
            continue
    return None


def _first(seen: Seen, pattern: re.Pattern[str]) -> str | None:
    if not pattern.search(seen.whole):
        return None
    for where, text in seen.texts:
        match = pattern.search(text)
        if match:
            return f"{where}: U+{ord(match[0]):04X}"
    return None
