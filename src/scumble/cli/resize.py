"""`scumble resize`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

NAME = "resize"


def run(
    adapter: Annotated[Path, typer.Argument(help="Folder of an adapter or of a run.")],
    out: Annotated[Path, typer.Option(help="Folder of the result.")],
    rank: Annotated[int | None, typer.Option(help="Of every module, or with --shared on average.")] = None,
    energy: Annotated[
        float | None, typer.Option(help="Share of each update's squared norm to keep, such as 0.99.")
    ] = None,
    shared: Annotated[
        bool, typer.Option("--shared", help="Modules share the budget: ranks go where they keep most.")
    ] = False,
    base: Annotated[str | None, typer.Option(help="Another base than the adapter names; for DoRA.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace --out where it exists.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """A smaller adapter: the best update of a rank, or the smallest that keeps an energy."""
    from scumble.cli import output
    from scumble.manage.resize import resize

    found = resize(adapter, out=out, base=base, force=force, rank=rank, energy=energy, shared=shared)
    output.show(found, as_json, lambda: output.written(found))
