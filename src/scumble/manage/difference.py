"""The difference between a base and what was merged from it, so that the base can be had back bit for bit.

For every tensor, the bits of the original XOR those of the merged one (cast back to the original's type); the
bytes of equal weight lie together (byte planes), in which nearly equal numbers give runs of zeros that zlib
shortens. Beside them: a sha256 of every original tensor, the headers of the original shards, config.json and
the index. One file in the safetensors format; its name does not end in `.safetensors`, since tools that read a
folder's weights read every file that does. Knows tensors and files, and nothing of adapters.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scumble.errors import BaseModelError
from scumble.models.checkpoint import INDEX_NAME, STORED, Checkpoint
from scumble.models.shards import raw_bytes

DIFFERENCE_NAME = "merge.difference"
_FORMAT = 1
_CHUNK = 2**22  # numbers taken at once
_LONGEST = 2**27  # bytes of a shard's header or a document; far above any model's
_HINT = "fetch or merge it again; the base itself is whole"
_KINDS = {kind: name for name, kind in STORED.items()}


class DifferenceWriter:
    """Takes tensors one by one, and is written once all have come."""

    def __init__(self) -> None:
        self._data = tempfile.TemporaryFile(prefix="scumble-difference-")  # noqa: SIM115 - closed by close()
        self._tensors: dict[str, dict[str, Any]] = {}
        self._parts: dict[str, tuple[int, int]] = {}  # from a part's name to where it lies in the data

    def add(self, name: str, original: Tensor, written: Tensor) -> None:
        """Note a tensor of the base and what was written for it, of the same shape."""
        begin, pieces = self._data.tell(), []
        digest = hashlib.sha256()
        for start in range(0, max(1, original.numel()), _CHUNK):
            one = original.reshape(-1)[start : start + _CHUNK]
            two = written.reshape(-1)[start : start + _CHUNK].to(original.dtype)
            digest.update(raw_bytes(one) if one.numel() else b"")
            for plane in _planes(one, two):
                codec, data = _packed(plane)
                pieces.append([codec, len(data)])
                self._data.write(data)
        fact = {
            "dtype": _KINDS[original.dtype],
            "shape": list(original.shape),
            "sha256": digest.hexdigest(),
        }
        if self._data.tell() > begin:
            self._parts[f"tensor {name}"] = (begin, self._data.tell())
            fact["pieces"] = pieces
        self._tensors[name] = fact

    def write(self, path: Path, base: Checkpoint, copied: list[str]) -> None:
        """Write the file.

        Args:
            path: of it.
            base: whose headers and documents are kept.
            copied: names of the files that lie beside the merged model as they lay beside the base.
        """
        documents = {"config.json": (base.folder / "config.json").read_bytes()}
        if base.index is not None:
            documents[INDEX_NAME] = (base.folder / INDEX_NAME).read_bytes()
        texts = {f"document {name}": data for name, data in documents.items()}
        texts |= {f"header {file}": _header_of(base.folder / file) for file in base.files}
        sums = {name: hashlib.sha256(data).hexdigest() for name, data in texts.items()}
        for name, data in texts.items():
            begin = self._data.seek(0, 2)
            self._data.write(data)
            self._parts[name] = (begin, self._data.tell())
        facts = {
            "format": _FORMAT,
            "base": base.name,
            "tensors": self._tensors,
            "texts": sums,
            "copied": copied,
        }
        header: dict[str, Any] = {"__metadata__": {"format": "pt", "difference": json.dumps(facts)}}
        for name, (begin, end) in sorted(self._parts.items(), key=lambda part: part[1]):
            header[name] = {"dtype": "U8", "shape": [end - begin], "data_offsets": [begin, end]}
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        with open(path, "wb") as stream:
            stream.write(len(text).to_bytes(8, "little") + text)
            self._data.seek(0)
            shutil.copyfileobj(self._data, stream, 2**20)

    def close(self) -> None:
        """Drop what was collected."""
        self._data.close()


class Difference:
    """A difference that was written, read part by part.

    Attributes:
        base: the name of the base.
        tensors: facts of its tensors, by name: `dtype`, `shape`, `sha256`.
        files: the names of its shards.
        documents: the names of the documents that are kept: config.json, the index.
        copied: names of further files of the base, which lie beside the merged model.
    """

    def __init__(self, path: Path) -> None:
        from safetensors import safe_open

        self.path = path
        with self._reading():
            self._file = safe_open(path, framework="pt")
            facts = json.loads((self._file.metadata() or {})["difference"])
            if facts["format"] != _FORMAT:
                raise ValueError(f"its format is {facts['format']!r}, not {_FORMAT}")
            self.base = str(facts["base"])
            self.tensors: dict[str, Any] = dict(facts["tensors"])
            self._sums = {str(name): str(value) for name, value in facts["texts"].items()}
            self.copied = [_copied(name) for name in facts["copied"]]
            names = [name.split(" ", 1) for name in self._sums]
            self.files = sorted(_plain(name) for kind, name in names if kind == "header")
            self.documents = sorted(_plain(name) for kind, name in names if kind == "document")
            if "config.json" not in self.documents or not self.files:
                raise ValueError("it lacks a part")

    def text(self, name: str) -> bytes:
        """A document or the header of a shard, checked: `document config.json`, `header model.safetensors`."""
        with self._reading():
            part = self._file.get_slice(name)
            if part.get_shape()[0] > _LONGEST:
                raise ValueError(f"{name} is too long")
            data = bytes(raw_bytes(part[:]))
            if hashlib.sha256(data).hexdigest() != self._sums[name]:
                raise ValueError(f"{name} has another sha256 than it should have")
            return data

    def order(self, file: str) -> list[str]:
        """The tensors of a shard in the order of their bytes, the header held against what is known of them."""
        with self._reading():
            header = json.loads(self.text(f"header {file}")[8:])
            header.pop("__metadata__", None)
            order = sorted(header, key=lambda name: (header[name]["data_offsets"], name))
            end = 0
            for name in order:
                fact = self.tensors[name]
                size = torch.Size(fact["shape"]).numel() * STORED[fact["dtype"]].itemsize
                wanted = {
                    "dtype": fact["dtype"],
                    "shape": fact["shape"],
                    "data_offsets": [end, end := end + size],
                }
                if header[name] != wanted:
                    raise ValueError(f"the header of {file} does not fit {name}")
            return order

    def original(self, name: str, written: Tensor) -> Tensor:
        """The base's tensor, from what was merged into it.

        Raises:
            BaseModelError: it is not what it was: one of the two files was changed.
        """
        with self._reading():
            fact = self.tensors[name]
            if list(written.shape) != fact["shape"]:
                raise ValueError(f"{name} has shape {list(written.shape)}, not {fact['shape']}")
            result = written.to(STORED[fact["dtype"]], copy=True).contiguous()
            if "pieces" in fact:
                self._apply(name, fact["pieces"], result.reshape(-1))
            if hashlib.sha256(raw_bytes(result) if result.numel() else b"").hexdigest() != fact["sha256"]:
                raise ValueError(f"{name} does not come out as it was: it or the merged model was changed")
            return result

    def _apply(self, name: str, pieces: list[Any], flat: Tensor) -> None:
        """XOR a tensor's bits with what was stored, in place."""
        part, width, place = self._file.get_slice(f"tensor {name}"), flat.dtype.itemsize, 0
        left = iter(pieces)
        for start in range(0, flat.numel(), _CHUNK):
            chunk = flat[start : start + _CHUNK].view(torch.uint8).reshape(-1, width)  # (numbers, bytes)
            for column in range(width):
                codec, length = next(left)
                data = bytes(raw_bytes(part[place : place + length])) if length else b""
                place += length
                plane = _unpacked(codec, data, chunk.shape[0])
                if plane is not None:
                    chunk[:, column] ^= torch.frombuffer(plane, dtype=torch.uint8)

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        """Any way in which a damaged file fails is one line."""
        try:
            yield
        except BaseModelError:
            raise
        except Exception as error:
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise BaseModelError(f"{self.path} cannot be used: {reason}", _HINT) from error


def _planes(one: Tensor, two: Tensor) -> Iterator[bytes]:
    """The bytes of `one ^ two` by their place in a number."""
    if not one.numel():
        return
    width = one.dtype.itemsize
    bits = [t.contiguous().reshape(-1).view(torch.uint8).reshape(-1, width) for t in (one, two)]
    for column in range(width):
        yield (bits[0][:, column] ^ bits[1][:, column]).numpy().tobytes()


def _packed(plane: bytes) -> tuple[str, bytes]:
    if not plane.strip(b"\0"):
        return "zero", b""
    # level 1: higher ones cost many times as much, and gain little on the low bytes of numbers
    data = zlib.compress(plane, 1)
    return ("zlib", data) if len(data) < 0.97 * len(plane) else ("raw", plane)


def _unpacked(codec: str, data: bytes, length: int) -> bytearray | None:
    if codec == "zero":
        return None
    if codec == "zlib":
        # no more than the tensor takes is ever unpacked
        data = zlib.decompressobj().decompress(data, length)
    if codec not in ("zlib", "raw") or len(data) != length:
        raise ValueError("a part of it has another length than it should have")
    return bytearray(data)


def _header_of(path: Path) -> bytes:
    """The length and the header with which a safetensors file begins."""
    with open(path, "rb") as stream:
        length = stream.read(8)
        return length + stream.read(int.from_bytes(length, "little"))


def _plain(name: Any) -> str:
    if not isinstance(name, str) or not name or Path(name).name != name or "\\" in name or name == "..":
        raise ValueError(f"{str(name)[:80]!r} is no plain file name")
    return name


def _copied(name: Any) -> str:
    folder, _, last = str(name).rpartition("/")
    if not isinstance(name, str) or folder not in ("", "additional_chat_templates"):
        raise ValueError(f"{str(name)[:80]!r} is not what lies beside a model's weights")
    _plain(last)
    return name
