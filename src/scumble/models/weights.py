"""Reading a model and its tokenizer through transformers: quietly, from safetensors or GGUF, checked.

Knows nothing of names and of the cache: it is told where the files are.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from scumble.errors import BaseModelError, ConfigError, NotSupportedError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
    "tekken.json",
)


def dtype_named(name: str | None, device: torch.device) -> torch.dtype | None:
    """Give the data type for `fp32`, `bf16`, `fp16` or `auto`; fp32 on a CPU where none is named.

    Returns:
        None where the model's configuration decides.

    Raises:
        ConfigError: any other name.
    """
    if name is None:
        return torch.float32 if device.type == "cpu" else None
    if name == "auto":
        return None
    if name not in DTYPES:
        raise ConfigError(f"dtype {name!r} is not known", f"choose one of {', '.join(DTYPES)}, auto")
    return DTYPES[name]


def device_named(name: str | None) -> torch.device:
    """Give the device for `cpu`, `cuda`, `cuda:1` or `mps`; the best one there is for None or `auto`.

    Raises:
        ConfigError: a device that is not known or that this machine lacks.
    """
    mps = torch.backends.mps.is_available()
    if name in (None, "auto"):
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if mps else "cpu")
    try:
        device = torch.device(str(name))
    except RuntimeError:
        raise ConfigError(f"device {name!r} is not known", "choose cpu, cuda, cuda:N or mps") from None
    there = {"cpu": True, "cuda": (device.index or 0) < torch.cuda.device_count(), "mps": mps}
    if not there.get(device.type, False):
        found = [f"cuda ({torch.cuda.device_count()})"] * torch.cuda.is_available() + ["mps"] * mps
        raise ConfigError(f"device {name!r} is not there", f"this machine has {', '.join(['cpu', *found])}")
    return device


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers' progress bars and advisory warnings, and put everything back afterwards."""
    from transformers.utils import logging as hf_logging

    level, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hub = logging.getLogger("huggingface_hub")
    hub_level = hub.level
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    hub.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        hf_logging.set_verbosity(level)
        hub.setLevel(hub_level)
        if bars:
            hf_logging.enable_progress_bar()


def read_model(where: str, *, dtype: torch.dtype | None, device: torch.device, local: bool = True) -> Any:
    """Load a causal language model from a folder, or from the hub's name `where`.

    Args:
        where: folder or hub name.
        dtype: data type of the parameters; None for that of the configuration.
        device: where the parameters are put.
        local: ask nothing of the network.

    Raises:
        BaseModelError, NotSupportedError: not a causal language model, or weights that do not fit it.
        Exception: whatever transformers raises for missing or broken files.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    options: dict[str, Any] = {"local_files_only": local, "trust_remote_code": False}
    with quiet():
        config = AutoConfig.from_pretrained(where, **options)
        check_causal(where, config)
        _refuse_adapter(where, local)
        place = {} if device.type == "cpu" else {"device_map": {"": device}}
        # Sizes that do not fit are let through here, so that `_check_complete` can name them.
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            where,
            dtype=dtype or "auto",
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **place,
            **options,
        )
    model, info = loaded
    _check_complete(where, model, info)
    return model


def _refuse_adapter(where: str, local: bool) -> None:
    """Refuse a repository that holds an adapter beside the model: transformers would add it, and load its base."""
    from transformers.utils import find_adapter_config_file

    if find_adapter_config_file(where, local_files_only=local) is not None:
        raise BaseModelError(
            f"base {where} holds an adapter_config.json beside the model",
            "name a base that holds a model alone",
        )


def read_tokenizer(where: str, *, local: bool = True) -> Any | None:
    """Load the tokenizer of a folder or hub name; None where there is none.

    Raises:
        BaseModelError: there is one and it cannot be read.
    """
    from transformers import AutoTokenizer

    folder = Path(where)
    # transformers makes an empty tokenizer of a folder that has none, so its files are looked for first.
    if folder.is_dir() and not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        return None
    try:
        with quiet():
            tokenizer: Any = AutoTokenizer.from_pretrained(
                where, local_files_only=local, trust_remote_code=False
            )
    except Exception as error:
        if not folder.is_dir() and "tokenizer" in str(error).lower() and "can't load" in str(error).lower():
            return None
        line = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise BaseModelError(
            f"base {where} has a tokenizer that cannot be read: {line}", "copy its files again"
        ) from error
    return tokenizer if len(tokenizer) > 0 else None


def read_gguf(path: Path, *, dtype: torch.dtype | None, tokenizer: bool = True) -> tuple[Any, Any]:
    """Load and dequantise a GGUF file; what comes back is an ordinary model, which can be saved.

    Args:
        path: the file.
        dtype: data type of the parameters; None for fp32.
        tokenizer: make the tokenizer too, which is most of the work.

    Returns:
        The model, on the CPU, and its tokenizer or None.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where, name = str(path.parent), path.name
    # The conversion's progress bar is a bare tqdm that no setting silences; it writes to stderr alone.
    with quiet(), contextlib.redirect_stderr(io.StringIO()):
        model: Any = AutoModelForCausalLM.from_pretrained(where, gguf_file=name, dtype=dtype or torch.float32)
        words: Any = AutoTokenizer.from_pretrained(where, gguf_file=name) if tokenizer else None
    # save_pretrained refuses a model that still says it is quantised.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer = None
    return model, words


def bytes_of_weights(where: str) -> int:
    """Add up the sizes on disk of the safetensors files of a folder, or of a hub name's cached copy.

    Returns:
        Bytes; 0 where they cannot be found.
    """
    index = _local_file(where, "model.safetensors.index.json")
    try:
        names = ["model.safetensors"]
        if index is not None:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        files = [_local_file(where, name) for name in names]
        return sum(file.stat().st_size for file in files if file is not None)
    except (OSError, ValueError, KeyError):
        return 0


def _local_file(where: str, name: str) -> Path | None:
    if Path(where).is_dir():
        path = Path(where) / name
        return path if path.is_file() else None
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(where, name)
    return Path(found) if isinstance(found, str) else None


def check_causal(where: str, config: Any) -> None:
    """Refuse by name what is not a causal language model. Raises `NotSupportedError`."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    made = ", ".join(getattr(config, "architectures", None) or []) or config.model_type
    hint = "choose a causal language model, such as smollm2, Llama, Qwen or Mistral"
    if getattr(config, "is_encoder_decoder", False):
        raise NotSupportedError(f"base {where} is {made}, an encoder-decoder model", hint)
    masked = made.endswith(("ForMaskedLM", "ForPreTraining")) and not getattr(config, "is_decoder", False)
    if masked or config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise NotSupportedError(f"base {where} is {made}, not a causal language model", hint)


def _check_complete(where: str, model: Any, info: Any) -> None:
    """Refuse weights that transformers would have filled up with random numbers, or an adapter on top."""
    wrong = sorted(info["missing_keys"]) + [str(key[0]) for key in info["mismatched_keys"]]
    if wrong:
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        hint = "a base needs every weight of its config.json, the head too"
        raise BaseModelError(f"base {where} lacks weights that fit: {wrong[0]}{more}", hint)
    if getattr(model, "_hf_peft_config_loaded", False):
        raise BaseModelError(
            f"base {where} holds an adapter, too", "name its base, and the adapter separately"
        )
