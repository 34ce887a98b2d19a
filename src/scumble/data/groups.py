"""A few examples at a time from conversations to tokens: what each process does, and what it sends.

Which characters carry a loss is for `masks` to tell, which tokens for `supervision`. The text is tokenized once,
with no further special tokens, so that there are never two begin tokens. A plain text is tokenized as the tokenizer
would by itself, with an end token after it, and every token carries a loss. Knows a tokenizer and nothing of models.
"""

from __future__ import annotations

import pickle
from array import array
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, NamedTuple, TypeAlias

from scumble.data.example import Example
from scumble.data.masks import Masked, TrainOn, mask
from scumble.data.supervision import Runs, fast_tokenizer, supervise
from scumble.data.templates import Template, load_template
from scumble.errors import DataError

# so many texts are tokenized at once, on all cores
AT_ONCE = 256
# so many examples, or so many characters, are sent to another process at once; the tokenizer takes a fifth less time
# for each of a thousand texts than for each of a hundred
TOGETHER = 1000
# so many of them are pickled at once: examples that wait as objects are looked through by every garbage collection
SOME = 100
LARGE = 1 << 19
Numbered: TypeAlias = tuple[int, Example]
# (number, example, its mask): None for a plain text, an error for what cannot be rendered
Group: TypeAlias = list[tuple[int, Example, Masked | DataError | None]]


class Coded(NamedTuple):
    """The tokens of one example.

    Attributes:
        ids: token ids, (length,).
        runs: (first, end) of tokens that carry a loss, one after the other.
        notes: as `Masked.notes`.
    """

    ids: list[int]
    runs: Runs
    notes: tuple[str, ...]


class Piece(NamedTuple):
    """Examples for another process.

    Attributes:
        numbers: of each, its number.
        places: of each, `Example.where`.
        pickled: the examples, some at a time; as they are where they cannot be pickled.
    """

    numbers: list[int]
    places: list[str]
    pickled: list[bytes | list[Numbered]]


class Packed(NamedTuple):
    """The tokens of a group, small to send.

    Attributes:
        ids: those of all examples, 4 bytes each.
        each: length, runs and notes of each example; None for one that has an error.
    """

    ids: bytes
    each: list[tuple[int, Runs, tuple[str, ...]] | None]


class Templates:
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


def masked_of(example: Example, templates: Templates, train_on: TrainOn) -> Masked | None:
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


def rendered_group(
    numbered: Iterator[Numbered],
    templates: Templates,
    train_on: TrainOn,
    on: Callable[[DataError], None] | None,
    most: int | None = AT_ONCE,
) -> Group:
    """The next few examples with their masks; an error ends the group where it will be raised."""
    group: Group = []
    for number, example in islice(numbered, most):
        try:
            group.append((number, example, masked_of(example, templates, train_on)))
        except DataError as error:
            group.append((number, example, error))
            if on is None:
                break
    return group


def pieces_of(numbered: Iterator[Numbered]) -> Iterator[Piece]:
    """Examples for another process, `TOGETHER` at a time and fewer where they are long."""
    piece, size = Piece([], [], []), 0
    while some := list(islice(numbered, SOME)):
        for number, example in some:
            piece.numbers.append(number)
            piece.places.append(example.where)
            size += sum(len(str(message.get("content"))) for message in example.messages)
            size += len(example.text or "")
        piece.pickled.append(_pickled(some))
        as_they_are = piece.pickled[-1] is some
        if len(piece.numbers) >= TOGETHER or size > LARGE or as_they_are:
            yield piece
            piece, size = Piece([], [], []), 0
    if piece.numbers:
        yield piece


def _pickled(some: list[Numbered]) -> bytes | list[Numbered]:
    try:
        return pickle.dumps(some, pickle.HIGHEST_PROTOCOL)
    except Exception:  # whatever a caller's own object does when it is pickled
        return some


def restored(some: Iterable[bytes | list[Numbered]]) -> Iterator[Numbered]:
    """The examples of a piece."""
    for each in some:
        yield from pickle.loads(each) if isinstance(each, bytes) else each


def packed(
    some: list[bytes | list[Numbered]], tokenizer: Any, templates: Templates, train_on: TrainOn
) -> Packed:
    """Encode a piece, in another process; it is made again where an error can be handed on."""
    group = rendered_group(restored(some), templates, train_on, _let_be, None)
    ids = array("i")
    each: list[tuple[int, Runs, tuple[str, ...]] | None] = []
    for (_, example, masked), tokens in zip(group, tokenized(group, tokenizer), strict=True):
        try:
            found = coded(example, masked, tokens, tokenizer)
        except DataError:
            each.append(None)
            continue
        ids.fromlist(found.ids)
        each.append((len(found.ids), found.runs, found.notes))
    return Packed(ids.tobytes(), each)


def _let_be(error: DataError) -> None:
    """Errors of another process are met again in the first."""


def unpacked(found: Packed) -> Iterator[Coded | None]:
    """The tokens of each example, None for one that has an error."""
    flat = array("i")
    flat.frombytes(found.ids)
    start = 0
    for one in found.each:
        if one is None:
            yield None
            continue
        length, runs, notes = one
        yield Coded(flat[start : start + length].tolist(), runs, notes)
        start += length


def tokenized(group: Group, tokenizer: Any) -> list[Any]:
    """For each example `tokenizers.Encoding` of its text: of a conversation without, of a text with special tokens."""
    words = fast_tokenizer(tokenizer)
    found: list[Any] = [None] * len(group)
    for special in (False, True):
        numbers = [
            i for i, (_, _, m) in enumerate(group) if not isinstance(m, DataError) and (m is None) == special
        ]
        texts = [str(e.text) if special else m.text for _, e, m in (group[i] for i in numbers)]  # type: ignore[union-attr]
        for i, coded in zip(numbers, words.encode_batch(texts, add_special_tokens=special), strict=True):
            found[i] = coded
    return found


def coded(example: Example, masked: Masked | DataError | None, tokens: Any, tokenizer: Any) -> Coded:
    """The tokens of one example, and which carry a loss.

    Args:
        example: the example.
        masked: what carries a loss; None for a plain text, an error to be raised here.
        tokens: the `tokenizers.Encoding` of its text.
        tokenizer: as for `encode`.

    Raises:
        DataError: that of `masked`; there is no end token; there are two begin tokens.
    """
    if isinstance(masked, DataError):
        raise masked
    if masked is None:
        end = tokenizer.eos_token_id
        if end is None:
            raise DataError(
                f"{example.where}: the tokenizer has no end token",
                "without one the model would never learn to stop",
                kind="end_not_supervised",
                line=example.number or None,
            )
        ids = list(tokens.ids)
        ids = ids if ids[-1:] == [end] else [*ids, end]
        runs = [(0, len(ids))]
    else:
        ids, runs = supervise(masked, tokens, tokenizer)
    # two alike are looked for first: to ask a tokenizer for its begin token takes longer
    if len(ids) > 1 and ids[0] == ids[1] and ids[0] == tokenizer.bos_token_id:
        raise DataError(
            f"{example.where}: two begin tokens",
            "remove the begin token from the text",
            kind="double_begin_token",
            line=example.number or None,
        )
    return Coded(ids, runs, masked.notes if masked else ())
