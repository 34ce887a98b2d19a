"""Ctrl-C and SIGTERM while training: the step at hand is finished first, so that the checkpoint is one of whole steps.

A second signal stops at once. Knows signals, and nothing of what is stopped.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_TITLES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}


class Stop:
    """Whether somebody asked the run to stop.

    Attributes:
        title: of the signal that asked, `Ctrl-C` or `SIGTERM`; None before one did.
    """

    def __init__(self, say: Callable[[str], None] = lambda text: None) -> None:
        self.title: str | None = None
        self._say, self._at_once = say, False

    def heed(self) -> None:
        """Raise `KeyboardInterrupt` where somebody asked to stop."""
        if self.title:
            raise KeyboardInterrupt

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Stop within the body of a `with` as soon as asked: nothing is changed there that could be left half done."""
        self.heed()
        self._at_once = True
        try:
            yield
        finally:
            self._at_once = False

    def handle(self, number: int, frame: FrameType | None) -> None:
        """What is called when a signal comes."""
        again, self.title = self.title is not None, _TITLES[signal.Signals(number)]
        if again or self._at_once:
            raise KeyboardInterrupt
        self._say(f"{self.title}: stopping after this step; once more stops at once")


@contextmanager
def heeded(say: Callable[[str], None]) -> Iterator[Stop]:
    """Listen for both signals in the body of a `with`; then whoever listened before does again.

    Python hands signals to the main thread alone: in another one nothing is changed.

    Args:
        say: told what happens when a signal comes.
    """
    stop = Stop(say)
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.getsignal(number) for number in _TITLES}
    # a handler that Python did not set, or one that says to ignore (nohup, a background job), is left alone
    ours = [number for number, handler in before.items() if handler not in (None, signal.SIG_IGN)]
    try:
        for number in ours:
            signal.signal(number, stop.handle)
        yield stop
    finally:
        for number in ours:
            signal.signal(number, before[number])
