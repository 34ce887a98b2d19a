"""Work given to copies of this process, one for each core, and taken back in order.

A copy is a fork: it has all that this process has, so nothing but the work itself is sent, and no script needs a
guard. It does no more than the one function, and never touches what other threads or a GPU were about. Knows
nothing of examples or tokens.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import signal
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from queue import SimpleQueue
from threading import Thread
from typing import Any, TypeAlias

from scumble.errors import ScumbleError

MOST = 8  # what hands out the work keeps no more of them busy
AHEAD = 2  # pieces of work that each process has at once: one that it does, one that waits
_PARALLEL = "TOKENIZERS_PARALLELISM"
_Item: TypeAlias = Any


def cores() -> int:
    """How many processes are worth having: 1 where there is one core, or where forks are not safe or not allowed."""
    if sys.platform != "linux" or multiprocessing.current_process().daemon:
        return 1
    return min(len(os.sched_getaffinity(0)), MOST)


class Processes:
    """Forks of this process, made when the first work comes, ended by `close`."""

    def __init__(
        self, work: Callable[[Any], Any], count: int | None = None, sent: Callable[[_Item], Any] | None = None
    ) -> None:
        """What is to be done.

        Args:
            work: done in the fork; what it takes and gives can be pickled.
            count: how many forks; as many as there are cores where it is None.
            sent: what of an item the work is handed; all of it where it is None.
        """
        self.count = cores() if count is None else count
        self._work, self._sent = work, sent
        self._forks: list[tuple[Any, Connection]] = []
        self._turn = 0

    @property
    def started(self) -> bool:
        """Whether the forks are there."""
        return bool(self._forks)

    def each(self, items: Iterator[_Item]) -> Iterator[tuple[_Item, Any]]:
        """Each item and what `work` makes of it, in order; few of them are held at a time.

        What is made is None where the item cannot be pickled or `work` fails on it: the caller then does the
        work itself, and meets the error where it can be told.

        Raises:
            ScumbleError: a fork has ended.
        """
        waiting: deque[tuple[_Item, Connection | None]] = deque()
        try:
            self._fill(waiting, items)
            while waiting:
                item, connection = waiting.popleft()
                made = None if connection is None else self._received(connection)
                self._fill(waiting, items)
                yield item, made
        except BaseException:
            self.close()  # what is still to come belongs to nobody
            raise

    def close(self) -> None:
        """End the forks, whatever they are about."""
        forks, self._forks = self._forks, []
        for process, connection in forks:
            connection.close()
            process.terminate()
        for process, _ in forks:
            process.join()
            process.close()

    def _fill(self, waiting: deque[tuple[_Item, Connection | None]], items: Iterator[_Item]) -> None:
        while len(waiting) < AHEAD * self.count:
            try:
                item = next(items)
            except StopIteration:
                return
            try:
                sent = pickle.dumps(self._sent(item) if self._sent else item, pickle.HIGHEST_PROTOCOL)
            except Exception:  # whatever a caller's own object does when it is pickled
                waiting.append((item, None))
                continue
            if not self._forks:
                self._start()
            process, connection = self._forks[self._turn % self.count]
            self._turn += 1
            try:
                connection.send_bytes(sent)
            except OSError as error:
                raise self._ended(process) from error
            waiting.append((item, connection))

    def _received(self, connection: Connection) -> Any:
        try:
            return pickle.loads(connection.recv_bytes())
        except (EOFError, OSError) as error:
            raise self._ended(next(p for p, c in self._forks if c is connection)) from error

    def _ended(self, process: Any) -> ScumbleError:
        process.join(1)
        return ScumbleError(
            f"one of the {self.count} processes that work on the examples has ended (exit code {process.exitcode})",
            "the memory may not have been enough",
        )

    def _start(self) -> None:
        context = multiprocessing.get_context("fork")
        with _quiet_fork():
            for _ in range(self.count):
                ours, theirs = context.Pipe()
                closed = [connection for _, connection in self._forks] + [ours]
                process = context.Process(target=_serve, args=(theirs, closed, self._work), daemon=True)
                process.start()
                theirs.close()
                self._forks.append((process, ours))


@contextmanager
def _quiet_fork() -> Iterator[None]:
    """Forks made in here get no Ctrl-C, which is the first process's to handle, and say nothing of being forks."""
    before = os.environ.get(_PARALLEL)
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    # a fork tokenizes on its own core; were this not set, the library would say on stderr that it does so
    os.environ[_PARALLEL] = "false"
    try:
        with warnings.catch_warnings():
            # Python 3.12 warns of forks where there are threads; these take no lock that a thread may hold
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        if before is None:
            del os.environ[_PARALLEL]
        else:
            os.environ[_PARALLEL] = before
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def _serve(connection: Connection, closed: list[Connection], work: Callable[[Any], Any]) -> None:
    """A fork's life: it ends with the connection, thus also where the first process is no more."""
    for other in closed:
        other.close()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    gc.freeze()  # what is there already is neither looked through nor, by that, copied
    gc.disable()  # a piece of work leaves few cycles behind, which are collected after it
    received: SimpleQueue[bytes | None] = SimpleQueue()
    # always ready to take, so that neither side waits for the other to take first
    Thread(target=_receive, args=(connection, received), daemon=True).start()
    while (sent := received.get()) is not None:
        try:
            made = pickle.dumps(work(pickle.loads(sent)), pickle.HIGHEST_PROTOCOL)
        except Exception:  # the first process does it again, and meets it
            made = pickle.dumps(None)
        try:
            connection.send_bytes(made)
        except OSError:
            return
        del made
        gc.collect()


def _receive(connection: Connection, received: SimpleQueue[bytes | None]) -> None:
    try:
        while True:
            received.put(connection.recv_bytes())
    except (EOFError, OSError):
        received.put(None)
