"""What all trials of a sweep share, made once: the base, the examples, and those that the metric is taken over.

What is wrong with any of them, or with a trial's options, is found here, before there is a folder.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from scumble.compare.exact import exact_by_forward
from scumble.compare.generation import generate
from scumble.compare.metrics import mark, metric_named
from scumble.config import Choice, TrainOptions, make
from scumble.data.encoding import Encoded, encode_each, encode_prompt
from scumble.data.examples import Example, hash_examples, read_examples
from scumble.data.shipped import SHIPPED
from scumble.data.sources import parts_of
from scumble.errors import ConfigError
from scumble.lora.bank import Bank
from scumble.lora.fit import reached
from scumble.models.base import Base
from scumble.progress import Reporter
from scumble.train.material import Material, encode_material, read_material, tokenizer_for
from scumble.train.opening import open_base, shape_of
from scumble.train.optimizer import make_optimizer
from scumble.train.settings import Settings, settle
from scumble.train.sweep.asked import Asked
from scumble.train.sweep.space import Combination, options_of
from scumble.train.sweep.trials import SweepTrial
from scumble.train.trackers import check_tracker

_MOST_TOKENS = 256  # of an answer, where the data set does not say


@dataclass(frozen=True)
class Scoring:
    """What the metric is taken over.

    Attributes:
        name: of the metric.
        decides: on the best trial.
        part: of the data that the examples are of.
        examples: at least one.
        encoded: the same as tokens, with their last answers supervised.
    """

    name: str
    decides: bool
    part: str
    examples: list[Example]
    encoded: list[Encoded]

    def to_dict(self) -> dict[str, Any]:
        """What `sweep.json` holds of it."""
        return {
            "name": self.name,
            "decides": self.decides,
            "part": self.part,
            "examples": len(self.examples),
            "hash": hash_examples(self.examples),
        }


@dataclass(frozen=True)
class SweepGround:
    """What all trials share."""

    base: Base
    tokenizer: Any
    material: Material
    count: int
    scoring: Scoring | None
    max_new_tokens: int

    @classmethod
    def of(cls, data: Any, asked: Asked, base: Base | None, reporter: Reporter) -> SweepGround:
        """Read the data and load the base, where it is not given.

        Raises:
            ScumbleError: one of them cannot be had, or is not what can be trained on.
        """
        first = {name: values[0] for name, values in asked.space.axes.items() if isinstance(values, tuple)}
        options = make(TrainOptions, **options_of(first, asked.space.fixed))
        shape = shape_of(options, None, None)
        check_tracker(options.track)
        material = read_material(data, options)
        opened = open_base(base, shape, None)
        train, _ = encode_material(material, opened, options, reporter)
        tokenizer = tokenizer_for(opened, options)
        scoring = _scoring(data, asked, material, tokenizer, options)
        shipped = SHIPPED.get(material.source)
        most = shipped.max_new_tokens if shipped else _MOST_TOKENS
        return cls(opened, tokenizer, material, len(train.examples), scoring, most)

    def settled(self, combinations: Sequence[Combination], asked: Asked) -> list[Settings]:
        """What a run of each setting does; all of them can be trained.

        Raises:
            ScumbleError: one of them cannot.
        """
        found = []
        model: Any = self.base.model
        with closing(Bank(self.base)) as bank:
            for combination in combinations:
                options = make(TrainOptions, **options_of(combination, asked.space.fixed))
                spec = shape_of(options, None, None).spec
                assert spec is not None  # no other method is swept
                reached(spec, bank.modules, model.get_output_embeddings())
                settings = settle(options, self.count, model.config)
                bank.trainable("trial", spec, seed=0)
                make_optimizer(bank.parameters("trial"), settings)  # what it refuses, it refuses now
                bank.remove("trial")
                found.append(settings)
        return found

    def choices(self, trial: SweepTrial) -> tuple[Choice, ...]:
        """What is decided for the user in a trial, and why."""
        return settle(make(TrainOptions, **trial.options), self.count, self.base.model.config).choices

    def facts(self) -> dict[str, Any]:
        """What `sweep.json` holds of it."""
        material = self.material
        return {
            "base": {"name": self.base.name, "hash": self.base.hash},
            "data": {"source": material.source, "hash": hash_examples(material.train)},
            "validation": {"source": material.validation_source, "hash": hash_examples(material.validation)},
            "metric": self.scoring and self.scoring.to_dict(),
        }

    def marks(self, bank: Bank, name: str, done: Callable[[int], None] = lambda count: None) -> list[float]:
        """The metric of each of the examples, answered with an adapter of the bank."""
        scoring = self.scoring
        assert scoring is not None
        if scoring.name == "exact_match":
            with bank.using(name):
                return [float(right) for right in exact_by_forward(bank.model, scoring.encoded, done=done)]
        title, function = metric_named(scoring.name)
        prompts = [encode_prompt(each.prompt, self.tokenizer, tools=each.tools) for each in scoring.examples]
        answers = generate(
            bank, self.tokenizer, prompts, [{name: 1.0}], max_new_tokens=self.max_new_tokens, done=done
        )
        pairs = zip(answers, scoring.examples, strict=True)
        return [mark(title, function, texts[0], example.expected) for texts, example in pairs]


def _scoring(
    data: Any, asked: Asked, material: Material, tokenizer: Any, options: TrainOptions
) -> Scoring | None:
    """The first examples of the test part; of the validation part where there is no other, or where they decide.

    What decides is chosen by, so that the test part would be no test any more.
    """
    name, decides = asked.metric(material.source)
    if name is None:
        return None
    part = "test" if not decides and "test" in parts_of(data) else "validation"
    found = read_examples(data, "test", format=options.format) if part == "test" else material.validation
    examples = [example for example in found if example.text is None][: asked.options.score]
    if not examples:
        raise ConfigError(
            f"the metric {name} needs examples with an answer", "leave the metric out, or say --score 0"
        )
    encoded = list(encode_each(examples, tokenizer, train_on="last"))
    return Scoring(name, decides, part, examples, encoded)
