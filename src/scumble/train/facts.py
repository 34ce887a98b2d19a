"""What decides a run, as `run.json` holds it and as the user is told before the first step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scumble.config import TrainOptions
from scumble.data.encoding import EncodedSet
from scumble.data.examples import hash_examples
from scumble.models.base import Base
from scumble.models.threads import ThreadChoice
from scumble.progress import Reporter
from scumble.train.material import Material
from scumble.train.settings import Settings
from scumble.train.subject import Subject


def run_facts(
    options: TrainOptions,
    settings: Settings,
    base: Base,
    subject: Subject,
    parameters: int,
    material: Material,
    encoded: EncodedSet,
    validation: EncodedSet,
    threads: ThreadChoice,
) -> dict[str, Any]:
    """What decides the result, as `run.json` holds it; `parameters` are those of the base alone."""
    return {
        "options": options.model_dump(),
        "choices": [choice._asdict() for choice in settings.choices],
        "base": {
            "name": base.name,
            "hash": base.hash,
            "dtype": str(base.dtype).removeprefix("torch."),
            "device": str(base.device),
            "parameters": parameters,
            "bytes": base.bytes_on_disk,
        },
        "data": {
            "source": material.source,
            "hash": hash_examples(material.train),
            "examples": len(encoded.examples),
            "tokens": encoded.tokens,
            "targets": encoded.targets,
            "too_long": encoded.too_long,
        },
        "validation": {
            "source": material.validation_source,
            "hash": hash_examples(material.validation),
            "examples": len(validation.examples),
            "too_long": validation.too_long,
        }
        if material.validation
        else None,
        subject.title: subject.facts(),
        "training": settings.to_dict() | {"threads": {"train": threads.train, "decode": threads.decode}},
    }


def announce(reporter: Reporter, facts: Mapping[str, Any]) -> None:
    """Tell the user what will be trained on what, and what was decided for them, with the reason."""
    data, base, adapter = facts["data"], facts["base"], facts.get("adapter")
    what = (
        f"adapter of rank {adapter['rank']} on {adapter['modules']} modules: "
        f"{adapter['parameters']:,} trainable, {adapter['percent']:.4f} %"
        if adapter
        else f"all {facts['model']['parameters']:,} trainable"
    )
    reporter.note(
        f"base {base['name']} ({base['parameters']:,} parameters, {base['dtype']} on {base['device']}); {what}"
    )
    reporter.note(
        f"data {data['source']}: {data['examples']} examples, {data['tokens']:,} tokens, {data['targets']:,} of them with a loss"
    )
    for choice in facts["choices"]:
        reporter.note(f"{choice['option']} = {choice['value']}: {choice['reason']}")
