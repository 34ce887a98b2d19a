"""What a folder holds: an adapter or a whole model; and one line where it is not what a command needs.

Looks at names and at which files there are. Reads no weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from scumble.errors import ConfigError, MissingFileError
from scumble.lora.adapter import CONFIG_NAME, find_adapter
from scumble.models.resolve import resolve


def named(what: Any) -> str:
    """The name or path that was given; of a run, its adapter."""
    return str(getattr(what, "adapter", what))


def holding(what: Any) -> Literal["adapter", "model"]:
    """Whether something holds an adapter (or is a run that does) or a model.

    Raises:
        MissingFileError, BaseModelError: it is neither.
    """
    path = Path(named(what)).expanduser()
    if path.is_dir():
        is_model = (path / "config.json").is_file()
        if (path / CONFIG_NAME).is_file() or (not is_model and (path / "adapter" / CONFIG_NAME).is_file()):
            return "adapter"
        if not is_model:
            raise MissingFileError(
                f"{path} holds neither an adapter nor a model: it has no {CONFIG_NAME} and no config.json",
                "name the folder that train, merge or blend wrote",
            )
    resolve(named(what))
    return "model"


def adapter_folder(what: Any, purpose: str) -> Path:
    """The folder of an adapter.

    Args:
        what: its folder, or that of a run.
        purpose: what it is needed for, such as `export vllm`.

    Raises:
        ConfigError: it is a model.
        MissingFileError: it is neither.
    """
    if holding(what) == "model":
        if resolve(named(what)).kind != "embedded" and not Path(named(what)).expanduser().exists():
            return find_adapter(named(what))  # says that there is no such folder
        raise ConfigError(
            f"{named(what)} is a model, and {purpose} takes an adapter",
            "name the folder of an adapter or of a run",
        )
    return find_adapter(named(what))


def folder_of(what: Any) -> Path:
    """The folder of an adapter or of a model on this machine.

    Raises:
        ConfigError: a model that is no folder here.
        MissingFileError, BaseModelError: it is neither.
    """
    if holding(what) == "adapter":
        return find_adapter(named(what))
    path = Path(named(what)).expanduser()
    if not path.is_dir():
        raise ConfigError(
            f"{named(what)} is no folder here", "name the folder of an adapter or of a merged model"
        )
    return path
