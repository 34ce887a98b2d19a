"""Where a model's configuration is found, and whether it describes a model at all, before one is built of it.

    found = find_configuration("meta-llama/Llama-3.1-8B")    # the table, the hub's cache, the hub
    found = find_configuration("models/mine")                # a folder, config.json, GGUF file, adapter or run

transformers fills what is missing with defaults, mostly those of a 7B model, and builds what it is told, a thousand
million layers too: `checked` refuses both. Knows nothing of modules, and reads no weights.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scumble.errors import BaseModelError, shown
from scumble.files import read_bounded
from scumble.lora.adapter import CONFIG_NAME, read_config
from scumble.models.hub import explain, hub_reachable
from scumble.models.resolve import EMBEDDED_NAME, Source, default_base, resolve
from scumble.models.weights import quiet
from scumble.plan.published import find_published, published_models

_MAX_CONFIG = 2 * 2**20  # bytes
_FROM_FILE = "or give its configuration: scumble plan path/to/config.json"
_NEEDED = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "intermediate_size")
# far above any published model's, and still built in seconds, a few mixtures in half a minute
_LIMITS = {
    "hidden_size": 2**18,
    "num_hidden_layers": 512,
    "num_attention_heads": 2**14,
    "num_key_value_heads": 2**14,
    "head_dim": 2**14,
    "vocab_size": 2**26,
    "intermediate_size": 2**21,
    "moe_intermediate_size": 2**21,
    "num_experts": 4096,
    "num_local_experts": 4096,
    "n_routed_experts": 4096,
}
_LARGEST = 2**40  # of any number: the size of a matrix stays within 64 bits
_HINT = "give the config.json that came with the model"
# what has nothing to do with a model's shape, and of which transformers makes a table with a row for each number
_IDLE = ("num_labels", "id2label", "label2id")


@dataclass(frozen=True)
class Found:
    """A configuration and where it comes from.

    Attributes:
        config: the contents of a config.json.
        name: of the model: as asked for, or what an adapter names.
        source: where it was found, in words.
    """

    config: Mapping[str, Any]
    name: str
    source: str


def find_configuration(base: str | None) -> Found:
    """Find the configuration of a base by what a user calls it, without reading weights.

    Args:
        base: the alias `smollm2`, a folder, a config.json, a GGUF file, a hub name, or the folder of an adapter or a
            run, which stand for their base; None for the default base.

    Raises:
        MissingFileError, BaseModelError: there is none, or it cannot be read; the nearest known names are said.
    """
    wanted = (default_base() if base is None else base).strip()
    path = _path(wanted)
    if path is not None:
        return _in_path(path, wanted)
    source = resolve(wanted)
    if source.kind == "embedded":
        found = find_published(EMBEDDED_NAME)
        assert found is not None
        # Scumble's copy is dequantised to fp32
        return Found({**found.config, "dtype": "float32"}, wanted, "the embedded default base")
    if source.kind == "gguf":
        return Found(_read_gguf(source), wanted, f"the header of {wanted}")
    return _by_hub_name(source)


def text_of(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The text model's part of a configuration; the whole where it has no parts."""
    inner = config.get("text_config") if isinstance(config, Mapping) else None
    if not isinstance(inner, Mapping):
        return config
    outer = {key: config[key] for key in ("dtype", "torch_dtype", "quantization_config") if key in config}
    return {**outer, **inner}


def checked(config: Mapping[str, Any], name: str, *, nested: bool) -> dict[str, Any]:
    """The contents of a config.json, found to have sizes that a model can have.

    Args:
        config: what a plan is made of.
        name: what an error calls the model.
        nested: it is one part of a larger one; such a part may leave out what is as in its class.

    Raises:
        BaseModelError: a size is missing or impossible, with the range.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING, CONFIG_MAPPING_NAMES

    if not isinstance(config, Mapping):
        raise BaseModelError(f"base {name} has a configuration that is no table of names and values", _HINT)
    kind = config.get("model_type")
    if not isinstance(kind, str):
        raise BaseModelError(f"base {name} has no model_type in its configuration", _HINT)
    if kind not in CONFIG_MAPPING_NAMES:
        raise BaseModelError(
            f"base {name} is of the model type {shown(kind)}, which this version of transformers does not know",
            "look at model_type in its config.json, or upgrade transformers",
        )
    known = CONFIG_MAPPING[kind]
    for field, limit in _LIMITS.items():
        given = [key for key in (field, known.attribute_map.get(field, field)) if key in config]
        for key in given:
            _check_size(config[key], key, limit, name, optional=field not in _NEEDED)
        if not given and _lacks(known, field, nested):
            raise BaseModelError(f"base {name} has no {field} in its configuration", _HINT)
    _check_heads(config, name)
    for key, value in config.items():
        if isinstance(value, int) and abs(value) > _LARGEST:
            raise BaseModelError(f"base {name} has {shown(key)} = {shown(value)} in its configuration", _HINT)
    return {key: value for key, value in config.items() if key not in _IDLE}


def _lacks(known: Any, field: str, nested: bool) -> bool:
    """Whether a size must be said: one that models of this class have, and that their class should not guess."""
    needed = _NEEDED[:2] if nested else _NEEDED
    return field in needed and hasattr(known, known.attribute_map.get(field, field))


def _check_size(value: Any, key: str, limit: int, name: str, *, optional: bool) -> None:
    if value is None and optional:
        return
    for size in value if isinstance(value, list) and value else [value]:
        if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= limit:
            raise BaseModelError(
                f"base {name} has {key} = {shown(size)} in its configuration",
                f"it is a whole number from 1 to {limit:,}",
            )


def _check_heads(config: Mapping[str, Any], name: str) -> None:
    heads, shared = config.get("num_attention_heads"), config.get("num_key_value_heads")
    if isinstance(heads, int) and isinstance(shared, int) and heads % shared:
        raise BaseModelError(
            f"base {name} has {heads} attention heads and {shared} key-value heads in its configuration",
            "num_key_value_heads divides num_attention_heads",
        )


def _path(wanted: str) -> Path | None:
    """The file or folder of a configuration that a name is; None for what `resolve` knows."""
    try:
        path = Path(wanted).expanduser()
        if path.is_file() and path.suffix == ".json":
            return path
        held = ("config.json", CONFIG_NAME, f"adapter/{CONFIG_NAME}", "model/config.json")
        return next((path / name for name in held if wanted and (path / name).is_file()), None)
    except (OSError, RuntimeError, ValueError):  # a name that the file system cannot ask for
        return None


def _in_path(path: Path, name: str) -> Found:
    """The configuration in a file; of an adapter's file that of its base."""
    if path.name != CONFIG_NAME:
        return Found(_read_json(path), name, str(path))
    base = read_config(path).get("base_model_name_or_path")
    if not isinstance(base, str) or not base.strip():
        raise BaseModelError(f"the adapter {path.parent} names no base", "name the base itself")
    inner = _path(base)
    if inner is not None and inner.name == CONFIG_NAME:
        raise BaseModelError(
            f"the adapter {path.parent} names another adapter as its base", "name the base itself"
        )
    found = find_configuration(base)
    return Found(found.config, found.name, f"the base of {path.parent}: {found.source}")


def _read_json(path: Path) -> Any:
    try:
        return json.loads(read_bounded(path, _MAX_CONFIG))
    except OSError as error:
        raise BaseModelError(f"{path} cannot be read: {error.strerror}", "give a config.json") from error
    except (ValueError, RecursionError) as error:
        raise BaseModelError(f"{path} is not valid JSON", "mend it, or copy it again") from error


def _read_gguf(source: Source) -> dict[str, Any]:
    """What a GGUF file's header says, as transformers reads it."""
    from transformers import AutoConfig

    assert source.path is not None
    try:
        with quiet():
            config: Any = AutoConfig.from_pretrained(
                str(source.path.parent), gguf_file=source.path.name, local_files_only=True
            )
    except Exception as error:
        raise explain(error, source) from error
    return dict(config.to_dict())


def _by_hub_name(source: Source) -> Found:
    """The configuration of a hub name: of the table, of the cache, of the hub where it can be reached."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    published = find_published(source.name)
    if published is not None:
        return Found(published.config, published.name, f"the table of published models ({published.source})")
    cached = try_to_load_from_cache(source.name, "config.json")
    if isinstance(cached, str):
        return Found(_read_json(Path(cached)), source.name, "the hub's cache")
    if not hub_reachable():
        raise _unknown(source.name)
    try:
        with quiet():
            return Found(
                _read_json(Path(hf_hub_download(source.name, "config.json"))), source.name, "the hub"
            )
    except BaseModelError:
        raise
    except Exception as error:
        raise explain(error, source) from error


def _unknown(name: str) -> BaseModelError:
    """Name the nearest published models, by their whole name and by the part behind the owner."""
    known = {
        form.casefold(): m.name for m in published_models() for form in (m.name, m.name.rpartition("/")[2])
    }
    near = difflib.get_close_matches(name.casefold(), known, n=4, cutoff=0.5)
    near += difflib.get_close_matches(name.rpartition("/")[2].casefold(), known, n=4, cutoff=0.5)
    names = list(dict.fromkeys(known[each] for each in near))[:4]
    hint = f"the nearest known are {', '.join(names)}" if names else "known are names such as Qwen/Qwen3-8B"
    return BaseModelError(
        f"base {name!r} is not among the published models known here, not in the hub's cache, "
        "and the hub cannot be reached",
        f"{hint}; {_FROM_FILE}",
    )
