"""The table of published architectures, found by hub name where no configuration is at hand.

Each entry has what of a config.json decides on the model's shape, the parameters that its makers publish, and where
both come from. Names that share a shape (base and instruct, versions) share an entry, with what differs beside each.
The numbers are in `published/*.json`; all sizes but those of Mistral Nemo and SmolLM3 were compared with the table in
litgpt's `config.py` too. Knows nothing of modules.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any


@dataclass(frozen=True)
class Published:
    """One published model.

    Attributes:
        name: its hub name, as its makers spell it.
        config: the fields of its config.json that decide on its shape.
        parameters: how many its makers publish, less `besides`.
        published: the published number.
        besides: what that number counts besides the model's parameters, each tied one once.
        counted: where that number is published.
        source: where the configuration is.
    """

    name: str
    config: dict[str, Any]
    published: int
    besides: Mapping[str, int]
    counted: str
    source: str

    @property
    def parameters(self) -> int:
        """The parameters of the model itself, each tied one once."""
        return self.published - sum(self.besides.values())


def find_published(name: str) -> Published | None:
    """The published model of a hub name, in any case; None where the table has none."""
    return _table().get(name.strip().casefold())


def published_models() -> list[Published]:
    """All published models, in the table's order."""
    return list(_table().values())


@cache
def _table() -> dict[str, Published]:
    folder = resources.files("scumble.plan") / "published"
    found: dict[str, Published] = {}
    for file in sorted(folder.iterdir(), key=lambda each: each.name):
        if file.name.endswith(".json"):
            for entry in json.loads(file.read_text(encoding="utf-8")):
                found |= {model.name.casefold(): model for model in _models(entry)}
    return found


def _models(entry: Mapping[str, Any]) -> list[Published]:
    same = {key: entry[key] for key in ("published", "counted", "source")}
    return [
        Published(name, {**entry["config"], **differs}, besides=entry.get("besides", {}), **same)
        for name, differs in entry["names"].items()
    ]
