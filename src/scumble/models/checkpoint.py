"""`Checkpoint`: a model folder's weights, read tensor by tensor and never whole, beside the model's skeleton.

Names in an index are checked before a file is opened, headers against the files by safetensors, and pickles
are never read. Knows the names of modules and tensors; nothing of adapters.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from scumble.errors import BaseModelError, NotSupportedError, ScumbleError
from scumble.models import embedded, weights
from scumble.models.hub import explain, hub_reachable
from scumble.models.identity import hash_tensors
from scumble.models.resolve import Source, resolve
from scumble.models.skeleton import Skeleton, build_skeleton

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
# safetensors' names of the types in which weights are added to; others are passed on as they are
STORED = {
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
# a name with no folder in it, on any system
_PLAIN = re.compile(r"[A-Za-z0-9_][\w.+@=-]*\.safetensors")
_BLOCK = 2**22  # numbers compared at once
# What a model folder consists of; other formats of the same weights are not fetched.
_WANTED = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.tiktoken"]
_UNWANTED = ["*/*.json", "*/*.safetensors", "*/*.model", "*/*.txt", "consolidated*"]


@dataclass(frozen=True)
class TensorFact:
    """A stored tensor.

    Attributes:
        file: the name of its shard.
        dtype: as it is stored.
        shape: as it is stored.
    """

    file: str
    dtype: torch.dtype
    shape: tuple[int, ...]


class Checkpoint:
    """A model folder. Close it, or use it as a context: a GGUF base's folder lives as long as it.

    Attributes:
        folder: where its files are.
        name: what an adapter records as its base.
        tensors: what is stored, by tensor name.
        files: the names of its shards, in order.
        index: what `model.safetensors.index.json` says, None for a single file.
        skeleton: the model without weights.
        modules: its modules by path, on the `meta` device.
        head: its output layer.
        ties: parameters that share one tensor; from each one's name to the names of the others.
        dequantised: it was made from a GGUF file.
    """

    def __init__(self, folder: Path, name: str, temporary: Any = None) -> None:
        self.folder, self.name = folder, name
        self.dequantised = temporary is not None
        self._temporary = temporary
        self._open: dict[str, Any] = {}
        source = Source("folder", name, folder)
        try:
            self.index, self.files = _shards(source)
            self.tensors: dict[str, TensorFact] = {}
            for file in self.files:
                self._list(file)
            self._check_index()
            self.skeleton: Skeleton = build_skeleton(folder, name)
        except ScumbleError:
            self.close()
            raise
        except Exception as error:
            self.close()
            raise explain(error, source) from error
        self.modules: dict[str, nn.Module] = self.skeleton.modules
        self.head: nn.Module | None = self.skeleton.head
        self.ties = self._real_ties()

    # -- reading -----------------------------------------------------------------------------------

    def read(self, name: str) -> Tensor:
        """A tensor, whole, as it is stored."""
        self._fact(name)
        return self._handle(self.tensors[name].file).get_tensor(name)

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """(stop - start, ...), those rows of a tensor, and no others read."""
        return self._handle(self._fact(name).file).get_slice(name)[start:stop]

    def matrix_rows(self, path: str, start: int, stop: int) -> Tensor:
        """(stop - start, in), rows of a module's W as (out, in), whatever way round it is stored.

        An embedding's W is (width, tokens).
        """
        name = self.weight_name(path)
        if not self.transposed(path):
            return self.rows(name, start, stop)
        return self._handle(self.tensors[name].file).get_slice(name)[:, start:stop].T

    def shape_of(self, path: str) -> tuple[int, int]:
        """(out, in) of a module's W."""
        first, second = self.tensors[self.weight_name(path)].shape
        return (second, first) if self.transposed(path) else (first, second)

    def transposed(self, path: str) -> bool:
        """Whether a module's weight is stored as (in, out): Conv1D, and embeddings with x one-hot."""
        return isinstance(self.modules[path], Conv1D | nn.Embedding)

    # -- names -------------------------------------------------------------------------------------

    @property
    def tied(self) -> bool:
        """Whether any parameters share one tensor."""
        return bool(self.ties)

    def weight_name(self, path: str) -> str:
        """The tensor that holds the weight of the module at `path`.

        Raises:
            NotSupportedError: the checkpoint stores it in another form, such as fused experts.
        """
        return self.tensor_name(f"{path}.weight")

    def bias_name(self, path: str) -> str | None:
        """The tensor that holds the bias of the module at `path`; None where it has none.

        Raises:
            NotSupportedError: it has one, and the checkpoint stores it in another form.
        """
        if getattr(self.modules[path], "bias", None) is None:
            return None
        return self.tensor_name(f"{path}.bias")

    def tensor_name(self, parameter: str) -> str:
        """The tensor that holds a parameter or buffer of the model, by the parameter's name.

        That name itself, or with the decoder's name left out or added; for a tied one also that of its twin.

        Raises:
            NotSupportedError: the checkpoint stores it in another form.
        """
        for name in (parameter, *self.ties.get(parameter, ())):
            found = self.own_tensor(name)
            if found is not None:
                return found
        raise NotSupportedError(
            f"base {self.name} keeps no tensor for {parameter}: it is stored in another form than the model has it",
            "adapters on such modules are computed by the bank, and not in its files",
        )

    def own_tensor(self, parameter: str) -> str | None:
        """The tensor stored under a parameter's own name; None where there is none (it may be tied)."""
        prefix = f"{self.skeleton.prefix}."
        other = parameter.removeprefix(prefix) if parameter.startswith(prefix) else prefix + parameter
        return next((name for name in (parameter, other) if name in self.tensors), None)

    # -- the whole ---------------------------------------------------------------------------------

    def hash(self, dtype: torch.dtype | None = None) -> str | None:
        """The base's identity when loaded in `dtype` (see `hash_parameters`), read tensor by tensor.

        Args:
            dtype: of the loaded parameters; None for that of the configuration.

        Returns:
            None where the checkpoint stores a parameter in another form.
        """
        kind = dtype or self.dtype

        def parameters() -> Iterator[tuple[str, Tensor]]:
            for name, _ in sorted(self.skeleton.model.named_parameters()):
                tensor = self.read(self.tensor_name(name))
                yield name, tensor.to(kind) if tensor.is_floating_point() else tensor

        try:
            return hash_tensors(parameters())
        except NotSupportedError:
            return None

    @property
    def dtype(self) -> torch.dtype:
        """The type that the configuration names, else that of the first floating-point tensor."""
        asked = getattr(self.skeleton.model.config, "dtype", None)
        if isinstance(asked, torch.dtype):
            return asked
        return next((f.dtype for f in self.tensors.values() if f.dtype.is_floating_point), torch.float32)

    @property
    def bytes(self) -> int:
        """Size of the shards on disk."""
        return sum((self.folder / file).stat().st_size for file in self.files)

    def release(self) -> None:
        """Close the files, so that what was read of them is in memory no more; reading opens them again."""
        self._open.clear()

    def close(self) -> None:
        """Close the files; a folder that was made for this checkpoint is removed."""
        self._open.clear()
        if self._temporary is not None:
            self._temporary.cleanup()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- inside ------------------------------------------------------------------------------------

    def _handle(self, file: str) -> Any:
        from safetensors import safe_open

        if file not in self._open:
            self._open[file] = safe_open(self.folder / file, framework="pt")
        return self._open[file]

    def _fact(self, name: str) -> TensorFact:
        if name not in self.tensors:
            raise NotSupportedError(f"base {self.name} has no tensor {name}", "name the base it belongs to")
        return self.tensors[name]

    def _list(self, file: str) -> None:
        """Note the tensors of a shard."""
        handle = self._handle(file)
        for name in sorted(handle.keys()):
            if name in self.tensors:
                raise BaseModelError(
                    f"base {self.name} has {name} twice, in {self.tensors[name].file} and {file}", _AGAIN
                )
            part = handle.get_slice(name)
            kind = STORED.get(part.get_dtype())
            if kind is None:
                raise NotSupportedError(
                    f"base {self.name} stores {name} as {part.get_dtype()}, which is not read here",
                    "name the base in fp32, bf16 or fp16",
                )
            self.tensors[name] = TensorFact(file, kind, tuple(int(size) for size in part.get_shape()))

    def _check_index(self) -> None:
        for name, file in (self.index or {}).get("weight_map", {}).items():
            fact = self.tensors.get(name)
            if fact is None or fact.file != file:
                raise BaseModelError(
                    f"base {self.name}: {file} lacks the tensor {name} that the index names", _AGAIN
                )

    def _real_ties(self) -> dict[str, tuple[str, ...]]:
        """The skeleton's ties, less those whose tensors are both stored and differ: transformers unties them."""
        for first, others in self.skeleton.ties().items():
            for other in others:
                one, two = self.own_tensor(first), self.own_tensor(other)
                still = other in self.skeleton.ties().get(first, ())
                if still and one and two and one != two and not self._equal(one, two):
                    self.skeleton.untie(other)
        return self.skeleton.ties()

    def _equal(self, first: str, second: str) -> bool:
        one, two = self.tensors[first], self.tensors[second]
        if one.shape != two.shape:
            return False
        height = max(1, _BLOCK // max(1, one.shape[-1]))
        for start in range(0, one.shape[0], height):
            stop = min(start + height, one.shape[0])
            if not torch.equal(
                self.rows(first, start, stop).double(), self.rows(second, start, stop).double()
            ):
                return False
        return True


def open_checkpoint(name: str | None = None) -> Checkpoint:
    """Open a base by alias, folder, GGUF file or hub name, without loading it.

    Args:
        name: what `load_base` takes. A GGUF file is dequantised into a temporary folder, in fp32.

    Raises:
        MissingFileError, BaseModelError: it cannot be found, is damaged, or has no safetensors weights.
        NotSupportedError: it is not a causal language model, or its weights are quantised.
        MissingExtraError: the embedded default's package is not installed.
    """
    source = resolve(name)
    if source.kind == "embedded":
        return Checkpoint(embedded.ensure().folder, source.name)
    if source.kind == "folder":
        assert source.path is not None
        return Checkpoint(source.path, source.name)
    if source.kind == "gguf":
        return _dequantised(source)
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(
            source.name,
            allow_patterns=_WANTED,
            ignore_patterns=_UNWANTED,
            local_files_only=not hub_reachable(),
        )
    except Exception as error:
        raise explain(error, source) from error
    return Checkpoint(Path(folder), source.name)


def _dequantised(source: Source) -> Checkpoint:
    assert source.path is not None
    temporary = tempfile.TemporaryDirectory(prefix="scumble-gguf-")
    try:
        model, tokenizer = weights.read_gguf(source.path, dtype=None)
        with weights.quiet():
            model.save_pretrained(temporary.name)
            if tokenizer is not None:
                tokenizer.save_pretrained(temporary.name)
        del model
        return Checkpoint(Path(temporary.name), source.name, temporary)
    except ScumbleError:
        temporary.cleanup()
        raise
    except Exception as error:
        temporary.cleanup()
        raise explain(error, source) from error


_AGAIN = "copy or download it again"


def _shards(source: Source) -> tuple[dict[str, Any] | None, tuple[str, ...]]:
    """The index, and the names of the shards; a single file comes before an index, as in transformers."""
    assert source.path is not None
    if (source.path / SINGLE_NAME).is_file():
        return None, (SINGLE_NAME,)
    if not (source.path / INDEX_NAME).is_file():
        raise FileNotFoundError(f"no file named {SINGLE_NAME}")
    where = f"base {source.name}: {INDEX_NAME}"
    try:
        index = json.loads((source.path / INDEX_NAME).read_text(encoding="utf-8"))
        named = {str(key): file for key, file in index["weight_map"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BaseModelError(f"{where} is not what transformers writes", _AGAIN) from error
    for file in named.values():
        if not isinstance(file, str) or not _PLAIN.fullmatch(file):
            raise BaseModelError(
                f"{where} names the file {str(file)[:80]!r}, which is no plain name in the folder",
                "do not use this base: its index reaches outside its folder",
            )
        if not (source.path / file).is_file():
            raise BaseModelError(f"base {source.name} lacks the shard {file} that its index names", _AGAIN)
    if not named:
        raise BaseModelError(f"{where} names no tensor", _AGAIN)
    return index, tuple(sorted(set(named.values())))
