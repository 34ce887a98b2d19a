"""The machine's report: versions, devices, threads, the cache, and the default base.

Builds and loads nothing: the embedded base is only looked up. Knows nothing of how the report is shown.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from scumble.errors import MissingExtraError
from scumble.models import embedded
from scumble.models.cache import cache_dir
from scumble.models.resolve import EMBEDDED_NAME, default_base
from scumble.models.threads import ThreadChoice, available_cores, cpu_name, forget, threads_for_shapes

_PACKAGES = (
    "scumble",
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "safetensors",
    "tokenizers",
    "datasets",
    "gguf",
    "numpy",
    "huggingface_hub",
    embedded.PACKAGE,
    "bitsandbytes",
    "torchao",
    "fastapi",
    "gradio",
    "ray",
    "trl",
)
# The linear layers of SmolLM2 135M, so that threads can be measured without its weights: (out, in).
_LAYER = [(576, 576), (192, 576), (192, 576), (576, 576), (1536, 576), (1536, 576), (576, 1536)]
SMOLLM2_SHAPES = sorted(_LAYER * 30)
SMOLLM2_HEAD = (49_152, 576)


@dataclass(frozen=True)
class Diagnosis:
    """What `scumble doctor` shows.

    Attributes:
        python: version of the interpreter.
        platform: the system, as Python names it.
        versions: of the packages that matter; None for one that is not installed.
        processor: name, cores that may be used, and memory in bytes.
        devices: each with `name` and `kind`, a GPU also with `memory` in bytes.
        threads: how many threads each phase uses with the embedded base, and what was measured.
        cache: its `path`, `bytes` used and `free`, and whether it is `writable`.
        embedded: the embedded base: `name`, `path`, `ready`, `hash`, `bytes`, `source`, `source_bytes`, `problem`.
        default_base: the base that is used where none is named.
    """

    python: str
    platform: str
    versions: dict[str, str | None]
    processor: dict[str, Any]
    devices: list[dict[str, Any]]
    threads: ThreadChoice
    cache: dict[str, Any]
    embedded: dict[str, Any]
    default_base: str

    def to_dict(self) -> dict[str, Any]:
        """Give the report as JSON can hold it."""
        return asdict(self) | {"threads": self.threads.to_dict()}


def diagnose(*, measure: bool = False) -> Diagnosis:
    """Look at this machine. Takes about a second where its threads were not measured before.

    Args:
        measure: measure the threads anew.

    Raises:
        ConfigError: `SCUMBLE_THREADS` cannot be read.
    """
    if measure:
        forget()
    return Diagnosis(
        python=sys.version.split()[0],
        platform=platform.platform(),
        versions={name: _version(name) for name in _PACKAGES},
        processor={"name": cpu_name(), "cores": available_cores(), "memory": _memory()},
        devices=_devices(),
        threads=threads_for_shapes(SMOLLM2_SHAPES, sorted([*SMOLLM2_SHAPES, SMOLLM2_HEAD])),
        cache=_cache(),
        embedded=_embedded(),
        default_base=default_base(),
    )


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


def _devices() -> list[dict[str, Any]]:
    devices: list[dict[str, Any]] = [{"kind": "cpu", "name": cpu_name()}]
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        devices.append({"kind": f"cuda:{index}", "name": facts.name, "memory": facts.total_memory})
    if torch.backends.mps.is_available():
        devices.append({"kind": "mps", "name": "Apple GPU"})
    return devices


def _cache() -> dict[str, Any]:
    folder = cache_dir()
    used = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) if folder.is_dir() else 0
    # A cache that is not there yet will be made in the nearest folder that is.
    near = next(parent for parent in (folder, *folder.parents) if parent.is_dir())
    return {
        "path": str(folder),
        "bytes": used,
        "free": shutil.disk_usage(near).free,
        "writable": os.access(near, os.W_OK),
    }


def _embedded() -> dict[str, Any]:
    copy = embedded.present()
    source: Path | None = None
    problem = ""
    try:
        source = embedded.find_gguf()
    except MissingExtraError as error:
        problem = "" if copy else str(error)
    return {
        "name": EMBEDDED_NAME,
        "path": str(embedded.copy_folder()),
        "ready": copy is not None,
        "hash": copy.weights_hash if copy else None,
        "bytes": copy.weight_bytes if copy else None,
        "source": str(source) if source else None,
        "source_bytes": source.stat().st_size if source else copy.source_bytes if copy else None,
        "problem": problem,
    }
