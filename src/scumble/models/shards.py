"""Writing a safetensors file tensor by tensor, so that no more than one of them is in memory.

The layout is the format's own: a length, a header in JSON, and the tensors' bytes without gaps. Knows names,
types and shapes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from scumble.models.checkpoint import STORED, TensorFact

_NAMES = {kind: name for name, kind in STORED.items()}


def raw_bytes(tensor: Tensor) -> memoryview:
    """A tensor's numbers as they lie in memory, row by row, without a copy where it is contiguous."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def bytes_of(fact: TensorFact) -> int:
    """The size of a stored tensor."""
    count = 1
    for size in fact.shape:
        count *= size
    return count * fact.dtype.itemsize


def write_shard(path: Path, facts: Mapping[str, TensorFact], make: Callable[[str], Tensor]) -> None:
    """Write a safetensors file.

    Args:
        path: of the file.
        facts: type and shape of each tensor, by name.
        make: gives a tensor by name; asked once for each, when its turn comes.

    Raises:
        OSError: the file cannot be written.
        ValueError: `make` gives a tensor of another type or shape.
    """
    # wide types first, as the library orders them, so that every tensor is aligned
    order = sorted(facts, key=lambda name: (-facts[name].dtype.itemsize, name))
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in order:
        begin, end = end, end + bytes_of(facts[name])
        header[name] = {
            "dtype": _NAMES[facts[name].dtype],
            "shape": list(facts[name].shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            tensor = make(name)
            if (tensor.dtype, tuple(tensor.shape)) != (facts[name].dtype, facts[name].shape):
                raise ValueError(f"{name} is {tensor.dtype} {tuple(tensor.shape)}, not {facts[name]}")
            if tensor.numel():
                stream.write(raw_bytes(tensor))
