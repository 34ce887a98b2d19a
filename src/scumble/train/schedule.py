"""The learning rate over a run.

Warm-up rises linearly and reaches the highest rate on its last step; no step has rate zero. Then the rate
falls to zero at the end of the run, linearly or by half a cosine, or stays.
"""

from __future__ import annotations

import math
from typing import Literal


def factor(step: int, total: int, warmup: int, kind: Literal["linear", "cosine", "constant"]) -> float:
    """The share of the highest learning rate at a step.

    Args:
        step: from 0 to total - 1.
        total: optimizer steps in the run.
        warmup: steps of warm-up.
        kind: how the rate falls afterwards.

    Returns:
        Above 0, at most 1.
    """
    if step < warmup:
        return (step + 1) / warmup
    if kind == "constant":
        return 1.0
    left = (total - step) / max(
        1, total - warmup
    )  # 1 just after the warm-up, 1 / (total - warmup) at the end
    return left if kind == "linear" else (1 - math.cos(math.pi * left)) / 2
