"""What decides a run, as `run.json` holds it and as the user is told before the first step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scumble.config import TrainOptions
from scumble.data.encoding import EncodedSet
from scumble.data.examples import hash_examples
from scumble.lora.bank import Bank
from scumble.models.base import Base
from scumble.models.threads import ThreadChoice
from scumble.progress import Reporter
from scumble.train.material import Material
from scumble.train.settings import Settings


def run_facts(
    options: TrainOptions,
    settings: Settings,
    base: Base,
    bank: Bank,
    material: Material,
    encoded: EncodedSet,
    validation: EncodedSet,
    threads: ThreadChoice,
) -> dict[str, Any]:
    """What decides the result, as `run.json` holds it."""
    adapter = bank.adapter(bank.names[0])
    total = sum(parameter.numel() for parameter in base.model.parameters()) - adapter.parameters
    spec = adapter.spec
    return {
        "options": options.model_dump(),
        "choices": [choice._asdict() for choice in settings.choices],
        "base": {
            "name": base.name,
            "hash": base.hash,
            "dtype": str(base.dtype).removeprefix("torch."),
            "device": str(base.device),
            "parameters": total,
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
        "adapter": {
            "rank": spec.rank,
            "alpha": spec.alpha,
            "targets": spec.targets if isinstance(spec.targets, str) else list(spec.targets),
            "modules": len(adapter.factors),
            "parameters": adapter.parameters,
            "bytes": 4 * adapter.parameters,
            "percent": 100 * adapter.parameters / (total + adapter.parameters),
        },
        "training": settings.to_dict() | {"threads": {"train": threads.train, "decode": threads.decode}},
    }


def announce(reporter: Reporter, facts: Mapping[str, Any]) -> None:
    """Tell the user what will be trained on what, and what was decided for them, with the reason."""
    adapter, data, base = facts["adapter"], facts["data"], facts["base"]
    reporter.note(
        f"base {base['name']} ({base['parameters']:,} parameters, {base['dtype']} on {base['device']}); "
        f"adapter of rank {adapter['rank']} on {adapter['modules']} modules: "
        f"{adapter['parameters']:,} trainable, {adapter['percent']:.4f} %"
    )
    reporter.note(
        f"data {data['source']}: {data['examples']} examples, {data['tokens']:,} tokens, {data['targets']:,} of them with a loss"
    )
    for choice in facts["choices"]:
        reporter.note(f"{choice['option']} = {choice['value']}: {choice['reason']}")
