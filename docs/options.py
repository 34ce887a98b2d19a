"""Writes the option tables of these pages from the commands themselves: `python docs/options.py`.

A table stands between `<!-- options: COMMAND -->` and `<!-- end of options -->`, that of the checks of data
between `<!-- checks -->` and `<!-- end of checks -->`. With `--check` nothing is
written, and pages whose tables are stale are named. Knows the command line, and nothing of what it does.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import typer

from scumble.cli.main import app
from scumble.data.checks.inspection import catalogue

FOLDER = Path(__file__).parent
TABLE = re.compile(r"(<!-- options: ([a-z ]+) -->\n).*?(<!-- end of options -->)", re.S)

CHECKS = re.compile(r"(<!-- checks -->\n).*?(<!-- end of checks -->)", re.S)


def table(command: str) -> str:
    """The options of a command, such as `train` or `lab cron`, as a table in Markdown."""
    found: Any = typer.main.get_command(app)
    for word in command.split():
        found = found.commands[word]
    rows = [row(parameter) for parameter in found.params if parameter.name != "help"]
    return "\n".join(["| option | what it is | default |", "|---|---|---|", *rows]) + "\n"


def row(parameter: Any) -> str:
    """One option; a default that is decided later stands in brackets at the end of its help."""
    text, _, told = (parameter.help or "").partition(" [")
    positional = parameter.param_type_name == "argument"
    name = parameter.name.upper() if positional else ", ".join(f"`{option}`" for option in parameter.opts)
    default = told.rstrip("]")
    if not default and parameter.required:
        default = "required"
    elif not default and parameter.default not in (None, False, ""):
        default = str(parameter.default)
    return f"| {name} | {text.replace('|', '/')} | {default} |"


def checks() -> str:
    """Every check of data, in the order of reports, as a table in Markdown."""
    rows = [
        f"| `{each.name}` | {each.severity} | {each.title} | {each.consequence} |" for each in catalogue()
    ]
    return "\n".join(["| check | severity | what it finds | if ignored |", "|---|---|---|---|", *rows]) + "\n"


def renew(text: str) -> str:
    """A page with its tables as they are now."""
    text = TABLE.sub(lambda found: found[1] + table(found[2]) + found[3], text)
    return CHECKS.sub(lambda found: found[1] + checks() + found[2], text)


def main() -> None:
    """Write the pages, or with `--check` name those that are stale and exit 1."""
    pages = {page: page.read_text(encoding="utf-8") for page in sorted(FOLDER.glob("*.md"))}
    stale = {page: renew(text) for page, text in pages.items() if renew(text) != text}
    for page, text in stale.items():
        if "--check" not in sys.argv:
            page.write_text(text, encoding="utf-8")
        print(f"{page.name} {'is stale' if '--check' in sys.argv else 'was renewed'}", file=sys.stderr)
    sys.exit(1 if stale and "--check" in sys.argv else 0)


if __name__ == "__main__":
    main()
