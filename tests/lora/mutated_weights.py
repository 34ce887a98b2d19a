"""The weights of an adapter spoiled: the header of a safetensors file, its length, its data, and names in it.

Knows one file and its format.
"""

from __future__ import annotations

import json
import math
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

WEIGHTS = "adapter_model.safetensors"
# fmt: off
NAMES = [
    "../../x", "/etc/passwd", "base_model.model./etc/passwd.lora_A.weight",
    "base_model.model.../x.lora_A.weight", "a\0b", "\x1b[2J", "a\nb", "x" * 100_000, "", ".",
    "base_model.model.", "base_model.model..lora_A.weight", "base_model.model.lora_A.weight",
    "base_model.model." + "a." * 300 + "lora_A.weight", "__metadata__", "data_offsets",
    "\U0001f600.lora_A.weight",
]
# fmt: on


def _parts(folder: Path) -> tuple[dict[str, Any], bytes]:
    data = (folder / WEIGHTS).read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def _put(folder: Path, header: dict[str, Any] | bytes, data: bytes, length: int | None = None) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)


def _entry(folder: Path, draw: random.Random, change: Callable[[dict[str, Any], str], None]) -> None:
    header, data = _parts(folder)
    change(header, draw.choice([name for name in header if name != "__metadata__"]))
    _put(folder, header, data)


def _shape(folder: Path, draw: random.Random) -> None:
    def change(header: dict[str, Any], name: str) -> None:
        shape = header[name]["shape"]
        header[name]["shape"] = draw.choice(
            [
                shape[::-1],
                [math.prod(shape)],
                [1, *shape],
                [],
                [0],
                [*shape, 0],
                [2**63, *shape],
                [-1],
                [2**64],
                [1.5],
                ["4"],
                None,
                [1] * 3000 + shape,
                [shape[0] + 1, *shape[1:]],
            ]
        )

    _entry(folder, draw, change)


def _dtype(folder: Path, draw: random.Random) -> None:
    kinds = [
        "F16",
        "BF16",
        "F64",
        "I32",
        "U8",
        "BOOL",
        "F8_E4M3",
        "F8_E8M0",
        "F4",
        "C64",
        "I64",
        "",
        "x" * 999,
        None,
        3,
    ]

    def change(header: dict[str, Any], name: str) -> None:
        kind, count = draw.choice(kinds), math.prod(header[name]["shape"])
        header[name]["dtype"] = kind
        if kind in ("F16", "BF16") and draw.random() < 0.6:  # as many bytes as before, and still a valid file
            header[name]["shape"] = [2 * header[name]["shape"][0], *header[name]["shape"][1:]]
        elif kind in ("I32",) and draw.random() < 0.5:
            header[name]["shape"] = [count]

    _entry(folder, draw, change)


def _halved(folder: Path, draw: random.Random) -> None:
    """Every tensor in another type, properly written: a valid file with other numbers."""
    import torch
    from safetensors.torch import load_file, save_file

    kind = draw.choice([torch.float16, torch.bfloat16, torch.float64])
    scale = draw.choice([1.0, 0.5, -1.0, 0.0])
    save_file({k: (v * scale).to(kind) for k, v in load_file(folder / WEIGHTS).items()}, folder / WEIGHTS)


def _offsets(folder: Path, draw: random.Random) -> None:
    def change(header: dict[str, Any], name: str) -> None:
        first, last = header[name]["data_offsets"]
        options = [
            [last, first],
            [0, 0],
            [first + 4, last + 4],
            [-4, last],
            [first, 2**63],
            [2**64, 2**65],
            [first],
            [],
        ]
        header[name]["data_offsets"] = draw.choice([*options, [0, last], None, [0.0, 4.0], ["0", "4"]])

    _entry(folder, draw, change)


def _renamed(folder: Path, draw: random.Random) -> None:
    def change(header: dict[str, Any], name: str) -> None:
        others = [other for other in header if other != name]
        swapped = name.replace("lora_A", "lora_B") if "lora_A" in name else name.replace("q_proj", "v_proj")
        to = draw.choice(
            [*NAMES, swapped, name.upper(), name + ".x", draw.choice(others), name.replace("0", "1")]
        )
        header[to] = header.pop(name)

    _entry(folder, draw, change)


def _dropped(folder: Path, draw: random.Random) -> None:
    _entry(folder, draw, lambda header, name: header.pop(name))


def _doubled(folder: Path, draw: random.Random) -> None:
    """A key given twice: the same text, or written with an escape."""
    header, data = _parts(folder)
    name = draw.choice([name for name in header if name != "__metadata__"])
    key = json.dumps(name)
    if draw.random() < 0.5:
        key = key.replace("b", "\\u0062", 1)
    again = f"{key}:{json.dumps(header[name])}".encode()
    _put(folder, json.dumps(header).encode()[:-1] + b"," + again + b"}", data)


def _metadata(folder: Path, draw: random.Random) -> None:
    header, data = _parts(folder)
    hashes: list[Any] = [{"base_hash": odd} for odd in ("a" * 32, "\x1b[2J", "x" * 9999, "", "\0", 3, None)]
    odd: list[Any] = [
        None,
        3,
        [],
        "x",
        {"format": "tf"},
        {"a": {"b": 1}},
        {"format": "x" * 100_000},
        {"": ""},
    ]
    header["__metadata__"] = draw.choice([*odd, *hashes])
    _put(folder, header, data)


def _length(folder: Path, draw: random.Random) -> None:
    header, data = _parts(folder)
    real = len(json.dumps(header))
    lengths = [
        0,
        1,
        2,
        real - 1,
        real + 1,
        real + 4,
        real + len(data),
        2**24,
        100_000_000,
        2**31,
        2**63,
        2**64 - 1,
    ]
    _put(folder, header, data, draw.choice(lengths))


def _deep(folder: Path, draw: random.Random) -> None:
    header, data = _parts(folder)
    text = json.dumps(header).encode()
    depth = draw.choice([10, 100, 1000, 100_000])
    bomb = draw.choice(
        [b"[" * depth + b"]" * depth, b'{"a":' * depth + b"1" + b"}" * depth, b"[" + b"[]," * depth + b"[]]"]
    )
    _put(folder, text[:-1] + b',"x":' + bomb + b"}", data)


def _extended(folder: Path, draw: random.Random) -> None:
    header, data = _parts(folder)
    more = draw.choice([b"\0", b"x" * 7, bytes(64), bytes(100_000)])
    _put(folder, header, data + more if draw.random() < 0.7 else data[: draw.randrange(len(data))])


def _numbers(folder: Path, draw: random.Random) -> None:
    header, data = _parts(folder)
    values = bytearray(data)
    odd = [math.nan, math.inf, -math.inf, 3e38, -3e38, 1e20, 1e9, 1e-45, 0.0, 100.0, -1.0]
    for _ in range(draw.choice([1, 1, 4, 100])):
        struct.pack_into("<f", values, 4 * draw.randrange(len(values) // 4), draw.choice(odd))
    if draw.random() < 0.2:
        values = bytearray(struct.pack("<f", draw.choice(odd)) * (len(values) // 4))
    _put(folder, header, bytes(values))


KINDS: dict[str, Callable[[Path, random.Random], None]] = {
    "weights: shape": _shape,
    "weights: dtype": _dtype,
    "weights: another type": _halved,
    "weights: offsets": _offsets,
    "weights: renamed": _renamed,
    "weights: dropped": _dropped,
    "weights: doubled": _doubled,
    "weights: metadata": _metadata,
    "weights: length": _length,
    "weights: deep": _deep,
    "weights: extended": _extended,
    "weights: numbers": _numbers,
}
