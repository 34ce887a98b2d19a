"""`scumble sweep`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

if TYPE_CHECKING:
    from scumble.train.sweep.sweep import Sweep

NAME = "sweep"
Values: TypeAlias = list[str] | None
Numbers: TypeAlias = list[int] | None
_SHAPE, _COURSE, _ALL = "What may vary", "How it is trained, what may vary too", "The same for all trials"


def run(
    data: Annotated[
        str, typer.Argument(help="File, saved datasets folder, hub name, or a shipped set: cron, tickets.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the sweep.")],
    config: Annotated[
        Path | None, typer.Option(help="YAML file with options and lists of them; those given here win.")
    ] = None,
    search: Annotated[
        Values, typer.Option(help="grid takes all combinations; random and tpe draw some. [grid]")
    ] = None,
    trials: Annotated[
        Numbers,
        typer.Option(help="Settings drawn, each with every seed; of a grid, the most. [16, or 512]"),
    ] = None,
    halving: Annotated[
        bool | None,
        typer.Option("--halving", help="Successive halving: the worst by loss are ended early."),
    ] = None,
    eta: Annotated[Numbers, typer.Option(help="With --halving, one setting in so many goes on. [2]")] = None,
    budget: Annotated[
        Values, typer.Option(help="Time after which all are paused, such as 90s, 30m or 1h30m.")
    ] = None,
    metric: Annotated[
        Values, typer.Option(help="Metric that decides instead of the validation loss.")
    ] = None,
    score: Annotated[
        Numbers, typer.Option(help="Examples that the metric is taken over, at most; 0 for none. [200]")
    ] = None,
    rank: Annotated[Values, typer.Option(help="Rank of the update. [8]", rich_help_panel=_SHAPE)] = None,
    alpha: Annotated[
        Values,
        typer.Option(
            help="The update is scaled by alpha / rank; 2r is twice the rank. [16]", rich_help_panel=_SHAPE
        ),
    ] = None,
    targets: Annotated[
        Values,
        typer.Option(
            help="minimal, standard, comprehensive, all-linear, names, or a pattern. [minimal]",
            rich_help_panel=_SHAPE,
        ),
    ] = None,
    dropout: Annotated[
        Values,
        typer.Option(help="Share of the input that each update does not see. [0]", rich_help_panel=_SHAPE),
    ] = None,
    rslora: Annotated[
        bool | None, typer.Option("--rslora", help="Scale by alpha / sqrt(rank).", rich_help_panel=_SHAPE)
    ] = None,
    dora: Annotated[
        bool | None,
        typer.Option("--dora", help="Train direction and magnitude (DoRA).", rich_help_panel=_SHAPE),
    ] = None,
    init: Annotated[
        Values,
        typer.Option(
            help="default, gaussian, orthogonal, pissa, olora or eva. [default]", rich_help_panel=_SHAPE
        ),
    ] = None,
    init_compress: Annotated[
        bool | None,
        typer.Option(
            "--init-compress",
            help="Save pissa and olora in the rank trained, not in twice it.",
            rich_help_panel=_ALL,
        ),
    ] = None,
    seed: Annotated[
        Values,
        typer.Option(help="Each setting is trained with each seed. [0]", rich_help_panel=_SHAPE),
    ] = None,
    learning_rate: Annotated[
        Values,
        typer.Option(
            help="Highest learning rate; to draw from, 1e-4..1e-2. [by the base]", rich_help_panel=_COURSE
        ),
    ] = None,
    schedule: Annotated[
        Values, typer.Option(help="linear, cosine or constant. [linear]", rich_help_panel=_COURSE)
    ] = None,
    warmup: Annotated[
        Values,
        typer.Option(help="Steps of warm-up, at most a tenth of the run. [100]", rich_help_panel=_COURSE),
    ] = None,
    epochs: Annotated[Values, typer.Option(help="Passes over the data. [3]", rich_help_panel=_COURSE)] = None,
    max_steps: Annotated[
        Values, typer.Option(help="Stop after so many optimizer steps.", rich_help_panel=_COURSE)
    ] = None,
    batch: Annotated[
        Values, typer.Option(help="Examples in a micro-step. [by the data]", rich_help_panel=_COURSE)
    ] = None,
    accumulate: Annotated[
        Values,
        typer.Option(help="Micro-steps in an optimizer step. [by the data]", rich_help_panel=_COURSE),
    ] = None,
    weight_decay: Annotated[
        Values, typer.Option(help="Decay of A, not of B. [0]", rich_help_panel=_COURSE)
    ] = None,
    optimizer: Annotated[
        Values,
        typer.Option(
            help="adamw, adamw8bit, paged_adamw or paged_adamw8bit. [adamw]", rich_help_panel=_COURSE
        ),
    ] = None,
    lora_plus: Annotated[
        Values,
        typer.Option(help="Rate of B over that of A (LoRA+); 16 is usual. [1]", rich_help_panel=_COURSE),
    ] = None,
    rates: Annotated[
        Values,
        typer.Option(help="Rates of single modules, such as q_proj=1e-4,mlp=5e-5.", rich_help_panel=_COURSE),
    ] = None,
    clip: Annotated[
        Values, typer.Option(help="Largest norm of the gradient. [1]", rich_help_panel=_COURSE)
    ] = None,
    patience: Annotated[
        Values,
        typer.Option(
            help="End after so many evaluations in a row without a better one.", rich_help_panel=_COURSE
        ),
    ] = None,
    base: Annotated[
        Values, typer.Option(help="Alias, folder, hub name or GGUF file. [smollm2]", rich_help_panel=_ALL)
    ] = None,
    method: Annotated[
        Values, typer.Option(help="lora is all that is swept. [lora]", rich_help_panel=_ALL)
    ] = None,
    from_: Annotated[
        Values,
        typer.Option("--from", help="Adapter to go on from, whose shape is taken.", rich_help_panel=_ALL),
    ] = None,
    format: Annotated[
        Values,
        typer.Option(
            help="chat, prompt_completion, alpaca, sharegpt or text. [recognised]", rich_help_panel=_ALL
        ),
    ] = None,
    template: Annotated[
        Values,
        typer.Option(
            help="File with a chat template in Jinja. [that of the tokenizer]", rich_help_panel=_ALL
        ),
    ] = None,
    train_on: Annotated[
        Values,
        typer.Option(
            help="all answers of a conversation carry a loss, or only the last. [all]", rich_help_panel=_ALL
        ),
    ] = None,
    max_length: Annotated[
        Values,
        typer.Option(help="Longer examples are left out, and named. [2048]", rich_help_panel=_ALL),
    ] = None,
    eval_: Annotated[
        Values,
        typer.Option(
            "--eval", help="File, or a share such as 0.1. [0.1, or the data's own]", rich_help_panel=_ALL
        ),
    ] = None,
    eval_every: Annotated[
        Values,
        typer.Option(
            help="Steps from one evaluation to the next, or a share of an epoch such as 0.5. [an epoch]",
            rich_help_panel=_ALL,
        ),
    ] = None,
    keep_best: Annotated[
        Values,
        typer.Option(
            help="What each run's best checkpoint is chosen by: loss, metric, or a name. [loss]",
            rich_help_panel=_ALL,
        ),
    ] = None,
    eval_limit: Annotated[
        Values,
        typer.Option(
            help="Validation examples answered for that metric, at most. [200]", rich_help_panel=_ALL
        ),
    ] = None,
    save_every: Annotated[
        Values,
        typer.Option(
            help="Steps from one checkpoint to the next, besides those at evaluations. [by time]",
            rich_help_panel=_ALL,
        ),
    ] = None,
    track: Annotated[
        Values,
        typer.Option(
            help="tensorboard, wandb, mlflow or trackio gets the figures too.", rich_help_panel=_ALL
        ),
    ] = None,
    gradient_checkpointing: Annotated[
        Values,
        typer.Option(
            help="Layers computed twice to save memory: auto, none or all. [auto]", rich_help_panel=_ALL
        ),
    ] = None,
    dtype: Annotated[
        Values, typer.Option(help="fp32, bf16, fp16 or auto, of the base.", rich_help_panel=_ALL)
    ] = None,
    device: Annotated[Values, typer.Option(help="cpu, cuda or mps.", rich_help_panel=_ALL)] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on with the sweep in --out, or start it where there is none."),
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace --out where it exists.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Train many adapters at once on one base: an option given twice is two values; DIR/best is the best adapter."""
    given = {
        name: value
        for name, value in locals().items()
        if name not in ("data", "out", "config", "force", "resume", "as_json", "eval_")
        and value not in (None, [])
    }
    if eval_:
        given["eval"] = eval_
    from scumble.cli import output
    from scumble.train.sweep.sweep import sweep

    done = sweep(data, out=out, config=config, force=force, resume=resume, **given)

    output.show(done, as_json, lambda: _tell(done))


def _tell(done: Sweep) -> None:
    """What came of it, for people."""
    from rich.console import Console

    print()
    Console(highlight=False, width=max(Console().width, 120)).print(done.table())
    print()
    for line in done.words():
        print(line)
