"""What each kind of target module really takes: parameters, and bytes of the peak. Knows plans and targets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from scumble.errors import AdapterError
from scumble.plan.memory import Memory
from scumble.plan.parameters import adds, count_parameters
from scumble.plan.setup import Setup
from scumble.plan.shape import Shape


@dataclass(frozen=True)
class ModuleCost:
    """What one kind of module takes as a target.

    Attributes:
        name: the last part of the modules' names.
        included: it is a target already; the figures are what leaving it out would save.
        parameters: trained in all of its modules together.
        bytes: of peak memory.
        share: of the peak without it.
    """

    name: str
    included: bool
    parameters: int
    bytes: int
    share: float

    def to_dict(self) -> dict[str, Any]:
        """The same by name."""
        return asdict(self)


def module_costs(shape: Shape, setup: Setup, memories: Callable[[Setup], Memory]) -> tuple[ModuleCost, ...]:
    """What every kind of linear layer takes as a target, or would take beside the others.

    None for full training, and where a model's linear layers are no targets each for itself.
    """
    if setup.method == "full":
        return ()
    reached = sorted(count_parameters(shape, setup).by_module)

    def peak(*names: str) -> int:
        return memories(replace(setup, targets=names)).peak

    now = peak(*reached)
    found = []
    try:
        for name, parameters in adds(shape, setup).items():
            others = [each for each in reached if each != name]
            if not others:  # the only target, without which there is nothing to train
                continue
            without, included = (peak(*others), now) if name in reached else (now, peak(*reached, name))
            taken = included - without
            found.append(ModuleCost(name, name in reached, parameters, taken, taken / without))
    except AdapterError:
        return ()
    return tuple(found)
