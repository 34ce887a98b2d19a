"""A GGUF file written tensor by tensor, under a temporary name until it is whole.

Only one tensor is held at a time: its shape and type are said first, its numbers are asked for when their
turn comes. Knows the container, and nothing of models and adapters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scumble.errors import BaseModelError, ConfigError, NotSupportedError
from scumble.files import new_file, refuse_existing

# From the name that a user gives to llama.cpp's name of a file of mostly that type.
TYPES = {
    "f32": "ALL_F32",
    "f16": "MOSTLY_F16",
    "bf16": "MOSTLY_BF16",
    "q8_0": "MOSTLY_Q8_0",
    "q4_0": "MOSTLY_Q4_0",
}
_BLOCK = 2**24  # numbers quantised at once
_HIGHEST_F16 = 65504.0


@dataclass(frozen=True)
class Planned:
    """A tensor to be written.

    Attributes:
        name: in the file.
        shape: as torch has it; GGUF's own order is the reverse.
        type: F32, F16, BF16, Q8_0 or Q4_0.
        read: gives the tensor, when its turn comes.
    """

    name: str
    shape: tuple[int, ...]
    type: str
    read: Callable[[], Tensor]


def type_named(name: str) -> str:
    """The type that a user names, in GGUF's spelling.

    Raises:
        ConfigError: it is not known.
    """
    if name.lower() not in TYPES:
        raise ConfigError(f"--type {name!r} is not written here", f"choose one of {', '.join(TYPES)}")
    return name.upper()


def gguf_path(out: str | Path, *, force: bool, inputs: Sequence[Any] = ()) -> Path:
    """The file to be written, checked before any work is done.

    Raises:
        ConfigError: its name does not end in `.gguf`, by which other tools know it.
        OutputExistsError, OutputError: it cannot be written there.
    """
    if not str(out).lower().endswith(".gguf"):
        raise ConfigError(
            f"--out {out} does not end in .gguf", f"such as --out {Path(out).stem or 'model'}.gguf"
        )
    return refuse_existing(out, force=force, file=True, inputs=inputs)


def block_fits(shape: Sequence[int], kind: str) -> bool:
    """Whether the rows of a tensor can be cut into the blocks of a type."""
    import gguf

    block, _ = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    return shape[-1] % block == 0


def encoded(tensor: Tensor, kind: str, name: str) -> np.ndarray:
    """The bytes of a tensor in a type, (size,) uint8: quantised in blocks of rows, so that little is held.

    Raises:
        BaseModelError: it holds values that are not finite.
        NotSupportedError: it holds values too large for F16.
    """
    import gguf
    from gguf import quants

    flat = tensor.reshape(-1, tensor.shape[-1])
    wanted = gguf.GGMLQuantizationType[kind]
    block, size = gguf.GGML_QUANT_SIZES[wanted]
    data = np.empty(flat.numel() // block * size, dtype=np.uint8)
    height = max(1, _BLOCK // max(1, flat.shape[1]))
    done = 0
    for start in range(0, flat.shape[0], height):
        rows = flat[start : start + height].float()
        if not bool(torch.isfinite(rows).all()):
            raise BaseModelError(f"{name} holds values that are not finite numbers", "check how it was made")
        if kind == "F16" and float(rows.abs().max()) > _HIGHEST_F16:
            raise NotSupportedError(
                f"{name} holds values beyond F16's largest, 65504", "choose --type bf16 or f32"
            )
        part = (
            np.ascontiguousarray(quants.quantize(rows.contiguous().numpy(), wanted))
            .view(np.uint8)
            .reshape(-1)
        )
        data[done : done + part.size] = part
        done += part.size
    return data


def decoded(data: np.ndarray, kind: str) -> np.ndarray:
    """The numbers that a tensor read from a file stands for, fp32."""
    import gguf
    from gguf import quants

    return quants.dequantize(data, gguf.GGMLQuantizationType[kind])


def write_gguf(
    path: Path,
    architecture: str,
    metadata: Callable[[Any], None],
    tensors: Sequence[Planned],
    done: Callable[[int], None] = lambda size: None,
) -> int:
    """Write the file; nothing is left of one that fails.

    Args:
        path: of the file, which is replaced.
        architecture: GGUF's name of it.
        metadata: writes keys and values into gguf's writer.
        tensors: in order.
        done: called with the bytes written since the last call.

    Returns:
        The size of the file in bytes.
    """
    import gguf

    with new_file(path) as temporary:
        writer = gguf.GGUFWriter(temporary, architecture)
        try:
            metadata(writer)
            for planned in tensors:
                kind = gguf.GGMLQuantizationType[planned.type]
                block, size = gguf.GGML_QUANT_SIZES[kind]
                count = int(np.prod(planned.shape, dtype=np.int64)) // block * size
                writer.add_tensor_info(
                    planned.name, planned.shape, np.dtype(np.float32), count, raw_dtype=kind
                )
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for planned in tensors:
                data = encoded(planned.read(), planned.type, planned.name)
                writer.write_tensor_data(data)
                done(data.size)
        finally:
            writer.close()
    return path.stat().st_size
