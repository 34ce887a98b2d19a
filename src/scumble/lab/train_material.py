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
from scumble.errors import DataError, NotSupportedError
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


def prepare(
    folder: Path,
    *,
    base: str | None,
    data: str | Path | None,
    system_prompt: int,
    examples: int,
    steps: int,
    dropout: float,
    seed: int,
) -> tuple[TrainJob, Sample, list[Shape], Work]:
    """Choose the examples, and write the adapter that all begin with.

    Returns:
        The job; what its examples are; the shapes of the model's linear layers; and what a token costs.

    Raises:
        DataError: there are too few examples.
        NotSupportedError: the base has no linear layers as weights are counted here.
    """
    loaded = load_base(base, dtype="fp32", device="cpu")
    tokenizer: Any = loaded.tokenizer
    text = _system_text(tokenizer, system_prompt) if system_prompt else ""
    rows, encoded, source = _examples(loaded, data, text, examples)
    spec = LoraSpec(16, 32.0, "standard", dropout)
    bank = Bank(loaded)
    bank.trainable("start", spec, seed=seed)
    bank.save("start", folder / "start")
    bank.close()
    job = TrainJob(
        base=base,
        start=str(folder / "start"),
        chats=tuple(rows),
        ids=tuple(each.ids for each in encoded),
        labels=tuple(
            tuple(token if wanted else -100 for token, wanted in zip(each.ids, each.supervised, strict=True))
            for each in encoded
        ),
        steps=steps,
        dropout=dropout,
        seed=seed,
    )
    shapes = layer_shapes(loaded.model, "train")
    model: Any = loaded.model
    head = model.get_output_embeddings()
    if not shapes or head is None:
        raise NotSupportedError(
            f"{loaded.name} has no linear layers, or no head", "measure a causal model such as a Llama"
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
    return job, sample, shapes, work


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
    """English of so many tokens, or a few less: what the standard library says about itself, one word after the other."""
    words: list[str] = []
    for row in shuffled(chats(standard_library()), CHOICE + 1):
        words.extend(row["messages"][1]["content"].split())
        if len(words) >= tokens:  # a word has one token at least
            break
    low, high = 0, len(words)
    while low < high:
        middle = (low + high + 1) // 2
        ids = tokenizer(" ".join(words[:middle]), add_special_tokens=False)["input_ids"]
        low, high = (middle, high) if len(ids) <= tokens else (low, middle - 1)
    return " ".join(words[:low])
