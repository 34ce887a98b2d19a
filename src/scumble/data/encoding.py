"""From a conversation to tokens, and which of them carry a loss.

Which characters carry one is for `masks` to tell. The text is tokenized once, with no further special tokens,
so that there are never two begin tokens; where a token would reach from the prompt into an answer (a line break
and the space that the answer begins with), it is cut there, as it is when the model is asked. A plain text is
tokenized as the tokenizer would by itself, with an end token after it, and every token carries a loss. Knows a
tokenizer and nothing of models.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, islice, pairwise
from typing import Any, TypeAlias

from scumble.data.example import Example
from scumble.data.masks import Masked, TrainOn, mask
from scumble.data.templates import Spans, Template, load_template
from scumble.errors import DataError, NotSupportedError

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
# (number, example, its mask): None for a plain text, an error for what cannot be rendered
_Group: TypeAlias = list[tuple[int, Example, Masked | DataError | None]]


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
    read = partial(_rendered_group, templates=_Templates(tokenizer, template), train_on=train_on, on=on_error)
    numbered = enumerate(examples)
    # one group is tokenized (in Rust, which holds no lock of Python's) while the next is rendered
    with ThreadPoolExecutor(1) as pool:
        group, waiting = read(numbered), None
        while group or waiting:
            ahead = (group, pool.submit(_tokenized, group, tokenizer)) if group else None
            stop = bool(group) and isinstance(group[-1][2], DataError) and on_error is None
            group = [] if stop else read(numbered) if group else []
            if waiting is not None:
                yield from _finished(*waiting, tokenizer, on_error)
            waiting = ahead


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
    group: _Group = [(number, example, masked)]
    return _encoded(number, example, masked, _tokenized(group, tokenizer)[0], tokenizer)


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


def _rendered_group(
    numbered: Iterator[tuple[int, Example]],
    templates: _Templates,
    train_on: TrainOn,
    on: Callable[[DataError], None] | None,
) -> _Group:
    """The next few examples with their masks; an error ends the group where it will be raised."""
    group: _Group = []
    for number, example in islice(numbered, _AT_ONCE):
        try:
            group.append((number, example, _masked(example, templates, train_on)))
        except DataError as error:
            group.append((number, example, error))
            if on is None:
                break
    return group


def _finished(
    group: _Group, tokens: Future[list[Any]], tokenizer: Any, on_error: Callable[[DataError], None] | None
) -> Iterator[Encoded]:
    for (number, example, masked), coded in zip(group, tokens.result(), strict=True):
        try:
            if isinstance(masked, DataError):
                raise masked
            found = _encoded(number, example, masked, coded, tokenizer)
        except DataError as error:
            if on_error is None:
                raise
            on_error(error)
            continue
        yield found


def _tokenized(group: _Group, tokenizer: Any) -> list[Any]:
    """For each example `tokenizers.Encoding` of its text: of a conversation without, of a text with special tokens."""
    words = _words(tokenizer)
    found: list[Any] = [None] * len(group)
    for special in (False, True):
        numbers = [
            i for i, (_, _, m) in enumerate(group) if not isinstance(m, DataError) and (m is None) == special
        ]
        texts = [str(e.text) if special else m.text for _, e, m in (group[i] for i in numbers)]  # type: ignore[union-attr]
        for i, coded in zip(numbers, words.encode_batch(texts, add_special_tokens=special), strict=True):
            found[i] = coded
    return found


def _words(tokenizer: Any) -> Any:
    """The `tokenizers.Tokenizer` beneath, which neither cuts off nor pads."""
    words = getattr(tokenizer, "backend_tokenizer", None)
    if words is None or not hasattr(words, "encode_batch"):
        raise NotSupportedError(
            f"a {type(tokenizer).__name__} does not tell which characters its tokens come from",
            "use the base's fast tokenizer (a tokenizer.json)",
        )
    if words.truncation is not None:
        words.no_truncation()
    if words.padding is not None:
        words.no_padding()
    return words


def _encoded(number: int, example: Example, masked: Masked | None, coded: Any, tokenizer: Any) -> Encoded:
    if masked is None:
        end = tokenizer.eos_token_id
        if end is None:
            raise DataError(
                f"{example.where}: the tokenizer has no end token",
                "without one the model would never learn to stop",
                kind="end_not_supervised",
                line=example.number or None,
            )
        ids = list(coded.ids)
        ids = ids if ids[-1:] == [end] else [*ids, end]
        supervised = [True] * len(ids)
    else:
        ids, supervised = _supervised(masked, coded, tokenizer)
    bos = tokenizer.bos_token_id
    if bos is not None and ids[:2] == [bos, bos]:
        raise DataError(
            f"{example.where}: two begin tokens",
            "remove the begin token from the text",
            kind="double_begin_token",
            line=example.number or None,
        )
    return Encoded(tuple(ids), tuple(supervised), number, example.where, masked.notes if masked else ())


def _supervised(masked: Masked, coded: Any, tokenizer: Any) -> tuple[list[int], list[bool]]:
    """Token ids, and whether each carries a loss; no token reaches from before a span into it."""
    text, spans = masked.text, masked.spans
    # by SentencePiece a part begins with a space of its own, so nothing is cut that need not be
    cuts = [start for start, _ in spans if _crossed(coded, start)]
    edges = [0, *cuts, len(text)]
    parts = [coded]
    if cuts:
        texts = [text[a:b] for a, b in pairwise(edges)]
        parts = _words(tokenizer).encode_batch(texts, add_special_tokens=False)
    ids = [token for part in parts for token in part.ids]
    before = [0, *accumulate(len(part) for part in parts)]
    supervised = [False] * len(ids)
    for start, end in spans:
        first, last = (_index(edge, edges, parts, before) for edge in (start, end))
        supervised[first:last] = [True] * (last - first)
    return ids, supervised


def _crossed(coded: Any, edge: int) -> bool:
    """Whether a token reaches across, or whether it cannot be told since offsets leave out white space."""
    token = coded.char_to_token(edge)
    return token is None or coded.token_to_chars(token)[0] < edge


def _index(edge: int, edges: Sequence[int], parts: Sequence[Any], before: Sequence[int]) -> int:
    """The first token that begins at a character or after it."""
    part = min(bisect_right(edges, edge) - 1, len(parts) - 1)
    if edge == edges[part]:
        return before[part]
    if edge == edges[part + 1]:
        return before[part + 1]
    coded, inside = parts[part], edge - edges[part]
    token = coded.char_to_token(inside)
    if token is None:
        return before[part] + bisect_left(coded.offsets, inside, key=_start)
    # an end token may take the white space after it along (`rstrip`), and is not parted from it
    return int(before[part] + token + (coded.token_to_chars(token)[0] < inside))


def _start(pair: tuple[int, int]) -> int:
    return pair[0]
