"""Smaller published models of the same makers, for those whose memory is not enough for the one they asked for."""

from __future__ import annotations

import re
from collections.abc import Mapping

from scumble.plan.fitting import Peak, Peaked
from scumble.plan.memory import Memories
from scumble.plan.published import published_models
from scumble.plan.setup import Setup
from scumble.plan.shape import Shape, find_shape


def smaller_bases(shape: Shape) -> Mapping[str, Peak]:
    """How the memory of smaller models is planned, by name, the largest first; nothing is read before it is asked.

    Of the same family (`Llama-3`), and for instructions where this one is; where several have as many parameters, the one
    that the table names first.
    """
    found: dict[int, str] = {}
    for model in published_models():
        alike = _kind(model.name) == _kind(shape.name)
        if alike and model.parameters < shape.parameters:
            found.setdefault(model.parameters, model.name)
    return {found[size]: _Later(found[size]) for size in sorted(found, reverse=True)}


class _Later:
    """Plans the memory of a published model, whose shape is read when it is first asked."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._memories: Memories | None = None

    def __call__(self, setup: Setup) -> Peaked:
        if self._memories is None:
            self._memories = Memories(find_shape(self.name))
        return self._memories(setup)


def _kind(name: str) -> tuple[str, bool]:
    """A name up to the end of its first number, and whether the model is one for instructions."""
    family = re.match(r"\D*\d*", name.casefold())
    assert family is not None
    return family.group(), any(part in name.casefold() for part in ("instruct", "-it", "chat"))
