"""What a run learns from and is judged by: the examples, their split, and their tokens."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scumble.config import TrainOptions
from scumble.data.encoding import EncodedSet, encode_all
from scumble.data.examples import Example, read_examples, split_by_hash
from scumble.data.shipped import SHIPPED
from scumble.errors import DataError
from scumble.models.base import Base
from scumble.progress import Reporter

EVAL_SHARE = 0.1


@dataclass(frozen=True)
class Material:
    """What a run learns from and is judged by."""

    train: list[Example]
    validation: list[Example]
    source: str
    validation_source: str


def read_material(data: Any, options: TrainOptions) -> Material:
    """Read the training data and what validates it: a file, the shipped set's own part, or a share by content.

    Raises:
        DataError: no validation part can be split off.
    """
    source = str(data) if isinstance(data, str | Path) else type(data).__name__
    train = read_examples(data)
    share = options.eval
    if isinstance(share, str):
        return Material(train, read_examples(share, "validation"), source, share)
    if share is None and isinstance(data, str) and data in SHIPPED:
        return Material(train, read_examples(data, "validation"), source, f"{source} validation")
    share = EVAL_SHARE if share is None else share
    if share == 0:
        return Material(train, [], source, "")
    kept, held = split_by_hash(train, share)
    if not held:
        raise DataError(
            f"{source} has no two different examples, so none can be held back for validation",
            "give --eval FILE, or --eval 0 to train without",
        )
    return Material(kept, held, source, f"{share:.0%} of {source}, by content")


def encode_material(
    examples: list[Example], base: Base, options: TrainOptions, reporter: Reporter
) -> EncodedSet:
    """The tokens of the examples; those that are too long are left out, and the user is told which."""
    if base.tokenizer is None:
        raise DataError(
            f"the base {base.name} has no tokenizer", "training needs one; add it to the base's folder"
        )
    positions = getattr(base.model.config, "max_position_embeddings", None) or options.max_length
    limit = min(options.max_length, positions)
    encoded = encode_all(examples, base.tokenizer, limit)
    if encoded.too_long:
        where, length = max(encoded.too_long, key=lambda item: item[1])
        remedy = (
            f"--max-length {length} keeps all"
            if length <= positions
            else f"the base has {positions} positions"
        )
        reporter.warn(
            f"{len(encoded.too_long)} of {len(examples)} examples are longer than {limit} tokens and are left out "
            f"whole, not cut, the longest being {where}; {remedy}"
        )
    return encoded
