"""What `scumble data` prints for people: findings, tokens in colour, lengths as bars.

Where there is no colour (a file, a pipe), tokens are divided by `|` and those with a loss stand in `⟦ ⟧`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from scumble.errors import printable

if TYPE_CHECKING:
    from scumble.data.checking import Checked
    from scumble.data.checks.finding import Finding
    from scumble.data.converting import Converted
    from scumble.data.previewing import Preview, Shown, Token
    from scumble.data.savings import Bar
    from scumble.data.splitting import Split

# (loss, special): the style of even and of odd tokens, each with both its colours, for any terminal
STYLES = {
    (False, False): ("#404040 on #f0efec", "#404040 on #dddbd6"),
    (False, True): ("bold #8a5a12 on #f0efec", "bold #8a5a12 on #dddbd6"),
    (True, False): ("#10301c on #bfe3cb", "#10301c on #97cfaa"),
    (True, True): ("bold #6b3f00 on #bfe3cb", "bold #6b3f00 on #97cfaa"),
}
TOKENS = 600  # of one example in the terminal: its beginning and its end, where it has more
LINES = 10  # line numbers of a finding
PROBLEMS = 5  # examples that cannot be read or encoded
BAR = 40  # columns of the longest bar


def show_check(found: Checked) -> None:
    """Print what was found, errors first, and the counts."""
    console = _console()
    recognised = f", {found.format} ({found.format_reason})" if found.format else ""
    console.print(f"{printable(found.source)}: {found.examples:,} examples{printable(recognised)}")
    if found.tokens:
        share = found.supervised_tokens / found.tokens
        console.print(f"{found.tokens:,} tokens, {found.supervised_tokens:,} with a loss ({share:.1%})")
    for finding in found.findings:
        _finding(console, finding, found.source)
    console.print()
    errors, warnings = len(found.errors), len(found.warnings)
    console.print(
        "nothing is wrong"
        if not found.findings
        else f"{_many(errors, 'error')}, {_many(warnings, 'warning')}"
    )


def _finding(console: Console, finding: Finding, source: str) -> None:
    console.print()
    style = "bold red" if finding.severity == "error" else "bold yellow"
    where = _lines(finding.lines, finding.count)
    if where and finding.source != source:
        where = f"{finding.source}, {where}"
    console.print(
        Text.assemble(
            (f"{finding.severity}: {finding.check}", style), f"  {printable(where)}" if where else ""
        )
    )
    console.print(Text(f"  {printable(finding.message)}"))
    console.print(Text(f"  if ignored: {printable(finding.consequence)}"))
    console.print(Text(f"  to do: {printable(finding.fix)}"))


def _lines(lines: Sequence[int], count: int) -> str:
    if not lines:
        return ""
    told = ", ".join(f"{line}" for line in lines[:LINES])
    more = max(count, len(lines)) - min(len(lines), LINES)
    return f"line{'s' * (len(lines) > 1)} {told}" + (f" and {more:,} more" if more else "")


def show_preview(found: Preview, html: Path | None = None) -> None:
    """Print the first examples token by token, and the figures."""
    console = _console()
    for example in found.shown:
        _example(console, example)
    _figures(console, found)
    for problem in found.problems[:PROBLEMS]:
        console.print(Text(f"left out: {problem}", "yellow"))
    if found.refused > PROBLEMS:
        console.print(f"left out: {found.refused - PROBLEMS:,} more")
    for note, examples in found.notes.items():
        console.print(Text(f"note: {_many(examples, 'example')}: {printable(note)}", "yellow"))
    if html is not None:
        console.print(Text(f"page: {html}"))


def _example(console: Console, example: Shown) -> None:
    left_out = "" if example.kept else "; too long, left out of training"
    title = f"{printable(example.where)}: {len(example.tokens):,} tokens, {example.supervised:,} with a loss"
    console.print(Text(title + left_out, "bold"))
    from scumble.data.preview_page import clip

    head, missing, tail = clip(example.tokens, TOKENS)
    plain = console.no_color or not console.is_terminal
    text = _bare(head) if plain else _coloured(head)
    if missing:
        text.append(f" … {missing:,} tokens not shown … ", "italic")
        text.append_text(_bare(tail) if plain else _coloured(tail))
    console.print(text)
    console.print()


def _coloured(tokens: Sequence[Token]) -> Text:
    from scumble.data.pieces import visible

    text = Text()
    for i, token in enumerate(tokens):
        text.append(visible(token.text), STYLES[token.supervised, token.special][i % 2])
    return text


def _bare(tokens: Sequence[Token]) -> Text:
    from scumble.data.pieces import visible

    parts, loss = [], False
    for i, token in enumerate(tokens):
        if token.supervised != loss:
            parts.append("⟦" if token.supervised else "⟧")
        elif i and not tokens[i - 1].text.endswith("\n"):
            parts.append("|")
        parts.append(visible(token.text))
        loss = token.supervised
    return Text("".join(parts) + "⟧" * loss)


def _figures(console: Console, found: Preview) -> None:
    from scumble.data.preview_page import named

    seen = "all of" if found.complete else "the first of"
    console.print(
        f"{_many(found.examples, 'example')}, {seen} {printable(found.source)}: {found.tokens:,} tokens, "
        f"{found.supervised_tokens:,} with a loss ({found.supervised_share:.1%})"
    )
    if found.too_long:
        console.print(
            f"{_many(found.too_long, 'example')} longer than {found.max_length:,} tokens, left out of training",
            style="yellow",
        )
    if found.savings:
        saved = found.savings
        console.print(
            f"packing saves {saved.packing:.1%} of the positions of batches of {saved.batch}; shared prefixes "
            f"save {saved.prefixes:.1%} of the tokens, {saved.prefixes_at_most:.1%} if one batch held all"
        )
    lengths = found.lengths
    console.print(
        f"tokens in an example: {lengths.min:,} to {lengths.max:,}, median {lengths.median:,}, "
        f"90 % up to {lengths.p90:,}, 99 % up to {lengths.p99:,}"
    )
    names = [named(bar) for bar in found.bars]
    widest, most = max(map(len, names)), max(bar.examples for bar in found.bars)
    for name, bar in zip(names, found.bars, strict=True):
        drawn = f"{_bar(bar, most)} " if bar.examples else ""
        line = Text(f"  {name:>{widest}}  {drawn}{bar.examples:,}")
        line.stylize("red" if bar.low > found.max_length else "")
        console.print(line)


def _bar(bar: Bar, most: int) -> str:
    """A bar in eighths of a column; what is not nothing is seen."""
    eighths = max(round(8 * BAR * bar.examples / most), bool(bar.examples))
    return "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()


def show_converted(found: Converted) -> None:
    """Print what was written."""
    formats = ", ".join(f"{count:,} {name}" for name, count in found.formats.items())
    print(f"{printable(found.out)}: {_many(found.examples, 'example')} as OpenAI chat ({formats})")


def show_split(found: Split) -> None:
    """Print the parts, and the share that each stratum has in them."""
    total = sum(found.examples.values())
    for name, count in found.examples.items():
        print(f"{printable(found.files[name])}: {_many(count, 'example')} ({count / total:.1%})")
    if found.repeated:
        print(f"{_many(found.repeated, 'example')} equal to an earlier one, each on that one's side")
    if found.groups is not None:
        print(f"{_many(found.groups, 'group')}, each on one side")
    for stratum, held in (found.strata or {}).items():
        counts = ", ".join(f"{count:,} {name}" for name, count in held.items())
        print(f"  {printable(stratum)}: {counts}")


def _many(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _console() -> Console:
    return Console(highlight=False, soft_wrap=True, markup=False)
