"""What a run learns from and is judged by: the examples, their split, their tokens, and what is wrong with them."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scumble.config import TrainOptions
from scumble.data.checking import EVAL_SHARE, Checked, Parts, look_through
from scumble.data.checks.check import Setting
from scumble.data.encoding import Encoded, EncodedSet
from scumble.data.examples import Example, Part, iter_examples, split_by_hash
from scumble.data.sources import parts_of
from scumble.data.templates import load_template
from scumble.errors import DataError
from scumble.models.base import Base
from scumble.models.cache import cache_dir
from scumble.progress import Reporter

WORTH_KEEPING = 4096  # examples, below which their tokens are made again in a few seconds


@dataclass(frozen=True)
class Material:
    """What a run learns from and is judged by.

    Attributes:
        train: what it learns from.
        validation: what it is judged by.
        source: what the training data are called.
        validation_source: what the validation data are called.
        share: of the source that was held back for validation; 0 where that is a source of its own.
    """

    train: list[Example]
    validation: list[Example]
    source: str
    validation_source: str
    share: float = 0.0


def read_material(data: Any, options: TrainOptions) -> Material:
    """Read the training data and what validates it: a file, the data's own part, or a share by content.

    Raises:
        DataError: an example cannot be read, or no validation part can be split off.
    """
    source = str(data) if isinstance(data, str | Path) else type(data).__name__
    train = _read(data, "train", options)
    share = options.eval
    if isinstance(share, str):
        return Material(train, _read(share, "validation", options), source, share)
    if share is None and "validation" in parts_of(data):
        return Material(train, _read(data, "validation", options), source, f"{source} validation")
    share = EVAL_SHARE if share is None else share
    if share == 0:
        return Material(train, [], source, "")
    kept, held = split_by_hash(train, share)
    if not held:
        raise DataError(
            f"{source} has no two different examples, so none can be held back for validation",
            "give --eval FILE, or --eval 0 to train without",
        )
    return Material(kept, held, source, f"{share:.0%} of {source}, by content", share)


def encode_material(
    material: Material, base: Base, options: TrainOptions, reporter: Reporter
) -> tuple[EncodedSet, EncodedSet]:
    """The tokens of training and validation, checked on the way; warnings are shown once, together.

    Examples that are too long are left out whole, and the user is told which.

    Raises:
        DataError: a check found an error, or nothing remains to be trained on or to validate.
    """
    batch = options.batch * (options.accumulate or 1) if options.batch else None
    setting = Setting(
        tokenizer_for(base, options),
        options.max_length,
        options.rank,
        options.epochs,
        options.warmup,
        batch,
        options.max_steps,
        getattr(base.model.config, "max_position_embeddings", None),
    )
    found: tuple[list[Encoded], list[Encoded]] = ([], [])
    checked = look_through(
        _parts(material),
        setting,
        None,
        options.train_on,
        quiet=reporter.console.quiet,
        take=lambda encoded, held: found[held].append(encoded),
        cache=cache_dir() / "tokens" if len(material.train) >= WORTH_KEEPING else None,
    )
    _stop_or_warn(checked, reporter)
    train, validation = (_within(each, setting.limit) for each in found)
    return train, validation


def tokenizer_for(base: Base, options: TrainOptions) -> Any:
    """The base's tokenizer; where a template is named, a copy with that one.

    Raises:
        DataError: the base has none, or the template cannot be read.
    """
    if base.tokenizer is None:
        raise DataError(
            f"the base {base.name} has no tokenizer", "training needs one; add it to the base's folder"
        )
    if options.template is None:
        return base.tokenizer
    tokenizer = copy.copy(base.tokenizer)
    tokenizer.chat_template = load_template(base.tokenizer, options.template).text
    return tokenizer


def _read(data: Any, part: Part, options: TrainOptions) -> list[Example]:
    """All examples of a source; where several cannot be read, the first of them is named and the rest counted."""
    errors: list[DataError] = []
    examples = list(iter_examples(data, part, format=options.format, on_error=errors.append))
    if not errors:
        return examples
    first = errors[0]
    if len(errors) == 1:
        raise first
    raise type(first)(
        f"{first.message}; {_more(len(errors) - 1)}",
        f"{first.hint}; {_ALL}" if first.hint else _ALL,
        kind=first.kind,
        line=first.line,
    )


_ALL = "`scumble data check` lists all"


def _more(count: int) -> str:
    return f"{count:,} more {'is' if count == 1 else 'are'} wrong"


def _parts(material: Material) -> Parts:
    # where a share of the source is held back, both are lines of one file
    name = "the data" if material.train[0].where.startswith("the data, ") else material.source
    return Parts(
        title=name,
        train=lambda report: iter(material.train),
        validation_title=material.validation_source,
        validation=lambda report: iter(material.validation),
        validation_first=len(material.validation) <= len(material.train),
        held_title=name if material.share else "",
    )


def _stop_or_warn(checked: Checked, reporter: Reporter) -> None:
    if checked.errors:
        first = checked.errors[0]
        message = f"{first.where}: {first.detail}" if first.where and first.detail else first.message
        others = sum(max(1, each.count) for each in checked.errors) - 1
        if others:
            raise DataError(f"{message}; {_more(others)}", f"{first.fix}; {_ALL}", kind=first.check)
        raise DataError(message, first.fix, kind=first.check)
    if checked.warnings:
        lines = [f"{each.message}. {each.consequence} To do: {each.fix}" for each in checked.warnings]
        many = "one thing" if len(lines) == 1 else f"{len(lines)} things"
        reporter.warn(f"{many} about the data may go wrong" + "".join(f"\n  {line}" for line in lines))


def _within(encoded: list[Encoded], limit: int) -> EncodedSet:
    """Those of `limit` tokens at most.

    Raises:
        DataError: there are some, and all are longer.
    """
    kept = [example for example in encoded if len(example.ids) <= limit]
    long = [(example.where, len(example.ids)) for example in encoded if len(example.ids) > limit]
    if long and not kept:
        raise DataError(
            f"every example is longer than {limit} tokens; the shortest has {min(n for _, n in long)}",
            f"raise --max-length to {max(n for _, n in long)} to keep all",
        )
    return EncodedSet(kept, long)
