"""`Tape`: a timeline of what a step allocates and lets go of, from which the peak and where it lies are read.

    with tape.at("forward pass, layer 3"):
        gate = tape.take(tokens * width * 4, "activations")
        ...
        tape.free(gate)

Sizes are numbers of bytes, and nothing is allocated. Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

PARTS = ("weights", "adapter", "gradients", "optimizer", "activations", "logits", "other")


@dataclass(eq=False)
class Held:
    """Something allocated.

    Attributes:
        size: bytes; 0 once it is let go.
        part: one of `PARTS`.
    """

    size: int
    part: str


class Tape:
    """What is held now, and the most that ever was.

    Attributes:
        held: bytes held now, by part.
        peak: the most bytes that were ever held at once.
        where: what was going on then, in words.
        parts: bytes by part at that moment; they sum to `peak`.
        largest: the most that each part ever held, whenever that was.
    """

    def __init__(self) -> None:
        self.held = dict.fromkeys(PARTS, 0)
        self.parts = dict(self.held)
        self.largest = dict(self.held)
        self.now = self.peak = 0
        self.where = ""
        self._doing = ""

    @contextmanager
    def at(self, what: str) -> Iterator[None]:
        """Say what goes on in the body of a `with`."""
        before, self._doing = self._doing, what
        try:
            yield
        finally:
            self._doing = before

    def take(self, size: float, part: str = "activations") -> Held:
        """Allocate `size` bytes."""
        held = Held(int(size), part)
        self.held[part] += held.size
        self.now += held.size
        self.largest[part] = max(self.largest[part], self.held[part])
        if self.now > self.peak:
            self.peak, self.where, self.parts = self.now, self._doing, dict(self.held)
        return held

    def free(self, *all_held: Held | None) -> None:
        """Let go of allocations; those that are gone already, and None, change nothing."""
        for held in all_held:
            if held is not None and held.size:
                self.held[held.part] -= held.size
                self.now -= held.size
                held.size = 0

    def pulse(self, size: float, part: str = "activations") -> None:
        """Allocate `size` bytes and let them go at once."""
        self.free(self.take(size, part))


@dataclass
class Rows:
    """How many rows there are, and what a matrix of so many takes."""

    tape: Tape
    count: int
    size: int  # bytes of a number

    def take(self, width: float, size: int | None = None) -> Held:
        """A matrix of `count` rows."""
        return self.tape.take(self.bytes(width, size))

    def pulse(self, width: float, size: int | None = None) -> None:
        """A matrix that is let go at once."""
        self.tape.pulse(self.bytes(width, size))

    def bytes(self, width: float, size: int | None = None) -> int:
        """Bytes of a matrix of `count` rows."""
        return int(self.count * width * (self.size if size is None else size))
