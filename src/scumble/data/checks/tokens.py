"""Checks of an example's tokens: ends that are not learned, unknown tokens, special tokens in what people wrote.

Needs a tokenizer, and nothing of models.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np

from scumble.data.checks.check import CHECKS, Lines, Seen, Setting, Source, each, known
from scumble.data.checks.finding import Finding
from scumble.data.checks.series import Series

TIMES = 10  # an example so many times as long as the median is extreme
FLOOR = 256  # tokens below which none is
ENOUGH = 20  # examples below which a median says little


@lru_cache(maxsize=8)
def _special(tokenizer: Any) -> tuple[frozenset[int], re.Pattern[str]]:
    """Ids of the special tokens, and a pattern of their texts."""
    added = tokenizer.added_tokens_decoder
    ids = set(tokenizer.all_special_ids) | {i for i, token in added.items() if token.special}
    texts = {str(text) for text in tokenizer.convert_ids_to_tokens(sorted(ids))} - {""}
    # a one-letter special token would be found everywhere
    texts = {text for text in texts if len(text) > 2}
    longest_first = sorted(texts, key=len, reverse=True)
    pattern = "|".join(map(re.escape, longest_first)) if texts else r"(?!)"
    return frozenset(ids | set(added)), re.compile(pattern)


@each(
    "special_tokens_in_text",
    "warning",
    "special tokens in what people wrote",
    "The tokenizer reads them as the marks of turns and ends, so that a text ends a turn or begins another.",
    "remove them; the chat template writes them where they belong",
)
def special_tokens_in_text(seen: Seen) -> str | None:
    """A text holds the spelling of a special token."""
    if seen.setting.tokenizer is None:
        return None
    pattern = _special(seen.setting.tokenizer)[1]
    if not pattern.search(seen.whole):
        return None
    for where, text in seen.texts:
        match = pattern.search(text)
        if match:
            return f"{where}: {match[0]}"
    return None


@each(
    "unknown_tokens",
    "warning",
    "characters that the tokenizer does not know",
    "The model reads and learns a token that stands for anything.",
    "remove or replace them, or take a base whose tokenizer knows them",
)
def unknown_tokens(seen: Seen) -> str | None:
    """The tokenizer made its unknown token out of something."""
    tokenizer = seen.setting.tokenizer
    if seen.encoded is None or (unknown := tokenizer.unk_token_id) is None:
        return None
    # some tokenizers give one token several offices, and a template writes it
    if unknown in (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id):
        return None
    count = seen.encoded.ids.count(unknown)
    return f"{count} of {len(seen.encoded.ids)} tokens" if count else None


@each(
    "template_changes",
    "warning",
    "conversations that the chat template changes",
    "The model learns something else than what the data say, or is asked in another way than it was trained.",
    "look at it with `scumble data preview`; another template is given with `--template`",
)
def template_changes(seen: Seen) -> str | None:
    """The template leaves something out, or its generation prompt goes on where the training text does not."""
    return seen.encoded.notes[0] if seen.encoded is not None and seen.encoded.notes else None


def _unended(seen: Seen) -> str | None:
    """An answer whose last token with a loss is no special one: its end is not learned."""
    if seen.encoded is None:
        return None
    special = _special(seen.setting.tokenizer)[0]
    learned = bytes(seen.encoded.supervised) + b"\0"
    at = learned.find(b"\1\0")  # the last token of a run of tokens with a loss
    while at >= 0:
        if seen.encoded.ids[at] not in special:
            return f"token {at + 1}"
        at = learned.find(b"\1\0", at + 1)
    return None


known(
    "no_begin_token",
    "warning",
    "examples without the begin token that the tokenizer adds to plain text",
    "The model was trained to see it first, and is trained here without it.",
    "add `{{ bos_token }}` at the start of the chat template, where the base's own templates have it",
)
known(
    "too_long",
    "warning",
    "examples that are too long and are left out whole, not cut",
    "Nothing is learned from them; cut, they would teach answers without an end.",
    "raise --max-length, or shorten them",
)
known(
    "extreme_lengths",
    "warning",
    f"examples more than {TIMES} times as long as the median",
    "They decide memory and time, and often are no examples but files that were joined.",
    "look at them; shorten or remove what is not meant",
)


class Lengths:
    """Lengths in tokens: too long, and far from the others."""

    def __init__(self, setting: Setting) -> None:
        self.limit, self.positions = setting.limit, setting.positions
        self.series = Series("line", "tokens")

    def see(self, seen: Seen) -> None:
        """Note how long it is."""
        if seen.encoded is not None:
            self.series.add(seen.line, len(seen.encoded.ids))

    def found(self, source: Source) -> Iterator[Finding]:
        """Examples that are left out, and examples that are extreme."""
        lines, tokens = self.series.columns()
        if not len(tokens):
            return
        over = tokens > self.limit
        if over.any():
            yield self._too_long(source, lines[over].tolist(), tokens)
        median = float(np.median(tokens))
        extreme = tokens > max(TIMES * median, FLOOR)
        if extreme.any() and len(tokens) >= ENOUGH:
            detail = f"{int(tokens[extreme][0]):,} tokens, the median being {median:,.0f}"
            yield CHECKS["extreme_lengths"].of_lines(source, lines[extreme].tolist(), detail)

    def _too_long(self, source: Source, lines: list[int], tokens: Any) -> Finding:
        excess = tokens[tokens > self.limit] - self.limit
        by = f"{excess.min():,}" if excess.min() == excess.max() else f"{excess.min():,} to {excess.max():,}"
        most = int(tokens.max())
        keeps = int(np.sort(tokens)[math.ceil(0.99 * len(tokens)) - 1])
        longer = f"--max-length {most} keeps all"
        if self.limit < keeps < most:
            longer = f"--max-length {keeps} keeps 99 %, and --max-length {most} keeps all"
        if self.positions is not None and keeps > self.positions:
            longer = f"the base has {self.positions} positions, and --max-length {keeps} would keep 99 %"
        elif self.positions is not None and most > self.positions:
            longer = f"--max-length {keeps} keeps 99 %; the base has {self.positions} positions"
        detail = f"longer than {self.limit:,} tokens by {by}"
        return CHECKS["too_long"].of_lines(source, lines, detail, fix=f"{longer}; or shorten them")


class Begins:
    """Begin tokens that are missing: the tokenizer adds one to plain text, and the template writes none."""

    def __init__(self, tokenizer: Any) -> None:
        begin = tokenizer.bos_token_id
        alone = tokenizer("a")["input_ids"] if begin is not None else []
        self.begin = begin if alone and alone[0] == begin else None
        self.lines = Lines()

    def see(self, seen: Seen) -> None:
        """Note whether it begins."""
        if self.begin is not None and seen.encoded is not None and seen.encoded.ids[:1] != (self.begin,):
            self.lines.add(seen.line)

    def found(self, source: Source) -> Iterator[Finding]:
        """Examples that do not begin."""
        if self.lines.count:
            yield CHECKS["no_begin_token"].of_lines(source, self.lines.kept, count=self.lines.count)


class Ends:
    """Ends of turns that carry no loss."""

    def __init__(self) -> None:
        self.lines = Lines()

    def see(self, seen: Seen) -> None:
        """Note whether each of its answers ends."""
        detail = _unended(seen)
        if detail:
            self.lines.add(seen.line, detail)

    def found(self, source: Source) -> Iterator[Finding]:
        """Examples with an answer that does not end."""
        if self.lines.count:
            yield CHECKS["end_not_supervised"].of_lines(
                source, self.lines.kept, self.lines.detail, self.lines.count
            )
