"""`scumble`: the commands, and what every failure looks like: one line on what is wrong, one on what to do."""

from __future__ import annotations

import os
import re
import sys
import warnings
from pathlib import Path
from typing import Any, NoReturn

import typer

from scumble.cli import (
    advise,
    bench,
    blend,
    chat,
    compare,
    data,
    demo,
    doctor,
    export,
    inspect,
    lab,
    merge,
    output,
    plan,
    resize,
    sweep,
    train,
    unmerge,
)
from scumble.errors import ScumbleError, printable

app = typer.Typer(
    name="scumble",
    help="One toolkit for the whole life of a LoRA adapter on a causal language model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (
    demo,
    plan,
    train,
    sweep,
    advise,
    compare,
    inspect,
    merge,
    unmerge,
    blend,
    resize,
    chat,
    doctor,
):
    app.command(command.NAME)(command.run)
app.add_typer(data.app, name="data")
app.add_typer(export.app, name="export")
app.add_typer(lab.app, name="lab")
app.add_typer(bench.app, name="bench")

_PACKAGE = str(Path(__file__).parents[1]) + os.sep
_CTRL_C = 130  # what typer makes of it, once it has swallowed the exception


@app.callback()
def options(
    debug: bool = typer.Option(
        False, "--debug", help="Show the traceback of a failure; anywhere on the line."
    ),
) -> None:
    """One toolkit for the whole life of a LoRA adapter on a causal language model."""


def main() -> None:
    """Run a command: exit 0, 1 for a failure with its reason and a hint on stderr, 2 for wrong usage."""
    arguments = sys.argv[1:]
    debug = "--debug" in arguments or bool(os.environ.get("SCUMBLE_DEBUG"))
    for stream in (sys.stdin, sys.stdout):
        # text that the terminal's encoding cannot hold is no reason to fail
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    with warnings.catch_warnings():
        warnings.showwarning = _one_line
        try:
            command = with_brackets(typer.main.get_command(app))
            status = command([word for word in arguments if word != "--debug"], standalone_mode=False)
            sys.stdout.flush()
        except BaseException as error:
            if debug and not isinstance(error, SystemExit):
                raise
            _report(error)
    if status == _CTRL_C:
        _report(KeyboardInterrupt())
    sys.exit(status if isinstance(status, int) else 0)


def with_brackets(command: Any) -> Any:
    """A command whose help shows `[exact]`, where rich would take that for a style and leave it out."""
    for each in [*command.params, *getattr(command, "commands", {}).values()]:
        if getattr(each, "help", None):
            each.help = re.sub(r"(?<!\\)\[(?=[a-z])", r"\\[", each.help)
        if hasattr(each, "params"):
            with_brackets(each)
    return command


def _report(error: BaseException) -> NoReturn:
    """Say what went wrong in one line, and in another what to do; exit with 1, or with 2 for wrong usage."""
    if isinstance(error, SystemExit):
        raise error
    if isinstance(error, BrokenPipeError):
        # nobody reads any more (`| head`): nothing to say, and nothing more to flush
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    if hasattr(error, "format_message"):  # typer's own, whose classes it moves about
        _usage(error)
    output.failure(*_described(error))
    sys.exit(1)


def _usage(error: Any) -> NoReturn:
    message = " ".join(str(error.format_message()).split())
    path = getattr(getattr(error, "ctx", None), "command_path", "scumble")
    if type(error).__name__ != "NoArgsIsHelpError":  # after which the help was printed
        message = message.partition(", unable to parse")[0].replace("Input should", "must").rstrip(".")
        output.failure(message[:1].lower() + message[1:], f"see {path} --help")
    sys.exit(int(getattr(error, "exit_code", 2)))


def _described(error: BaseException) -> tuple[str, str]:
    """What is wrong, and what to do."""
    if isinstance(error, ScumbleError):
        return error.message, error.hint
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        return "stopped by Ctrl-C", "nothing half written was left behind"
    text = " ".join(str(error).split())
    lowered = text.lower()
    if isinstance(error, MemoryError) or "out of memory" in lowered or "can't allocate memory" in lowered:
        return "memory ran out", "use a smaller --batch, --max-length, --rank or base"
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror or text}", "make room, or check the path and its permissions"
    return (
        f"unexpected: {type(error).__name__}: {text[:300]}",
        "this is a mistake of Scumble; --debug shows where it was made",
    )


def _one_line(message: Warning | str, category: type[Warning], *args: object, **kwargs: object) -> None:
    # what other libraries warn their callers of is not for a user of ours to read
    if issubclass(category, UserWarning) and str(args[0] if args else "").startswith(_PACKAGE):
        print(f"warning: {printable(message)}", file=sys.stderr)
