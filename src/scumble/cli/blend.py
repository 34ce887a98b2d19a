"""`scumble blend`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

NAME = "blend"


def run(
    adapters: Annotated[
        list[str], typer.Argument(help="Adapters or runs with their weights, as PATH=WEIGHT.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the result.")],
    method: Annotated[
        str | None, typer.Option(help="exact, svd, magnitude, ties, dare or dare_ties. [exact]")
    ] = None,
    rank: Annotated[
        int | None, typer.Option(help="Largest rank of the result. [the sum of the ranks, or less]")
    ] = None,
    density: Annotated[
        float | None, typer.Option(help="Share of single weights that magnitude, ties and dare keep. [0.2]")
    ] = None,
    normalize: Annotated[
        bool, typer.Option("--normalize", help="The weighted mean of what agrees instead of the sum.")
    ] = False,
    seed: Annotated[int | None, typer.Option(help="Of DARE's masks, and of learning. [0]")] = None,
    interpolate: Annotated[
        bool, typer.Option("--interpolate", help="Blend also modules_to_save and trained token rows.")
    ] = False,
    learn: Annotated[
        list[str] | None,
        typer.Option(help="Learn the weights from this data, starting from those given; once for each set."),
    ] = None,
    learn_per: Annotated[
        str | None, typer.Option(help="Learn a weight for each adapter and layer, or adapter. [layer]")
    ] = None,
    learn_steps: Annotated[int | None, typer.Option(help="Steps of learning. [40]")] = None,
    learn_limit: Annotated[int | None, typer.Option(help="Examples of each set. [64]")] = None,
    base: Annotated[str | None, typer.Option(help="Another base than the adapters name.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace --out where it exists.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """One adapter from several: the weighted sum of their updates, with its error shown."""
    options: dict[str, Any] = {
        "method": method,
        "rank": rank,
        "density": density,
        "normalize": normalize,
        "seed": seed,
        "interpolate": interpolate,
        "learn_per": learn_per,
        "learn_steps": learn_steps,
        "learn_limit": learn_limit,
    }
    from scumble.cli import output
    from scumble.manage.blend import blend

    found = blend(adapters, out=out, base=base, learn=learn or None, force=force, **options)
    output.show(found, as_json, lambda: output.written(found))
