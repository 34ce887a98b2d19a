"""`scumble advise`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

NAME = "advise"


def run(
    path: Annotated[Path, typer.Argument(help="Folder of a run, or of a sweep.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """What a run or a sweep says of itself, on which evidence, and the command of the next run."""
    from scumble.cli import advised, output
    from scumble.train.advice.advise import advise

    found = advise(path)
    output.show(found, as_json, lambda: advised.show(found))
