"""What the name of a base stands for: the embedded default, a folder, a GGUF file, or a hub name.

Looks at names and at the file system only. Knows nothing of loading weights, and imports no torch.
"""

from __future__ import annotations

import difflib
import errno
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from scumble.errors import BaseModelError, MissingFileError, clipped, shown
from scumble.files import read_bounded

EMBEDDED_ALIAS = "smollm2"
EMBEDDED_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
_MAX_NAME = 4096  # characters, as of a path
_MAX_CONFIG = 2 * 2**20  # bytes of an adapter's configuration
# the hub's names have 96 characters at most
_HUB_NAME = re.compile(r"(?=.{1,96}\Z)[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


@dataclass(frozen=True)
class Source:
    """Where a base comes from.

    Attributes:
        kind: how it is loaded.
        name: what an adapter records as its base: the hub name, or the absolute path.
        path: the folder or file, None for the hub and the embedded default.
    """

    kind: Literal["embedded", "folder", "gguf", "hub"]
    name: str
    path: Path | None = None


def default_base() -> str:
    """Give the name of the base that is used where none is named: `SCUMBLE_BASE`, or `smollm2`."""
    return os.environ.get("SCUMBLE_BASE", "").strip() or EMBEDDED_ALIAS


def is_embedded(name: str) -> bool:
    """Say whether `name` is the embedded default, by its alias or its hub name, in any case."""
    return name.strip().casefold() in (EMBEDDED_ALIAS, EMBEDDED_NAME.casefold())


def resolve(name: str | None = None) -> Source:
    """Find out what `name` stands for, in this order: the embedded default, a folder or file, the hub.

    A folder that happens to be called `smollm2` is reached as `./smollm2`.

    Raises:
        MissingFileError: a path that does not exist.
        BaseModelError: a folder that holds no model, a file that is not GGUF, or an impossible name.
    """
    wanted = (default_base() if name is None else name).strip()
    if not wanted:
        raise BaseModelError(
            "the name of the base is empty", f"name {EMBEDDED_ALIAS}, a folder, a GGUF file or a hub name"
        )
    if is_embedded(wanted):
        return Source("embedded", EMBEDDED_NAME)
    if len(wanted) > _MAX_NAME or not wanted.isprintable():
        raise BaseModelError(f"base {shown(wanted)} is no possible name", "a hub name is written owner/name")
    path = _expanded(wanted)
    if path.is_dir():
        _check_folder(path)
        return Source("folder", os.path.abspath(path), Path(os.path.abspath(path)))
    if path.is_file():
        _check_gguf(path)
        return Source("gguf", os.path.abspath(path), Path(os.path.abspath(path)))
    if _looks_like_path(wanted):
        raise MissingFileError(
            f"base {shown(wanted, 300)} does not exist", suggestion(wanted) or "check the path"
        )
    if not _HUB_NAME.fullmatch(wanted):
        what = "is neither a folder, a GGUF file nor a possible hub name"
        raise BaseModelError(
            f"base {shown(wanted, 300)} {what}", suggestion(wanted) or "a hub name is written owner/name"
        )
    return Source("hub", wanted)


def suggestion(name: str) -> str:
    """Name what the user probably meant: an alias, a folder beside it, or a model in the hub's cache.

    Returns:
        "did you mean ...?", or an empty string when nothing is near.
    """
    path = _expanded(name)
    beside = _entries(path.parent)
    known = {
        EMBEDDED_ALIAS: EMBEDDED_ALIAS,
        EMBEDDED_NAME: EMBEDDED_NAME,
        **{entry.name: str(path.parent / entry.name) for entry in beside},
        **{hub: hub for hub in _cached_hub_names()},
    }
    folded = {key.casefold(): value for key, value in known.items()}
    for asked in (name, path.name):
        near = difflib.get_close_matches(asked.casefold(), folded, n=1, cutoff=0.85)
        if near:
            return f"did you mean {folded[near[0]]!r}?"
    return ""


def _expanded(name: str) -> Path:
    """The path that a name is, where it is one; `~` of a user who is not known stays as it is."""
    try:
        path = Path(name).expanduser()
    except RuntimeError:
        path = Path(name)
    try:
        os.stat(path)
    except OSError as error:
        # what the file system cannot even ask for, such as a name that is too long, names no base either
        if error.errno in (errno.ENAMETOOLONG, errno.EACCES, errno.EPERM):
            raise BaseModelError(
                f"base {shown(name)} cannot be looked up: {error.strerror}",
                "check the path and its permissions",
            ) from error
    return path


def _looks_like_path(name: str) -> bool:
    """Tell a path from a hub name, which has at most one slash and starts with a letter or digit."""
    return (
        name.startswith(("/", "./", "../", "~", ".\\"))
        or name.count("/") > 1
        or name.lower().endswith(".gguf")
    )


def _check_folder(path: Path) -> None:
    """Refuse a folder that holds no model, and say what it holds instead."""
    is_adapter = (path / "adapter_config.json").is_file()
    if (path / "config.json").is_file():
        if is_adapter:  # transformers would silently add the adapter to the model
            raise BaseModelError(
                f"{path} holds both a model and an adapter",
                "move adapter_config.json and adapter_model.safetensors to a folder of their own",
            )
        return
    if is_adapter:
        named = _base_of_adapter(path)
        hint = (
            f"it was trained on {named!r}: name that as the base"
            if named
            else "name the base it was trained on"
        )
        raise BaseModelError(f"{path} is an adapter, not a base", hint)
    files = sorted(path.glob("*.gguf"))
    hint = f"name the file: {files[0]}" if files else "a base folder has config.json and *.safetensors"
    raise BaseModelError(f"folder {path} has no config.json", hint)


def _check_gguf(path: Path) -> None:
    """Refuse a file that does not start as a GGUF file does."""
    try:
        with open(path, "rb") as stream:
            magic = stream.read(4)
    except OSError as error:
        raise BaseModelError(f"{path} cannot be read: {error.strerror}", "check its permissions") from error
    if magic != b"GGUF":
        hint = (
            f"name its folder: {path.parent}"
            if path.suffix == ".safetensors"
            else "a base is a folder, a GGUF file or a hub name"
        )
        raise BaseModelError(f"{path} is not a GGUF file", hint)


def _base_of_adapter(path: Path) -> str:
    try:
        config = json.loads(read_bounded(path / "adapter_config.json", _MAX_CONFIG))
        return clipped(config.get("base_model_name_or_path") or "")
    except (OSError, ValueError, AttributeError, RecursionError):
        return ""


def _entries(folder: Path) -> list[Path]:
    """List what could be a base in `folder`: folders and GGUF files, at most 1,000 of them."""
    try:
        entries = sorted(folder.iterdir())[:1000]
    except OSError:
        return []
    return [entry for entry in entries if entry.is_dir() or entry.suffix == ".gguf"]


def _cached_hub_names() -> list[str]:
    """List the models in the hub's cache, by hub name."""
    from huggingface_hub.constants import HF_HUB_CACHE

    folders = _entries(Path(HF_HUB_CACHE))
    return [
        f.name.removeprefix("models--").replace("--", "/") for f in folders if f.name.startswith("models--")
    ]
