"""`Result`: the folder that a merge wrote, as files: index, shards, types, what ties its configuration asks for.

It reads headers and tensors by safetensors alone and lists every fault that it finds, where a loader would
stop at the first. Knows files, and nothing of what the tensors should hold.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scumble.errors import MissingFileError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
# What makes a tokenizer; one of the first group in the base calls for the same file in the result, or another.
TOKENIZER = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tekken.json")
BESIDE = ("tokenizer_config.json", "chat_template.jinja", "generation_config.json")
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class Stored:
    """A tensor in a file: the file's name, its type, its shape."""

    file: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """How many it takes."""
        count = self.dtype.itemsize
        for size in self.shape:
            count *= size
        return count


class Result:
    """A written model folder.

    Attributes:
        folder: where it is.
        config: what config.json says; empty where it cannot be read.
        tensors: what the files hold, by tensor name.
        files: the names of the safetensors files, sorted.
        faults: what is wrong with the files, in words.
    """

    def __init__(self, folder: Path, prefix: str) -> None:
        if not folder.is_dir():
            raise MissingFileError(f"the merged model {folder} does not exist", "name the folder it lies in")
        self.folder, self._prefix = folder, f"{prefix}."
        self.faults: list[str] = []
        self.tensors: dict[str, Stored] = {}
        self._open: dict[str, Any] = {}
        self.files = sorted(path.name for path in folder.glob("*.safetensors"))
        self.config = self._json("config.json") or {}
        for file in self.files:
            self._list(file)
        self._check_index()
        if (folder / "adapter_config.json").exists():
            self.faults.append("the folder holds an adapter too, which transformers would add once more")

    # -- reading -----------------------------------------------------------------------------------

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """(stop - start, ...), rows of a tensor; one of no dimensions is read whole."""
        stored = self.tensors[name]
        part = self._open[stored.file].get_slice(name)
        return part[start:stop]

    def read(self, name: str) -> Tensor:
        """A tensor, whole."""
        return self._open[self.tensors[name].file].get_tensor(name)

    def own(self, parameter: str) -> str | None:
        """The tensor of a parameter, by its name with or without the decoder's; None where there is none."""
        prefix = self._prefix
        other = parameter.removeprefix(prefix) if parameter.startswith(prefix) else prefix + parameter
        return next((name for name in (parameter, other) if name in self.tensors), None)

    def close(self) -> None:
        """Close the files."""
        self._open.clear()

    # -- what it is --------------------------------------------------------------------------------

    @cached_property
    def tied(self) -> bool:
        """Whether transformers ties the output layer to the embedding, by its own reading of config.json."""
        from transformers import AutoConfig

        try:
            config: Any = AutoConfig.from_pretrained(
                str(self.folder), local_files_only=True, trust_remote_code=False
            )
        except Exception:
            return bool(self.config.get("tie_word_embeddings", False))
        return bool(getattr(config, "tie_word_embeddings", False))

    @property
    def dtype(self) -> torch.dtype | None:
        """The type that config.json names; None where it names none."""
        return named_dtype(self.config)

    @property
    def bytes(self) -> int:
        """Size of the weight files."""
        return sum((self.folder / file).stat().st_size for file in self.files)

    def to_dict(self) -> dict[str, Any]:
        """Type, size, ties, and each shard with its sha256."""
        return {
            "dtype": str(self.dtype).removeprefix("torch.") if self.dtype else None,
            "bytes": self.bytes,
            "tied": self.tied,
            "tensors": len(self.tensors),
            "shards": [
                {
                    "file": file,
                    "bytes": (self.folder / file).stat().st_size,
                    "sha256": sha256_of(self.folder / file),
                }
                for file in self.files
            ],
        }

    def missing_beside(self, base: Path) -> list[str]:
        """What lies beside the base's weights and not beside the result's, in words."""
        here, there = self.folder, base
        missing = []
        words = [name for name in TOKENIZER if (there / name).is_file()]
        if words and not any((here / name).is_file() for name in TOKENIZER):
            missing.append(f"the tokenizer is left out ({words[0]})")
        for name in BESIDE:
            if not (there / name).is_file() or (here / name).is_file():
                continue
            # a template may stand in the tokenizer's configuration instead
            config = self._json("tokenizer_config.json", quiet=True) or {}
            if name != "chat_template.jinja" or not config.get("chat_template"):
                missing.append(f"{name} is left out")
        return missing

    # -- inside ------------------------------------------------------------------------------------

    def _json(self, name: str, *, quiet: bool = False) -> dict[str, Any] | None:
        try:
            found = json.loads((self.folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            if not quiet:
                self.faults.append(f"{name} cannot be read: {_line(error)}")
            return None
        return found if isinstance(found, dict) else None

    def _list(self, file: str) -> None:
        from safetensors import safe_open

        try:
            handle = self._open[file] = safe_open(self.folder / file, framework="pt")
            for name in sorted(handle.keys()):
                part = handle.get_slice(name)
                if name in self.tensors:
                    self.faults.append(f"{name} is in two shards, {self.tensors[name].file} and {file}")
                kind = _DTYPES.get(part.get_dtype())
                if kind is None:
                    self.faults.append(f"{name} is stored as {part.get_dtype()}, which no standard model has")
                    continue
                self.tensors[name] = Stored(file, kind, tuple(int(n) for n in part.get_shape()))
        except Exception as error:
            self.faults.append(f"the shard {file} cannot be read: {_line(error)}")

    def _check_index(self) -> None:
        """Hold the index against the files: every tensor once, where it says, and their sizes' sum."""
        if not (self.folder / INDEX).is_file():
            if self.files != [SINGLE]:
                held = ", ".join(self.files) or "none"
                self.faults.append(f"there is no {INDEX}, and the weight files are not one {SINGLE}: {held}")
            return
        if SINGLE in self.files:
            self.faults.append(f"there is both {SINGLE} and {INDEX}: which of them is the model?")
        index = self._json(INDEX) or {}
        named = index.get("weight_map")
        if not isinstance(named, dict):
            self.faults.append(f"{INDEX} has no weight_map")
            return
        for file, count in Counter(named.values()).items():
            lacks = [name for name, place in named.items() if place == file and not self._holds(name, file)]
            if file not in self.files:
                self.faults.append(
                    f"the index names the shard {file} with {count} tensors, which is not there"
                )
            elif lacks:
                self.faults.append(f"the shard {file} lacks {lacks[0]}, which the index names")
        unnamed = Counter(stored.file for name, stored in self.tensors.items() if name not in named)
        for file, count in sorted(unnamed.items()):
            self.faults.append(f"{count} tensors of the shard {file} are missing from the index")
        total = sum(stored.bytes for stored in self.tensors.values())
        said = (index.get("metadata") or {}).get("total_size")
        if said != total:
            self.faults.append(f"the index says total_size {said}, and the tensors take {total} bytes")

    def _holds(self, name: str, file: str) -> bool:
        return name in self.tensors and self.tensors[name].file == file


def named_dtype(config: Mapping[str, Any]) -> torch.dtype | None:
    """The type that a configuration names, None where it names none."""
    name = str(config.get("dtype") or config.get("torch_dtype") or "").removeprefix("torch.")
    kind = getattr(torch, name, None) if name else None
    return kind if isinstance(kind, torch.dtype) else None


def sha256_of(path: Path) -> str:
    """The sha256 of a file, in hexadecimal digits."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
