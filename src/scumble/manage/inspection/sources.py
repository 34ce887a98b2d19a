"""What an inspection reads: adapters, also those with values that are not finite, and a base's weights.

A base is read row by row from where it lies on this machine, and never fetched. Knows files and nothing of
what is computed from them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from scumble.errors import AdapterError, ScumbleError
from scumble.lora.adapter import (
    CONFIG_NAME,
    PREFIX,
    WEIGHTS_NAME,
    Adapter,
    find_adapter,
    from_tensors,
    read_config,
)
from scumble.lora.diagnostics import Weights
from scumble.lora.patterns import bounded_matching
from scumble.lora.spec import LoraSpec
from scumble.lora.tensors_file import read_tensors
from scumble.models import embedded
from scumble.models.base import Base
from scumble.models.checkpoint import open_checkpoint
from scumble.models.resolve import EMBEDDED_NAME, is_embedded, resolve


@dataclass(frozen=True)
class Opened:
    """An adapter and where it was read from.

    Attributes:
        name: what it is called beside others: its folder's name, or that of its run.
        folder: its own folder.
        adapter: with zeros in place of values that are not finite.
        not_finite: from a tensor's name to how many of its values are not finite.
    """

    name: str
    folder: Path
    adapter: Adapter
    not_finite: Mapping[str, int]

    @property
    def broken(self) -> dict[str, str]:
        """From the path of a module whose factors are not finite to what is wrong with them."""
        found: dict[str, list[str]] = {}
        for name, count in self.not_finite.items():
            path = name.removeprefix(PREFIX)
            owner = next((p for p in self.adapter.factors if path.startswith(p + ".")), path)
            part = path.removeprefix(owner + ".")
            found.setdefault(owner, []).append(f"{part} holds {count:,} values that are NaN or infinite")
        return {owner: "; ".join(parts) for owner, parts in found.items()}

    @property
    def base(self) -> str:
        """The name of its base as it is compared with others; empty where the adapter names none."""
        return canonical(self.adapter.spec.base_name or "")


@dataclass(frozen=True)
class LoadedWeights:
    """The weights of a model in memory, as `Weights`."""

    modules: Mapping[str, nn.Module]

    def shape_of(self, path: str) -> tuple[int, int]:
        """(out, in)."""
        rows, columns = self._matrix(path).shape
        return int(rows), int(columns)

    def matrix_rows(self, path: str, start: int, stop: int) -> Tensor:
        """(stop - start, in)."""
        return self._matrix(path)[start:stop].detach().cpu()

    def _matrix(self, path: str) -> Tensor:
        weight = cast(Tensor, self.modules[path].weight)
        return weight.T if isinstance(self.modules[path], nn.Embedding | Conv1D) else weight


def open_adapters(given: Sequence[Any]) -> list[Opened]:
    """Read adapters: folders of adapters or runs, or `Run`s.

    Raises:
        ScumbleError: one cannot be read, with its name; values that are not finite are no reason.
    """
    folders = [find_adapter(getattr(each, "adapter", None) or each) for each in given]
    titles = [_title(folder) for folder in folders]
    opened = []
    for number, (folder, title) in enumerate(zip(folders, titles, strict=True)):
        again = titles[:number].count(title)
        adapter, not_finite = read_adapter(folder)
        opened.append(Opened(f"{title} ({again + 1})" if again else title, folder, adapter, not_finite))
    return opened


def read_adapter(folder: Path) -> tuple[Adapter, dict[str, int]]:
    """An adapter, and which of its tensors hold how many values that are not finite; those are zero in it.

    Raises:
        ScumbleError: it cannot be read for any other reason.
    """
    try:
        return Adapter.load(folder), {}
    except AdapterError as error:
        if "not finite" not in error.message:
            raise
    with bounded_matching():
        spec = LoraSpec.from_peft(read_config(folder / CONFIG_NAME))
        tensors, metadata = read_tensors(folder / WEIGHTS_NAME)
        odd = {name: int((~torch.isfinite(t)).sum()) for name, t in tensors.items() if t.is_floating_point()}
        clean = {name: t.nan_to_num(0.0, 0.0, 0.0) if odd.get(name) else t for name, t in tensors.items()}
        adapter = from_tensors(spec, clean, where=str(folder))
    told = metadata.get("base_hash", "")
    adapter.base_hash = told if re.fullmatch(r"[0-9a-f]{32}", told) else None
    return adapter, {name: count for name, count in odd.items() if count}


def _title(folder: Path) -> str:
    """What an adapter is called: its folder's name as it was given, or that of the run which holds it."""
    whole = Path(os.path.abspath(folder))  # a link keeps its own name
    return whole.parent.name if whole.name == "adapter" else whole.name


def canonical(name: str) -> str:
    """A base's name by which it is compared: the embedded default has two."""
    return EMBEDDED_NAME if is_embedded(name) else name.strip()


@contextmanager
def base_weights(base: Base | str) -> Iterator[tuple[Weights | None, str | None, str]]:
    """A base's weights where they are on this machine, for the body of a `with`.

    Yields:
        The weights, or None; the base's hash in fp32, where it is known without reading all; and why there
        are no weights, or empty.
    """
    if isinstance(base, Base):
        yield LoadedWeights(dict(base.model.named_modules())), base.hash, ""
        return
    try:
        place, known = _place_of(base)
        checkpoint = open_checkpoint(place) if place else None
    except ScumbleError as error:
        yield None, None, f"no relative norms: {error.message}"
        return
    if checkpoint is None:
        yield (
            None,
            None,
            f"no relative norms: the base {base} is not on this machine, and is not fetched for them",
        )
        return
    with checkpoint:
        yield checkpoint, known, ""


def _place_of(name: str) -> tuple[str | None, str | None]:
    """The folder, file or alias that a base is read from without a network, and its hash where that is at hand."""
    source = resolve(name)
    if source.kind == "embedded":
        return source.name, embedded.ensure().weights_hash
    if source.path is not None:
        return str(source.path), None
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(name, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError, OSError):
        return None, None
    # a configuration alone may be in the cache; weights of another format are not read
    return (str(folder) if any(folder.glob("*.safetensors")) else None), None
