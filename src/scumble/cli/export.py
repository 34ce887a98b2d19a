"""`scumble export`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(help="Adapters and merged models in the forms that other tools take.", no_args_is_help=True)

What = Annotated[str, typer.Argument(help="Folder of an adapter or a run, or of a merged model.")]
Adapter = Annotated[str, typer.Argument(help="Folder of an adapter or a run.")]
Force = Annotated[bool, typer.Option("--force", help="Replace what is there.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


@app.command("gguf")
def gguf(
    what: What,
    out: Annotated[Path, typer.Option(help="The file, ending in .gguf.")],
    type: Annotated[
        str | None,
        typer.Option(
            help="f32, f16, bf16, q8_0 or q4_0; of an adapter the first three. [f16; an adapter: f32]"
        ),
    ] = None,
    pre: Annotated[
        str | None, typer.Option(help="llama.cpp's name of the tokenizer's rules. [found by itself]")
    ] = None,
    base: Annotated[str | None, typer.Option(help="Of an adapter: another base than it names.")] = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """A GGUF file for llama.cpp and Ollama, and a Modelfile beside it."""
    _run("gguf", what, as_json, out=out, type=type, pre=pre, base=base, force=force)


@app.command("vllm")
def vllm(
    what: Adapter,
    out: Annotated[Path, typer.Option(help="Folder of the adapter for vLLM.")],
    rank: Annotated[int | None, typer.Option(help="Of the plain adapter that DoRA is converted to.")] = None,
    base: Annotated[str | None, typer.Option(help="Another base than the adapter names.")] = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """An adapter that vLLM accepts, with what was converted and the error of that."""
    _run("vllm", what, as_json, out=out, rank=rank, base=base, force=force)


@app.command("card")
def card(
    what: What,
    out: Annotated[Path, typer.Option(help="README.md, or the folder that it goes into.")],
    comparison: Annotated[
        Path | None, typer.Option(help="What `scumble compare --json` wrote, for figures before and after.")
    ] = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """A model card: base, data, settings, figures, licence, and how to load it."""
    _run("card", what, as_json, out=out, comparison=comparison, force=force)


@app.command("hub")
def hub(
    what: What,
    to: Annotated[str, typer.Option(help="The repository, owner/name; made where it is missing.")],
    private: Annotated[bool, typer.Option("--private", help="Only its owner may see it.")] = False,
    as_json: AsJson = False,
) -> None:
    """Put an adapter or a merged model on the Hugging Face hub."""
    _run("hub", what, as_json, to=to, private=private)


def _run(kind: str, what: str, as_json: bool, **options: Any) -> None:
    from scumble.cli import output
    from scumble.manage.export.export import export

    if kind == "gguf":
        options["quiet"] = as_json
    found = export(kind, what, **options)
    output.show(found, as_json, lambda: _people(found.to_dict()))


def _people(facts: dict[str, Any]) -> None:
    """What was written, in a few lines."""
    for line in _LINES[facts["kind"]](facts):
        print(line)
    for note in facts.get("notes", []):
        print(f"note: {note}", file=sys.stderr)


def _gguf(facts: dict[str, Any]) -> list[str]:
    from scumble.cli.output import size

    if "tensors" in facts:
        types = ", ".join(f"{count} {kind}" for kind, count in facts["tensors"].items())
        told = f"{facts['architecture']}, tokenizer {facts['pre']}; tensors: {types}"
        written = (
            f"{facts['out']}: {facts['type']}, {size(facts['bytes'])} (from {size(facts['source_bytes'])})"
        )
    else:
        told = f"adapter for {facts['base']} ({facts['architecture']}), {facts['modules']} modules, alpha {facts['alpha']:g}"
        if facts["folded"]:
            told += f"; the scale of {facts['folded']} of them is folded into B"
        written = f"{facts['out']}: {facts['type']}, {size(facts['bytes'])}"
    return [written, told, f"for Ollama: {facts['modelfile']}"]


def _vllm(facts: dict[str, Any]) -> list[str]:
    changes = facts["changes"] or ["nothing had to be changed"]
    return [
        f"{facts['out']}: rank {facts['rank']}, for --max-lora-rank {facts['max_rank']} or more",
        *changes,
        *([f"error of the conversion: {facts['error']:.2g} of the update"] if facts["changes"] else []),
        facts["command"],
    ]


def _card(facts: dict[str, Any]) -> list[str]:
    licence = facts["licence"] or "unknown"
    lines = [
        f"{facts['out']}: {facts['about']} for {facts['base'] or 'an unknown base'}, licence of the base: {licence}"
    ]
    return lines + [f"not known: {', '.join(facts['unknown'])}"] * bool(facts["unknown"])


def _hub(facts: dict[str, Any]) -> list[str]:
    from scumble.cli.output import size

    seen = "private" if facts["private"] else "public"
    return [f"{facts['url']} ({seen}): {len(facts['files'])} files, {size(facts['bytes'])}"]


_LINES = {"gguf": _gguf, "vllm": _vllm, "card": _card, "hub": _hub}


@app.callback()
def options() -> None:
    """Adapters and merged models in the forms that other tools take."""
