"""`scumble chat`."""

from __future__ import annotations

import sys
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import typer

NAME = "chat"


def run(
    run: Annotated[Path | None, typer.Argument(help="Folder of a run or an adapter.")] = None,
    base: Annotated[str | None, typer.Option(help="Another base than the adapter names.")] = None,
    adapter: Annotated[
        list[str] | None, typer.Option(help="NAME=PATH, as often as there are adapters.")
    ] = None,
    system: Annotated[str, typer.Option(help="System message.")] = "",
    max_new_tokens: Annotated[int, typer.Option(help="Tokens of an answer at most.")] = 256,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    dtype: Annotated[str | None, typer.Option(help="fp32, bf16, fp16 or auto.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or mps.")] = None,
) -> None:
    """Talk to what was trained: /use NAME, /use a*0.7+b*0.3, /use base, /compare, /reset, /quit."""
    from scumble.serve.chat import HELP
    from scumble.serve.session import open_chat, pairs

    chat = open_chat(
        run, pairs(adapter or []), base=base, system=system, max_new_tokens=max_new_tokens,
        temperature=temperature, dtype=dtype, device=device,
    )  # fmt: skip
    print(f"{chat.use(chat.mixture)}   ({HELP})", file=sys.stderr)
    while not chat.over:
        try:
            line = input("> " if sys.stdin.isatty() else "")
        except (EOFError, KeyboardInterrupt):
            break
        _answer(chat, line)


def _answer(chat: Any, line: str) -> None:
    """Print what is said to one line as it comes; Ctrl-C ends the answer, and the conversation goes on."""
    from scumble.cli import output
    from scumble.errors import ScumbleError

    try:
        with closing(chat.say(line)) as pieces:
            for piece in pieces:
                print(piece, end="", flush=True)
        print(flush=True)
    except KeyboardInterrupt:
        print(flush=True)
        print("the answer was stopped; /quit or Ctrl-C at the prompt leaves", file=sys.stderr)
    except ScumbleError as error:
        output.failure(error.message, error.hint)
