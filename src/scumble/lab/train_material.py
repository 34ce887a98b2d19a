"""The examples of `scumble bench train`: chosen the same every time, with their statistics, and the first adapter.

Knows data, a base for its tokenizer and its shapes, and none of the systems.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from scumble.data.encoding import Encoded, encode
from scumble.data.examples import iter_examples
from scumble.errors import ConfigError, DataError, NotSupportedError
from scumble.lab.docstrings import chats, shuffled, standard_library
from scumble.lab.train_job import TrainJob
from scumble.lab.train_roof import Work
from scumble.lora.bank import Bank
from scumble.lora.spec import LoraSpec
from scumble.models.base import Base, load_base
from scumble.models.threads import Shape, layer_shapes

CHOICE = 97  # of the chats; the sample is much like the one that the first measurements were made on
LONGEST = 512  # tokens of a docstring chat, before a system prompt
MAX_LENGTH = 2048
RANK, ALPHA = 16, 32.0  # the lesson's, on q, k, v and o


@dataclass(frozen=True)
class Sample:
    """The examples of an optimizer step.

    Attributes:
        source: what they are.
        examples: how many.
        tokens: of all of them.
        mean: tokens of one.
        longest: tokens of the longest.
        supervised: share of the tokens that have a loss.
        system_prompt: tokens of the text that was put before every example.
        shared: share of the tokens that go away where what examples begin with alike is counted once.
    """

    source: str
    examples: int
    tokens: int
    mean: float
    longest: int
    supervised: float
    system_prompt: int
    shared: float

    def __str__(self) -> str:
        told = f", with a system prompt of {self.system_prompt} tokens" if self.system_prompt else ""
        return (
            f"{self.examples} examples of {self.source}{told}: {self.tokens:,} tokens, mean {self.mean:.0f}, "
            f"longest {self.longest}, {self.supervised:.0%} with a loss; shared beginnings {self.shared:.0%}"
        )


@dataclass(frozen=True)
class Wanted:
    """What is to be measured; the arguments of `bench_train`, where each is explained."""

    steps: int
    rounds: int
    data: str | Path | None
    base: str | None
    system_prompt: int
    dropout: float
    seed: int
    examples: int
    batch: int

    def check(self) -> None:
        """Refuse numbers that are out of their ranges.

        Raises:
            ConfigError: one is.
        """
        if min(self.steps, self.rounds) < 1 or self.system_prompt < 0 or not 0 <= self.dropout < 1:
            raise ConfigError(
                f"steps, rounds, system prompt and dropout are {self.steps}, {self.rounds}, {self.system_prompt} "
                f"and {self.dropout:g}",
                "steps and rounds are 1 at least, the system prompt 0 at least, and dropout below 1",
            )
        if self.examples < 8 or self.examples % 8 or self.batch < 1 or self.examples % self.batch:
            raise ConfigError(
                f"examples are {self.examples}, and {self.batch} in a micro-batch",
                "give a multiple of 8, in micro-batches of one size",
            )


@dataclass(frozen=True)
class Material:
    """What the systems are given, and what is known of it.

    Attributes:
        job: see there.
        sample: the statistics of its examples.
        shapes: (out, in) of the model's linear layers, the head left out, each as often as it occurs.
        work: what a token costs.
    """

    job: TrainJob
    sample: Sample
    shapes: list[Shape]
    work: Work


def prepare(folder: Path, wanted: Wanted) -> Material:
    """Choose the examples, and write the adapter that all begin with into `folder`.

    Raises:
        DataError: there are too few examples.
        NotSupportedError: the base has no linear layers as weights are counted here.
    """
    base = load_base(wanted.base, dtype="fp32", device="cpu")
    model: Any = base.model
    shapes, head = layer_shapes(model, "train"), model.get_output_embeddings()
    if not shapes or head is None:
        raise NotSupportedError(
            f"{base.name} has no linear layers, or no head", "measure a causal model such as a Llama"
        )
    tokenizer: Any = base.tokenizer
    text = _system_text(tokenizer, wanted.system_prompt) if wanted.system_prompt else ""
    rows, encoded, source = _examples(base, wanted.data, text, wanted.examples)
    bank = Bank(base)
    bank.trainable("start", LoraSpec(RANK, ALPHA, "standard", wanted.dropout), seed=wanted.seed)
    bank.save("start", folder / "start")
    bank.close()
    job = TrainJob(
        base=wanted.base,
        start=str(folder / "start"),
        chats=tuple(rows),
        ids=tuple(each.ids for each in encoded),
        labels=tuple(_labels(each) for each in encoded),
        steps=wanted.steps,
        batch=wanted.batch,
        rank=RANK,
        alpha=ALPHA,
        dropout=wanted.dropout,
        seed=wanted.seed,
    )
    work = Work(
        weights=sum(out * inner for out, inner in shapes),
        head=int(head.weight.numel()),
        supervised=job.targets / job.tokens,
        distinct=job.distinct / job.tokens,
    )
    sample = Sample(
        source=source,
        examples=len(encoded),
        tokens=job.tokens,
        mean=job.tokens / len(encoded),
        longest=max(len(each.ids) for each in encoded),
        supervised=work.supervised,
        system_prompt=len(tokenizer(text, add_special_tokens=False)["input_ids"]) if text else 0,
        shared=1 - work.distinct,
    )
    return Material(job, sample, shapes, work)


def _labels(encoded: Encoded) -> tuple[int, ...]:
    pairs = zip(encoded.ids, encoded.supervised, strict=True)
    return tuple(token if wanted else -100 for token, wanted in pairs)


def _examples(
    base: Base, data: str | Path | None, text: str, count: int
) -> tuple[list[dict[str, Any]], list[Encoded], str]:
    """The first examples that are short enough, with the system prompt before them."""
    if data is None:
        source = f"docstrings of Python {platform.python_version()}"
        rows: Iterator[dict[str, Any]] = iter(shuffled(chats(standard_library()), CHOICE))
    else:
        source = str(data)
        rows = ({"messages": list(each.messages)} for each in iter_examples(data) if each.text is None)
    limit = LONGEST if data is None else MAX_LENGTH
    usable = (
        (_prompted(row["messages"], text), number)
        for number, row in enumerate(rows)
        if len(_encoded(row["messages"], base).ids) <= limit
    )
    kept = [{"messages": messages} for messages, _ in islice(usable, count)]
    if len(kept) < count:
        raise DataError(
            f"{source} has {len(kept)} chats of at most {limit} tokens, and {count} are needed",
            "give a file with more",
        )
    return kept, [_encoded(row["messages"], base) for row in kept], source


def _encoded(messages: Sequence[Any], base: Base) -> Encoded:
    [example] = iter_examples([{"messages": list(messages)}])
    return encode(example, base.tokenizer)


def _prompted(messages: Sequence[dict[str, Any]], text: str) -> list[dict[str, Any]]:
    """A chat that begins with a system prompt; one that it has already follows it."""
    if not text:
        return list(messages)
    if messages[0]["role"] == "system":
        return [
            {"role": "system", "content": f"{text}\n\n{messages[0]['content']}"},
            *messages[1:],
        ]
    return [{"role": "system", "content": text}, *messages]


def _system_text(tokenizer: Any, tokens: int) -> str:
    """English of so many tokens, or one or two less: what modules of the standard library say about themselves."""
    words: list[str] = []
    for row in chats(standard_library() / "asyncio"):
        words.extend(row["messages"][1]["content"].split())
    low, high = 0, len(words)
    while low < high:
        middle = (low + high + 1) // 2
        ids = tokenizer(" ".join(words[:middle]), add_special_tokens=False)["input_ids"]
        low, high = (middle, high) if len(ids) <= tokens else (low, middle - 1)
    if low == len(words):
        raise ConfigError(f"the system prompt is {tokens} tokens", f"it can have {low} at most")
    return " ".join(words[:low])
