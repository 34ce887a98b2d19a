"""`WholeModel`: all weights of a base in training, and what comes of it as a model folder.

Tied weights stay one parameter, and are written once. Knows a base and its tokenizer; nothing of data, of optimizers, or
of how a run is written down.
"""

from __future__ import annotations

import shutil
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file
from torch import nn

from scumble.errors import ConfigError
from scumble.files import new_folder
from scumble.lora.dropout import TokenMarks
from scumble.models.base import Base
from scumble.models.weights import quiet
from scumble.progress import Reporter
from scumble.train.memory import free_bytes
from scumble.train.subject import Figures

# of a run's folder, in copies of the weights: two states of weights and both moments, and a third while it is written;
# the best checkpoint and the last one, which the result is linked to
DISK_COPIES = 3 * 3 + 3
MEMORY_COPIES = 4  # weights, gradients, both moments


class WholeModel:
    """All weights of a base.

    Args:
        base: whose weights are changed in place until `close`.
        tokenizer: written beside them, with the template that was trained with.
        keep: keep a copy of the weights, and put them back in `close`: the base is the caller's.

    Raises:
        ConfigError: its weights are of a type that cannot be trained.
    """

    title = "model"
    weights_name = "model.safetensors"

    def __init__(self, base: Base, tokenizer: Any, *, keep: bool) -> None:
        odd = {p.dtype for p in base.model.parameters()} - {torch.float32, torch.float64, torch.bfloat16}
        if odd:
            kind = str(odd.pop()).removeprefix("torch.")
            raise ConfigError(
                f"weights of type {kind} are not trained with --method full", "use --dtype fp32 or bf16"
            )
        self._model: Any = base.model
        self.tokenizer = tokenizer
        named = self.parameters()
        self._before = {name: p.detach().to("cpu", copy=True) for name, p in named.items()} if keep else None
        self._model.requires_grad_(True)

    @property
    def model(self) -> nn.Module:
        """The base's own model."""
        return cast(nn.Module, self._model)

    @property
    def drops(self) -> bool:
        """Nothing is dropped: the model stays in evaluation mode."""
        return False

    @property
    def bare(self) -> bool:
        """Nobody asks: there is one alone on its base."""
        return False

    @property
    def depth(self) -> int:
        """All layers are trained."""
        return 0

    def parameters(self) -> dict[str, nn.Parameter]:
        """All parameters by name; one that stands in two places is there once."""
        return dict(self._model.named_parameters())

    def using(self) -> AbstractContextManager[object]:
        """The model always computes with them."""
        return nullcontext()

    def mark(self, marks: TokenMarks | None) -> None:
        """Nothing is dropped."""

    def sound(self) -> bool:
        """Whether all numbers are finite."""
        return all(bool(torch.isfinite(p).all()) for p in self._model.parameters())

    def facts(self) -> Figures:
        """What `run.json` holds of it."""
        count = sum(p.numel() for p in self._model.parameters())
        return {"parameters": count, "bytes": self._bytes(), "percent": 100.0}

    def save(self, folder: Path) -> Path:
        """Write a model folder of transformers, with the tokenizer and its template."""
        with new_folder(folder) as temporary, quiet():
            self._model.save_pretrained(temporary, max_shard_size="100TB")
            self.tokenizer.save_pretrained(temporary)
        return folder

    def load(self, folder: Path) -> None:
        """Take the weights of a folder that `save` wrote."""
        tensors = load_file(folder / self.weights_name)
        with torch.no_grad():
            for name, parameter in self.parameters().items():
                parameter.copy_(tensors[name])

    def copy(self, source: Path, goal: Path) -> None:
        """The same folder again, in which the weights take no room of their own where the disk can do that."""
        for path in source.iterdir():
            try:
                (goal / path.name).hardlink_to(path)
            except OSError:
                shutil.copy2(path, goal / path.name)

    def announce(self, reporter: Reporter, folder: Path) -> None:
        """Say what memory and disk this takes, and warn where there is not so much."""
        size = self._bytes()
        memory, disk = (MEMORY_COPIES - 1) * size, DISK_COPIES * size
        reporter.note(
            f"all weights are trained: {_gb(MEMORY_COPIES * size)} of memory for weights, gradients and AdamW's "
            f"moments, besides activations; up to {_gb(disk)} of disk while training, {_gb(2 * size)} afterwards"
        )
        device = next(self._model.parameters()).device
        holder = next(path for path in Path(folder).absolute().parents if path.exists())
        for what, needed, free in (
            ("memory", memory, free_bytes(device)),
            ("disk", disk, shutil.disk_usage(holder).free),
        ):
            if free is not None and free < needed:
                reporter.warn(f"{_gb(free)} of {what} are free, and {_gb(needed)} more will be needed")
        if any(p.dtype == torch.bfloat16 for p in self._model.parameters()):
            reporter.warn(
                "weights in bf16 have 8 bits: steps below a 256th of a weight are lost; --dtype fp32 keeps them"
            )

    def close(self) -> None:
        """Put the base back: frozen, and where it was kept, with the weights that it had."""
        self._model.requires_grad_(False)
        for parameter in self._model.parameters():
            parameter.grad = None
        if self._before is not None:
            with torch.no_grad():
                for name, parameter in self.parameters().items():
                    parameter.copy_(self._before[name])

    def _bytes(self) -> int:
        return sum(p.numel() * p.element_size() for p in self._model.parameters())


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 5e7 else f"{size / 1e6:.1f} MB"
