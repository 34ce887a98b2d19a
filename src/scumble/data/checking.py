"""`check`: what is wrong with a data set, found before anything is trained on it.

Examples stream past the checks, tokenized on the way; the smaller of training and validation goes first, so
that only it is indexed for near-duplicates. Handed a tokenizer; knows nothing of models.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from scumble.config import DataOptions, TrainOptions, make
from scumble.data.checks.check import Setting
from scumble.data.checks.finding import Finding
from scumble.data.checks.inspection import Inspection, ordered
from scumble.data.checks.leakage import Leakage
from scumble.data.encoding import Encoded, TrainOn, encode_each
from scumble.data.example import Example
from scumble.data.examples import iter_examples
from scumble.data.formats import KEYS
from scumble.data.sources import parts_of
from scumble.data.templates import Template, load_template
from scumble.data.token_cache import encode_once
from scumble.errors import ConfigError, DataError
from scumble.progress import Reporter

EVAL_SHARE = 0.1  # of the data, where they have no validation part and none is named
WORTH_KEEPING = 4_000_000  # bytes of a file, below which its tokens are made again in a few seconds
Report: TypeAlias = Callable[[DataError], None]
# Reads the examples of a part from the beginning.
Read: TypeAlias = Callable[[Report], Iterator[Example]]
# Is handed the tokens of every example that has some, and whether it is for validation.
Take: TypeAlias = Callable[[Encoded, bool], None]


@dataclass(frozen=True)
class Checked:
    """A data set that was looked through.

    Attributes:
        source: what was checked.
        examples: how many could be read, those held back for validation among them, a validation file's not.
        tokens: of all of them; 0 where no tokenizer was given.
        supervised_tokens: those that carry a loss.
        findings: errors first, then warnings.
        format: the format of most of them.
        format_reason: why it was taken to be that.
        validation: what validates, such as a file, or a share of the data; empty where nothing does.
    """

    source: str
    examples: int
    tokens: int
    supervised_tokens: int
    findings: tuple[Finding, ...]
    format: str | None = None
    format_reason: str = ""
    validation: str = ""

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings that stop training."""
        return tuple(each for each in self.findings if each.severity == "error")

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """The findings that do not."""
        return tuple(each for each in self.findings if each.severity == "warning")

    def to_dict(self) -> dict[str, Any]:
        """What `--json` prints."""
        return {
            "source": self.source,
            "format": self.format,
            "format_reason": self.format_reason,
            "validation": self.validation,
            "examples": self.examples,
            "tokens": self.tokens,
            "supervised_tokens": self.supervised_tokens,
            "findings": [each.to_dict() for each in self.findings],
        }


def check(
    source: Any,
    *,
    tokenizer: Any = None,
    format: str | None = None,
    template: str | Path | Template | None = None,
    train_on: TrainOn = "all",
    max_length: int = 2048,
    rank: int = 8,
    epochs: float = 3.0,
    batch: int | None = None,
    accumulate: int | None = None,
    warmup: int | None = None,
    max_steps: int | None = None,
    eval: Any = None,
    cache: str | Path | None = None,
    quiet: bool = True,
) -> Checked:
    """Look through a data set for what goes wrong in training without a word.

    Args:
        source: a path, the name of a shipped set, a list of examples, or a `datasets.Dataset`.
        tokenizer: a fast tokenizer of transformers; without one, what needs tokens is not checked.
        format: of the data, instead of the one that is recognised.
        template: a file with a chat template, or one that is loaded, instead of the tokenizer's.
        train_on: whether every answer carries a loss, or the last of a conversation only.
        max_length: tokens of the longest example that will be trained on.
        rank, epochs, batch, accumulate, warmup, max_steps: of the training that is meant.
        eval: what validates: a source, a share that is split off by content, or 0 for nothing; by default the
            part that the source has, else a tenth.
        cache: a folder where the tokens of a large source are kept, so that they are made once.
        quiet: show no progress.

    Raises:
        MissingFileError: a file does not exist.
        DataError: a source as a whole cannot be read; what is wrong with single examples is in the findings.
        ConfigError: an option has a value that it cannot have.
    """
    given = {"format": format, "train_on": train_on}
    make(DataOptions, **given)
    numbers = {"max_length": max_length, "rank": rank, "epochs": epochs, "batch": batch, "warmup": warmup}
    named = {"eval": eval} if isinstance(eval, str | int | float) else {}
    options = make(TrainOptions, **numbers, accumulate=accumulate, max_steps=max_steps, **named)
    if tokenizer is None and template is not None:
        raise ConfigError("a template is given without a tokenizer", "name a base as well")
    if tokenizer is not None and not isinstance(template, Template):
        template = load_template(tokenizer, template) if template is not None else None
    setting = Setting(
        tokenizer, max_length, rank, epochs, warmup, batch * (accumulate or 1) if batch else None, max_steps
    )
    eval = options.eval if named else eval
    parts = _parts(source, eval, format)
    folder = cache if _size(source) >= WORTH_KEEPING else None
    return look_through(parts, setting, template, train_on, quiet=quiet, told=format, cache=folder)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Parts:
    """What is trained on and what validates.

    Attributes:
        title: of the training data.
        train: reads them.
        validation_title: of the validation data; empty where there are none.
        validation: reads them, where they are a source of their own.
        share: of the training data that is held back by content instead, 0 where none is.
        validation_first: whether they are the fewer.
        held_title: of what the numbers of validation examples count lines.
    """

    title: str
    train: Read
    validation_title: str = ""
    validation: Read | None = None
    share: float = 0.0
    validation_first: bool = True
    held_title: str = ""


def look_through(
    parts: Parts,
    setting: Setting,
    template: Template | None,
    train_on: TrainOn,
    *,
    quiet: bool = True,
    told: str | None = None,
    take: Take | None = None,
    cache: str | Path | None = None,
) -> Checked:
    """Show every example of every part to the checks.

    Args:
        parts: what is trained on and what validates.
        setting: what the data are meant for.
        template: the chat template; the tokenizer's where None.
        train_on: as for `check`.
        quiet: show no progress.
        told: the format that was named.
        take: is handed the tokens, so that they need not be made again.
        cache: a folder where tokens are kept.
    """
    look = Inspection(parts.title, setting, of_training=True)
    validating = Inspection(parts.held_title or parts.validation_title, setting, of_training=False)
    leakage = Leakage(validation_is_smaller=parts.validation_first) if parts.validation_title else None
    tokenize = partial(encode_once, folder=cache) if cache is not None else encode_each
    coded = partial(_encoded, setting=setting, template=template, train_on=train_on, tokenize=tokenize)
    reporter = Reporter(quiet=quiet)
    with reporter.bar("checking", None):
        if parts.validation is None:
            _look_at_shares(parts, look, leakage, coded, reporter, take)
        else:
            first = parts.validation_first
            for held in (first, not first):
                _look_at(parts, held, look, validating, leakage, coded, reporter, take)
    found = [*look.findings(), *validating.findings()]
    if leakage is not None:
        of = validating.source if parts.validation is not None else look.source
        found += leakage.found(of)
    best = max(look.formats, key=lambda name: look.formats[name], default=None)
    return Checked(
        source=parts.title,
        examples=look.examples,
        tokens=look.tokens,
        supervised_tokens=look.supervised,
        findings=ordered(found),
        format=best,
        format_reason=_reason(best, look.formats[best], look.examples, told) if best else "",
        validation=parts.validation_title,
    )


def _look_at(
    parts: Parts,
    held: bool,
    look: Inspection,
    validating: Inspection,
    leakage: Leakage | None,
    coded: Callable[..., Iterator[tuple[Example, Encoded | None, DataError | None]]],
    reporter: Reporter,
    take: Take | None,
) -> None:
    """One of two sources, the first of which is indexed and the second looked up."""
    inspection, read = (validating, parts.validation) if held else (look, parts.train)
    assert read is not None
    for example, encoded, error in coded(read(inspection.fails)):
        _show(inspection, example, encoded, error, held, take)
        if leakage is not None:
            is_first = held is parts.validation_first
            (leakage.first if is_first else leakage.second)(example, example.number)
        reporter.advance()


def _look_at_shares(
    parts: Parts,
    look: Inspection,
    leakage: Leakage | None,
    coded: Callable[..., Iterator[tuple[Example, Encoded | None, DataError | None]]],
    reporter: Reporter,
    take: Take | None,
) -> None:
    """One source of which a share is held back: read once for the smaller share, and once for all the rest."""
    limit = parts.share * 2**64
    if leakage is not None:
        for example in parts.train(lambda error: None):
            if (example.hash < limit) is parts.validation_first:
                leakage.first(example, example.number)
    for example, encoded, error in coded(parts.train(look.fails)):
        held = example.hash < limit
        _show(look, example, encoded, error, held, take)
        if leakage is not None and held is not parts.validation_first:
            leakage.second(example, example.number)
        reporter.advance()


def _show(
    inspection: Inspection,
    example: Example,
    encoded: Encoded | None,
    error: DataError | None,
    held: bool,
    take: Take | None,
) -> None:
    inspection.see(example, encoded, error)
    if encoded is not None and take is not None:
        take(encoded, held)


def _encoded(
    examples: Iterable[Example],
    *,
    setting: Setting,
    template: Template | None,
    train_on: TrainOn,
    tokenize: Callable[..., Iterator[Encoded]],
) -> Iterator[tuple[Example, Encoded | None, DataError | None]]:
    """Each example with its tokens, or with what is wrong with it; with neither where there is no tokenizer."""
    if setting.tokenizer is None:
        yield from ((example, None, None) for example in examples)
        return
    waiting: deque[Example] = deque()
    errors: deque[DataError] = deque()

    def passing() -> Iterator[Example]:
        for example in examples:
            waiting.append(example)
            yield example

    # tokens and errors come in the order of the examples, every example having one of the two
    number = 0
    tokens = tokenize(
        passing(), setting.tokenizer, train_on=train_on, template=template, on_error=errors.append
    )
    for encoded in tokens:
        while number < encoded.number:
            yield waiting.popleft(), None, errors.popleft()
            number += 1
        yield waiting.popleft(), encoded, None
        number += 1
    yield from ((example, None, errors.popleft()) for example in waiting)


def _parts(source: Any, eval: Any, format: str | None) -> Parts:
    """The parts of a source, each with a way to read it more than once."""
    title, source = title_of(source), _kept(source)
    train: Read = lambda report: iter_examples(source, "train", format=format, on_error=report)  # noqa: E731
    if isinstance(eval, int | float) or (eval is None and "validation" not in parts_of(source)):
        share = EVAL_SHARE if eval is None else float(eval)
        shared = f"{share:.0%} of {title}, by content" if share else ""
        return Parts(title, train, shared, None, share, share <= 0.5)
    held = source if eval is None else _kept(eval)
    validation: Read = lambda report: iter_examples(held, "validation", format=format, on_error=report)  # noqa: E731
    other = f"{title} validation" if eval is None else title_of(eval, "the validation data")
    return Parts(
        title, train, other, validation, 0.0, _size(held) <= _size(source) if eval is not None else True
    )


def _kept(source: Any) -> Any:
    """What can be read only once is kept, since it is read twice."""
    return list(source) if isinstance(source, Iterator) else source


def _size(source: Any) -> int:
    """About how large a source is: bytes of a file, examples of what is in memory."""
    if isinstance(source, str | Path):
        path = Path(source).expanduser()
        return os.path.getsize(path) if path.is_file() else 0
    return len(source) if isinstance(source, Sized) else 0


def title_of(source: Any, otherwise: str = "the data") -> str:
    """What a source is called in messages, as where its examples are said to be from."""
    return str(source) if isinstance(source, str | Path) else otherwise


def _reason(format: str, count: int, total: int, told: str | None) -> str:
    keys = " and ".join(f"`{key}`" for key in KEYS[format])
    return "as told" if told else f"{count:,} of {total:,} examples have {keys}"
