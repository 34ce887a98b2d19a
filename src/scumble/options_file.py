"""`read_yaml`: options from a file, each error with its line.

Knows YAML and option groups, and nothing of what the options mean.
"""

from __future__ import annotations

import keyword
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pydantic
import yaml

from scumble.complaints import config_error
from scumble.config import Options
from scumble.errors import ConfigError, MissingFileError, NotSupportedError

# What the command line has and no file can say, since it differs from run to run.
_COMMAND_LINE = ("data", "out", "config", "force", "resume", "json")
_ONE_EACH = "write one `option: value` on each line"


def read_yaml(path: str | Path, group: type[Options]) -> dict[str, Any]:
    """Read the options of a group from a YAML file, keys as on the command line, with `-` or `_`.

    Raises:
        MissingFileError: it does not exist.
        ConfigError: it is not YAML or no mapping, or an option is given twice, is not known, or has a value
            that it cannot have; with the line.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        raise ConfigError(f"the configuration {path} is a folder", "name a YAML file")
    if not path.exists():
        raise MissingFileError(f"the configuration {path} does not exist", "name a YAML file")
    try:
        text = path.read_text(encoding="utf-8-sig")
        node, values = yaml.compose(text, Loader=yaml.SafeLoader), yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        reason = getattr(error, "problem", None) or getattr(error, "reason", None)
        raise ConfigError(
            f"{path}{line}: not YAML" + (f" ({reason})" if reason else ""), _ONE_EACH
        ) from error
    if not isinstance(values, Mapping) or not isinstance(node, yaml.MappingNode):
        raise ConfigError(f"{path} holds no options", _ONE_EACH)
    return _checked(path, group, node, values)


def _checked(
    path: Path, group: type[Options], node: yaml.MappingNode, values: Mapping[Any, Any]
) -> dict[str, Any]:
    """The values by option, each of them tried alone, so that an error can name its line."""
    lines: dict[str, int] = {}
    for key, _ in node.value:
        name, line = _field(key.value), key.start_mark.line + 1
        if name in lines:
            raise ConfigError(
                f"{path}, line {line}: {name} is given a second time, first in line {lines[name]}",
                "keep one of them",
            )
        lines[name] = line
    given = {_field(name): value for name, value in values.items() if value is not None}
    for name, value in given.items():
        where = f"{path}, line {lines[name]}: " if name in lines else f"{path}: "
        if name in _COMMAND_LINE and name not in group.model_fields:
            raise ConfigError(f"{where}{name} cannot be given here", "give it on the command line")
        try:
            group(**{name: value})
        except pydantic.ValidationError as error:
            raise config_error(group, error, where.__add__) from error
        except NotSupportedError as error:
            raise NotSupportedError(where + error.message.removeprefix("--"), error.hint) from error
    return given


def _field(key: Any) -> str:
    """The name in Python of an option in a file."""
    name = str(key).replace("-", "_")
    return name + "_" if keyword.iskeyword(name) else name
