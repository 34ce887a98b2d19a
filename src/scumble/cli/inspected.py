"""What `scumble inspect` prints for people: a summary and a table of each adapter, then each pair."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scumble.cli.output import size


def show(found: Any, *, modules: bool = False) -> None:
    """Print an `Inspection`; with `modules` every module, else the kinds of them."""
    from rich.console import Console
    from rich.padding import Padding

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, 120)  # paths and marks whole, in a file or a pipe
    for number, adapter in enumerate(found.adapters):
        if number:
            console.print()
        _summary(console, adapter)
        console.print(Padding(_modules(adapter) if modules else _kinds(adapter), (0, 0, 0, 2), expand=False))
        _notes(console, adapter)
    for pair in found.pairs:
        console.print()
        _pair(console, pair)
    if found.blend_norm is not None and len(found.adapters) > 2:
        blend = " + ".join(f"{w:g} * {a.name}" for w, a in zip(found.weights, found.adapters, strict=True))
        _line(console, f"{blend}: norm {found.blend_norm:.3g}")
    if found.data is not None:
        _line(
            console,
            f"outputs: on {found.data.examples} examples of {found.data.source}, {found.data.tokens:,} tokens",
        )


def _summary(console: Any, adapter: Any) -> None:
    words = dict(adapter.settings)
    console.print(adapter.name, style="bold", markup=False, soft_wrap=True)
    shape = f"rank {words.pop('rank')}, alpha {words.pop('alpha')}, scale {words.pop('scale')}"
    _line(console, f"  {shape}, on {words.pop('targets')}")
    for name, value in words.items():
        _line(console, f"  {name}: {value}")
    for name, count in adapter.beside.items():
        _line(console, f"  beside the updates: {name}, {count:,} numbers")
    _line(
        console,
        f"  {adapter.parameters:,} parameters in {len(adapter.modules)} modules, {size(adapter.bytes)}, "
        f"sha256 {adapter.sha256[:12]}{_manifest(adapter.manifest)}",
    )
    known = f", hash {adapter.base_hash[:12]}" if adapter.base_hash else ""
    _line(console, f"  base {adapter.base_name or 'not named'}{known}")
    _line(console, f"  {_origin(adapter.origin)}")


def _manifest(manifest: Any) -> str:
    return {"absent": "", "right": ", as its manifest says"}.get(manifest.state, "; " + manifest.note)


def _origin(origin: Any) -> str:
    run = origin.run
    if run is None:
        return str(origin.note)
    data, loss = run["data"], run["loss"]
    examples = f"{data['examples']:,} examples" if data["examples"] is not None else "examples"
    told = f"trained on {data['source'] or 'data without a name'} ({examples}, hash {(data['hash'] or 'unknown')[:12]})"
    if not run["finished"]:
        return f"{told}; the run did not end, or still runs"
    told += f", {run['steps']} steps, loss {_figure(loss['first'])} -> {_figure(loss['last'])}"
    if loss["best_eval"] is not None:
        told += f", best on validation {_figure(loss['best_eval'])}"
    return f"{told}; {run['started'] or 'no date'}, scumble {run['scumble']}"


def _kinds(adapter: Any) -> Any:
    table = _table("kind", "modules", "rank", adapter)
    odd = any(module.flags for module in adapter.modules)
    for kind in adapter.kinds():
        ranks = "-".join(str(rank) for rank in dict.fromkeys((kind.ranks[0], kind.ranks[-1])))
        table.add_row(
            kind.kind,
            str(kind.modules),
            ranks,
            _figure(kind.norm),
            _share(kind.relative_norm),
            _figure(kind.effective_rank),
            _figure(kind.stable_rank),
            *([_share(kind.on_data)] if adapter.on_data is not None else []),
            *([_flags(kind.flags)] if odd else []),
        )
    return table


def _modules(adapter: Any) -> Any:
    table = _table("module", "", "rank", adapter)
    odd = any(module.flags for module in adapter.modules)
    for module in adapter.modules:
        spectrum = module.spectrum
        shown = [_share(adapter.on_data.get(module.path))] if adapter.on_data is not None else []
        table.add_row(
            module.path,
            str(module.rank),
            _figure(module.norm),
            _share(module.relative_norm),
            _figure(spectrum.effective_rank if spectrum else None),
            _figure(spectrum.stable_rank if spectrum else None),
            *shown,
            *([", ".join(module.flags)] if odd else []),
        )
    return table


def _table(first: str, second: str, third: str, adapter: Any) -> Any:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column(first, overflow="fold")
    titles = [
        *([second] if second else []),
        third,
        "norm",
        "of the\nweight",
        "effective\nrank",
        "stable\nrank",
    ]
    for title in [*titles, *(["of the\noutput"] if adapter.on_data is not None else [])]:
        table.add_column(title, justify="right")
    if any(module.flags for module in adapter.modules):
        table.add_column("odd", style="yellow")
    return table


def _notes(console: Any, adapter: Any) -> None:
    for name, count in adapter.not_finite.items():
        _line(console, f"  not finite: {count:,} values of {name}", "red")
    for flag in ("dead", "saturated"):
        found = adapter.flagged(flag)
        if found:
            more = f", and {len(found) - 1} more (--modules shows them)" if len(found) > 1 else ""
            _line(console, f"  {flag}: {found[0].path}: {found[0].flags[flag]}{more}", "yellow")
    for note in adapter.notes:
        _line(console, f"  note: {note}", "yellow")


def _pair(console: Any, pair: Any) -> None:
    figures, signs = pair.figures, pair.figures.signs
    console.print(f"{pair.first} and {pair.second}", style="bold", markup=False, soft_wrap=True)
    _line(console, f"  {pair.expectation}")
    told = f"  cosine {_figure(figures.cosine)}"
    if pair.on_data is not None:
        told += f" (of outputs on the texts {_figure(pair.on_data.cosine)})"
    _line(console, f"{told}, interference {_figure(figures.interference)}")
    for name, overlap in (("outputs", figures.outputs), ("inputs", figures.inputs)):
        if overlap is not None:
            _line(
                console,
                f"  overlap of {name} {overlap.value:.3f}, where random ones have {overlap.random:.3f}",
            )
    if signs.plain is not None and signs.weighted is not None:
        _line(
            console,
            f"  signs differ at {signs.plain:.1%} of the entries, {signs.weighted:.1%} by weight "
            f"(on {signs.rows:,} of {signs.of:,} rows)",
        )
    norms = ", ".join(f"{norm:.3g} at ({weights})" for weights, norm in figures.blends.items())
    _line(console, f"  norms {figures.norms[0]:.3g} and {figures.norms[1]:.3g}; of the blend {norms}")
    if any(figures.only):
        _line(
            console,
            f"  modules of one alone: {pair.first} {figures.only[0]}, {pair.second} {figures.only[1]}",
        )
    if figures.differing:
        _line(console, f"  of different shapes in both, and left out: {', '.join(figures.differing[:4])}")


def _line(console: Any, text: str, style: str = "") -> None:
    console.print(text, style=style, markup=False, soft_wrap=True)


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.2f} %"


def _flags(flags: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {flag}" for flag, count in flags.items())
