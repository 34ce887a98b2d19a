"""`scumble doctor`."""

from __future__ import annotations

from typing import Annotated

import typer

NAME = "doctor"


def run(
    measure: Annotated[bool, typer.Option("--measure", help="Measure the threads anew.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """The machine and its versions: device, threads, and where the base is."""
    from scumble.cli import output
    from scumble.models.doctor import diagnose

    found = diagnose(measure=measure)
    output.show(found, as_json, lambda: _print(found.to_dict()))


def _print(values: object, indent: str = "") -> None:
    """Nested values as indented lines."""
    for name, value in values.items() if isinstance(values, dict) else enumerate(values):  # type: ignore[arg-type]
        title = f"{indent}{name}" if isinstance(name, str) else f"{indent}-"
        if isinstance(value, dict | list) and value:
            print(title)
            _print(value, indent + "  ")
        else:
            print(f"{title}: {'none' if value in (None, [], {}) else value}")
