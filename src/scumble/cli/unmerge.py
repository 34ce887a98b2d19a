"""`scumble unmerge`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

NAME = "unmerge"


def run(
    folder: Annotated[Path, typer.Argument(help="What `scumble merge --keep-difference` wrote.")],
    out: Annotated[Path, typer.Option(help="Folder of the base.")],
    base: Annotated[
        str | None,
        typer.Option(help="The base to point to where no difference is kept. [the one merged into]"),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace --out where it exists.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """The base of a merged model again, bit for bit, without the base."""
    from scumble.cli import output
    from scumble.manage.unmerge import unmerge

    found = unmerge(folder, out=out, base=base, force=force)
    output.show(
        found,
        as_json,
        lambda: print(
            f"{found.out}: {found.base}, {output.size(found.bytes)}, all {found.tensors} tensors as they were"
        ),
    )
