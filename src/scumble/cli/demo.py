"""`scumble demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

NAME = "demo"


def run(
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run; a new numbered one when not told.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace --out where it exists.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """The lesson's exercise: train a small model, and compare it before and after on unseen examples."""
    from scumble.cli import output
    from scumble.lab.demo import demo

    done = demo(out, force=force)

    def people() -> None:
        output.comparison(done.comparison)
        run = done.run
        print(
            f"trained on {run.tokens:,} tokens in {run.seconds:.0f} s ({run.tokens_per_second:.0f} tokens/s); {done.seconds:.0f} s in all"
        )
        print(f"report: {run.report}")
        print("next:")
        print(f"  scumble chat {run.out}")
        print("  scumble train tickets --out tickets-run        another task")
        print(f"  scumble train cron --out {run.out}-r16 --rank 16 --alpha 32 --targets comprehensive")

    output.show(done, as_json, people)
