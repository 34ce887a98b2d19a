"""What a command says while it runs: a progress bar on a terminal, now and then a line elsewhere. On stderr.

A log file and a notebook are no terminals: there every line stays as it is, and none is written over another.

Knows numbers to show, and nothing of where they come from.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

LINES = 10  # lines of progress over a run, where there is no terminal
PAUSE = 60.0  # seconds without a line after which the next step gets one
STRIDE = 100_000  # items from one line to the next, where nobody knows how many there are


class Reporter:
    """Notes, progress and warnings; with `quiet`, none of them."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.console = Console(stderr=True, quiet=quiet, soft_wrap=True, highlight=False)
        self._bar: Progress | None = None
        self._task: Any = None

    def note(self, text: str) -> None:
        """One line."""
        self.console.print(text, markup=False)

    def warn(self, text: str) -> None:
        """One line that should be seen."""
        self.console.print(f"warning: {text}", style="yellow", markup=False)

    @contextmanager
    def bar(self, title: str, total: int | None) -> Iterator[Reporter]:
        """A progress bar for the body of a `with`, to be moved by `advance`; `total` None where nobody knows it."""
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[shown]}"),
            TimeRemainingColumn(),
        )
        self._total, self._count, self._title = total, 0, title
        self._said = time.monotonic()
        if not self.console.is_terminal or self.console.quiet:
            yield self
            return
        with Progress(*columns, console=self.console, transient=True) as self._bar:
            self._task = self._bar.add_task(title, total=total, shown="")
            try:
                yield self
            finally:
                self._bar = None

    def advance(self, count: int = 1, shown: str = "") -> None:
        """Move the bar by `count`, and show `shown` beside it."""
        before, self._count = self._count, self._count + count
        if self._bar is not None:
            self._bar.update(self._task, advance=count, shown=shown)
        elif self._total is None:
            if before // STRIDE != self._count // STRIDE:
                self.note(f"{self._title} {self._count:,}  {shown}".rstrip())
        elif (
            before * LINES // self._total != self._count * LINES // self._total
            or time.monotonic() - self._said > PAUSE
        ):
            self._said = time.monotonic()
            self.note(f"{self._title} {self._count}/{self._total}  {shown}".rstrip())
