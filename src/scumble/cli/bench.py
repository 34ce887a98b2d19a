"""`scumble bench`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from scumble.lab.bench_blend import BlendBench
    from scumble.lab.bench_train import TrainBench
    from scumble.lab.blend_systems import Entry

app = typer.Typer(help="Speed and exactness side by side with other libraries.", no_args_is_help=True)


@app.command("blend")
def blend(
    threads: Annotated[int, typer.Option(help="Threads that every system gets.")] = 1,
    seed: Annotated[int, typer.Option(help="Of the random adapters.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Six blends by Scumble, PEFT and mergekit (where it is installed): errors and seconds."""
    from scumble.cli import output
    from scumble.lab.bench_blend import bench_blend

    found = bench_blend(threads=threads, seed=seed)
    output.show(found, as_json, lambda: _people(found))


@app.command("train")
def train(
    steps: Annotated[int, typer.Option(help="Optimizer steps in a round, each over all examples.")] = 1,
    rounds: Annotated[int, typer.Option(help="How often each system trains, in turns.")] = 3,
    system_prompt: Annotated[
        int, typer.Option(help="Tokens of one system prompt before every example; 0 for none.")
    ] = 0,
    data: Annotated[
        str | None, typer.Option(help="Chats to train on, the first of them. [docstrings of Python]")
    ] = None,
    base: Annotated[str | None, typer.Option(help="Alias, folder, hub name or GGUF file.")] = None,
    dropout: Annotated[
        float, typer.Option(help="Of every system; above 0, Scumble shares no beginnings.")
    ] = 0.05,
    examples: Annotated[int, typer.Option(help="In an optimizer step, a multiple of 8.")] = 16,
    batch: Annotated[
        int, typer.Option(help="Examples in a micro-batch of Scumble; the script has 4, TRL 8 or its best.")
    ] = 4,
    systems: Annotated[
        str, typer.Option(help="Which of them, with commas between.")
    ] = "script,trl,trl_best,scumble",
    seed: Annotated[int, typer.Option(help="Of the adapter, the order within a step, and dropout.")] = 0,
    plot: Annotated[str | None, typer.Option(help="SVG file to write.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """The same adapter trained by the lesson's script, by TRL and by Scumble: tokens/s, memory and loss."""
    from scumble.cli import output
    from scumble.lab.bench_train import bench_train

    found = bench_train(
        steps=steps,
        rounds=rounds,
        data=data,
        base=base,
        system_prompt=system_prompt,
        dropout=dropout,
        seed=seed,
        systems=[name.strip() for name in systems.split(",") if name.strip()],
        examples=examples,
        batch=batch,
        plot=plot,
    )
    output.show(found, as_json, lambda: _training(found))


def _training(found: TrainBench) -> None:
    from scumble.cli.output import size

    print(", ".join(f"{name} {version}" for name, version in found.versions.items()))
    print(found.sample)
    work = found.work.operations
    print(
        f"roof: {found.roof.median / 1e9:.0f} billion operations/s in products of the model's shapes, which is "
        f"{found.roof_tokens:.0f} tokens/s at {work / 1e6:.0f} million a token"
    )
    many = len(found.systems[0].rounds) if found.systems else 0
    print(
        f"{many} rounds of {found.steps} step{'s' * (found.steps > 1)}, dropout {found.dropout:g}; "
        f"load of the machine {found.load[0]:.1f} before and {found.load[1]:.1f} after\n"
    )
    print(f"{'':27}{'tokens/s':>10}{'of the roof':>20}{'memory':>10}{'in all':>10}{'loss':>9}  ran with")
    for each in found.systems:
        share = found.matmul_share[each.name]
        shown = f"{share.median:.0%} ({share.lowest:.0%} to {share.highest:.0%})"
        print(
            f"{each.title:27}{each.tokens_per_second:10.1f}{shown:>20}{size(each.above_bytes):>10}"
            f"{size(each.peak_bytes):>10}{each.loss:9.4f}  {each.threads} thread{'s' * (each.threads > 1)}, {each.layout}"
        )
    print(f"{'before training':77}{found.start_loss:9.4f}")
    print()
    titles = {each.name: each.title for each in found.systems}
    for name, ratio in found.ratios.items():
        print(
            f"Scumble against {titles[name]}: {ratio.median:.2f} times as fast "
            f"({ratio.lowest:.2f} to {ratio.highest:.2f}), {found.memory[name]:.2f} of its memory"
        )
    for name, reason in found.absent.items():
        print(f"{name} left out: {reason}")
    if found.sample.system_prompt and found.dropout:
        print("with dropout, Scumble shares no beginnings: --dropout 0 lets it")


def _people(found: BlendBench) -> None:
    titles = [result.title for result in found.blends]
    rows: dict[tuple[str, str], list[Entry]] = {}
    for result in found.blends:
        for entry in result.entries:
            rows.setdefault((entry.system, entry.method), []).append(entry)
    versions = ", ".join(f"{name} {version}" for name, version in found.versions.items())
    print(f"{versions}; {found.threads} thread{'s' * (found.threads > 1)} for every system\n")
    print("error: Frobenius norm of what is missing or too much, over that of the wanted update")
    _line("", [*titles])
    for (system, method), entries in rows.items():
        _line(f"{system} {method}", [_error(entry) for entry in entries])
        if any(entry.reference for entry in entries):
            title = "  expected of DARE" if method.startswith("dare") else "  best of that rank"
            _line(title, ["" if entry.refused else _share(entry.reference) for entry in entries])
    print("ties: against that system's own TIES of the true updates; the rest: against their weighted sum")
    print("\nseconds (mergekit's include reading and writing whole models)")
    _line("", [*titles])
    for (system, method), entries in rows.items():
        _line(
            f"{system} {method}",
            ["" if entry.seconds is None else f"{entry.seconds:.3f}" for entry in entries],
        )
    for reason in dict.fromkeys(
        f"{e.system}: {e.refused}" for each in rows.values() for e in each if e.refused
    ):
        print(f"refused by {reason}")
    for system, reason in found.absent.items():
        print(f"{system} {reason}")
    one = found.compression
    print(
        f"\ncompression of rank {one.rank} to {one.rank // 2} at one module of {one.width} x {one.width}: "
        f"Scumble {one.seconds['Scumble'] * 1e3:.1f} ms, PEFT's dense svd {one.seconds['PEFT'] * 1e3:,.0f} ms, "
        f"{one.ratio:,.0f} times as long"
    )
    print(
        f"  error: Scumble {one.errors['Scumble']:.9f}, PEFT {one.errors['PEFT']:.9f}, "
        f"best possible {one.best:.9f}"
    )


def _line(title: str, cells: list[str]) -> None:
    print(f"{title:28}" + "".join(f"{cell:>16}" for cell in cells))


def _error(entry: Entry) -> str:
    """An error, or the name of the exception that refused the blend."""
    return (entry.refused or "").partition(":")[0] if entry.error is None else _share(entry.error)


def _share(value: float) -> str:
    """A share, or the power of ten that rounding leaves."""
    return f"{value:.1%}" if value >= 1e-3 else f"{value:.0e}"


@app.callback()
def options() -> None:
    """Speed and exactness side by side with other libraries."""
