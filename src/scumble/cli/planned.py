"""What `scumble plan` prints for people: parameters, memory by part, bars side by side, what fits, and advice."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scumble.cli.output import size
from scumble.pages.render import duration

if TYPE_CHECKING:
    from scumble.plan.fitting import Suggestion
    from scumble.plan.memory import Memory
    from scumble.plan.plan import Plan

# how each part looks in a bar: without colours, where the encoding has no such signs, and with colours
_LOOKS = {
    "weights": ("█", "W", "bright_black"),
    "adapter": ("▚", "A", "red"),
    "gradients": ("▓", "G", "yellow"),
    "optimizer": ("▞", "O", "bright_yellow"),
    "activations": ("▒", "=", "blue"),
    "logits": ("░", "L", "cyan"),
    "other": ("·", ".", "white"),
}
_LEAST = 80  # columns, below which tables and bars say nothing
_NARROW = 44  # columns that a bar's title and figure need beside it


def show(found: Plan) -> None:
    """Print a `Plan`."""
    from rich.console import Console

    console = Console(highlight=False)
    console.width = max(console.width, _LEAST)
    _base(console, found)
    console.print()
    _memory(console, found)
    console.print()
    _bars(console, found)
    if found.measured is not None or found.time is not None:
        console.print()
        _here(console, found)
    if found.modules:
        console.print()
        _modules(console, found)
    if found.fit is not None:
        console.print()
        _fit(console, found)
    if found.advice:
        console.print()
        console.print("Advice", style="bold")
        for each in found.advice:
            _text(console, f"{each.topic}: {each.message}", 2, hanging=2)
            _text(console, f"{each.evidence} ({each.source})", 4, style="dim")
    console.print()
    console.print("Notes", style="bold")
    for note in found.notes:
        _text(console, note, 2, hanging=2)


def _base(console: Any, found: Plan) -> None:
    p, setup = found.parameters, found.setup
    _text(console, found.shape.name, style="bold")
    _text(console, f"configuration: {found.shape.source}", 2)
    if setup.method == "full":
        _text(console, f"all {p.total:,} parameters are trained", 2)
    else:
        targets = setup.targets if isinstance(setup.targets, str) else ", ".join(setup.targets)
        kinds = "".join(f", {name}" for name in ("rslora", "dora") if getattr(setup, name))
        _text(
            console,
            f"{found.title}, rank {setup.rank}, alpha {setup.alpha:g}{kinds}, on {targets}: {', '.join(p.by_module)}",
            2,
        )
        _text(console, f"{p.trainable:,} of {p.total:,} parameters are trained, {p.percent:.4f} %", 2)
    _text(console, f"the file that training writes has {size(p.file_bytes)}", 2)
    if found.data is not None:
        data = found.data
        steps = (
            f"{data.steps:,} optimizer step{'s' * (data.steps != 1)}, {data.steps_per_epoch:,} in an epoch"
        )
        _text(
            console,
            f"data {data.source}: {data.examples:,} examples, {data.tokens:,} tokens, {data.supervised:,} of them "
            f"with a loss; {steps}; the plain script's batches are {data.padding:.0%} padding",
            2,
        )
    for choice in found.choices:
        _text(console, f"{choice.option} = {choice.value}: {choice.reason}", 2)


def _memory(console: Any, found: Plan) -> None:
    from rich.table import Table

    memory, setup = found.memory, found.setup
    each = " on each device" if setup.processes > 1 else ""
    _text(console, f"Peak memory {size(memory.peak)}{each}: {memory.at}", style="bold")
    repeated = {"all": "every layer computed twice", 0: "no layer computed twice"}
    how = repeated.get(setup.repeat, f"{setup.repeat} of {found.shape.layers} layers computed twice")
    _text(
        console,
        f"{setup.batch} examples of at most {setup.longest:,} tokens at once, {setup.tokens:,} positions, "
        f"{how}, weights in {'nf4' if setup.method == 'qlora' else setup.dtype}, {setup.optimizer}",
        2,
    )
    table = Table(box=None, padding=(0, 2, 0, 2), header_style="dim")
    table.add_column("part")
    for title in ("at the peak", "of it", "at most"):
        table.add_column(title, justify="right")
    for part, amount in memory.parts.items():
        table.add_row(part, size(amount), f"{amount / memory.peak:.1%}", size(memory.largest[part]))
    console.print(table)


def _bars(console: Any, found: Plan) -> None:
    from rich.text import Text

    from scumble.plan.picture import bars

    console.print("Side by side", style="bold")
    shown = bars(found)
    most = max(memory.peak for _, memory in shown)
    limit = None if found.card is None else found.card.usable
    width = max(10, min(console.width, 100) - _NARROW)
    for title, memory in shown:
        line = Text(f"  {title.replace('gradient checkpointing', 'checkpointing'):33}{size(memory.peak):>9} ")
        for part, cells in _cells(memory, most, width).items():
            look, colour = _look(console, part)
            line.append(look * cells, colour)
        if limit is not None and memory.peak <= limit:
            line.append(" fits", "green")
        console.print(line, no_wrap=True, crop=False)
    legend = Text("  ")
    for part in _LOOKS:
        legend.append(*_look(console, part))
        legend.append(f" {part} ")
    console.print(legend)


def _look(console: Any, part: str) -> tuple[str, str]:
    sign, letter, colour = _LOOKS[part]
    return (sign if console.encoding.startswith("utf") else letter), colour


def _cells(memory: Memory, most: int, width: int) -> dict[str, int]:
    """Columns of each part: rounded where its ends are, so that they sum to the whole bar's."""
    cells, before = {}, 0
    for part, amount in memory.parts.items():
        after = before + amount
        cells[part] = round(after * width / most) - round(before * width / most)
        before = after
    return cells


def _here(console: Any, found: Plan) -> None:
    """What was measured on this machine."""
    console.print("On this machine", style="bold")
    measured, time, calibration = found.measured, found.time, found.calibration
    if measured is not None:
        off = f"{abs(measured.error):.1%} too {'much' if measured.error > 0 else 'little'}"
        _text(
            console,
            f"a real step on {found.setup.device} took {size(measured.peak)} at its peak, planned were "
            f"{size(measured.planned)}: {off} of the {size(measured.peak - measured.weights)} that are not weights",
            2,
            hanging=2,
        )
    if time is not None and calibration is not None:
        what = "an optimizer step" if found.data is None else f"an epoch of {time.steps:,} optimizer steps"
        speed = f"{time.tokens_per_second:,.0f} tokens/s"
        _text(console, f"{what} takes {time}: {speed}, training alone", 2, hanging=2)
        if found.data is not None and found.data.steps != time.steps:
            run = time.seconds * found.data.steps / time.steps
            _text(console, f"the whole run of {found.data.steps:,} steps takes {duration(run)}", 2, hanging=2)
        made = f"calibrated {calibration.made} on {calibration.machine}, {calibration.threads} threads"
        _text(console, made, 2, hanging=2, style="dim")


def _modules(console: Any, found: Plan) -> None:
    from rich.table import Table

    console.print("What each target module takes", style="bold")
    table = Table(box=None, padding=(0, 2, 0, 2), header_style="dim")
    table.add_column("module")
    table.add_column("")
    for title in ("parameters", "memory", "of the rest"):
        table.add_column(title, justify="right")
    for each in found.modules:
        table.add_row(
            each.name,
            "is a target" if each.included else "would add",
            f"{each.parameters:,}",
            size(each.bytes),
            f"{each.share:.1%}",
        )
    console.print(table)


def _fit(console: Any, found: Plan) -> None:
    assert found.fit is not None
    assert found.card is not None
    fitted, card = found.fit, found.card
    verdict = "fits" if fitted.fits else "does not fit"
    _text(
        console,
        f"It {verdict} {card.name}: {size(fitted.peak)} of {size(card.usable)}",
        style="bold green" if fitted.fits else "bold red",
    )
    _largest(console, found)
    if fitted.suggestions:
        enough = fitted.suggestions[-1].fits
        _text(console, "to fit, one after another:" if enough else "not enough, even together:", 2)
        for number, each in enumerate(fitted.suggestions, start=1):
            _suggestion(console, each, f"{number}. ")
    if fitted.alone:
        _text(console, "each by itself:", 2)
        for each in fitted.alone:
            _suggestion(console, each, "- ")


def _largest(console: Any, found: Plan) -> None:
    most = found.largest
    assert most is not None
    twice = ", and as many layers computed twice as it takes" if found.auto else ""
    values = {"batch": most.batch, "max-length": most.length, "rank": most.rank}
    parts = [
        f"--{name} {value}" if value else f"no {name}" for name, value in values.items() if value is not None
    ]
    _text(console, f"the largest that fits, each with the others as they are{twice}: {', '.join(parts)}", 2)


def _suggestion(console: Any, each: Suggestion, mark: str) -> None:
    verdict = ", which fits" if each.fits else ""
    _text(
        console,
        f"{mark}{each.options}: saves {size(each.saving)}, leaves {size(each.peak)}{verdict}. "
        f"It costs {each.cost}",
        4,
        hanging=len(mark),
    )


def _text(console: Any, text: str, indent: int = 0, *, hanging: int = 0, style: str = "") -> None:
    """A paragraph, its further lines a little to the right."""
    from rich.text import Text

    lines = Text(text).wrap(console, max(20, min(console.width, 100) - indent - hanging))
    for number, line in enumerate(lines):
        line.rstrip()
        console.print(
            Text(" " * (indent + hanging * (number > 0))) + line, style=style, no_wrap=True, crop=False
        )
