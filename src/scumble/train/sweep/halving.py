"""Successive halving: everybody trains to a rung, one in `eta` goes on to the next, the others are ended for good.

    settings that go on after a rung = ceil(those that came to it / eta)
    rungs at eta^-k, ..., eta^-1, 1 of each run's steps, with k the whole part of log_eta(settings)

So every rung costs about as many steps in all as the one before (Jamieson and Talwalkar 2016). It is synchronous: nobody
goes on before all are there, so that who goes on depends on nothing but losses. A setting with several seeds is judged by
its mean; of equals the one that was planned first goes on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from scumble.errors import ConfigError


def shares(settings: int, eta: int) -> list[float]:
    """Of each rung the share of a run's steps that it stands at; the last one is 1.

    Raises:
        ConfigError: there are too few settings to leave any behind.
    """
    if settings < 2:
        raise ConfigError("--halving has one setting, and nothing to choose from", "leave it out")
    rungs, left = 0, settings
    while left >= eta:
        rungs, left = rungs + 1, left // eta
    return [float(eta) ** -k for k in range(max(rungs, 1), -1, -1)]


def steps_at(steps: int, shares: Sequence[float], name: str) -> list[int]:
    """The steps of a run of `steps` at each rung.

    Raises:
        ConfigError: there are too few for a rung of each.
    """
    found = [round(steps * share) for share in shares]
    needed = round(1 / shares[0])
    if found[0] < 1 or len(set(found)) < len(found):
        raise ConfigError(
            f"trial {name} has {steps} steps, and halving on {len(shares)} rungs needs {needed} at least",
            "raise --max-steps or --epochs, or leave --halving out",
        )
    return found


def going_on(losses: Mapping[int, float | None], eta: int) -> list[int]:
    """The lines that go on after a rung, in their order.

    Args:
        losses: of each line that came to it; None where it failed, or has no loss.
        eta: one in so many goes on, rounded up.
    """
    places = {line: place for place, line in enumerate(sorted(losses))}
    judged = [line for line in sorted(losses) if losses[line] is not None]
    ranked = sorted(judged, key=lambda line: (losses[line], places[line]))
    return sorted(ranked[: math.ceil(len(losses) / eta)])


def reason(step: int, loss: float, place: int, of: int, kept: int) -> str:
    """Why a setting was ended, in one line."""
    return f"halving: the lowest loss up to step {step}, {loss:.4f}, was number {place} of {of}, and {kept} went on"
