"""`adapter_model.safetensors`, from a stranger: everything about it is checked before a tensor is read.

    8 bytes: length n of the header | n bytes: JSON, from name to {dtype, shape, data_offsets} | data

The library checks that the offsets cover the data without a gap or an overlap, and that each tensor has the bytes
of its shape. What it lets pass is checked here: a name given twice, types and shapes that no adapter has, names
without end, and what is no file at all. Knows the format, and nothing of what the tensors are.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scumble.errors import AdapterError, MissingFileError, clipped, shown
from scumble.files import open_regular

MAX_HEADER = 16 * 2**20  # bytes; 100,000 tensors have about 13 million
MAX_TENSORS = 100_000
MAX_NAME = 500  # characters of a tensor's name
MAX_DIMENSIONS = 8
_TYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_DAMAGED = "the file is damaged; fetch it again"


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file: its tensors by name, and its metadata.

    Raises:
        MissingFileError: it is not there.
        AdapterError: it is no regular file, is damaged, or holds what no adapter does.
    """
    from safetensors import SafetensorError, safe_open

    length, listed, size = _header(path)
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.offset_keys())
            forms = _check_entries(path, file, names, listed, size - 8 - length)
            metadata = file.metadata() or {}
        return _read_data(path, 8 + length, forms), metadata
    except AdapterError:
        raise
    except (SafetensorError, OSError, ValueError, TypeError, OverflowError, RuntimeError) as error:
        raise AdapterError(f"{path} cannot be read: {clipped(error, 200)}", _DAMAGED) from error


def tensors_as_bytes(tensors: dict[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """A safetensors file that is the same for the same contents: the library writes metadata in any order."""
    from safetensors.torch import save

    data = save(tensors, metadata=dict(metadata))
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    text = json.dumps({"__metadata__": dict(sorted(metadata.items())), **header}, separators=(",", ":"))
    padded = text.encode() + b" " * (-len(text.encode()) % 8)
    return len(padded).to_bytes(8, "little") + padded + data[8 + length :]


def _header(path: Path) -> tuple[int, int, int]:
    """The header's length, how many tensors it describes, and the size of the file; bounded before it is read."""
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8) or b"", "little")
            if size < 8 or length > min(size - 8, MAX_HEADER):
                raise AdapterError(
                    f"{path} cannot be read: its header should have {length:,} bytes, of a file with {size:,} "
                    f"(at most {MAX_HEADER:,} are read)",
                    _DAMAGED,
                )
            # the key stands once for each tensor, and no other text can hold it with its quotes unescaped, so
            # that a name given twice, of which the library keeps the last, leaves a count too high
            return length, (file.read(length) or b"").count(b'"data_offsets"'), size
    except FileNotFoundError as error:
        raise MissingFileError(f"{path} does not exist", "the adapter was not written whole") from error
    except OSError as error:
        if isinstance(error, MissingFileError):
            raise
        raise AdapterError(f"{path} cannot be read: {error.strerror}", _DAMAGED) from error


def _check_entries(
    path: Path, file: Any, names: list[str], listed: int, size: int
) -> dict[str, tuple[torch.dtype, list[int]]]:
    """Hold every entry of the header against what an adapter can have; `size` is that of the data.

    Returns:
        Type and shape of each tensor.
    """
    forms = {}
    if listed != len(names):
        raise AdapterError(f"{path} describes {listed} tensors, of which {len(names)} differ", _DAMAGED)
    if len(names) > MAX_TENSORS:
        raise AdapterError(
            f"{path} has {len(names):,} tensors, more than {MAX_TENSORS:,}", "no adapter has as many"
        )
    total = 0
    for name in names:
        if not name or len(name) > MAX_NAME or not name.isprintable():
            raise AdapterError(f"{path}: {shown(name)} is no name of a tensor", _DAMAGED)
        entry = file.get_slice(name)
        kind, shape = str(entry.get_dtype()), list(entry.get_shape())
        if kind not in _TYPES:
            raise AdapterError(
                f"{path}: {shown(name)} has values of the type {clipped(kind, 20)}, which is not read",
                f"save it in one of {', '.join(_TYPES)}",
            )
        if len(shape) > MAX_DIMENSIONS or 0 in shape:
            text = clipped(tuple(shape[: MAX_DIMENSIONS + 1]), 120)
            raise AdapterError(f"{path}: {shown(name)} has the shape {text}", _DAMAGED)
        forms[name] = _TYPES[kind], shape
        total += math.prod(shape) * _TYPES[kind].itemsize
    if total != size:
        raise AdapterError(f"{path} holds {size:,} bytes of data for tensors of {total:,}", _DAMAGED)
    return forms


def _read_data(
    path: Path, start: int, forms: Mapping[str, tuple[torch.dtype, list[int]]]
) -> dict[str, Tensor]:
    """Read tensors that stand one after another from `start` on, each into memory of its own.

    Not by the library's `get_tensor`, which in 0.8 leaves 64 bytes behind for each tensor, so that a server that
    loads and unloads adapters would grow; and not through a map of the file, where a file that is cut short
    meanwhile kills the process.
    """
    found = {}
    with open_regular(path) as file:
        file.seek(start)
        for name, (kind, shape) in forms.items():
            data = torch.empty(math.prod(shape) * kind.itemsize, dtype=torch.uint8)
            if file.readinto(data.numpy()) != len(data):  # type: ignore[attr-defined]
                raise AdapterError(f"{path} ends within {shown(name)}", _DAMAGED)
            found[name] = data.view(kind).view(shape)
    return found
