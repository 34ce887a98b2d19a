"""`scumble train`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from scumble.train.result import Run

NAME = "train"


def run(
    data: Annotated[
        str, typer.Argument(help="File, saved datasets folder, hub name, or a shipped set: cron, tickets.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the run.")],
    config: Annotated[
        Path | None, typer.Option(help="YAML file with options; those given here win over it.")
    ] = None,
    base: Annotated[str | None, typer.Option(help="Alias, folder, hub name or GGUF file. [smollm2]")] = None,
    method: Annotated[
        str | None, typer.Option(help="lora trains an adapter, full all weights. [lora]")
    ] = None,
    from_: Annotated[
        str | None, typer.Option("--from", help="Adapter to go on from, whose shape is taken.")
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
    init: Annotated[
        str | None, typer.Option(help="default, gaussian, orthogonal, pissa, olora or eva. [default]")
    ] = None,
    init_compress: Annotated[
        bool | None,
        typer.Option("--init-compress", help="Save pissa and olora in the rank trained, not in twice it."),
    ] = None,
    epochs: Annotated[float | None, typer.Option(help="Passes over the data. [3]")] = None,
    max_steps: Annotated[int | None, typer.Option(help="Stop after so many optimizer steps.")] = None,
    batch: Annotated[int | None, typer.Option(help="Examples in a micro-step. [by the data]")] = None,
    accumulate: Annotated[
        int | None, typer.Option(help="Micro-steps in an optimizer step. [by the data]")
    ] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Highest learning rate. [by the base]")] = None,
    schedule: Annotated[str | None, typer.Option(help="linear, cosine or constant. [linear]")] = None,
    warmup: Annotated[
        int | None, typer.Option(help="Steps of warm-up, at most a tenth of the run. [100]")
    ] = None,
    weight_decay: Annotated[
        float | None, typer.Option(help="Decay of A (with --method full of matrices), not of B. [0]")
    ] = None,
    optimizer: Annotated[
        str | None, typer.Option(help="adamw, adamw8bit, paged_adamw or paged_adamw8bit. [adamw]")
    ] = None,
    lora_plus: Annotated[
        float | None, typer.Option(help="Rate of B over that of A (LoRA+); 16 is usual. [1]")
    ] = None,
    rates: Annotated[
        str | None, typer.Option(help="Rates of single modules, such as q_proj=1e-4,mlp=5e-5.")
    ] = None,
    clip: Annotated[float | None, typer.Option(help="Largest norm of the gradient. [1]")] = None,
    max_length: Annotated[
        int | None, typer.Option(help="Longer examples are left out, and named. [2048]")
    ] = None,
    eval_: Annotated[
        str | None,
        typer.Option("--eval", help="File, share such as 0.1, or 0 for none. [0.1, or the data's own]"),
    ] = None,
    eval_every: Annotated[
        float | None,
        typer.Option(
            help="Steps from one evaluation to the next, or a share of an epoch such as 0.5. [an epoch]"
        ),
    ] = None,
    keep_best: Annotated[
        str | None,
        typer.Option(
            help="What the best checkpoint is chosen by: loss, metric (the data's own), or a name. [loss]"
        ),
    ] = None,
    eval_limit: Annotated[
        int | None, typer.Option(help="Validation examples answered for that metric, at most. [200]")
    ] = None,
    patience: Annotated[
        int | None, typer.Option(help="End after so many evaluations in a row without a better one.")
    ] = None,
    save_every: Annotated[
        int | None,
        typer.Option(help="Steps from one checkpoint to the next, besides those at evaluations. [by time]"),
    ] = None,
    track: Annotated[
        str | None, typer.Option(help="tensorboard, wandb, mlflow or trackio gets the figures too.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Decides A, the order of the data, and dropout. [0]")
    ] = None,
    gradient_checkpointing: Annotated[
        str | None, typer.Option(help="Layers computed twice to save memory: auto, none or all. [auto]")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="fp32, bf16, fp16 or auto, of the base.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or mps.")] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on with the run in --out, or start where there is no checkpoint."),
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace --out where it exists.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Train one adapter; RUN/adapter is the best checkpoint, in the PEFT format (with --method full RUN/model)."""
    options = {
        name: value
        for name, value in locals().items()
        if name not in ("data", "out", "config", "base", "force", "resume", "as_json", "eval_")
    }
    from scumble.cli import output
    from scumble.train.run import train

    done = train(data, out=out, base=base, config=config, force=force, resume=resume, eval=eval_, **options)

    output.show(done, as_json, lambda: _tell(done))


def _tell(done: Run) -> None:
    """What came of it, for people."""
    from scumble.cli import output

    loss = done.loss
    best = f", best validation loss {loss['best_eval']:.4f}" if loss["best_eval"] is not None else ""
    print(
        f"{done.steps} steps, {done.tokens:,} tokens in {done.seconds:.0f} s ({done.tokens_per_second:.0f} tokens/s)"
    )
    print(
        f"training loss {loss['first']:.4f} -> {loss['last']:.4f}{best}; peak memory {output.size(done.peak_bytes)}"
    )
    if done.early:
        print(f"ended early: {done.early}")
    print(f"{done.result.name}: {done.result}, as it was after step {done.best_step}")
    print(f"report: {done.report}")
    print(f"next: scumble compare {done.out} --data FILE    or    scumble chat {done.out}")
