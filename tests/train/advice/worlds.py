"""Runs whose truth is known by construction: a small base that has learnt to copy, and data of two families.

The base is a Llama of two layers, trained here in full until it answers a word with its last sign. A run then teaches it
something that is like that and is not that:

    rule    the answer is the last sign through a fixed permutation: learnt from a few signs, and it generalises
    noisy   that, and one of four signs at random: nobody can come below the entropy of the noise
    facts   each word has an answer of its own, drawn at random: nothing generalises, every fact takes room

Thresholds of the advice were fixed on family `letters` (bench/advice.py); the tests take family `digits`, another base and
other seeds.
"""

from __future__ import annotations

import json
import random
import string
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from scumble.models.base import Base
from tests.bases import chat, encoded, make_letters_base

SIGNS = string.ascii_lowercase + string.digits
WIDTH, RATE, STEPS, ROWS = 32, 4e-3, 400, 32  # of the base's own training


@dataclass(frozen=True)
class Family:
    """Data that a truth is built on.

    Attributes:
        signs: of which words are made.
        length: of a word.
        base: seed of the base.
    """

    name: str
    signs: str
    length: int
    base: int


LETTERS = Family("letters", string.ascii_lowercase, 3, 0)
DIGITS = Family("digits", string.digits, 4, 1)
FAMILIES = {family.name: family for family in (LETTERS, DIGITS)}


@dataclass(frozen=True, eq=False)
class Truth:
    """How a run is made, and what advice must say of it.

    Attributes:
        verdicts: the topics that are right as the first piece of advice.
        kind: of data: rule, noisy or facts.
        rows: of training data.
        options: of training.
    """

    name: str
    verdicts: tuple[str, ...]
    kind: str
    rows: int
    options: dict[str, Any]


_RULE = {"targets": "all-linear", "batch": 16, "accumulate": 1, "learning_rate": 0.01, "eval_every": 15}
TRUTHS = (
    Truth("fine", ("fine",), "rule", 2000, {**_RULE, "max_steps": 150}),
    Truth("noisy", ("fine",), "noisy", 4000, {**_RULE, "max_steps": 180}),
    Truth(
        "hot", ("rate too high", "diverged"), "rule", 2000, {**_RULE, "max_steps": 100, "learning_rate": 0.2}
    ),
    Truth("cold", ("rate too low",), "rule", 2000, {**_RULE, "max_steps": 100, "learning_rate": 1e-4}),
    Truth("overfit", ("overfit",), "noisy", 32, {**_RULE, "epochs": 40, "batch": 8}),
    Truth(
        "early",
        ("still improving",),
        "rule",
        2000,
        {**_RULE, "max_steps": 40, "eval_every": 5, "learning_rate": 0.004},
    ),
    Truth("few ranks", ("rank",), "facts", 160, {**_RULE, "rank": 1, "alpha": 2, "epochs": 40, "batch": 32}),
)


def rows_of(kind: str, family: Family, count: int, seed: int) -> list[dict[str, Any]]:
    """Training or validation data; what is to be learnt depends on the family alone."""
    drawn = random.Random(f"{kind} {seed}")
    if kind == "facts":
        words: dict[str, str] = {}
        while len(words) < count:
            words["".join(drawn.choices(family.signs, k=family.length))] = drawn.choice(family.signs)
        return [chat(*pair) for pair in words.items()]
    after = list(family.signs)
    random.Random(family.name).shuffle(after)
    rule = dict(zip(family.signs, after, strict=True))
    words_ = ["".join(drawn.choices(family.signs, k=family.length)) for _ in range(count)]
    return [chat(w, rule[w[-1]] + (drawn.choice("wxyz") if kind == "noisy" else "")) for w in words_]


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> str:
    """Write rows as JSON lines; gives the path."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def data_of(truth: Truth, family: Family, seed: int, folder: Path) -> tuple[str, str]:
    """The files of training and validation data. Facts are judged by themselves: are they known?"""
    stem = f"{truth.name.replace(' ', '-')}-{family.name}-{seed}"
    rows = rows_of(truth.kind, family, truth.rows, seed)
    train = write_rows(folder / f"{stem}.jsonl", rows)
    held = rows if truth.kind == "facts" else rows_of(truth.kind, family, 100, 1000 + seed)
    return train, write_rows(folder / f"{stem}-held.jsonl", held)


def taught_base(seed: int) -> Base:
    """A base that answers a word with its last sign; about eight seconds on one thread."""
    torch.manual_seed(seed)
    base = make_letters_base(hidden_size=WIDTH, intermediate_size=2 * WIDTH, seed=seed)
    model: Any = base.model
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "embed" not in name:
                parameter.mul_(0.4)  # at the spread of tests/tiny.py logits are too far apart to learn from
    drawn = random.Random(seed)
    model.requires_grad_(True).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = RATE * min(1, (step + 1) / 40) * (1 - step / STEPS)
        length = drawn.choice((3, 4))  # all rows of a step are as long as each other
        words = ["".join(drawn.choices(SIGNS, k=length)) for _ in range(ROWS)]
        examples = encoded([chat(word, word[-1]) for word in words], base.tokenizer)
        ids = torch.tensor([each.ids for each in examples])
        labels = ids.masked_fill(~torch.tensor([each.supervised for each in examples]), -100)
        optimizer.zero_grad()
        model(input_ids=ids, labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.eval().requires_grad_(False)
    return base
