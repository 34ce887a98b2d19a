"""Two adapters of two tasks, alone and blended in several ways: how much of each task is left.

The adapters and every blend of them are rows of one batch, each answering the unseen test examples of both tasks.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scumble.compare.generation import generate
from scumble.compare.metrics import mark, metric_named, wilson_interval
from scumble.config import CompareOptions, make
from scumble.data.encoding import encode_prompt
from scumble.data.examples import Example, read_examples
from scumble.data.shipped import SHIPPED
from scumble.lora.bank import Bank
from scumble.manage.blend import blend
from scumble.models.base import Base, load_base
from scumble.models.threads import threads_for, with_threads
from scumble.progress import Reporter

TASKS = ("cron", "tickets")


@dataclass(frozen=True)
class BlendScores:
    """Exact match of the base, of two adapters and of their blends on both tasks.

    Attributes:
        n: test examples of each task.
        systems: from what answered to its share of right answers on each task, with 95 % intervals, and for a
            blend its weights and its error against what its method wanted.
    """

    n: int
    systems: dict[str, dict[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        """What `--json` prints."""
        return dict(vars(self))


def blend_scores(
    adapters: Mapping[str, str | Path],
    *,
    limit: int | None = None,
    base: Base | None = None,
    quiet: bool = False,
) -> BlendScores:
    """Score two adapters and their blends on the tasks of both.

    Args:
        adapters: a run or adapter for each of `cron` and `tickets`.
        limit: the first so many test examples of each task; all by default.
        base: a loaded base; the embedded one by default.
        quiet: say nothing on stderr.
    """
    limit = make(CompareOptions, limit=limit).limit
    base = base or load_base("smollm2")
    reporter = Reporter(quiet=quiet)
    tests = {task: read_examples(task, "test")[:limit] for task in TASKS}
    with tempfile.TemporaryDirectory() as folder:
        made = {
            title: blend(
                [(adapters[task], weight) for task, weight in zip(TASKS, weights, strict=True)],
                out=Path(folder) / title.replace(" ", "-"),
                base=base,
                quiet=True,
                **options,
            )
            for title, (weights, options) in _recipes(adapters).items()
        }
        places = {
            **{f"{task} alone": adapters[task] for task in TASKS},
            **{t: m.out for t, m in made.items()},
        }
        bank = Bank(base)
        try:
            names = {title: f"s{place}" for place, title in enumerate(places)}
            for title, path in places.items():
                bank.add(names[title], path)
            mixtures = [{}, *({name: 1.0} for name in names.values())]
            shares = {task: _shares(bank, base, task, tests[task], mixtures, reporter) for task in TASKS}
        finally:
            bank.close()
    systems: dict[str, dict[str, Any]] = {}
    for place, title in enumerate(["base", *places]):
        systems[title] = {
            task: {
                "exact_match": shares[task][place],
                "interval": wilson_interval(shares[task][place], len(tests[task])),
            }
            for task in TASKS
        }
        if title in made:
            weights = [part["weight"] for part in made[title].made_from["parts"]]
            plain = all(isinstance(weight, float) for weight in weights)
            systems[title] |= {
                "weights": weights if plain else "by layer",
                "error": made[title].error["measured"],
            }
    return BlendScores(min(len(test) for test in tests.values()), systems)


def _recipes(adapters: Mapping[str, str | Path]) -> dict[str, tuple[tuple[float, float], dict[str, Any]]]:
    """Weights and options of each blend; half the rank is that of the sum of both adapters'."""
    from scumble.lora.adapter import Adapter

    half = sum(Adapter.load(adapters[task]).spec.rank for task in TASKS) // 2
    learn: dict[str, Any] = {"learn": list(TASKS), "learn_limit": 32, "learn_steps": 20}
    return {
        "exact 1, 1": ((1.0, 1.0), {}),
        "exact 0.5, 0.5": ((0.5, 0.5), {}),
        f"svd rank {half}": ((1.0, 1.0), {"method": "svd", "rank": half}),
        f"ties rank {2 * half}": ((1.0, 1.0), {"method": "ties", "rank": 2 * half}),
        "learned by layer": ((1.0, 1.0), learn),
        "learned by adapter": ((1.0, 1.0), {**learn, "learn_per": "adapter"}),
    }


def _shares(
    bank: Bank, base: Base, task: str, test: list[Example], mixtures: list[Any], reporter: Reporter
) -> list[float]:
    """The share of right answers of each mixture on one task."""
    title, function = metric_named(SHIPPED[task].metric)
    prompts = [encode_prompt(example.prompt, base.tokenizer) for example in test]
    with with_threads(threads_for(base.model).train), reporter.bar(f"answering {task}", len(test)):
        answers = generate(
            bank,
            base.tokenizer,
            prompts,
            mixtures,
            max_new_tokens=SHIPPED[task].max_new_tokens,
            batch=8,
            done=reporter.advance,
        )
    marks = [
        [mark(title, function, text, example.expected) for text in texts]
        for texts, example in zip(answers, test, strict=True)
    ]
    return [sum(column) / len(test) for column in zip(*marks, strict=True)]
