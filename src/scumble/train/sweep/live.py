"""`LiveReporter`: how far the trials of a sweep are. On a terminal a table that changes, elsewhere a line as each ends.

How far a trial is under way is read from the figures that it writes. Knows the journal, and changes nothing of it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from scumble.progress import Reporter
from scumble.train.sweep.journal import Journal
from scumble.train.sweep.table import live_table
from scumble.train.sweep.trials import SweepTrial

_PAUSE = 0.5  # seconds from one reading of the figures to the next
_TAIL = 2048  # bytes at the end of metrics.jsonl that hold its last rows


class LiveReporter(Reporter):
    """A reporter that knows of trials."""

    def __init__(self, *, quiet: bool = False) -> None:
        super().__init__(quiet=quiet)
        self._journal: Journal | None = None
        self._live: Live | None = None
        self._shown: dict[str, str] = {}  # what was said of each trial
        self._warned: set[str] = set()
        self._read = 0.0

    def warn(self, text: str) -> None:
        """One line that should be seen, once."""
        if text not in self._warned:
            self._warned.add(text)
            super().warn(text)

    @contextmanager
    def showing(self, journal: Journal) -> Iterator[None]:
        """Show the trials of a sweep for the body of a `with`."""
        self._journal = journal
        self._shown = {trial.name: trial.state for trial in journal.trials if trial.over}
        try:
            yield
        finally:
            self._tell_ended()
            self._journal = None

    @contextmanager
    def bar(self, title: str, total: int | None) -> Iterator[Reporter]:
        """The table with a progress bar below, for the body of a `with`."""
        if not self.console.is_terminal or self.console.quiet or self._journal is None:
            with super().bar(title, total):
                yield self
            self._tell_ended()
            return
        columns: Any = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[shown]}"),
            TimeRemainingColumn(),
        )
        self._total, self._count, self._title, self._said = total, 0, title, time.monotonic()
        self._bar = Progress(*columns, console=self.console)
        self._task = self._bar.add_task(title, total=total, shown="")
        try:
            with Live(self._drawn(), console=self.console, transient=True, auto_refresh=False) as self._live:
                yield self
        finally:
            self._live, self._bar = None, None

    def advance(self, count: int = 1, shown: str = "") -> None:
        """Move the bar, and now and then draw the table anew."""
        super().advance(count, shown)
        if time.monotonic() - self._read < _PAUSE:
            return
        self._read = time.monotonic()
        if self._live is not None:
            self._live.update(self._drawn(), refresh=True)
        else:
            self._tell_ended()

    def _drawn(self) -> Group:
        assert self._journal is not None
        assert self._bar is not None
        far = {trial.name: self._far(trial) for trial in self._journal.trials if not trial.over}
        table: Table = live_table(self._journal, far, max(4, self.console.height - 5))
        return Group(table, self._bar)

    def _far(self, trial: SweepTrial) -> dict[str, Any]:
        """The last figures that a trial wrote: `step`, `loss`, `eval_loss`."""
        assert self._journal is not None
        try:
            with (self._journal.place(trial) / "metrics.jsonl").open("rb") as file:
                file.seek(max(0, file.seek(0, 2) - _TAIL))
                lines = file.read().splitlines()
        except OSError:
            return {}
        found: dict[str, Any] = {}
        for line in lines:
            try:
                found |= json.loads(line)
            except ValueError:  # its beginning was left out, or it is being written
                continue
        return found

    def _tell_ended(self) -> None:
        """A line of each trial that ended since."""
        if self._journal is None:
            return
        for trial in self._journal.trials:
            if not trial.over or self._shown.get(trial.name) == trial.state:
                continue
            self._shown[trial.name] = trial.state
            loss = "" if trial.loss is None else f", validation loss {trial.loss:.4f}"
            why = f": {trial.reason}" if trial.reason else ""
            self.note(f"{trial.name} {trial.state} after step {trial.steps}{loss}{why}")
