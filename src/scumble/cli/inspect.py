"""`scumble inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

NAME = "inspect"


def run(
    adapter: Annotated[list[Path], typer.Argument(help="Folders of adapters or of runs.")],
    base: Annotated[str | None, typer.Option(help="Another base than the adapters name.")] = None,
    data: Annotated[
        str | None,
        typer.Option(help="Measure outputs on these texts too: a JSON-lines file, or a shipped set."),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Examples of the data. [32]")] = None,
    weights: Annotated[
        str | None, typer.Option(help="Of a blend whose norm is wanted, one for each adapter: 0.7,0.3.")
    ] = None,
    modules: Annotated[bool, typer.Option("--modules", help="Show every module, not kinds.")] = False,
    html: Annotated[Path | None, typer.Option(help="Also write a page with heat maps.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace --html where it exists.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """What is in an adapter: configuration, origin, norms, ranks; of several, overlap and conflict."""
    from scumble.cli import inspected, output
    from scumble.files import refuse_existing, write_text
    from scumble.manage.inspection.inspection import inspect, parse_weights
    from scumble.manage.inspection.page import render_inspection

    asked = None if weights is None else parse_weights(weights)
    if html is not None:
        refuse_existing(html, force=force, file=True, option="--html", inputs=(*adapter, data, base))
    found = inspect(*adapter, base=base, data=data, weights=asked, limit=limit)
    if html is not None:
        write_text(html, render_inspection(found))
    output.show(found, as_json, lambda: inspected.show(found, modules=modules))
