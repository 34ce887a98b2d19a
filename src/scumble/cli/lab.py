"""`scumble lab`."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(help="Whole experiments: the lesson's claims, tested.", no_args_is_help=True)


@app.command("cron")
def cron(
    limit: Annotated[int | None, typer.Option(help="Score the first so many test examples. [all]")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """How hard `cron` is without training: the nearest example's answer, and the base with examples."""
    from scumble.cli import output
    from scumble.lab.cron import cron_hardness

    found = cron_hardness(limit=limit)

    def people() -> None:
        print(f"exact match on {found.n} unseen test examples of cron, without training:")
        for title, share in found.shares.items():
            low, high = found.intervals[title]
            print(f"  {share:6.1%} [{low:.1%}, {high:.1%}]  {title}")

    output.show(found, as_json, people)


@app.callback()
def options() -> None:
    """Whole experiments: the lesson's claims, tested."""
