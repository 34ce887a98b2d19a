"""`Movement`: how an adapter's numbers moved, and how much of its rank it used, from its factors alone.

    persistence   P = mean(B^2) / sum of eta_t^2. B begins at zero and AdamW moves each number by about eta_t in a step. A
                  walk whose steps are independent of each other comes to a mean square of sum of eta^2, P = 1; one whose
                  steps keep their direction for m steps to about m times that (Fuerth 1920: the persistent random walk;
                  Hoffer, Hubara and Soudry 2017, arXiv:1705.08741, see training as a random walk). So P counts the steps
                  that the optimizer went the same way. Far above 10 it never turned: the rate is small for this loss
    growth        G = rms(A) / rms(A at the start), where A begins uniform in +-1 / sqrt(in), rms 1 / sqrt(3 in). Near 1 A
                  is nearly as it was drawn; well above 1 steps are as large as the numbers that they change
    used          the median over modules of the stable rank |U|^2 / d_1^2 over r (Rudelson and Vershynin 2007), of the
                  effective rank over r (Roy and Vetterli 2007), and how many modules are saturated
    needed        the smallest rank that holds 99 % of |U|^2 in every module

Knows adapters and learning rates, and nothing of losses. The spectra are those of `scumble.lora.diagnostics`.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from scumble.lora.adapter import Adapter, Factors
from scumble.lora.diagnostics import Spectrum, spectrum_of
from scumble.train.advice.curves import Numbers

_FROM_ZERO = ("default", "gaussian", "orthogonal", "eva")  # beginnings whose B is zero


@dataclass(frozen=True)
class Movement:
    """How an adapter moved.

    Attributes:
        modules: how many it has.
        persistence, growth: P and G; None where the beginning does not tell.
        stable, effective: medians over modules, of the rank.
        saturated: modules whose spectrum is nearly flat to its end.
        needed: the rank that holds 99 % of every module's update.
    """

    modules: int
    persistence: float | None
    growth: float | None
    stable: float
    effective: float
    saturated: int
    needed: int

    @property
    def full(self) -> bool:
        """Whether the rank is used to its end: half of it in the strict sense, or half of the modules saturated.

        The stable rank is at least half of r only where the directions are alike: of a spectrum that halves from one
        direction to the next it is 1.33 at most. Of rank 1 it is always full, for there is one direction.
        """
        return self.stable >= 0.5 or 2 * self.saturated >= self.modules


def movement_of(adapter: Adapter, options: Mapping[str, Any], rates: Numbers) -> Movement | None:
    """How an adapter moved under these learning rates, those of the steps that it has seen.

    Returns:
        None where it has no factors, or they are not finite.
    """
    factors = {path: each for path, each in adapter.factors.items() if _plain(each)}
    if not factors:
        return None
    spectra = [spectrum_of(each, adapter.spec.scale_of(path)) for path, each in factors.items()]
    ranks = [each.rank for each in factors.values()]
    moved: list[tuple[Spectrum, int]] = [
        (spectrum, rank) for spectrum, rank in zip(spectra, ranks, strict=True) if spectrum.stable_rank
    ]
    # of an update of zero nothing is used
    used = moved or [(Spectrum((0.0,), 0.0, 0.0, {}, 0), 1)]
    return Movement(
        modules=len(ranks),
        persistence=_persistence(factors, options, rates),
        growth=_growth(factors, options),
        stable=statistics.median(spectrum.stable_rank / rank for spectrum, rank in used),
        effective=statistics.median(spectrum.effective_rank / rank for spectrum, rank in used),
        saturated=sum(spectrum.saturated for spectrum in spectra),
        needed=max(spectrum.rank_99 for spectrum in spectra),
    )


def _plain(factors: Factors) -> bool:
    return bool(factors.A.isfinite().all() and factors.B.isfinite().all())


def _persistence(factors: Mapping[str, Factors], options: Mapping[str, Any], rates: Numbers) -> float | None:
    """P, where all numbers of B began at zero and had the same rate."""
    told = options.get("init", "default") in _FROM_ZERO and not options.get("from_")
    way = float(np.square(rates).sum()) * float(options.get("lora_plus") or 1.0) ** 2
    if not told or options.get("rates") or way == 0:
        return None
    count = sum(each.B.numel() for each in factors.values())
    return sum(float(each.B.double().square().sum()) for each in factors.values()) / count / way


def _growth(factors: Mapping[str, Factors], options: Mapping[str, Any]) -> float | None:
    """G, where A began as Kaiming's rule has it."""
    if options.get("init", "default") != "default" or options.get("from_"):
        return None
    count = sum(each.A.numel() for each in factors.values())
    now = sum(float(each.A.double().square().sum()) for each in factors.values())
    then = sum(each.A.numel() / (3 * each.A.shape[1]) for each in factors.values())
    return math.sqrt(now / then) if count else None
