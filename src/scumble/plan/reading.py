"""The data of a plan as training would have them: which examples, in whose tokens, and which are too long.

The tokenizer is that of the base where it is at hand; else the embedded base's, and the lengths are then approximate.
Knows data and tokenizers, and nothing of memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scumble.config import PlanOptions
from scumble.data.checking import EVAL_SHARE, title_of
from scumble.data.encoding import Encoded, encode_each
from scumble.data.examples import Example, read_examples, split_by_hash
from scumble.data.sources import parts_of
from scumble.data.templates import load_template
from scumble.data.token_cache import TOGETHER, encode_once
from scumble.errors import DataError, ScumbleError
from scumble.models.cache import cache_dir
from scumble.models.resolve import EMBEDDED_ALIAS
from scumble.models.tokenizer import load_tokenizer


@dataclass(frozen=True)
class ReadData:
    """What would be trained on.

    Attributes:
        source: what was read.
        examples: that are trained on.
        too_long: lengths of those that are left out.
        tokenizer: whose tokens these are.
        approximate: it is not the base's own.
    """

    source: str
    examples: tuple[Encoded, ...]
    too_long: tuple[int, ...]
    tokenizer: str
    approximate: bool

    @property
    def lengths(self) -> list[int]:
        """Tokens of each example that is trained on."""
        return [len(example.ids) for example in self.examples]

    @property
    def supervised(self) -> int:
        """Tokens with a loss in one pass; an example's first token is predicted from nothing."""
        return sum(sum(example.supervised[1:]) for example in self.examples)


def read_data(data: Any, options: PlanOptions, base: str, limit: int) -> ReadData:
    """Read and encode the training part of a data set.

    Args:
        data: a path, the name of a shipped set, a list of examples, or a `datasets.Dataset`.
        options: how the data are read, and what is held back for validation.
        base: whose tokenizer is wanted.
        limit: tokens of the longest example that is trained on.

    Raises:
        MissingFileError, DataError: as training says it.
    """
    examples = _training_part(data, options)
    tokenizer, name, approximate = _tokenizer(base)
    how: dict[str, Any] = {"train_on": options.train_on}
    if options.template is not None:
        how["template"] = load_template(tokenizer, options.template)
    if len(examples) < TOGETHER:
        encoded = list(encode_each(examples, tokenizer, **how))
    else:
        encoded = list(encode_once(examples, tokenizer, cache_dir() / "tokens", **how))
    kept = tuple(each for each in encoded if len(each.ids) <= limit)
    too_long = tuple(len(each.ids) for each in encoded if len(each.ids) > limit)
    if not kept:
        raise DataError(
            f"every example is longer than {limit} tokens; the shortest has {min(too_long)}",
            f"raise --max-length to {max(too_long)} to keep all",
        )
    return ReadData(title_of(data), kept, too_long, name, approximate)


def _training_part(data: Any, options: PlanOptions) -> list[Example]:
    """All but what validates."""
    examples = read_examples(data, "train", format=options.format)
    if isinstance(options.eval, str) or (options.eval is None and "validation" in parts_of(data)):
        return examples
    share = EVAL_SHARE if options.eval is None else options.eval
    return split_by_hash(examples, share)[0] if share else examples


def _tokenizer(base: str) -> tuple[Any, str, bool]:
    """The base's tokenizer, its name, and whether it is another base's."""
    name = str(Path(base).parent) if base.endswith(".json") else base
    try:
        return load_tokenizer(name), name, False
    except ScumbleError:  # there is a configuration, and no tokenizer with it
        return load_tokenizer(EMBEDDED_ALIAS), EMBEDDED_ALIAS, True
