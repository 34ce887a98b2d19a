"""`scumble merge`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

NAME = "merge"


def run(
    adapter: Annotated[Path, typer.Argument(help="Folder of an adapter or of a run.")],
    out: Annotated[Path, typer.Option(help="Folder of the merged model.")],
    base: Annotated[str | None, typer.Option(help="Another base than the adapter names.")] = None,
    dtype: Annotated[
        str | None, typer.Option(help="fp32, bf16 or fp16. [what each tensor is stored in]")
    ] = None,
    keep_difference: Annotated[
        bool, typer.Option("--keep-difference", help="Keep what unmerge needs to give the base back.")
    ] = False,
    keep_failed: Annotated[
        bool, typer.Option("--keep-failed", help="Keep the folder where the certificate fails.")
    ] = False,
    prompts: Annotated[
        list[str] | None,
        typer.Option(help="Compare answers on this text; may be given again. [a fixed list]"),
    ] = None,
    weights_only: Annotated[
        bool, typer.Option("--weights-only", help="Judge the weights alone, and load no model.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace --out where it exists.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """An adapter added into its base: a standard model folder, with a certificate of how exact it is."""
    from scumble.cli import output
    from scumble.manage.merge import merge

    found = merge(
        adapter,
        out=out,
        base=base,
        dtype=dtype,
        keep_difference=keep_difference,
        keep_failed=keep_failed,
        prompts=prompts or None,
        weights_only=weights_only,
        force=force,
    )
    output.show(found, as_json, lambda: _print(found))


def _print(found: object) -> None:
    from scumble.cli import output
    from scumble.manage.merge import Merged

    assert isinstance(found, Merged)
    kept = ", with what unmerge needs" if found.difference else ""
    print(
        f"{found.out}: {found.base} with {found.adapter} in it, {output.size(found.bytes)}, "
        f"{found.changed} of {found.tensors} tensors changed{kept}"
    )
    for line in found.summary:
        print(line)
