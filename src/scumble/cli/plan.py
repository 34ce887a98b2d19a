"""`scumble plan`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

NAME = "plan"


def run(
    base: Annotated[
        str | None,
        typer.Argument(help="Hub name, alias, folder, GGUF file, config.json, adapter or run. [smollm2]"),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(help="lora trains an adapter, qlora one on a base in 4 bits, full all weights. [lora]"),
    ] = None,
    rank: Annotated[int | None, typer.Option(help="Rank of the update. [8]")] = None,
    alpha: Annotated[float | None, typer.Option(help="The update is scaled by alpha / rank. [16]")] = None,
    targets: Annotated[
        str | None,
        typer.Option(help="minimal, standard, comprehensive, all-linear, names, or a pattern. [minimal]"),
    ] = None,
    dropout: Annotated[
        float | None, typer.Option(help="Share of the input that each update does not see. [0]")
    ] = None,
    rslora: Annotated[bool | None, typer.Option("--rslora", help="Scale by alpha / sqrt(rank).")] = None,
    dora: Annotated[bool | None, typer.Option("--dora", help="Train direction and magnitude (DoRA).")] = None,
    batch: Annotated[
        int | None, typer.Option(help="Examples in a micro-step. [8, or fewer by the data]")
    ] = None,
    accumulate: Annotated[
        int | None, typer.Option(help="Micro-steps in an optimizer step. [for 16 examples, or by the data]")
    ] = None,
    max_length: Annotated[
        int | None, typer.Option(help="Tokens of the longest example. [2048, or the base's positions]")
    ] = None,
    supervised: Annotated[
        float | None, typer.Option(help="Share of the tokens that have a loss, without --data. [1]")
    ] = None,
    gradient_checkpointing: Annotated[
        str | None,
        typer.Option(
            help="Layers computed twice: auto (as many as --gpu takes), none, all, or how many. [auto]"
        ),
    ] = None,
    optimizer: Annotated[
        str | None, typer.Option(help="adamw, adamw8bit, paged_adamw or paged_adamw8bit. [adamw]")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="fp32, bf16, fp16, int8 or nf4, of the base. [its configuration's]")
    ] = None,
    gpu: Annotated[
        str | None, typer.Option(help="Does it fit: a size such as 24GB, or a card such as 'RTX 4090'.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cuda or cpu. [cuda]")] = None,
    adapters: Annotated[
        int | None,
        typer.Option(help="Adapters like this one in training at once, as `scumble sweep` does. [1]"),
    ] = None,
    processes: Annotated[
        int | None, typer.Option(help="Devices that train on different examples. [1]")
    ] = None,
    sharding: Annotated[
        str | None, typer.Option(help="Of several devices: ddp, or fsdp2, which divides weights too. [ddp]")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="Take real lengths: a file, a datasets folder, a hub name, or a shipped set."),
    ] = None,
    format: Annotated[
        str | None, typer.Option(help="chat, prompt_completion, alpaca, sharegpt or text. [recognised]")
    ] = None,
    template: Annotated[
        str | None, typer.Option(help="File with a chat template in Jinja. [that of the tokenizer]")
    ] = None,
    train_on: Annotated[
        str | None,
        typer.Option(help="all answers of a conversation carry a loss, or only the last. [all]"),
    ] = None,
    eval_: Annotated[
        str | None,
        typer.Option("--eval", help="File, share such as 0.1, or 0 for none. [0.1, or the data's own]"),
    ] = None,
    epochs: Annotated[float | None, typer.Option(help="Passes over the data. [3]")] = None,
    max_steps: Annotated[int | None, typer.Option(help="Stop after so many optimizer steps.")] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="Highest learning rate, for advice on it. [by the base]")
    ] = None,
    warmup: Annotated[int | None, typer.Option(help="Steps of warm-up, for advice on it.")] = None,
    seed: Annotated[int | None, typer.Option(help="Decides which examples meet. [0]")] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Make a real step here, and hold it against the plan.")
    ] = False,
    calibrate: Annotated[
        bool,
        typer.Option("--calibrate", help="Measure this machine for 10 s, and plan the time of an epoch."),
    ] = False,
    plot: Annotated[Path | None, typer.Option(help="SVG file to write.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace --plot where it exists.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Parameters and memory of a way to train, before anything is loaded; what fits, and what to change."""
    options = {
        name: value
        for name, value in locals().items()
        if name not in ("base", "data", "eval_", "measure", "calibrate", "plot", "force", "as_json")
    }
    from scumble.cli import output, planned
    from scumble.lab.planning import plan
    from scumble.plan.picture import check_plot, draw

    if plot is not None:
        check_plot(plot, force=force, inputs=(base, data, template))
    found = plan(base, data=data, eval=eval_, measure=measure, calibrate=calibrate, **options)
    if plot is not None:
        draw(found, plot)
    output.show(found, as_json, lambda: planned.show(found))
