"""`scumble lab`."""

from __future__ import annotations

from pathlib import Path
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


@app.command("blends")
def blends(
    cron: Annotated[Path, typer.Option(help="A run or adapter trained on cron.")],
    tickets: Annotated[Path, typer.Option(help="A run or adapter trained on tickets.")],
    limit: Annotated[
        int | None, typer.Option(help="Score the first so many test examples of each. [all]")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Two tasks in one adapter: cron and tickets alone, and blended in several ways."""
    from scumble.cli import output
    from scumble.lab.blends import blend_scores

    found = blend_scores({"cron": cron, "tickets": tickets}, limit=limit)

    def people() -> None:
        print(f"exact match on {found.n} unseen test examples of each task [95 % interval]:")
        print(f"  {'':20}{'cron':>24}{'tickets':>24}   weights, error")
        for title, row in found.systems.items():
            shares = [
                f"{row[t]['exact_match']:.1%} [{row[t]['interval'][0]:.1%}, {row[t]['interval'][1]:.1%}]"
                for t in ("cron", "tickets")
            ]
            told = ""
            if "weights" in row:
                by = row["weights"]
                told = by if isinstance(by, str) else ", ".join(f"{weight:.2f}" for weight in by)
                told = f"   {told}; {row['error']:.1%}"
            print(f"  {title:20}{shares[0]:>24}{shares[1]:>24}{told}")

    output.show(found, as_json, people)


@app.callback()
def options() -> None:
    """Whole experiments: the lesson's claims, tested."""
