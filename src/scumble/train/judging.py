"""What a subject says to validation examples: a metric to choose the best checkpoint by, and both sides for the report.

Knows subjects, examples and metrics; nothing of optimizers, or of how a run is written down.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from scumble.compare.comparison import Comparison, Side, compare_in_bank, compare_sides, side_of
from scumble.compare.generation import answer
from scumble.compare.metrics import mark, metric_named
from scumble.config import CompareOptions, TrainOptions
from scumble.data.encoding import encode_prompt
from scumble.data.examples import Example
from scumble.data.shipped import SHIPPED
from scumble.errors import ConfigError
from scumble.models.base import Base
from scumble.progress import Reporter
from scumble.train.material import Material
from scumble.train.subject import AdapterSubject, Subject

MOST_TOKENS = 256  # of an answer, where the data set does not say


def metric_name(options: TrainOptions, source: str) -> str | None:
    """The metric that the best checkpoint is chosen by; None where that is the loss.

    Raises:
        ConfigError: there is none of that name.
    """
    if options.keep_best == "loss":
        return None
    if options.keep_best == "metric":
        return SHIPPED[source].metric if source in SHIPPED else "exact_match"
    return metric_named(options.keep_best)[0]


def measure(
    options: TrainOptions, subject: Subject, tokenizer: Any, material: Material
) -> Callable[[], float] | None:
    """A function that answers validation examples with the subject as it is and gives the metric's mean.

    Returns:
        None where the loss decides.

    Raises:
        ConfigError: there is nothing to answer, or to be patient about.
    """
    needs = [f"--patience {options.patience}"] if options.patience else []
    name = metric_name(options, material.source)
    examples = _answerable(material, options.eval_limit)
    if name is not None:
        needs.append(f"--keep-best {options.keep_best}")
    if needs and not material.validation:
        raise ConfigError(f"{needs[0]} needs validation data", "leave --eval 0 out")
    if name is None:
        return None
    if not examples:
        raise ConfigError(f"{needs[-1]} needs examples with an answer", "keep the best by loss")
    title, function = metric_named(name)
    shipped = SHIPPED.get(material.source)
    most = shipped.max_new_tokens if shipped else _tokens_for(examples, tokenizer)
    prompts = [encode_prompt(example.prompt, tokenizer, tools=example.tools) for example in examples]

    def measured() -> float:
        answers = answer(subject.model, tokenizer, prompts, max_new_tokens=most)
        marks = (mark(title, function, a, e.expected) for a, e in zip(answers, examples, strict=True))
        return sum(marks) / len(examples)

    return measured


class BeforeAndAfter:
    """The first validation examples answered before and after, for the report.

    Args:
        subject: as it is before training.
        base: which it was made of.
        tokenizer: with the template that is trained with.
        material: whose validation examples are answered.
        n: how many, at most.
        reporter: is told.
    """

    def __init__(
        self, subject: Subject, base: Base, tokenizer: Any, material: Material, n: int, reporter: Reporter
    ) -> None:
        self.subject, self.base, self.tokenizer = subject, base, tokenizer
        self.examples, self.source, self.reporter = (
            _answerable(material, n),
            material.validation_source,
            reporter,
        )
        self._before: Side | None = None
        if self.examples:
            self.options = CompareOptions(n=n, max_new_tokens=_tokens_for(self.examples, tokenizer))
            if not isinstance(subject, AdapterSubject):
                # an adapter leaves the base as it is; here it will be gone
                self._before = side_of(subject.model, tokenizer, self.examples, self.options)

    def compare(self, folder: Path) -> Comparison | None:
        """Answer again with what was kept in `folder`; None where there is nothing to answer."""
        if not self.examples:
            return None
        self.subject.load(folder)  # the best checkpoint, which may not be the last
        size = (folder / self.subject.weights_name).stat().st_size
        sizes = (size, self.base.bytes_on_disk, self.base.source_bytes)
        self.reporter.note(f"answering {len(self.examples)} validation examples before and after")
        if isinstance(self.subject, AdapterSubject):
            return compare_in_bank(
                self.subject.bank,
                self.subject.name,
                self.tokenizer,
                self.examples,
                options=self.options,
                sizes=sizes,
                source=self.source,
            )
        assert self._before is not None  # there are examples
        after = side_of(self.subject.model, self.tokenizer, self.examples, self.options)
        return compare_sides(
            self._before,
            after,
            self.examples,
            options=self.options,
            sizes=sizes,
            source=self.source,
            kind=self.subject.title,
        )


def _answerable(material: Material, n: int) -> list[Example]:
    return [each for each in material.validation[:n] if each.text is None]  # a text answers nothing


def _tokens_for(examples: list[Example], tokenizer: Any) -> int:
    """Room for an answer twice as long as the longest expected one."""
    longest = max(len(tokenizer(example.expected)["input_ids"]) for example in examples)
    return min(MOST_TOKENS, 2 * longest + 8)
