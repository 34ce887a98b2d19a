"""`scumble compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

NAME = "compare"


def run(
    adapter: Annotated[Path, typer.Argument(help="Folder of an adapter or of a run.")],
    data: Annotated[
        str, typer.Option(help="JSON-lines file, or a shipped set, of which the test part is used.")
    ],
    n: Annotated[int | None, typer.Option("-n", help="Examples shown side by side. [5]")] = None,
    limit: Annotated[int | None, typer.Option(help="Score the first so many. [all]")] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(help="Tokens generated at most. [256, or the shipped set's own]")
    ] = None,
    metric: Annotated[str | None, typer.Option(help="exact_match, json_exact_match or json_valid.")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy. [0]")] = None,
    seed: Annotated[int | None, typer.Option(help="Of sampling. [0]")] = None,
    batch: Annotated[int | None, typer.Option(help="Examples at once. [16]")] = None,
    base: Annotated[str | None, typer.Option(help="Another base than the adapter names.")] = None,
    dtype: Annotated[str | None, typer.Option(help="fp32, bf16, fp16 or auto.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or mps.")] = None,
    html: Annotated[Path | None, typer.Option(help="Also write a page.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace --html where it exists.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Before and after: the same unseen examples answered by the base and with the adapter."""
    options: dict[str, Any] = {
        "n": n,
        "limit": limit,
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "seed": seed,
        "batch": batch,
    }
    from scumble.cli import output
    from scumble.compare.page import render_comparison
    from scumble.compare.run import compare
    from scumble.files import refuse_existing, write_text

    if html is not None:
        refuse_existing(html, force=force, file=True, option="--html", inputs=(adapter, data, base))
    found = compare(adapter, data=data, base=base, metric=metric, dtype=dtype, device=device, **options)
    if html is not None:
        write_text(html, render_comparison(found.to_dict()))
    output.show(found, as_json, lambda: output.comparison(found))
