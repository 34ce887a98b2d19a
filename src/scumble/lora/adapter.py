"""`Adapter`: a spec and its tensors, read from and written to the PEFT adapter format.

An adapter folder holds `adapter_config.json` and `adapter_model.safetensors`. Tensors are named
`base_model.model.<path of the module>.<what>`. Pickled weights (`.bin`) are refused: reading one can
run any code. Knows nothing of a model: whether an adapter fits one is for the bank to say.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scumble.errors import AdapterError, MissingFileError
from scumble.files import new_folder
from scumble.lora.spec import LoraSpec
from scumble.lora.targets import named_by

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
PREFIX = "base_model.model."
_TOKENS = "token_adapter.trainable_tokens_delta"


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
        """Write the adapter in the PEFT format, under a temporary name until it is whole.

        The same adapter always gives the same bytes.

        Raises:
            OutputExistsError: `folder` exists and `force` is not given.
            OutputError: it cannot be written.
        """
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.tensors().items()}
        metadata = {"format": "pt"} | ({"base_hash": self.base_hash} if self.base_hash else {})
        with new_folder(folder, force=force) as temporary:
            (temporary / WEIGHTS_NAME).write_bytes(_same_bytes(tensors, metadata))
            config = json.dumps(self.spec.to_peft(), indent=2, sort_keys=True)
            (temporary / CONFIG_NAME).write_text(config + "\n", encoding="utf-8")
        return Path(folder)

    @classmethod
    def load(cls, folder: str | Path) -> Adapter:
        """Read an adapter folder, or a run folder that holds one under `adapter/`.

        Raises:
            MissingFileError: the folder or one of its two files does not exist.
            AdapterError: it is not LoRA, is damaged, or asks for what is not computed exactly.
        """
        folder = find_adapter(folder)
        spec = LoraSpec.from_peft(read_config(folder / CONFIG_NAME))
        tensors, metadata = _read_weights(folder / WEIGHTS_NAME)
        adapter = from_tensors(spec, tensors, where=str(folder))
        adapter.base_hash = metadata.get("base_hash")
        return adapter


def find_adapter(folder: str | Path) -> Path:
    """The adapter's own folder, where `folder` may be a run that holds it under `adapter/`."""
    given = Path(folder).expanduser()
    for candidate in (given, given / "adapter"):
        if (candidate / CONFIG_NAME).is_file():
            if (candidate / WEIGHTS_NAME).is_file():
                return candidate
            if (candidate / "adapter_model.bin").exists():
                raise AdapterError(
                    f"{candidate}/adapter_model.bin is a pickle, and reading a pickle can run any code",
                    "load it once with PEFT where you trust it, and save_pretrained(..., safe_serialization=True)",
                )
            raise MissingFileError(f"{candidate} has no {WEIGHTS_NAME}", "the adapter was not written whole")
    if not given.exists():
        raise MissingFileError(
            f"the adapter {given} does not exist", "name an adapter folder or a run folder"
        )
    raise MissingFileError(
        f"{given} is neither an adapter nor a run: it has no {CONFIG_NAME}",
        "name the folder that `scumble train --out` or PEFT's save_pretrained wrote",
    )


def read_config(path: Path) -> dict[str, Any]:
    """Read `adapter_config.json`. Raises `AdapterError` where it is not a JSON object."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise AdapterError(f"{path} is not JSON: {error}", "the file is damaged; fetch it again") from error
    if not isinstance(config, dict):
        raise AdapterError(f"{path} holds no JSON object", "the file is damaged; fetch it again")
    return config


def _read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise AdapterError(
            f"{path} cannot be read: {error}", "the file is damaged; fetch it again"
        ) from error


def _same_bytes(tensors: dict[str, Tensor], metadata: dict[str, str]) -> bytes:
    """A safetensors file that is the same for the same contents: the library writes metadata in any order."""
    from safetensors.torch import save

    data = save(tensors, metadata=metadata)
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"] = dict(sorted(metadata.items()))
    text = json.dumps({"__metadata__": header.pop("__metadata__"), **header}, separators=(",", ":"))
    padded = text.encode() + b" " * (-len(text.encode()) % 8)
    return len(padded).to_bytes(8, "little") + padded + data[8 + length :]


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
        if not tensor.is_floating_point() or not bool(torch.isfinite(tensor).all()):
            raise AdapterError(f"{where}: {name} holds values that are not finite numbers", "train it again")
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


_LORA_PARTS = (
    ".lora_A.weight",
    ".lora_B.weight",
    ".lora_B.bias",
    ".lora_embedding_A",
    ".lora_embedding_B",
    ".lora_magnitude_vector",
)


def _sort_other(adapter: Adapter, path: str, tensor: Tensor) -> bool:
    """Place a tensor that is no part of a low-rank update; False where its name is not known."""
    module, _, last = path.rpartition(".")
    if path.endswith("." + _TOKENS):
        adapter.tokens[path.removesuffix("." + _TOKENS)] = tensor
    elif any(adapter.spec.saves(owner) for owner in _owners(path)):
        adapter.saved[path] = tensor
    elif last == "bias" and adapter.spec.bias != "none":
        adapter.biases[module.removesuffix(".base_layer")] = tensor
    elif last == "weight" and (module.endswith(".base_layer") or named_by(module, _EMBEDDING_NAMES)):
        adapter.copies[module.removesuffix(".base_layer")] = tensor
    else:
        return False
    return True


# Modules whose unchanged weights PEFT writes beside an adapter that targets embeddings, or whose
# vocabulary was resized (`save_embedding_layers`).
_EMBEDDING_NAMES = ("embed_tokens", "wte", "embed_in", "word_embeddings", "lm_head", "embed_out", "output")


def _check_factors(spec: LoraSpec, path: str, found: Mapping[str, Tensor], where: str) -> Factors:
    embedding = ".lora_embedding_A" in found
    A = found.get(".lora_embedding_A" if embedding else ".lora_A.weight")
    B = found.get(".lora_embedding_B" if embedding else ".lora_B.weight")
    if A is None or B is None:
        raise AdapterError(f"{where}: {path} has only one of lora_A and lora_B", "the file is damaged")
    rank = spec.rank_of(path)
    if A.ndim != 2 or B.ndim != 2 or A.shape[0] != rank or B.shape[1] != rank:
        raise AdapterError(
            f"{where}: {path} has lora_A {tuple(A.shape)} and lora_B {tuple(B.shape)}, but its rank is {rank}",
            "the configuration and the weights belong to different adapters",
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
