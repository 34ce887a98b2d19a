"""`scumble bench`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from scumble.lab.bench_blend import BlendBench
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
