"""What is trained: the loop and the record know a `Subject` only, and not whether it is an adapter or a model.

Knows a bank and its slots; nothing of data, of optimizers, or of how a run is written down.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from scumble.errors import AdapterError
from scumble.lora.bank import Bank
from scumble.lora.dropout import TokenMarks
from scumble.models.checkpointing import layers_of
from scumble.progress import Reporter

Figures = dict[str, Any]


class Subject(Protocol):
    """What is trained.

    Attributes:
        title: what it is called, in `run.json`, in messages and as a folder of the run: `adapter` or `model`.
        weights_name: the file of a saved folder that holds its numbers.
    """

    title: str
    weights_name: str

    @property
    def model(self) -> nn.Module:
        """The causal model to compute with, within `using`."""

    @property
    def drops(self) -> bool:
        """Whether it has dropout, whose masks differ from example to example."""

    @property
    def depth(self) -> int:
        """The number of the first of the model's layers that it changes anything in."""

    @property
    def bare(self) -> bool:
        """Whether it computes what the base does, to the last bit."""

    def parameters(self) -> dict[str, nn.Parameter]:
        """What an optimizer takes, by name, always in the same order."""

    def using(self) -> AbstractContextManager[object]:
        """Forward passes within the body of a `with` are made with what is trained."""

    def mark(self, marks: TokenMarks | None) -> None:
        """Say which token of which example stands where in the next batch, for dropout; None: drop nothing."""

    def sound(self) -> bool:
        """Whether it can be kept: its numbers are finite, and within what may be loaded again."""

    def facts(self) -> Figures:
        """What `run.json` holds of it under its title; with `parameters`, `bytes` and `percent` of all that there are."""

    def save(self, folder: Path) -> Path:
        """Write it as it is now into a new folder that other programs can load."""

    def load(self, folder: Path) -> None:
        """Become what `save` wrote into a folder; for answering, not to train on from."""

    def copy(self, source: Path, goal: Path) -> None:
        """Put what `save` wrote into a folder into another one, which is empty."""

    def announce(self, reporter: Reporter, folder: Path) -> None:
        """Say what is trained and what it takes, before the run in `folder` begins."""

    def close(self) -> None:
        """Give the base back as it was."""


class AdapterSubject:
    """One trainable slot of a bank.

    Args:
        bank: which is closed with it.
        name: of the slot.
        keep: close the slot only: the bank is for others too.
    """

    title = "adapter"
    weights_name = "adapter_model.safetensors"

    def __init__(self, bank: Bank, name: str, *, keep: bool = False) -> None:
        self.bank, self.name, self.keep = bank, name, keep

    @property
    def model(self) -> nn.Module:
        """The bank's model."""
        return self.bank.model

    @property
    def drops(self) -> bool:
        """Whether the adapter's options ask for dropout."""
        return self.bank.adapter(self.name).spec.dropout > 0

    @property
    def plain(self) -> bool:
        """Whether it is A and B alone, so that other adapters' rows can be computed beside its own."""
        return self.bank.plain(self.name)

    @property
    def bare(self) -> bool:
        """Whether it is A and B alone, and every update is still zero."""
        if not self.plain:
            return False
        second = [
            p for name, p in self.parameters().items() if ".lora_B." in name or ".lora_embedding_A" in name
        ]
        return all(not bool(tensor.any()) for tensor in second)

    @property
    def depth(self) -> int:
        """The number of the first layer that the slot reaches; 0 where it also reaches what lies before them."""
        layers = {id(layer): number for number, layer in enumerate(layers_of(self.model))}
        inside = {
            path: layers[id(module)] for path, module in self.bank.modules.items() if id(module) in layers
        }
        found = [_layer_of(path, inside) for path in self.bank.reached(self.name)]
        return min(found, default=0)

    def parameters(self) -> dict[str, nn.Parameter]:
        """The slot's parameters by the name that PEFT gives each, sorted."""
        return self.bank.parameters(self.name)

    def using(self) -> AbstractContextManager[object]:
        """Every row of a batch is computed with the slot."""
        return self.bank.using(self.name)

    def mark(self, marks: TokenMarks | None) -> None:
        """Hand the marks to the bank's layers, whose masks they decide."""
        self.bank.routing.marks = marks

    def sound(self) -> bool:
        """Whether what would be written could be loaded."""
        try:
            self.bank.snapshot(self.name)
        except AdapterError:
            return False
        return True

    def facts(self) -> Figures:
        """Its shape and size."""
        adapter = self.bank.adapter(self.name)
        spec, total = adapter.spec, self.bank.base_parameters + adapter.parameters
        return {
            "rank": spec.rank,
            "alpha": spec.alpha,
            "targets": spec.targets if isinstance(spec.targets, str) else list(spec.targets),
            "modules": len(adapter.factors),
            "parameters": adapter.parameters,
            "bytes": 4 * adapter.parameters,
            "percent": 100 * adapter.parameters / total,
        }

    def save(self, folder: Path) -> Path:
        """Write the adapter in the PEFT format."""
        return self.bank.save(self.name, folder)

    def load(self, folder: Path) -> None:
        """Give the slot the contents of an adapter folder."""
        self.bank.swap(self.name, folder)

    def copy(self, source: Path, goal: Path) -> None:
        """The same files again."""
        shutil.copytree(source, goal, dirs_exist_ok=True)

    def announce(self, reporter: Reporter, folder: Path) -> None:
        """Its size in memory is not worth a word."""

    def close(self) -> None:
        """Close the bank, or take the slot out of it."""
        if self.keep:
            self.bank.remove(self.name)
        else:
            self.bank.close()


def _layer_of(path: str, layers: Mapping[str, int]) -> int:
    """The number of the layer that a module lies in; 0 where it lies in none, and may come before them."""
    parts = path.split(".")
    return next((layers[p] for n in range(len(parts)) if (p := ".".join(parts[: n + 1])) in layers), 0)
