"""`scumble`: the commands, and what every failure looks like: one line on what is wrong, one on what to do."""

from __future__ import annotations

import os
import sys
import warnings

import typer

from scumble.cli import chat, compare, demo, doctor, lab, train
from scumble.errors import ScumbleError

app = typer.Typer(
    name="scumble",
    help="One toolkit for the whole life of a LoRA adapter on a causal language model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (demo, train, compare, chat, doctor):
    app.command(command.NAME)(command.run)
app.add_typer(lab.app, name="lab")


@app.callback()
def options(
    debug: bool = typer.Option(False, "--debug", help="Show the traceback of a failure."),
) -> None:
    """One toolkit for the whole life of a LoRA adapter on a causal language model."""
    if debug:
        os.environ["SCUMBLE_DEBUG"] = "1"


def main() -> None:
    """Run a command: exit 0, 1 for a failure with its reason and a hint on stderr, 2 for wrong usage."""
    warnings.showwarning = _one_line
    try:
        app()
    except ScumbleError as error:
        _fail(error, error.message, error.hint)
    except KeyboardInterrupt as error:
        _fail(error, "stopped by Ctrl-C", "nothing half written was left behind")
    except MemoryError as error:
        _fail(error, "memory ran out", "use a smaller --batch, --max-length or base")
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _fail(error, f"{where}{error.strerror or error}", "make room, or check the path and its permissions")


def _fail(error: BaseException, message: str, hint: str) -> None:
    if os.environ.get("SCUMBLE_DEBUG"):
        raise error
    print(f"error: {message}", file=sys.stderr)
    if hint:
        print(f"  hint: {hint}", file=sys.stderr)
    sys.exit(1)


def _one_line(message: Warning | str, category: type[Warning], *args: object, **kwargs: object) -> None:
    # what other libraries warn their callers of is not for a user of ours to read
    if issubclass(category, UserWarning) and "scumble" in str(args[0] if args else ""):
        print(f"warning: {message}", file=sys.stderr)
