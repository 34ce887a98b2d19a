"""Weights of a blend learned from examples: Adam on one number for each adapter, or one for each layer too.

    minimise over w:  mean over sets of the mean cross-entropy of a set's answers,  adapters and base frozen

as LoRA Soups does it (Prabhakar et al. 2024, arXiv:2410.13025, learned concatenation: there a coefficient for
each adapter and layer, here one for each adapter unless layers are asked for). A part of each set is held
back; the weights kept are those with the lowest loss on it, the starting weights among them. Knows a bank and
examples, and nothing of how a blend is written.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from scumble.data.encoding import Encoded, encode_all
from scumble.data.examples import Example, hash_examples, split_by_hash
from scumble.errors import AdapterError, ConfigError, DataError
from scumble.lora.bank import Bank
from scumble.manage.learning.search import Point, Search, TaskSet, layer_row, shown
from scumble.models.threads import threads_for, with_threads
from scumble.progress import Reporter


@dataclass(frozen=True)
class SetLoss:
    """One set of examples: its loss on the part held back, with the first weights and with those kept, in nats."""

    examples: int
    held_back: int
    before: float
    after: float
    hash: str


@dataclass(frozen=True)
class Learned:
    """Weights, and how they came about.

    Attributes:
        names: of the adapters.
        layers: the layers that have weights of their own, None standing for what lies outside all layers;
            `[None]` alone where each adapter has one weight.
        weights: for each of `layers` the adapters' weights, in the order of `names`.
        start: the weights it began with, in the order of `names`.
        step: after how many steps the weights were best; 0 where no step improved on the start.
        curve: the evaluations.
        before, after: loss on what was held back, the mean over sets, in nats; `after` chose the weights, and
            is a little better than they will be on other data.
        sets: the same for each set.
        seconds: of it all.
        settings: what decides the result, beside the adapters and the base.
    """

    names: list[str]
    layers: list[int | None]
    weights: list[list[float]]
    start: list[float]
    step: int
    curve: list[Point]
    before: float
    after: float
    sets: list[SetLoss]
    seconds: float
    settings: dict[str, Any]

    @property
    def per_layer(self) -> bool:
        """Whether layers have weights of their own."""
        return self.settings["per_layer"] is True

    @property
    def mixture(self) -> dict[str, float]:
        """The weight of each adapter; for weights by layer their mean over the layers."""
        return {
            name: sum(row[i] for row in self.weights) / len(self.weights) for i, name in enumerate(self.names)
        }

    def at(self, path: str) -> dict[str, float]:
        """The weight of each adapter at the module of this path."""
        return dict(zip(self.names, self.weights[layer_row(path, self.layers)], strict=True))

    def to_dict(self) -> dict[str, Any]:
        """What `learn.json` holds."""
        return {**asdict(self), "mixture": self.mixture}


def learn_weights(
    bank: Bank,
    names: Sequence[str],
    start: Sequence[float],
    examples: Sequence[Example] | Sequence[Sequence[Example]],
    tokenizer: Any,
    *,
    steps: int = 40,
    rate: float = 0.05,
    batch: int = 8,
    seed: int = 0,
    per_layer: bool = False,
    validation: float = 0.25,
    max_length: int = 4096,
    reporter: Reporter | None = None,
) -> Learned:
    """Find the weights of a blend with the lowest loss on examples of what it should do.

    Args:
        bank: holds the adapters; its weights, parameters and gradients are as before afterwards.
        names: of the adapters to blend.
        start: a weight for each to begin with.
        examples: one set, or several (one for each task), which count alike whatever their sizes and lengths.
        tokenizer: of the base.
        steps: of Adam; the rate falls to zero over them as half a cosine.
        rate: what Adam moves a weight by in a step, at most about.
        batch: examples in a step, in equal shares from each set, at least one of each.
        seed: of the order of the examples.
        per_layer: one weight for each adapter and layer.
        validation: share of each set held back, by content.
        max_length: longer examples, in tokens, are left out.
        reporter: is told how it goes.

    Raises:
        DataError: there are no examples, or none to hold back, or no tokenizer.
        AdapterError: the bank lacks one, or it has parts that belong to one adapter only.
        ConfigError: an argument has a value that it cannot have.
        TrainingError: the loss with the starting weights is not a finite number.
    """
    _check(bank, names, start, steps, rate, batch, validation)
    reporter = reporter or Reporter(quiet=True)
    began = time.perf_counter()
    sets = _encoded_sets(examples, tokenizer, validation, max_length, reporter)
    threads = threads_for(bank.model).train
    search = Search(bank, list(names), [float(w) for w in start], sets, steps, rate, batch, seed, per_layer)
    with with_threads(threads), reporter.bar("learning weights", steps):
        best, curve = search.run(reporter)
        found = search.tensor(best.weights)
        before, after = (search.losses(weights) for weights in (search.begun(), found))
    return Learned(
        names=list(names),
        layers=search.layers,
        weights=best.weights,
        start=[float(w) for w in start],
        step=best.step,
        curve=curve,
        before=curve[0].validation,
        after=best.validation,
        sets=[
            SetLoss(s.examples, len(s.held), a, b, s.hash)
            for s, a, b in zip(sets, before, after, strict=True)
        ],
        seconds=round(time.perf_counter() - began, 3),
        settings={
            "steps": steps,
            "rate": rate,
            "batch": batch,
            "seed": seed,
            "per_layer": per_layer,
            "validation": validation,
            "max_length": max_length,
            "threads": threads,
        },
    )


def _check(
    bank: Bank,
    names: Sequence[str],
    start: Sequence[float],
    steps: int,
    rate: float,
    batch: int,
    validation: float,
) -> None:
    if not names or len(set(names)) != len(names):
        raise AdapterError(
            f"weights cannot be learned for {', '.join(names) or 'no adapter'}",
            "name one adapter or more, each once; one that should stand twice needs two names in the bank",
        )
    if len(start) != len(names) or not all(math.isfinite(weight) for weight in start):
        raise ConfigError(
            f"{len(names)} adapters cannot start with the weights {shown(start) or 'none'}",
            "give a finite number for each",
        )
    for what, value, fine in (
        ("steps", steps, steps >= 1),
        ("rate", rate, 0 < rate < math.inf),
        ("batch", batch, batch >= 1),
        ("validation", validation, 0 < validation < 1),
    ):
        if not fine:
            allowed = {"rate": "above 0", "validation": "between 0 and 1"}.get(what, "1 or more")
            raise ConfigError(f"{what} is {value}", f"it must be {allowed}")
    with bank.using_learned({name: torch.zeros(()) for name in names}):
        pass  # refuses a name that is not there, and what belongs to one adapter only


def _encoded_sets(
    examples: Sequence[Example] | Sequence[Sequence[Example]],
    tokenizer: Any,
    share: float,
    max_length: int,
    reporter: Reporter,
) -> list[TaskSet]:
    if tokenizer is None:
        raise DataError(
            "the base has no tokenizer", "learning weights needs one; add it to the base's folder"
        )
    single = [example for example in examples if isinstance(example, Example)]
    sets = [single] if single else [list(each) for each in examples if not isinstance(each, Example)]
    if not sets or not all(sets):
        raise DataError("there are no examples to learn weights from", "give a few dozen of each task")
    found = []
    for each in sets:
        train, held = split_by_hash(each, share)
        if not train or not held:
            raise DataError(
                f"{each[0].where}: there are no two different examples, so none can be held back",
                "give a few dozen of each task",
            )
        kept, judged = (_fitting(part, tokenizer, max_length, reporter) for part in (train, held))
        found.append(TaskSet(kept, judged, len(each), hash_examples(each)))
    return found


def _fitting(
    examples: Sequence[Example], tokenizer: Any, max_length: int, reporter: Reporter
) -> list[Encoded]:
    encoded = encode_all(examples, tokenizer, 2**31).examples
    kept = [each for each in encoded if len(each.ids) <= max_length]
    if len(kept) < len(encoded):
        reporter.warn(
            f"{len(encoded) - len(kept)} examples of more than {max_length} tokens are left out of learning"
        )
    if not kept:
        raise DataError(
            f"{examples[0].where}: every example, or all that would be held back, is longer than {max_length} tokens",
            "give shorter ones, or a larger max_length",
        )
    return kept
