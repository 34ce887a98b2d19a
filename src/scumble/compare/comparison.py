"""A comparison: the base and one adapter on the same unseen examples.

Both are rows of one batch. Shown are the first examples side by side; counted are the loss on the expected
answers and, over the same examples, the metric of the answers generated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from scumble.compare.generation import answer, generate
from scumble.compare.loss import mean_loss
from scumble.compare.metrics import Metric, mark, metric_named, wilson_interval
from scumble.config import CompareOptions
from scumble.data.encoding import encode_all, encode_prompt
from scumble.data.examples import Example, hash_examples
from scumble.lora.bank import Bank

Done = Callable[[int], None]


@dataclass(frozen=True)
class Score:
    """A metric before and after, each with its 95 % interval, over n examples."""

    name: str
    n: int
    before: float
    after: float
    before_interval: tuple[float, float]
    after_interval: tuple[float, float]


@dataclass(frozen=True)
class Shown:
    """One example side by side."""

    prompt: str
    expected: str
    before: str
    after: str
    right_before: bool
    right_after: bool


@dataclass(frozen=True)
class Comparison:
    """What `compare` gives; losses are means over supervised tokens, in nats; sizes are in bytes on disk.

    `kind` is `adapter`, or `model` where all weights were trained: `adapter` and `adapter_bytes` are then of that.
    """

    metric: Score
    loss: dict[str, float]
    perplexity: dict[str, float]
    examples: list[Shown]
    adapter_bytes: int
    base_bytes: int
    source_bytes: int | None
    data: dict[str, Any]
    settings: dict[str, Any]
    adapter: str = ""
    kind: str = "adapter"
    answers: list[tuple[str, str]] = field(default_factory=list, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """What `--json` prints."""
        document = asdict(self)
        del document["answers"]
        return document


def compare_in_bank(
    bank: Bank,
    name: str,
    tokenizer: Any,
    examples: Sequence[Example],
    *,
    metric: str | Metric = "exact_match",
    options: CompareOptions | None = None,
    sizes: tuple[int, int, int | None] = (0, 0, None),
    source: str = "",
    done: Done = lambda count: None,
) -> Comparison:
    """Compare the base with one adapter of a bank.

    Args:
        bank: holds the adapter.
        name: of the adapter.
        tokenizer: of the base.
        examples: unseen ones; the first `options.limit` are scored.
        metric: a name, or a function of (answer, expected).
        options: how many are shown and scored, and how answers are generated.
        sizes: bytes of the adapter, of the base, and of the file that the base came from.
        source: what the examples are called.
        done: called with the number of examples answered since the last call.
    """
    options = options or CompareOptions()
    scored = list(examples[: options.limit])
    answers = generate(
        bank, tokenizer, _prompts(scored, tokenizer), [{}, {name: 1.0}], **_how(options), done=done
    )
    losses = _losses(bank, name, tokenizer, scored, options.batch)
    before, after = (
        Side([each[i] for each in answers], losses[when]) for i, when in enumerate(("before", "after"))
    )
    return compare_sides(before, after, scored, metric=metric, options=options, sizes=sizes, source=source)


@dataclass(frozen=True)
class Side:
    """What one model says to examples.

    Attributes:
        answers: to each.
        loss: on the expected answers, the mean over supervised tokens, in nats.
    """

    answers: list[str]
    loss: float


def side_of(
    model: Any,
    tokenizer: Any,
    examples: Sequence[Example],
    options: CompareOptions,
    *,
    done: Done = lambda count: None,
) -> Side:
    """What a model, as it is, says to the first `options.limit` examples."""
    scored = list(examples[: options.limit])
    answers = answer(model, tokenizer, _prompts(scored, tokenizer), **_how(options), done=done)
    encoded = encode_all(scored, tokenizer, max_length=2**31).examples
    return Side(answers, mean_loss(model, encoded, options.batch, next(model.parameters()).device))


def compare_sides(
    before: Side,
    after: Side,
    examples: Sequence[Example],
    *,
    metric: str | Metric = "exact_match",
    options: CompareOptions | None = None,
    sizes: tuple[int, int, int | None] = (0, 0, None),
    source: str = "",
    kind: str = "adapter",
) -> Comparison:
    """Compare what two models said to the same examples; the arguments are those of `compare_in_bank`."""
    options = options or CompareOptions()
    scored = list(examples[: options.limit])
    title, function = metric_named(metric)
    pairs = list(zip(before.answers, after.answers, strict=True))
    marks = [
        (mark(title, function, one, e.expected), mark(title, function, other, e.expected))
        for e, (one, other) in zip(scored, pairs, strict=True)
    ]
    losses = {"before": before.loss, "after": after.loss}
    return Comparison(
        metric=_score(title, marks),
        loss=losses,
        perplexity={when: math.exp(min(loss, 700.0)) for when, loss in losses.items()},
        examples=_side_by_side(scored, pairs, marks)[: options.n],
        adapter_bytes=sizes[0],
        base_bytes=sizes[1],
        source_bytes=sizes[2],
        data={"source": source, "hash": hash_examples(scored)},
        settings={key: getattr(options, key) for key in ("temperature", "max_new_tokens", "seed")},
        kind=kind,
        answers=pairs,
    )


def _prompts(examples: Sequence[Example], tokenizer: Any) -> list[list[int]]:
    return [encode_prompt(example.prompt, tokenizer, tools=example.tools) for example in examples]


def _how(options: CompareOptions) -> dict[str, Any]:
    return {key: getattr(options, key) for key in ("max_new_tokens", "temperature", "seed", "batch")}


def _side_by_side(
    examples: Sequence[Example], pairs: Sequence[tuple[str, str]], marks: Sequence[tuple[float, float]]
) -> list[Shown]:
    """Each example with both answers and whether each is right."""
    return [
        Shown(e.question, e.expected, *answers, *(bool(mark >= 1) for mark in both))
        for e, answers, both in zip(examples, pairs, marks, strict=True)
    ]


def _losses(
    bank: Bank, name: str, tokenizer: Any, examples: Sequence[Example], batch: int
) -> dict[str, float]:
    # no length limit: nothing is trained, and what is scored should be all that was asked for
    encoded = encode_all(examples, tokenizer, max_length=2**31).examples
    device = next(bank.model.parameters()).device
    found = {}
    for when, mixture in (("before", {}), ("after", {name: 1.0})):
        with bank.using(mixture):
            found[when] = mean_loss(bank.model, encoded, batch, device)
    return found


def _score(name: str, marks: Sequence[tuple[float, float]]) -> Score:
    n = len(marks)
    before, after = (sum(pair[i] for pair in marks) / n for i in (0, 1))
    return Score(name, n, before, after, wilson_interval(before, n), wilson_interval(after, n))
