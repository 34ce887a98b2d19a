"""`export`: adapters and merged models in the forms that other tools take. Knows which form is which file's work."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

from scumble.errors import ConfigError
from scumble.manage.export.card import Card, export_card
from scumble.manage.export.gguf_adapter import GgufAdapter, export_adapter
from scumble.manage.export.gguf_model import GgufModel, export_model
from scumble.manage.export.holding import adapter_folder, holding, named
from scumble.manage.export.hub import Upload, export_hub
from scumble.manage.export.vllm import VllmAdapter, export_vllm

Exported: TypeAlias = GgufModel | GgufAdapter | VllmAdapter | Card | Upload
KINDS = ("gguf", "vllm", "card", "hub")


def export(kind: str, what: str | Path | Any, *, out: str | Path | None = None, **options: Any) -> Exported:
    """Write an adapter or a merged model in the form that another tool takes.

    Args:
        kind: `gguf` (llama.cpp, Ollama), `vllm`, `card` (README.md) or `hub`.
        what: folder of an adapter or of a run, or of a merged model; a `Run` will do.
        out: what is written: a `.gguf` file, an adapter folder, README.md; not for `hub`.
        **options: of the kind: `type`, `pre`, `base`, `force` (gguf), `rank`, `base`, `force` (vllm),
            `comparison`, `force` (card), `to`, `private` (hub).

    Raises:
        ConfigError: an unknown kind or option, or a model where an adapter is needed.
        ScumbleError: it cannot be exported; one line says why.
    """
    if kind not in KINDS:
        near = difflib.get_close_matches(str(kind).lower(), KINDS, n=1)
        raise ConfigError(
            f"{kind!r} is no form to export to",
            f"did you mean {near[0]}?" if near else f"there are {', '.join(KINDS)}",
        )
    options = {name: value for name, value in options.items() if value is not None}
    if kind == "hub":
        if out is not None:
            raise ConfigError("export hub writes no file", "name the repository with --to owner/name")
        if "to" not in options:
            raise ConfigError(
                "export hub needs a repository, and nothing is sent without", "give --to owner/name"
            )
        return _call(export_hub, kind, what, options)
    if out is None:
        raise ConfigError(f"export {kind} needs --out", "name what should be written")
    options["out"] = out
    if kind == "card":
        return _call(export_card, kind, what, options)
    if kind == "vllm":
        return _call(export_vllm, kind, adapter_folder(what, "export vllm"), options)
    if holding(what) == "adapter":
        if "pre" in options:
            raise ConfigError("an adapter has no tokenizer, and --pre names its rules", "leave it out")
        options.pop("quiet", None)
        return _call(export_adapter, kind, adapter_folder(what, "export gguf"), options)
    if "base" in options:
        raise ConfigError(f"{named(what)} is a model, and --base is an adapter's", "leave it out")
    return _call(export_model, kind, named(what), options)


def _call(function: Callable[..., Any], kind: str, what: Any, options: dict[str, Any]) -> Any:
    known = list(inspect.signature(function).parameters)[1:]
    for name in options:
        if name not in known:
            raise ConfigError(f"export {kind} has no option {name!r}", f"there are {', '.join(known)}")
    return function(what, **options)
