"""From conversations to tokens, and which of them carry a loss, in as many processes as there are cores.

How that is done for a few examples is in `groups`. Knows a tokenizer and nothing of models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from operator import attrgetter
from typing import Any

from scumble.data.example import Example
from scumble.data.groups import (
    Coded,
    Group,
    Numbered,
    Templates,
    coded,
    masked_of,
    packed,
    pieces_of,
    rendered_group,
    restored,
    tokenized,
    unpacked,
)
from scumble.data.masks import TrainOn
from scumble.data.processes import Processes
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
    "encoding_processes",
    "render_spans",
]

# so many examples are encoded in this process before others are started
FEW = 1024


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
    processes: Processes | None = None,
) -> Iterator[Encoded]:
    """Encode examples one after the other, numbered from 0, holding few of them at a time.

    Of more than `FEW` examples the rest are encoded in processes, one for each core; what comes of it is the same.

    Args:
        examples: from anywhere.
        tokenizer: as for `encode`.
        train_on: as for `encode`.
        template: as for `encode`.
        on_error: called with what is wrong with an example, which is then left out; without it, it is raised.
        processes: of `encoding_processes`, made with the same settings; without it, this call has its own.

    Raises:
        DataError: as `encode`, without `on_error`.
        ScumbleError: a process has ended.
    """
    crew = processes or encoding_processes(tokenizer, train_on=train_on, template=template)
    templates = Templates(tokenizer, template)
    make = partial(_made_here, tokenizer=tokenizer, templates=templates, train_on=train_on, on_error=on_error)
    numbered = enumerate(examples)
    try:
        if crew.count < 2:
            yield from make(numbered)
            return
        if not crew.started:  # for a few examples none is
            yield from make(islice(numbered, FEW))
        for piece, made in crew.each(pieces_of(numbered)):
            if made is None:
                yield from make(restored(piece.pickled))
                continue
            again: list[Numbered] = []
            for index, found in enumerate(unpacked(made)):
                if found is not None:
                    yield _encoded(piece.numbers[index], piece.places[index], found)
                    continue
                again = again or list(restored(piece.pickled))
                yield from make(iter([again[index]]))  # to meet its error
    finally:
        if processes is None:
            crew.close()


def encoding_processes(
    tokenizer: Any, *, train_on: TrainOn = "all", template: Template | None = None
) -> Processes:
    """Processes for more than one call of `encode_each` with the same settings; to be closed after the last."""
    templates = Templates(tokenizer, template)
    return Processes(
        partial(packed, tokenizer=tokenizer, templates=templates, train_on=train_on),
        sent=attrgetter("pickled"),
    )


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
    masked = masked_of(example, Templates(tokenizer, template), train_on)
    group: Group = [(number, example, masked)]
    return _encoded(number, example.where, coded(example, masked, tokenized(group, tokenizer)[0], tokenizer))


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
    masked = masked_of(example, Templates(tokenizer, template), "all")
    return (
        (example.text or "", [(0, len(example.text or ""))])
        if masked is None
        else (masked.text, masked.spans)
    )


def _made_here(
    numbered: Iterator[Numbered],
    tokenizer: Any,
    templates: Templates,
    train_on: TrainOn,
    on_error: Callable[[DataError], None] | None,
) -> Iterator[Encoded]:
    """Encode in this process: one group is tokenized (in Rust, which holds no lock of Python's) while the next is
    rendered."""
    read = partial(rendered_group, templates=templates, train_on=train_on, on=on_error)
    with ThreadPoolExecutor(1) as pool:
        group, waiting = read(numbered), None
        while group or waiting:
            ahead = (group, pool.submit(tokenized, group, tokenizer)) if group else None
            stop = bool(group) and isinstance(group[-1][2], DataError) and on_error is None
            group = [] if stop else read(numbered) if group else []
            if waiting is not None:
                yield from _finished(*waiting, tokenizer, on_error)
            waiting = ahead


def _finished(
    group: Group, tokens: Future[list[Any]], tokenizer: Any, on_error: Callable[[DataError], None] | None
) -> Iterator[Encoded]:
    for (number, example, masked), each in zip(group, tokens.result(), strict=True):
        try:
            made = coded(example, masked, each, tokenizer)
        except DataError as error:
            if on_error is None:
                raise
            on_error(error)
            continue
        yield _encoded(number, example.where, made)


def _encoded(number: int, where: str, made: Coded) -> Encoded:
    supervised = [False] * len(made.ids)
    for first, end in made.runs:
        supervised[first:end] = [True] * (end - first)
    return Encoded(tuple(made.ids), tuple(supervised), number, where, made.notes)
