"""`scumble data`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    help="What a model will be trained on, and what is wrong with it.",
    no_args_is_help=True,
)

Data = Annotated[
    str, typer.Argument(help="File, saved datasets folder, hub name, or a shipped set: cron, tickets.")
]
Base = Annotated[str | None, typer.Option(help="Base whose tokenizer is used. [smollm2]")]
Format = Annotated[
    str | None,
    typer.Option(help="chat, prompt_completion, alpaca, sharegpt or text. [recognised]"),
]
Template = Annotated[
    str | None, typer.Option(help="File with a chat template in Jinja. [that of the tokenizer]")
]
TrainOn = Annotated[
    str | None, typer.Option(help="all answers of a conversation carry a loss, or only the last. [all]")
]
MaxLength = Annotated[int | None, typer.Option(help="Training leaves out longer examples. [2048]")]
Force = Annotated[bool, typer.Option("--force", help="Replace what is there.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


@app.callback()
def options() -> None:
    """What a model will be trained on, and what is wrong with it."""


@app.command("check")
def check(
    data: Data,
    base: Base = None,
    format: Format = None,
    template: Template = None,
    train_on: TrainOn = None,
    max_length: MaxLength = None,
    eval_: Annotated[
        str | None,
        typer.Option("--eval", help="File, share such as 0.1, or 0 for none. [0.1, or the data's own]"),
    ] = None,
    rank: Annotated[int | None, typer.Option(help="Rank that is planned. [8]")] = None,
    epochs: Annotated[float | None, typer.Option(help="Passes over the data that are planned. [3]")] = None,
    batch: Annotated[int | None, typer.Option(help="Examples in a micro-step. [by the data]")] = None,
    accumulate: Annotated[
        int | None, typer.Option(help="Micro-steps in an optimizer step. [by the data]")
    ] = None,
    warmup: Annotated[int | None, typer.Option(help="Steps of warm-up that are planned.")] = None,
    max_steps: Annotated[int | None, typer.Option(help="Optimizer steps at most.")] = None,
    as_json: AsJson = False,
) -> None:
    """What is wrong with a data set; exit 1 where a finding is an error."""
    from scumble.cli import output
    from scumble.cli.data_shown import show_check
    from scumble.data import check as look
    from scumble.models.cache import cache_dir
    from scumble.models.tokenizer import load_tokenizer

    given: dict[str, Any] = {
        "format": format,
        "template": template,
        "train_on": train_on,
        "max_length": max_length,
        "eval": eval_,
        "rank": rank,
        "epochs": epochs,
        "batch": batch,
        "accumulate": accumulate,
        "warmup": warmup,
        "max_steps": max_steps,
    }
    told = {name: value for name, value in given.items() if value is not None}
    cache = cache_dir() / "tokens"
    found = look(data, tokenizer=load_tokenizer(base), quiet=as_json, cache=cache, **told)
    output.show(found, as_json, lambda: show_check(found))
    if found.errors:
        raise typer.Exit(1)


@app.command("preview")
def preview(
    data: Data,
    n: Annotated[int | None, typer.Option("-n", help="Examples shown token by token. [3]")] = None,
    base: Base = None,
    format: Format = None,
    template: Template = None,
    train_on: TrainOn = None,
    max_length: MaxLength = None,
    limit: Annotated[int | None, typer.Option(help="Measure the first so many examples. [2000]")] = None,
    batch: Annotated[
        int | None, typer.Option(help="Examples in the batches that savings are measured on. [8]")
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Also write a page.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace --html where it exists.")] = False,
    as_json: AsJson = False,
) -> None:
    """The first examples as the model sees them, lengths, and what packing and shared prefixes save."""
    from scumble.cli import output
    from scumble.cli.data_shown import show_preview
    from scumble.data import preview as look
    from scumble.files import refuse_existing
    from scumble.models.tokenizer import load_tokenizer

    if html is not None:  # before the tokenizer is loaded
        refuse_existing(html, force=force, file=True, option="--html", inputs=(data, template, base))
    found = look(
        data,
        n,
        tokenizer=load_tokenizer(base),
        format=format,
        template=template,
        train_on=train_on,
        max_length=max_length,
        limit=limit,
        batch=batch,
        html=html,
        force=force,
        quiet=as_json,
    )
    output.show(found, as_json, lambda: show_preview(found, html))


@app.command("convert")
def convert(
    data: Data,
    out: Annotated[Path, typer.Option(help="The file of JSON lines.")],
    format: Format = None,
    part: Annotated[str, typer.Option(help="Of what has parts: train, validation or test.")] = "train",
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Any format as OpenAI chat in JSON lines."""
    from scumble.cli import output
    from scumble.cli.data_shown import show_converted
    from scumble.data import convert as write

    found = write(data, out, part=part, format=format, force=force)  # type: ignore[arg-type]
    output.show(found, as_json, lambda: show_converted(found))


@app.command("split")
def split(
    data: Data,
    out: Annotated[Path, typer.Option(help="Folder of train.jsonl, validation.jsonl, test.jsonl.")],
    share: Annotated[float | None, typer.Option(help="Share of the validation part. [0.1]")] = None,
    test: Annotated[float | None, typer.Option(help="Share of a test part. [none]")] = None,
    group: Annotated[
        str | None,
        typer.Option(help="Field whose equal values stay together, or @prompt. [none]"),
    ] = None,
    stratify: Annotated[
        str | None, typer.Option(help="Field of whose every value each part gets its share. [none]")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Another seed cuts elsewhere. [0]")] = None,
    format: Format = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Training and validation parts by content: duplicates and groups are never on two sides."""
    from scumble.cli import output
    from scumble.cli.data_shown import show_split
    from scumble.data import split as cut

    found = cut(
        data,
        share,
        out=out,
        test=test,
        group=group,
        stratify=stratify,
        seed=seed,
        format=format,
        force=force,
        quiet=as_json,
    )
    output.show(found, as_json, lambda: show_split(found))
