"""From a conversation to tokens, and which of them carry a loss.

The loss covers what the model itself would have to write: the content of every assistant's turn and the
token that ends it. The spans are found by rendering prefixes, with no trust in `{% generation %}` marks: the
text up to a turn with the generation prompt, and the text with the turn, which must be an extension of it,
as the whole must be of both. The text is tokenized once, with no further special tokens, so that there are
never two begin tokens; where a token would reach from the prompt into an answer (a line break and the space
that the answer begins with), it is cut there, as it is when the model is asked. Knows a tokenizer and
nothing of models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, TypeAlias

from scumble.data.examples import Example
from scumble.data.templates import Template, load_template
from scumble.errors import DataError

TrainOn: TypeAlias = Literal["all", "last"]


@dataclass(frozen=True)
class Encoded:
    """One conversation as the model sees it.

    Attributes:
        ids: token ids, (length,).
        supervised: whether each token carries a loss, (length,).
        number: the example's number in its data set, which its dropout masks depend on.
        where: the source and the line, for messages.
    """

    ids: tuple[int, ...]
    supervised: tuple[bool, ...]
    number: int
    where: str

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
    for number, example in enumerate(examples):
        try:
            yield encode(example, tokenizer, number, train_on=train_on, template=template)
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
    """Encode one conversation.

    Args:
        example: the conversation.
        tokenizer: a fast tokenizer of transformers with a chat template.
        number: of the example in its data set.
        train_on: whether every assistant's turn carries a loss, or the last one only.
        template: the chat template (`load_template`); without it, the tokenizer's.

    Raises:
        DataError: the template cannot render it, rewrites earlier turns, or ends turns without an end token.
    """
    text, spans = render_spans(example, tokenizer, template)
    spans = spans[-1:] if train_on == "last" else spans
    ids, offsets = _tokenized(text, [start for start, _ in spans], tokenizer)
    supervised = [False] * len(ids)
    for start, end in spans:
        inside = [i for i, (a, b) in enumerate(offsets) if a >= start and b <= end and b > a]
        ending = _last_special(ids, inside, tokenizer)
        # a special token in the middle of the answer is no end, whatever its name
        if ending is None or text[offsets[ending][1] : end].strip():
            raise DataError(
                f"{example.where}: the chat template ends the assistant's turn without an end token",
                "the model would never learn to stop; use a tokenizer whose template has one",
            )
        # what the template writes after the end token (a line break) is not the model's to write
        for i in inside:
            supervised[i] = i <= ending
    if not any(supervised):
        raise DataError(f"{example.where}: no token carries a loss", "the assistant's turns are empty")
    bos = tokenizer.bos_token_id
    if bos is not None and ids[:2] == [bos, bos]:
        raise DataError(f"{example.where}: two begin tokens", "remove the begin token from the text")
    return Encoded(tuple(ids), tuple(supervised), number, example.where)


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


def render_spans(
    example: Example, tokenizer: Any, template: Template | None = None
) -> tuple[str, list[tuple[int, int]]]:
    """The rendered conversation, and the character spans (start, end) of the assistant's turns.

    A span begins after the generation prompt and ends where the turn's rendering ends.

    Raises:
        DataError: the rendering of the turns so far is no prefix of the rendering of more turns.
    """
    messages = example.messages
    template = template or load_template(tokenizer)
    whole = template.render(messages, example.where)
    spans = []
    for i, message in enumerate(messages):
        if message["role"] == "assistant":
            before = template.render(messages[:i], example.where, generation=True)
            after = whole if i + 1 == len(messages) else template.render(messages[: i + 1], example.where)
            if not after.startswith(before) or not whole.startswith(after):
                raise DataError(
                    f"{example.where}: the chat template rewrites earlier turns, so that what the model would have "
                    f"written in message {i + 1} cannot be told",
                    "split the conversation so that each example has one answer",
                )
            spans.append((len(before), len(after)))
    return whole, spans


def _tokenized(text: str, starts: Sequence[int], tokenizer: Any) -> tuple[list[int], list[tuple[int, int]]]:
    """Token ids of a text and the characters (start, end) of each; no token reaches across one of `starts`."""

    def coded(start: int, end: int) -> tuple[list[int], list[tuple[int, int]]]:
        found = tokenizer(text[start:end], add_special_tokens=False, return_offsets_mapping=True)
        return list(found["input_ids"]), [(a + start, b + start) for a, b in found["offset_mapping"]]

    ids, offsets = coded(0, len(text))
    # by SentencePiece a part begins with a space of its own, so nothing is cut that need not be
    cuts = [start for start in starts if any(a < start < b for a, b in offsets)]
    if not cuts:
        return ids, offsets
    parts = [coded(a, b) for a, b in pairwise([0, *cuts, len(text)])]
    return [i for part, _ in parts for i in part], [pair for _, part in parts for pair in part]


def _last_special(ids: Sequence[int], inside: Sequence[int], tokenizer: Any) -> int | None:
    """The last of the tokens `inside` a turn that is a special one: the end of the turn."""
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    return next((i for i in reversed(inside) if ids[i] in special), None)
