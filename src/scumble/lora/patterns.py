"""Regular expressions and name lists out of a stranger's configuration, matched in bounded time.

A pattern means what Python's `re` makes of it, which is what PEFT uses, and whatever `re` cannot read is refused.
`re` has no time limit, and `(a*)*b` may take it years: only patterns that cannot backtrack far go to it, all
others to the `regex` package, which stops after `MATCH_SECONDS`. What the two read differently is refused.
Knows texts; what is a module and what a rank, it does not know.
"""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from typing import Any, Literal

import regex

from scumble.errors import AdapterError, shown

MAX_LENGTH = 4096  # characters of one pattern
MAX_TOGETHER = 20_000  # characters of all patterns of an adapter that are more than a name
MATCH_SECONDS = 0.1  # of processor time, for one pattern on one path
TOTAL_SECONDS = 10.0  # for all the matching that loading or fitting one adapter takes

Form = Literal["whole", "suffix", "layer"]
_FORMS: dict[str, str] = {
    "whole": "{}",  # of a fullmatch
    "suffix": r"(.*\.)?({})$",  # of rank_pattern and alpha_pattern
    "layer": r"(?:^|.*?\.){}\.(?P<idx>\d+)\.",  # of layers_pattern
}
_NAME = re.compile(r"[\w.\-]*")
_ESCAPED = re.compile(r"\\.", re.DOTALL)
_REPEAT = re.compile(r"\{(\d+)?(?:,(\d+)?)?\}")
_MAX_REPEATS = 10_000
_HINT = "name modules with commas between them, or mend the pattern"
_deadline: ContextVar[float | None] = ContextVar("_deadline", default=None)


@contextmanager
def bounded_matching() -> Iterator[None]:
    """Let all matching in the body take `TOTAL_SECONDS` together, then raise `AdapterError`."""
    token = _deadline.set(_deadline.get() or time.monotonic() + TOTAL_SECONDS)
    try:
        yield
    finally:
        _deadline.reset(token)


def check_time() -> None:
    """Raise `AdapterError` where the time of `bounded_matching` is up."""
    end = _deadline.get()
    if end is not None and time.monotonic() > end:
        raise AdapterError(
            f"the adapter's names and patterns take more than {TOTAL_SECONDS:g} s to match",
            "its configuration holds too many of them to be meant well",
        )


def is_name(pattern: str) -> bool:
    """Whether a pattern holds letters, digits, `_`, `-` and dots alone (each of which matches any character)."""
    return pattern.isascii() and _NAME.fullmatch(pattern) is not None


def check_patterns(patterns: Sequence[str], form: Form = "whole") -> None:
    """Compile patterns without matching them.

    Raises:
        AdapterError: one is no regular expression, or they are too long, alone or together.
    """
    long = [pattern for pattern in patterns if not is_name(pattern)]
    if sum(map(len, long)) > MAX_TOGETHER:
        raise AdapterError(
            f"the adapter's patterns have more than {MAX_TOGETHER:,} characters together", _HINT
        )
    for pattern in long:
        check_time()
        _compiled(pattern, form)
    for pattern in patterns:
        if len(pattern) > MAX_LENGTH:
            raise _too_long(pattern)


def find(pattern: str, path: str, form: Form = "whole") -> Any:
    """Match a pattern against a path: `whole` the whole of it, the other forms as PEFT builds them.

    Returns:
        A match with `.group`, or None.

    Raises:
        AdapterError: the pattern is not to be had, or took too long.
    """
    compiled = _compiled(pattern, form)
    call = compiled.fullmatch if form == "whole" else compiled.match
    if isinstance(compiled, re.Pattern):
        return call(path)
    check_time()
    try:
        return call(path, timeout=MATCH_SECONDS)
    except (TimeoutError, MemoryError) as error:
        raise AdapterError(
            f"the pattern {shown(pattern)} takes more than {MATCH_SECONDS} s to match {shown(path)}",
            "it backtracks without end; write it more simply",
        ) from error


class PatternTable:
    """Values by pattern, of which the first that names a path holds: PEFT's `rank_pattern` and `alpha_pattern`.

    Patterns that are plain names, of which there may be one for every module, are looked up and not tried in
    turn: for each set of places that dots have, counted from the end, the names with them, dots left open.
    """

    def __init__(self, values: Mapping[str, float]) -> None:
        self.values = list(values.values())
        self.names: dict[tuple[int, tuple[int, ...]], dict[str, int]] = {}
        self.others: list[tuple[int, str]] = []
        for index, pattern in enumerate(values):
            if is_name(pattern):
                dots = tuple(place for place, letter in enumerate(pattern) if letter == ".")
                self.names.setdefault((len(pattern), dots), {}).setdefault(pattern, index)
            else:
                self.others.append((index, pattern))

    def value(self, path: str, default: float) -> float:
        """The value of the first pattern that names `path`."""
        first = len(self.values)
        check_time()
        for (length, dots), named in self.names.items():
            before = len(path) - length - 1
            if before == -1 or (before >= 0 and path[before] == "."):
                tail = list(path[before + 1 :])
                for place in dots:
                    tail[place] = "."
                first = min(first, named.get("".join(tail), first))
        for index, pattern in self.others:
            if index > first:
                break
            if find(pattern, path, "suffix"):
                first = index
        return self.values[first] if first < len(self.values) else default


@lru_cache(maxsize=2048)
def _compiled(pattern: str, form: Form) -> Any:
    """A pattern of `re` where that is quick whatever it is matched against, else one of `regex`."""
    if len(pattern) > MAX_LENGTH:
        raise _too_long(pattern)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            alone = re.compile(pattern)
            strict = re.compile(_FORMS[form].format(pattern)) if form != "whole" else alone
            if _is_quick(pattern):
                return strict
            _refuse_what_differs(pattern)
            return regex.compile(_FORMS[form].format(pattern), regex.V0)
    except (re.error, regex.error, RecursionError, OverflowError, MemoryError, ValueError) as error:
        if isinstance(error, AdapterError):
            raise
        raise AdapterError(
            f"the pattern {shown(pattern)} is not a regular expression: {error or type(error).__name__}",
            _HINT,
        ) from error


def _is_quick(pattern: str) -> bool:
    """Whether matching takes at most the square of a path's length: one repetition, of one character.

    Escapes count as letters; a class in brackets may hold a mark that is none, and then the pattern is not quick.
    """
    bare = _ESCAPED.sub(" ", pattern).replace("(?:", "(")
    repeats = [place for place, letter in enumerate(bare) if letter in "*+?{"]
    # back references, look-around and conditions all need an escape of a digit or a `(?`
    if len(repeats) > 1 or re.search(r"\\[1-9]", pattern):
        return False
    # one choice after another doubles the ways to match: (a|a)(a|a)(a|a)...
    if bare.count("|") > (50 if bare.count("(") <= 1 else 4):
        return False
    return not repeats or (bare[repeats[0]] != "{" and bare[max(repeats[0] - 1, 0)] not in "()|")


def _refuse_what_differs(pattern: str) -> None:
    """Refuse what `regex` reads in another way than `re`, and repetitions that it would write out.

    Those are `{...}` that are no repetition (there: fuzzy matching) and `[:alpha:]`.
    """
    bare = _ESCAPED.sub(" ", pattern)
    product = 1
    for low, high in _REPEAT.findall(bare):
        product *= max(int((high or low or "1")[:9]), 1)
    if bare.count("{") != sum(1 for _ in _REPEAT.finditer(bare)) or "{}" in bare or "{,}" in bare:
        raise AdapterError(f"the pattern {shown(pattern)} has a brace that is no repetition", _HINT)
    if "[:" in bare:
        raise AdapterError(f"the pattern {shown(pattern)} has a class '[:', which is not read here", _HINT)
    if product > _MAX_REPEATS:
        raise AdapterError(
            f"the pattern {shown(pattern)} repeats something more than {_MAX_REPEATS:,} times", _HINT
        )


def _too_long(pattern: str) -> AdapterError:
    return AdapterError(
        f"the pattern {shown(pattern)} has {len(pattern):,} characters, more than {MAX_LENGTH:,}", _HINT
    )
