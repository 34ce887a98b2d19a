"""What pydantic says of a wrong option, as one line and a hint. Knows complaints, and nothing of what options there are."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Callable
from typing import Any

import pydantic

from scumble.errors import ConfigError


def flag(name: str) -> str:
    """An option as the command line has it."""
    name = name.rstrip("_")  # from is a word of Python's
    return f"-{name}" if len(name) == 1 else "--" + name.replace("_", "-")


def config_error(
    group: type[pydantic.BaseModel], error: pydantic.ValidationError, shown: Callable[[str], str]
) -> ConfigError:
    """The first complaint as one line; `shown` says where an option was given."""
    first = error.errors()[0]
    name = str(first["loc"][0]) if first["loc"] else "the options"
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(name, group.model_fields, n=1, cutoff=0.5)
        known = ", ".join(field.replace("_", "-") for field in group.model_fields)
        hint = f"did you mean {near[0].replace('_', '-')}?" if near else f"there are {known}"
        return ConfigError(f"{shown(name)} is not a known option", hint)
    value = error.errors()[0]["input"] if len(first["loc"]) == 1 else _whole(error, name)
    return ConfigError(
        f"{shown(name)} is {reprlib.repr(value)}, and {_must(first)}", _hint(group, name, first)
    )


def _whole(error: pydantic.ValidationError, name: str) -> Any:
    """What was given for an option of which one element or alternative is wrong."""
    found = [each["input"] for each in error.errors() if each["loc"][0] == name]
    return max(found, key=lambda value: isinstance(value, list | dict))


def _must(complaint: Any) -> str:
    """What a value must be, from what pydantic says it is not."""
    kind, limits = complaint["type"], complaint.get("ctx", {})
    bounds = {
        "greater_than": "must be above {gt:g}",
        "greater_than_equal": "must be {ge:g} or more",
        "less_than": "must be below {lt:g}",
        "less_than_equal": "must be {le} or less",
        "literal_error": "must be {expected}",
    }
    if kind in bounds:
        return bounds[kind].format(**limits)
    if kind == "value_error":
        return str(limits["error"])
    if kind == "finite_number":
        return "must be a finite number"
    if len(complaint["loc"]) > 1:
        return "is of a kind that this option does not take"
    kinds = {"int": "must be a whole number", "float": "must be a number", "bool": "must be true or false"}
    return kinds.get(kind.partition("_")[0], "must be text")


def _hint(group: type[pydantic.BaseModel], name: str, complaint: Any) -> str:
    """What the option is, its default, and the nearest of its words where one was mistyped."""
    field = group.model_fields[name]
    if complaint["type"] == "literal_error" and isinstance(complaint["input"], str):
        words = [word for word in str(complaint["ctx"]["expected"]).split("'") if word.isalnum()]
        near = difflib.get_close_matches(complaint["input"].lower(), words, n=1, cutoff=0.5)
        if near:
            return f"did you mean {near[0]}?"
    said = f"{field.description or name}"
    said = said if said.split()[0][1:2].isupper() else said[0].lower() + said[1:]
    return said if field.default is None else f"{said}; the default is {field.default}"
