"""`Base`: a frozen causal language model with its tokenizer, its name and its identity; and `load_base`.

Knows nothing of adapters, training and serving.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from scumble.errors import BaseModelError, ScumbleError
from scumble.models import embedded, weights
from scumble.models.hub import explain, hub_reachable
from scumble.models.identity import hash_parameters
from scumble.models.resolve import Source, resolve


class Base:
    """A frozen causal language model, the layer beneath every adapter.

    Attributes:
        model: the transformers model, in eval mode, with no parameter that wants a gradient.
        tokenizer: its tokenizer, or None where the caller has no need of one.
        name: what an adapter records as `base_model_name_or_path`: the hub name where there is one,
            else the absolute path; empty for a model that never had a name.
        bytes_on_disk: size of the weights that were loaded; 0 for a model that the caller made.
        source_bytes: size of what they were made from (the GGUF of the embedded default), else the same.
    """

    def __init__(self, model: Any, tokenizer: Any | None = None, name: str | None = None) -> None:
        """Take a model that the caller already has: it is frozen and put in eval mode, in place.

        Args:
            model: a transformers causal language model.
            tokenizer: its tokenizer, needed for whatever reads or writes text.
            name: hub name or folder; by default what the model's configuration says it was loaded from.

        Raises:
            BaseModelError: `model` is an encoder-decoder, or no transformers model at all.
        """
        self._prepare(model, tokenizer, name)
        self._hash = _hash_of(model)

    def _prepare(self, model: Any, tokenizer: Any | None, name: str | None) -> None:
        config = getattr(model, "config", None)
        if config is None or not isinstance(model, torch.nn.Module):
            raise BaseModelError(
                f"{type(model).__name__} is not a transformers model", "give a causal model, or use load_base"
            )
        if getattr(config, "is_encoder_decoder", False):
            raise BaseModelError(
                f"{type(model).__name__} is an encoder-decoder model", "give a causal language model"
            )
        model.requires_grad_(False)
        model.eval()
        self.model = model
        self.tokenizer = tokenizer
        self.name = name or _recorded_name(config)
        self.bytes_on_disk = 0
        self.source_bytes = 0

    @classmethod
    def _loaded(
        cls, model: Any, tokenizer: Any | None, name: str, *, sizes: tuple[int, int], hashed: str | None
    ) -> Base:
        """Make the base of what was just read, with its sizes and, where it is known already, its hash."""
        base = cls.__new__(cls)
        base._prepare(model, tokenizer, name)
        base._hash = hashed or _hash_of(model)
        base.bytes_on_disk, base.source_bytes = sizes
        # PEFT and transformers write this name into what they save.
        model.config._name_or_path = name
        model.name_or_path = name
        return base

    @property
    def hash(self) -> str:
        """The base's identity: 32 hexadecimal digits over all its parameters (see `hash_parameters`).

        Computed when the base is made, before anything wraps its modules.

        Raises:
            BaseModelError: the parameters have no data (a model on the `meta` device).
        """
        if self._hash is None:
            raise BaseModelError(
                f"base {self.name or 'without a name'} has no weights to hash", "load it with its weights"
            )
        return self._hash

    @property
    def device(self) -> torch.device:
        """Where the first parameter is."""
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The data type of the first floating-point parameter."""
        return next(p.dtype for p in self.model.parameters() if p.is_floating_point())

    def __repr__(self) -> str:
        return f"Base({self.name!r}, {self.dtype}, {self.device}, hash={(self._hash or 'none')[:12]})"


def load_base(
    name: str | None = None, *, dtype: str | None = None, device: str | None = None, tokenizer: bool = True
) -> Base:
    """Load a base by alias, folder, GGUF file or hub name.

    Only safetensors and GGUF weights are read, and no code that comes with a model is run.

    Args:
        name: `smollm2` (or its hub name, offline too), a folder, a `.gguf` file or a hub name;
            by default `SCUMBLE_BASE`, or `smollm2`.
        dtype: `fp32`, `bf16`, `fp16`, or `auto` for that of the configuration; by default fp32 on a
            CPU and `auto` elsewhere.
        device: `cpu`, `cuda`, `cuda:N` or `mps`; by default the best one there is.
        tokenizer: load the tokenizer too.

    Raises:
        MissingFileError: a path that does not exist.
        BaseModelError: it cannot be found or loaded; one line says what was tried.
        NotSupportedError: it is not a causal language model.
        ConfigError: an unknown data type, or a device that is not there.
        MissingExtraError: the embedded default's package is not installed.
        OutputError: the embedded default cannot be written to the cache.
    """
    place = weights.device_named(device)
    kind = weights.dtype_named(dtype, place)
    source = resolve(name)
    try:
        if source.kind == "embedded":
            return _load_embedded(source, kind, place, tokenizer)
        if source.kind == "gguf":
            return _load_gguf(source, kind, place, tokenizer)
        return _load_files(source, kind, place, tokenizer)
    except ScumbleError:
        raise
    except Exception as error:
        raise explain(error, source) from error


def _load_embedded(source: Source, dtype: torch.dtype | None, device: torch.device, tokenizer: bool) -> Base:
    copy = embedded.ensure()
    model = weights.read_model(str(copy.folder), dtype=dtype, device=device)
    words = weights.read_tokenizer(str(copy.folder)) if tokenizer else None
    # The manifest's hash is that of the fp32 weights: other data types are other bytes.
    known = copy.weights_hash if dtype in (None, torch.float32) else None
    return Base._loaded(model, words, source.name, sizes=(copy.weight_bytes, copy.source_bytes), hashed=known)


def _load_gguf(source: Source, dtype: torch.dtype | None, device: torch.device, tokenizer: bool) -> Base:
    assert source.path is not None
    model, words = weights.read_gguf(source.path, dtype=dtype, tokenizer=tokenizer)
    size = source.path.stat().st_size
    return Base._loaded(model.to(device), words, source.name, sizes=(size, size), hashed=None)


def _load_files(source: Source, dtype: torch.dtype | None, device: torch.device, tokenizer: bool) -> Base:
    local = source.kind == "folder" or not hub_reachable()
    model = weights.read_model(source.name, dtype=dtype, device=device, local=local)
    words = weights.read_tokenizer(source.name, local=local) if tokenizer else None
    size = weights.bytes_of_weights(source.name)
    return Base._loaded(model, words, source.name, sizes=(size, size), hashed=None)


def _hash_of(model: Any) -> str | None:
    if any(parameter.is_meta for parameter in model.parameters()):
        return None
    return hash_parameters(model)


def _recorded_name(config: Any) -> str:
    """Give the name a configuration was loaded under, a folder as its absolute path."""
    name = str(getattr(config, "_name_or_path", "") or "")
    return os.path.abspath(name) if name and Path(name).is_dir() else name
