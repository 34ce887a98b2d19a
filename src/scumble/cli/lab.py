"""`scumble lab`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Whole experiments: the lesson's claims, tested.")


@app.callback(invoke_without_command=True)
def lesson(
    context: typer.Context,
    out: Annotated[Path | None, typer.Option(help="Folder; a new numbered one when not told.")] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="One seed and fewer ways to train, in under 40 minutes.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with what was begun in --out.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace --out where it exists.")] = False,
    base: Annotated[str | None, typer.Option(help="Alias, folder, hub name or GGUF file. [smollm2]")] = None,
    steps: Annotated[
        int | None, typer.Option(help="Optimizer steps of every run. [76 with --quick, else 92]")
    ] = None,
    score: Annotated[int | None, typer.Option(help="Unseen examples that are scored. [400]")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """The lesson's claims, tested by training: one page with pictures, in under two and a half hours."""
    if context.invoked_subcommand is not None:
        return
    from scumble.cli import output
    from scumble.lab.lesson.lesson import lab

    found = lab(out, quick=quick, resume=resume, force=force, base=base, steps=steps, score=score)

    def people() -> None:
        for claim in found.claims:
            print(f"{claim['verdict']:14}  {claim['says']}")
            print(f"{'':14}  {claim['why']}")
        print(f"page: {found.page}")

    output.show(found, as_json, people)


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
