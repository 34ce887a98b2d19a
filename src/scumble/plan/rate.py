"""The learning rate that fits a base where none is given: by its width and family. Knows nothing of data and of runs."""

from __future__ import annotations


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
