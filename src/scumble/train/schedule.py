"""The learning rate over a run, and the default for its highest value.

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


def default_rate(hidden_size: int, family: str) -> tuple[float, str]:
    """The default highest learning rate of LoRA, and its reason.

    `5e-4 * (2000 / h) ** p`, with p 0.781 for Llama and its like and 0.0775 for Qwen: the fit of
    tinker-cookbook (thinking-machines-lab), in which the best rate hardly depends on the rank.

    Args:
        hidden_size: h of the base.
        family: its model type, such as `llama`.
    """
    power = 0.0775 if family.startswith("qwen") else 0.781
    rate = float(f"{5e-4 * (2000 / hidden_size) ** power:.2g}")
    fitted = "Qwen" if power < 0.5 else "Llama and its like"
    return rate, f"5e-4 * (2000 / {hidden_size}) ** {power}, the fit for {fitted} (this base: {family})"
