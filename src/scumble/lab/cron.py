"""How hard `cron` is without training: the nearest training example's answer, and the base with examples.

If either came near what training gives, the demo would show nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from scumble.compare.generation import generate
from scumble.compare.metrics import exact_match, wilson_interval
from scumble.config import CompareOptions, make
from scumble.data.encoding import encode_prompt
from scumble.data.examples import Example, read_examples
from scumble.data.nearest import NearestAnswers, Similarity
from scumble.data.shipped import SHIPPED
from scumble.lora.bank import Bank
from scumble.models.base import load_base
from scumble.models.threads import threads_for, with_threads
from scumble.progress import Reporter

SHOTS = 3


@dataclass(frozen=True)
class Hardness:
    """Exact match on the n test examples without any training, by method, with 95 % intervals."""

    n: int
    shares: dict[str, float]
    intervals: dict[str, tuple[float, float]]

    def to_dict(self) -> dict[str, Any]:
        """What `--json` prints."""
        return {"n": self.n, "exact_match": self.shares, "intervals": self.intervals}


def cron_hardness(*, limit: int | None = None, quiet: bool = False) -> Hardness:
    """Score what needs no training on the test part of `cron`.

    Args:
        limit: the first so many test examples; all by default.
        quiet: say nothing on stderr.
    """
    limit = make(CompareOptions, limit=limit).limit
    train, test = read_examples("cron", "train"), read_examples("cron", "test")[:limit]
    answers = {
        "answer of the nearest training example, by words": _nearest(train, test, "jaccard"),
        "answer of the nearest training example, by characters": _nearest(train, test, "char3"),
    }
    base = load_base("smollm2")
    bank = Bank(base)
    reporter = Reporter(quiet=quiet)
    try:
        with with_threads(threads_for(base.model).train), reporter.bar("answering", 2 * len(test)):
            for title, shots in (
                ("base alone", []),
                (f"base with {SHOTS} examples in its prompt", train[:SHOTS]),
            ):
                prompts = [encode_prompt(_with_shots(shots, example), base.tokenizer) for example in test]
                made = generate(
                    bank,
                    base.tokenizer,
                    prompts,
                    ["base"],
                    max_new_tokens=SHIPPED["cron"].max_new_tokens,
                    done=reporter.advance,
                )
                answers[title] = [text for [text] in made]
    finally:
        bank.close()
    shares = {
        title: sum(exact_match(a, e.expected) for a, e in zip(given, test, strict=True)) / len(test)
        for title, given in answers.items()
    }
    return Hardness(
        len(test), shares, {title: wilson_interval(share, len(test)) for title, share in shares.items()}
    )


def _with_shots(shots: list[Example], example: Example) -> list[dict[str, Any]]:
    """The example's prompt after whole worked examples, as earlier turns of the same conversation."""
    turns = [message for shot in shots for message in shot.messages if message["role"] != "system"]
    head = [message for message in example.prompt if message["role"] == "system"]
    return head + turns + [message for message in example.prompt if message["role"] != "system"]


def _nearest(train: list[Example], test: list[Example], similarity: Similarity) -> list[str]:
    known = NearestAnswers([{"messages": list(example.messages)} for example in train], similarity)
    return [known.answer(example.question) for example in test]
