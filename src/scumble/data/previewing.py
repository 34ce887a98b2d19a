"""`preview`: the first examples token by token, as the model sees them, and what all of them amount to.

Handed a tokenizer; knows nothing of models, nor of how a preview looks.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from scumble.config import DataOptions, PreviewOptions, make
from scumble.data.encoding import Encoded, encode_each
from scumble.data.examples import iter_examples
from scumble.data.pieces import Pieces
from scumble.data.savings import Bar, Lengths, Savings, histogram, measure_savings, summarise
from scumble.data.templates import Template, load_template
from scumble.errors import DataError
from scumble.files import refuse_existing, write_text
from scumble.progress import Reporter

KEPT_PROBLEMS = 20  # that are told of one by one
COMPARED = 2000  # examples that shared prefixes are looked for in, at most: all their tokens are held


@dataclass(frozen=True)
class Token:
    """A token as the model sees it: its number and text, whether it carries a loss, whether it is a special one.

    The text is empty where the token is part of a character that a later one completes.
    """

    id: int
    text: str
    supervised: bool
    special: bool


@dataclass(frozen=True)
class Shown:
    """One example token by token.

    Attributes:
        where: the source and the line.
        tokens: all of them, in order.
        kept: whether training keeps it; an example longer than the limit is left out whole.
        notes: what the chat template did with it that a reader should know.
    """

    where: str
    tokens: tuple[Token, ...]
    kept: bool
    notes: tuple[str, ...] = ()

    @property
    def supervised(self) -> int:
        """How many tokens carry a loss."""
        return sum(token.supervised for token in self.tokens)

    def to_dict(self) -> dict[str, Any]:
        """Every token with its number, its text and its two marks."""
        tokens = [asdict(token) for token in self.tokens]
        facts = {"where": self.where, "length": len(tokens), "supervised": self.supervised, "kept": self.kept}
        return {**facts, "notes": list(self.notes), "tokens": tokens}


@dataclass(frozen=True)
class Preview:
    """What a model would be trained on.

    Attributes:
        source: what was read.
        template: where the chat template comes from.
        train_on: `all` answers of a conversation or the `last`.
        max_length: tokens of the longest example that training keeps.
        shown: the first examples.
        examples: how many were measured.
        complete: whether that is all of the source; else the first so many.
        too_long: how many of them are longer than `max_length`, which training leaves out whole.
        tokens: of the examples that are kept.
        supervised_tokens: those of them that carry a loss.
        lengths: of all that were measured.
        bars: the histogram of the lengths.
        savings: what packing and shared prefixes save, of the examples that are kept; None where none is.
        refused: how many examples cannot be read or encoded.
        problems: what is wrong with the first of these.
        notes: what the chat template did that a reader should know, and with how many examples.
    """

    source: str
    template: str
    train_on: str
    max_length: int
    shown: tuple[Shown, ...]
    examples: int
    complete: bool
    too_long: int
    tokens: int
    supervised_tokens: int
    lengths: Lengths
    bars: tuple[Bar, ...]
    savings: Savings | None
    refused: int = 0
    problems: tuple[str, ...] = ()
    notes: Mapping[str, int] = field(default_factory=dict)

    @property
    def supervised_share(self) -> float:
        """The share of tokens with a loss."""
        return self.supervised_tokens / self.tokens if self.tokens else 0.0

    def to_dict(self) -> dict[str, Any]:
        """What `--json` prints."""
        names = ("source", "template", "train_on", "max_length", "examples", "complete", "too_long")
        return {
            **{name: getattr(self, name) for name in names},
            "tokens": self.tokens,
            "supervised_tokens": self.supervised_tokens,
            "supervised_share": self.supervised_share,
            "lengths": asdict(self.lengths),
            "histogram": [asdict(bar) for bar in self.bars],
            "savings": self.savings.to_dict() if self.savings else None,
            "refused": self.refused,
            "problems": list(self.problems),
            "notes": dict(self.notes),
            "shown": [each.to_dict() for each in self.shown],
        }


def preview(
    source: Any,
    n: int | None = None,
    *,
    tokenizer: Any,
    format: str | None = None,
    template: Template | str | Path | None = None,
    train_on: str | None = None,
    max_length: int | None = None,
    limit: int | None = None,
    batch: int | None = None,
    html: str | Path | None = None,
    force: bool = False,
    quiet: bool = True,
) -> Preview:
    """Look at what a model would be trained on.

    Args:
        source: a path, a shipped set, a list of examples, or a `datasets.Dataset`.
        n: how many of the first examples are shown token by token; 3 by default.
        tokenizer: a fast tokenizer of transformers, or a `Base`.
        format: of the examples; recognised by default.
        template: a chat template, or a file with one; by default the tokenizer's.
        train_on: `all` answers of a conversation carry a loss (the default), or only the `last`.
        max_length: tokens of the longest example that training keeps; 2048 by default.
        limit: measure on the first so many examples; 2000 by default.
        batch: examples in the batches that savings are measured on; 8 by default.
        html: also write a page.
        force: replace the page where it exists.
        quiet: show no progress.

    Raises:
        DataError: the source cannot be read, or not one of its examples can be encoded.
        ConfigError: an option has a value that it cannot have.
        OutputExistsError: the page exists already.
    """
    counts = make(PreviewOptions, n=n, limit=limit, batch=batch, max_length=max_length)
    file = None if template is None or isinstance(template, Template) else str(template)
    options = make(DataOptions, format=format, template=file, train_on=train_on)
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
    if html is not None:
        refuse_existing(html, force=force, file=True, option="--html", inputs=(source, file))
    chosen = template if isinstance(template, Template) else None
    found = _Collected(tokenizer, options, counts, chosen)
    reporter = Reporter(quiet=quiet)
    with reporter.bar("reading", None):
        found.read(source, reporter)
    result = found.result(source if isinstance(source, str | Path) else "the data")
    if html is not None:
        from scumble.data.preview_page import render_preview

        write_text(html, render_preview(result))
    return result


class _Collected:
    """What is known after each example; holds the shown ones whole, and of the others their lengths."""

    def __init__(
        self, tokenizer: Any, options: DataOptions, counts: PreviewOptions, template: Template | None
    ) -> None:
        self.tokenizer, self.options, self.counts = tokenizer, options, counts
        self.given, self.template_name = template, ""
        self.pieces = Pieces(tokenizer)
        self.shown: list[Shown] = []
        self.lengths: list[int] = []
        self.sequences: list[Sequence[int]] = []
        self.problems: list[DataError] = []
        self.notes: Counter[str] = Counter()
        self.refused = self.too_long = self.tokens = self.targets = 0
        self.complete = True

    def read(self, source: Any, reporter: Reporter) -> None:
        """Encode examples up to the limit; those that cannot be are kept apart."""
        options = self.options
        examples = iter_examples(source, format=options.format, on_error=self._refuse)
        for encoded in encode_each(
            examples,
            self.tokenizer,
            train_on=options.train_on,
            template=self.template,
            on_error=self._refuse,
        ):
            if len(self.lengths) == self.counts.limit:
                self.complete = False
                break
            self._add(encoded)
            reporter.advance()
        if not self.lengths:
            if self.problems:
                raise self.problems[0]
            raise DataError("the data has no examples", "give at least one")

    @property
    def template(self) -> Template | None:
        """The template of a file, read once; the tokenizer's is left to the encoding, which knows the tools."""
        if self.given is None and self.options.template is not None:
            self.given = load_template(self.tokenizer, self.options.template)
        return self.given

    def _refuse(self, error: DataError) -> None:
        self.refused += 1
        if len(self.problems) < KEPT_PROBLEMS:
            self.problems.append(error)

    def _add(self, encoded: Encoded) -> None:
        length = len(encoded.ids)
        kept = length <= self.counts.max_length
        self.lengths.append(length)
        self.notes.update(set(encoded.notes))
        if len(self.shown) < self.counts.n:
            self.shown.append(Shown(encoded.where, self._tokens(encoded), kept, encoded.notes))
        if not kept:
            self.too_long += 1
            return
        self.tokens += length
        self.targets += encoded.targets
        if len(self.sequences) < COMPARED:
            self.sequences.append(array("q", encoded.ids))

    def _tokens(self, encoded: Encoded) -> tuple[Token, ...]:
        texts = self.pieces.texts(encoded.ids)
        held = zip(encoded.ids, texts, encoded.supervised, strict=True)
        return tuple(Token(i, text, bool(loss), self.pieces.special(i)) for i, text, loss in held)

    def result(self, source: Any) -> Preview:
        """All of it."""
        counts = self.counts
        return Preview(
            source=str(source),
            template=self.template.source if self.template else "the tokenizer",
            train_on=self.options.train_on,
            max_length=counts.max_length,
            shown=tuple(self.shown),
            examples=len(self.lengths),
            complete=self.complete,
            too_long=self.too_long,
            tokens=self.tokens,
            supervised_tokens=self.targets,
            lengths=summarise(self.lengths),
            bars=histogram(self.lengths),
            savings=measure_savings(self.sequences, counts.batch) if self.sequences else None,
            refused=self.refused,
            problems=tuple(str(error) for error in self.problems),
            notes=dict(self.notes.most_common()),
        )
