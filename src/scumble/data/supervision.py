"""From characters that carry a loss to tokens that do.

Where a token would reach from the prompt into an answer (a line break and the space that the answer begins with),
the text is cut there, as it is when the model is asked. Knows a tokenizer, and nothing of templates or models.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any, TypeAlias

from scumble.data.masks import Masked
from scumble.errors import NotSupportedError

Runs: TypeAlias = list[tuple[int, int]]


def fast_tokenizer(tokenizer: Any) -> Any:
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


def supervise(masked: Masked, coded: Any, tokenizer: Any) -> tuple[list[int], Runs]:
    """Token ids, and (first, end) of those that carry a loss; no token reaches from before a span into it."""
    text, spans = masked.text, masked.spans
    # by SentencePiece a part begins with a space of its own, so nothing is cut that need not be
    cuts = [start for start, _ in spans if _crossed(coded, start)]
    edges = [0, *cuts, len(text)]
    parts = [coded]
    if cuts:
        texts = [text[a:b] for a, b in pairwise(edges)]
        parts = fast_tokenizer(tokenizer).encode_batch(texts, add_special_tokens=False)
    ids = coded.ids if not cuts else [token for part in parts for token in part.ids]
    before = [0, *accumulate(len(part) for part in parts)]
    runs = []
    for start, end in spans:
        first, last = (_index(edge, edges, parts, before) for edge in (start, end))
        if first < last:
            runs.append((first, last))
    return ids, runs


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
