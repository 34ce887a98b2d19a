"""From a conversation to tokens, and which of them carry a loss.

Which characters carry one is for `masks` to tell. The text is tokenized once, with no further special tokens,
so that there are never two begin tokens; where a token would reach from the prompt into an answer (a line break
and the space that the answer begins with), it is cut there, as it is when the model is asked. A plain text is
tokenized as the tokenizer would by itself, with an end token after it, and every token carries a loss. Knows a
tokenizer and nothing of models.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Any

from scumble.data.example import Example
from scumble.data.masks import Masked, TrainOn, mask
from scumble.data.templates import Spans, Template, load_template
from scumble.errors import DataError

__all__ = [
    "Encoded",
    "EncodedSet",
    "TrainOn",
    "encode",
    "encode_all",
    "encode_each",
    "encode_prompt",
    "render_spans",
]

# so many texts are tokenized at once, on all cores
_AT_ONCE = 256
Offsets = list[tuple[int, int]]


@dataclass(frozen=True)
class Encoded:
    """One conversation as the model sees it.

    Attributes:
        ids: token ids, (length,).
        supervised: whether each token carries a loss, (length,).
        number: the example's number in its data set, which its dropout masks depend on.
        where: the source and the line, for messages.
        notes: what the template did that a reader should know (`Masked.notes`).
    """

    ids: tuple[int, ...]
    supervised: tuple[bool, ...]
    number: int
    where: str
    notes: tuple[str, ...] = ()

    @property
    def targets(self) -> int:
        """How many tokens carry a loss."""
        return sum(self.supervised)


@dataclass(frozen=True)
class EncodedSet:
    """Encoded examples, and those that were too long, which are left out whole and never cut.

    Attributes:
        examples: what is trained on.
        too_long: (where, length) of what is not.
    """

    examples: list[Encoded]
    too_long: list[tuple[str, int]]

    @property
    def tokens(self) -> int:
        """All tokens."""
        return sum(len(example.ids) for example in self.examples)

    @property
    def targets(self) -> int:
        """Tokens with a loss."""
        return sum(example.targets for example in self.examples)


def encode_all(
    examples: Sequence[Example],
    tokenizer: Any,
    max_length: int,
    *,
    train_on: TrainOn = "all",
    template: Template | None = None,
) -> EncodedSet:
    """Encode every example; those longer than `max_length` tokens are left out and named.

    Args:
        examples: all of them.
        tokenizer: as for `encode`.
        max_length: tokens of the longest that is kept.
        train_on: as for `encode`.
        template: as for `encode`.

    Raises:
        DataError: one cannot be encoded, or nothing remains.
    """
    encoded = list(encode_each(examples, tokenizer, train_on=train_on, template=template))
    kept = [example for example in encoded if len(example.ids) <= max_length]
    long = [(example.where, len(example.ids)) for example in encoded if len(example.ids) > max_length]
    if not kept:
        shortest = min(length for _, length in long)
        raise DataError(
            f"every example is longer than {max_length} tokens; the shortest has {shortest}",
            f"raise --max-length to {max(length for _, length in long)} to keep all",
        )
    return EncodedSet(kept, long)


def encode_each(
    examples: Iterable[Example],
    tokenizer: Any,
    *,
    train_on: TrainOn = "all",
    template: Template | None = None,
    on_error: Callable[[DataError], None] | None = None,
) -> Iterator[Encoded]:
    """Encode examples one after the other, numbered from 0, holding few of them at a time.

    Args:
        examples: from anywhere.
        tokenizer: as for `encode`.
        train_on: as for `encode`.
        template: as for `encode`.
        on_error: called with what is wrong with an example, which is then left out; without it, it is raised.
    """
    numbered = enumerate(examples)
    templates = _Templates(tokenizer, template)
    while group := list(islice(numbered, _AT_ONCE)):
        drawn: list[tuple[int, Example, Masked | None]] = []
        failed: list[tuple[int, DataError]] = []
        for number, example in group:
            try:
                drawn.append((number, example, _masked(example, templates, train_on)))
            except DataError as error:
                failed.append((number, error))
                if on_error is None:
                    break  # what came before it is yielded first
        tokens = _tokenized_together([(e, m) for _, e, m in drawn], tokenizer)
        done = {number: (e, m, t) for (number, e, m), t in zip(drawn, tokens, strict=True)}
        errors = dict(failed)
        for number, _ in group:
            try:
                if number in errors:
                    raise errors[number]
                if number in done:
                    yield _encoded(*done[number], number, tokenizer)
            except DataError as error:
                if on_error is None:
                    raise
                on_error(error)


def encode(
    example: Example,
    tokenizer: Any,
    number: int = 0,
    *,
    train_on: TrainOn = "all",
    template: Template | None = None,
) -> Encoded:
    """Encode one conversation, or one plain text.

    Args:
        example: the conversation.
        tokenizer: a fast tokenizer of transformers with a chat template.
        number: of the example in its data set.
        train_on: whether every assistant's turn carries a loss, or the last one only.
        template: the chat template (`load_template`); without it, the tokenizer's.

    Raises:
        DataError: the template cannot render it, rewrites earlier turns, or ends turns without an end token; no
            token carries a loss; there are two begin tokens.
    """
    masked = _masked(example, _Templates(tokenizer, template), train_on)
    (tokens,) = _tokenized_together([(example, masked)], tokenizer)
    return _encoded(example, masked, tokens, number, tokenizer)


def encode_prompt(
    messages: Sequence[dict[str, Any]],
    tokenizer: Any,
    *,
    tools: Sequence[dict[str, Any]] | None = None,
    template: Template | None = None,
) -> list[int]:
    """The tokens after which the model answers: the turns so far and the generation prompt."""
    template = template or load_template(tokenizer, tools=tools)
    text = template.render(messages, "the prompt", tools=tools, generation=True)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def render_spans(example: Example, tokenizer: Any, template: Template | None = None) -> tuple[str, Spans]:
    """The rendered conversation, and the character spans (start, end) that carry a loss.

    Raises:
        DataError: as `encode`.
    """
    masked = _masked(example, _Templates(tokenizer, template), "all")
    return (
        (example.text or "", [(0, len(example.text or ""))])
        if masked is None
        else (masked.text, masked.spans)
    )


class _Templates:
    """The template for an example: that which was named, or the tokenizer's for one with tools or without."""

    def __init__(self, tokenizer: Any, named: Template | None) -> None:
        self._tokenizer, self._named = tokenizer, named
        self._known: dict[bool, Template] = {}

    def __getitem__(self, tools: bool) -> Template:
        if self._named is not None:
            return self._named
        if tools not in self._known:
            self._known[tools] = load_template(self._tokenizer, tools=[{}] if tools else None)
        return self._known[tools]


def _masked(example: Example, templates: _Templates, train_on: TrainOn) -> Masked | None:
    """The text and its spans; None for a plain text."""
    if example.text is not None:
        return None
    masked = mask(example, templates[bool(example.tools)], train_on)
    if not masked.spans:
        raise DataError(
            f"{example.where}: no token carries a loss",
            "the assistant's turns are empty, or all have weight 0",
            kind="nothing_supervised",
            line=example.number or None,
        )
    return masked


def _tokenized_together(
    drawn: Sequence[tuple[Example, Masked | None]], tokenizer: Any
) -> list[tuple[list[int], Offsets]]:
    """Token ids of each text and the characters (start, end) of each token; none reaches across a span's edge."""
    chats = [i for i, (_, masked) in enumerate(drawn) if masked is not None]
    texts = [i for i, (_, masked) in enumerate(drawn) if masked is None]
    found: dict[int, tuple[list[int], Offsets]] = {}
    for numbers, special in ((chats, False), (texts, True)):
        if numbers:
            together = [
                masked.text if masked is not None else str(e.text)
                for e, masked in (drawn[i] for i in numbers)
            ]
            coded = tokenizer(together, add_special_tokens=special, return_offsets_mapping=not special)
            offsets = coded["offset_mapping"] if not special else [[]] * len(numbers)
            found |= dict(zip(numbers, zip(coded["input_ids"], offsets, strict=True), strict=True))
    for i in chats:
        masked = drawn[i][1]
        assert masked is not None
        found[i] = _cut(*found[i], masked, tokenizer)
    return [found[i] for i in range(len(drawn))]


def _cut(ids: list[int], offsets: Offsets, masked: Masked, tokenizer: Any) -> tuple[list[int], Offsets]:
    """The same tokens where none reaches across the edge of a span; else the text is tokenized in parts."""
    edges = sorted({edge for span in masked.spans for edge in span})
    # by SentencePiece a part begins with a space of its own, so nothing is cut that need not be
    cuts = [edge for edge in edges if _crossing(edge, offsets)]
    if not cuts:
        return ids, offsets
    parts = [(start, masked.text[start:end]) for start, end in pairwise([0, *cuts, len(masked.text)])]
    coded = tokenizer([text for _, text in parts], add_special_tokens=False, return_offsets_mapping=True)
    offsets = [
        (a + start, b + start)
        for (start, _), pairs in zip(parts, coded["offset_mapping"], strict=True)
        for a, b in pairs
    ]
    return [i for part in coded["input_ids"] for i in part], offsets


def _crossing(edge: int, offsets: Offsets) -> bool:
    at = bisect_left(offsets, edge, key=_start)
    # a special token may take white space after it along (`rstrip`), which is not cut off from it
    return any(a < edge < b for a, b in offsets[max(at - 4, 0) : at])


def _start(pair: tuple[int, int]) -> int:
    return pair[0]


def _encoded(
    example: Example, masked: Masked | None, tokens: tuple[list[int], Offsets], number: int, tokenizer: Any
) -> Encoded:
    ids, offsets = tokens
    line = example.number or None
    if masked is None:
        end = tokenizer.eos_token_id
        if end is None:
            raise DataError(
                f"{example.where}: the tokenizer has no end token",
                "without one the model would never learn to stop",
            )
        ids = [*ids] if ids[-1:] == [end] else [*ids, end]
        supervised = [True] * len(ids)
    else:
        supervised = [False] * len(ids)
        for start, end in masked.spans:
            first, last = bisect_left(offsets, start, key=_start), bisect_left(offsets, end, key=_start)
            supervised[first:last] = [True] * (last - first)
    bos = tokenizer.bos_token_id
    if bos is not None and ids[:2] == [bos, bos]:
        raise DataError(
            f"{example.where}: two begin tokens",
            "remove the begin token from the text",
            kind="double_begin_token",
            line=line,
        )
    return Encoded(tuple(ids), tuple(supervised), number, example.where, masked.notes if masked else ())
