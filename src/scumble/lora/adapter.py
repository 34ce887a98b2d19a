"""`Adapter`: a spec and its tensors, read from and written to the PEFT adapter format.

An adapter folder holds `adapter_config.json` and `adapter_model.safetensors`. Tensors are named
`base_model.model.<path of the module>.<what>`. Pickled weights (`.bin`) are refused: reading one can
run any code. Knows nothing of a model: whether an adapter fits one is for the bank to say.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scumble.errors import AdapterError, MissingFileError, clipped, shown
from scumble.files import new_folder, open_regular, read_bounded
from scumble.lora.patterns import bounded_matching
from scumble.lora.spec import LoraSpec
from scumble.lora.targets import named_by
from scumble.lora.tensors_file import read_tensors, tensors_as_bytes
from scumble.manifest import check_manifest, write_manifest

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
PREFIX = "base_model.model."
_TOKENS = "token_adapter.trainable_tokens_delta"
_MAX_CONFIG = 2 * 2**20  # bytes
_HASH = re.compile(r"[A-Za-z0-9:_.-]{1,128}")
# Far beyond what training gives. With larger values a product in the model's layers could leave fp32, and what is
# not finite in one row of a batch spoils the others.
MAX_VALUE = 1e8  # of any tensor
MAX_UPDATE = 1e8  # of s B A


@dataclass
class Factors:
    """The low-rank update of one module, before its scale.

    Attributes:
        A: (rank, in).
        B: (out, rank).
        bias: (out,) of lora_bias, or None.
        magnitude: (out,) of DoRA, or None.
        embedding: the module is an embedding, `in` counts its tokens, and `out` is its width.
    """

    A: Tensor
    B: Tensor
    bias: Tensor | None = None
    magnitude: Tensor | None = None
    embedding: bool = False

    @property
    def rank(self) -> int:
        """The number of rows of A."""
        return int(self.A.shape[0])


@dataclass
class Adapter:
    """An adapter in memory.

    Attributes:
        spec: what its configuration says.
        factors: the low-rank update of each module, by module path.
        biases: trained values of the base's own biases, by module path, each (out,).
        saved: trained copies of `modules_to_save`, by parameter path.
        tokens: replaced rows of embeddings (rows, width), by module path.
        copies: unchanged weights of the base that PEFT wrote beside the adapter, by module path;
            the bank compares them with its base, and nothing is computed from them.
        base_hash: hash of the base it was trained on, where it is known.
    """

    spec: LoraSpec
    factors: dict[str, Factors]
    biases: dict[str, Tensor] = field(default_factory=dict)
    saved: dict[str, Tensor] = field(default_factory=dict)
    tokens: dict[str, Tensor] = field(default_factory=dict)
    copies: dict[str, Tensor] = field(default_factory=dict)
    base_hash: str | None = None

    @property
    def parameters(self) -> int:
        """How many numbers the adapter holds, the base's copies not counted."""
        return sum(tensor.numel() for tensor in self.tensors().values())

    @property
    def exclusive(self) -> str | None:
        """What of it cannot stand beside another adapter in one row, in words; None where all can."""
        if self.saved:
            return f"modules_to_save ({', '.join(self.spec.modules_to_save)})"
        return "trained token rows (trainable_token_indices)" if self.tokens else None

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor under the name that PEFT gives it, sorted by name."""
        named: dict[str, Tensor] = {}
        for path, factors in self.factors.items():
            named.update(_factor_tensors(f"{PREFIX}{path}", factors))
        for path, bias in self.biases.items():
            wrapped = ".base_layer" if path in self.factors else ""
            named[f"{PREFIX}{path}{wrapped}.bias"] = bias
        for path, tensor in self.saved.items():
            named[PREFIX + path] = tensor
        for path, rows in self.tokens.items():
            named[f"{PREFIX}{path}.{_TOKENS}"] = rows
        return dict(sorted(named.items()))

    def save(self, folder: str | Path, *, force: bool = False) -> Path:
        """Write the adapter in the PEFT format with a manifest of its files, under a temporary name until it is whole.

        The same adapter always gives the same bytes.

        Raises:
            OutputExistsError: `folder` exists and `force` is not given.
            OutputError: it cannot be written.
        """
        with new_folder(folder, force=force) as temporary:
            self.write_into(temporary)
            write_manifest(temporary)
        return Path(folder)

    def write_into(self, folder: Path) -> None:
        """Write the two files of the PEFT format into a folder that is not in its place yet, without a manifest."""
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.tensors().items()}
        metadata = {"format": "pt"} | ({"base_hash": self.base_hash} if self.base_hash else {})
        (folder / WEIGHTS_NAME).write_bytes(tensors_as_bytes(tensors, metadata))
        config = json.dumps(self.spec.to_peft(), indent=2, sort_keys=True)
        (folder / CONFIG_NAME).write_text(config + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> Adapter:
        """Read an adapter folder, or a run folder that holds one under `adapter/`.

        Raises:
            MissingFileError: the folder or one of its two files does not exist.
            ManifestError: one of them is not what the folder's manifest says, where there is one.
            AdapterError: it is not LoRA, is damaged, or asks for what is not computed exactly.
        """
        folder = find_adapter(folder)
        check_manifest(folder, (CONFIG_NAME, WEIGHTS_NAME))
        with bounded_matching():
            spec = LoraSpec.from_peft(read_config(folder / CONFIG_NAME))
            tensors, metadata = read_tensors(folder / WEIGHTS_NAME)
            adapter = from_tensors(spec, tensors, where=str(folder))
        adapter.base_hash = metadata.get("base_hash")
        if adapter.base_hash and not _HASH.fullmatch(adapter.base_hash):
            raise AdapterError(
                f"{folder / WEIGHTS_NAME}: base_hash is {shown(adapter.base_hash)}, which is no hash",
                "damaged",
            )
        return adapter


def find_adapter(folder: str | Path) -> Path:
    """The adapter's own folder, where `folder` may be a run that holds it under `adapter/`.

    Raises:
        MissingFileError: it is neither, or lacks its weights.
        AdapterError: its weights are a pickle, in shards, or no regular file.
    """
    given = Path(folder).expanduser()
    for candidate in (given, given / "adapter"):
        if os.path.lexists(candidate / CONFIG_NAME):
            _check_weights(candidate)
            return candidate
    if not os.path.lexists(given):
        raise MissingFileError(
            f"the adapter {given} does not exist", "name an adapter folder or a run folder"
        )
    raise MissingFileError(
        f"{given} is neither an adapter nor a run: it has no {CONFIG_NAME}",
        "name the folder that `scumble train --out` or PEFT's save_pretrained wrote",
    )


def _check_weights(folder: Path) -> None:
    """Refuse a folder whose weights are not one safetensors file; a link to a file will do (the hub's cache)."""
    path = folder / WEIGHTS_NAME
    try:
        with open_regular(path):
            return
    except FileNotFoundError:
        pass
    except OSError as error:
        raise AdapterError(f"{path} cannot be read: {error.strerror}", "fetch it again") from error
    if (folder / "adapter_model.bin").exists():
        raise AdapterError(
            f"{folder}/adapter_model.bin is a pickle, and reading a pickle can run any code",
            "load it once with PEFT where you trust it, and save_pretrained(..., safe_serialization=True)",
        )
    if (folder / f"{WEIGHTS_NAME}.index.json").exists():
        raise AdapterError(
            f"{folder} holds its weights in shards, which are not read", "save them with PEFT as one file"
        )
    raise MissingFileError(f"{folder} has no {WEIGHTS_NAME}", "the adapter was not written whole")


def read_config(path: Path) -> dict[str, Any]:
    """Read `adapter_config.json`. Raises `AdapterError` where it is not a JSON object of at most 2 MiB."""
    hint = "the file is damaged; fetch it again"
    try:
        config = json.loads(read_bounded(path, _MAX_CONFIG).decode("utf-8"))
    except OSError as error:
        raise AdapterError(f"{path} cannot be read: {error.strerror}", hint) from error
    except (ValueError, RecursionError) as error:
        raise AdapterError(f"{path} is not JSON: {clipped(error)}", hint) from error
    if not isinstance(config, dict):
        raise AdapterError(f"{path} holds no JSON object", hint)
    return config


def _owners(path: str) -> list[str]:
    """The modules that a parameter lies in, the innermost first."""
    parts = path.split(".")
    return [".".join(parts[:n]) for n in range(len(parts) - 1, 0, -1)]


def _factor_tensors(name: str, factors: Factors) -> dict[str, Tensor]:
    if factors.embedding:
        named = {f"{name}.lora_embedding_A": factors.A, f"{name}.lora_embedding_B": factors.B}
    else:
        named = {f"{name}.lora_A.weight": factors.A, f"{name}.lora_B.weight": factors.B}
    if factors.bias is not None:
        named[f"{name}.lora_B.bias"] = factors.bias
    if factors.magnitude is not None:
        named[f"{name}.lora_magnitude_vector"] = factors.magnitude
    return named


def from_tensors(spec: LoraSpec, tensors: Mapping[str, Tensor], where: str = "the adapter") -> Adapter:
    """Sort PEFT's tensors by what they are.

    Args:
        spec: the adapter's configuration.
        tensors: from PEFT's name to the tensor.
        where: what an error calls the adapter.

    Raises:
        AdapterError: a tensor's name is not known, its shape does not fit its partner, or it is not finite.
    """
    adapter = Adapter(spec, {})
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        largest = _largest(tensor) if tensor.is_floating_point() else math.nan
        if not largest <= MAX_VALUE:
            what = f"as large as {largest:.1e}" if largest < math.inf else "that are not finite numbers"
            raise AdapterError(f"{where}: {name} holds values {what}", "it is damaged, or train it again")
        path = name.removeprefix(PREFIX)
        for suffix in _LORA_PARTS:
            if path.endswith(suffix) and name.startswith(PREFIX):
                parts.setdefault(path.removesuffix(suffix), {})[suffix] = tensor
                break
        else:
            if not (name.startswith(PREFIX) and _sort_other(adapter, path, tensor)):
                raise AdapterError(
                    f"{where}: the tensor {name} is not known here", "it is not what PEFT's LoRA writes"
                )
    for path, found in sorted(parts.items()):
        adapter.factors[path] = _check_factors(spec, path, found, where)
    return adapter


_FACTORS = (".lora_A.weight", ".lora_B.weight", ".lora_embedding_A", ".lora_embedding_B")
_LORA_PARTS = (*_FACTORS, ".lora_B.bias", ".lora_magnitude_vector")


def _largest(tensor: Tensor) -> float:
    """The largest magnitude, in one pass and without a copy; NaN where there is one among the values."""
    if not tensor.numel():
        return 0.0
    low, high = torch.aminmax(tensor.detach())
    return math.nan if math.isnan(float(low)) else max(-float(low), float(high))


def _sort_other(adapter: Adapter, path: str, tensor: Tensor) -> bool:
    """Place a tensor that is no part of a low-rank update; False where its name is not known."""
    module, _, last = path.rpartition(".")
    if path.endswith("." + _TOKENS):
        adapter.tokens[path.removesuffix("." + _TOKENS)] = tensor
    elif adapter.spec.modules_to_save and any(adapter.spec.saves(owner) for owner in _owners(path)):
        adapter.saved[path] = tensor
    elif last == "bias" and adapter.spec.bias != "none":
        return _once(adapter.biases, module.removesuffix(".base_layer"), tensor)
    elif last == "weight" and (module.endswith(".base_layer") or named_by(module, _EMBEDDING_NAMES)):
        return _once(adapter.copies, module.removesuffix(".base_layer"), tensor)
    else:
        return False
    return True


def _once(place: dict[str, Tensor], path: str, tensor: Tensor) -> bool:
    """Put a tensor in its place; False where two names mean one place, of which only one can hold."""
    return place.setdefault(path, tensor) is tensor


# Modules whose unchanged weights PEFT writes beside an adapter that targets embeddings, or whose
# vocabulary was resized (`save_embedding_layers`).
_EMBEDDING_NAMES = ("embed_tokens", "wte", "embed_in", "word_embeddings", "lm_head", "embed_out", "output")


def _check_factors(spec: LoraSpec, path: str, found: Mapping[str, Tensor], where: str) -> Factors:
    embedding = ".lora_embedding_A" in found
    A = found.get(".lora_embedding_A" if embedding else ".lora_A.weight")
    B = found.get(".lora_embedding_B" if embedding else ".lora_B.weight")
    if A is None or B is None:
        raise AdapterError(f"{where}: {path} has only one of lora_A and lora_B", "the file is damaged")
    if any((".lora_embedding" in part) != embedding for part in found if part in _FACTORS):
        raise AdapterError(
            f"{where}: {path} has factors of a linear layer and of an embedding", "the file is damaged"
        )
    rank = spec.rank_of(path)
    if A.ndim != 2 or B.ndim != 2 or A.shape[0] != rank or B.shape[1] != rank:
        raise AdapterError(
            f"{where}: {path} has lora_A {tuple(A.shape)} and lora_B {tuple(B.shape)}, but its rank is {rank}",
            "the configuration and the weights belong to different adapters",
        )
    bound = spec.scale_of(path) * rank * _largest(A) * _largest(B)  # of every entry of the update
    if not bound <= MAX_UPDATE:
        raise AdapterError(
            f"{where}: the update of {path} has values as large as {bound:.1e}",
            "it is damaged, or train it again",
        )
    factors = Factors(A, B, found.get(".lora_B.bias"), found.get(".lora_magnitude_vector"), embedding)
    asked = {"lora_bias": (factors.bias, spec.lora_bias), "DoRA's magnitude": (factors.magnitude, spec.dora)}
    for title, (tensor, wanted) in asked.items():
        if (tensor is not None) != wanted:
            has, says = ("has", "does not") if tensor is not None else ("lacks", "does")
            raise AdapterError(
                f"{where}: {path} {has} {title}, and the configuration {says} ask for it", "damaged"
            )
        if tensor is not None and tensor.shape != (B.shape[0],):
            raise AdapterError(
                f"{where}: {title} of {path} has shape {tuple(tensor.shape)}, not ({B.shape[0]},)"
            )
    return factors
