"""`Setup`: all that is planned but the model, as the memory and the time of a step depend on it.

Holds what was decided; which values are allowed is the options' to say (`config`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Method = Literal["lora", "qlora", "full"]
Dtype = Literal["fp32", "bf16", "fp16", "int8", "nf4"]
Optimizer = Literal["adamw", "adamw8bit", "paged_adamw", "paged_adamw8bit"]
Sharding = Literal["none", "ddp", "fsdp2"]


@dataclass(frozen=True)
class Setup:
    """A way to train.

    Attributes:
        method: what is trained; `qlora` is `lora` on a base in NF4.
        engine: `scumble`, or `script`: PEFT and the trainer of transformers as a lesson's script uses them.
        dtype: of the base's weights.
        rank, alpha, targets, rslora, dora, dropout: of the adapter, as `LoraOptions` has them.
        optimizer: as `TrainOptions` has it.
        tokens: positions computed at once; what examples share counts once, padding counts.
        longest: tokens of the longest example among them.
        batch: examples at once.
        losses: tokens at once that have a loss.
        accumulate: micro-steps in an optimizer step.
        repeat: layers computed twice (gradient checkpointing), or `all`.
        device: where the base is.
        processes, sharding: data parallel processes, and what they divide among them.
        threads: of a CPU.
        adapters: like this one in training at once, which take turns.
    """

    method: Method = "lora"
    engine: Literal["scumble", "script"] = "scumble"
    dtype: Dtype = "bf16"
    rank: int = 8
    alpha: float = 16.0
    targets: str | Sequence[str] = "minimal"
    rslora: bool = False
    dora: bool = False
    dropout: float = 0.0
    optimizer: Optimizer = "adamw"
    tokens: int = 2048
    longest: int = 2048
    batch: int = 1
    losses: int = 2048
    accumulate: int = 1
    repeat: int | Literal["all"] = 0
    device: Literal["cpu", "cuda"] = "cuda"
    processes: int = 1
    sharding: Sharding = "none"
    threads: int = 1
    adapters: int = 1

    @property
    def activation_bytes(self) -> int:
        """Bytes of one number of an activation: of the base's type, and bf16 where the base is quantised."""
        return 4 if self.dtype == "fp32" else 2
