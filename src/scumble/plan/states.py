"""What a run holds from its first step to its last, in bytes: weights, adapter, gradients, AdamW's moments.

    base       fp32 4, bf16 and fp16 2 bytes a number; in nf4 and int8 only linear layers are quantised
    adapter    fp32, as the engine trains it, and as PEFT does by `autocast_adapter_dtype`
    gradients  of the type of what is trained: an adapter's fp32, with --method full the base's
    moments    adamw: two of the type of what is trained; paged_adamw: two in fp32; the 8-bit ones: two bytes, and a
               scale for each of both in 256 numbers

Llama 3.1 8B in full, before any activation: 64 GB in bf16 with adamw, 96 with paged_adamw (moments in fp32), 128 in
fp32, 48 in bf16 with adamw8bit. Knows counts of numbers; nothing of activations, of processes and of what fits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scumble.errors import ConfigError
from scumble.lora.targets import layer_index
from scumble.plan.setup import Setup
from scumble.plan.shape import Shape, Weight

FLOAT_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
_MOMENT_BLOCK = 256  # numbers that share a scale in a moment of 8 bits
_SMALL = 4096  # tensors of fewer numbers keep moments in fp32
_PAGED = 100_000  # tensors of so many numbers or more have moments that may move to the host
_NF4_BLOCK, _NF4_SCALES = 64, 256  # numbers in a block, and blocks whose scales share one in turn


@dataclass(frozen=True)
class States:
    """Bytes of one process, nothing divided.

    Attributes:
        weights: of the base.
        adapter: of what is trained beside it; 0 with `--method full`.
        gradients: of everything that is trained.
        optimizer: both moments of everything that is trained.
        step: what an optimizer step takes for as long as it lasts.
    """

    weights: int
    adapter: int
    gradients: int
    optimizer: int
    step: int

    @property
    def held(self) -> int:
        """All that stays from one step to the next, and the gradients."""
        return self.weights + self.adapter + self.gradients + self.optimizer


def states_of(shape: Shape, setup: Setup, trainable: int, sizes: Sequence[int] = ()) -> States:
    """All of it at once.

    Args:
        shape: of the base.
        setup: how it is trained.
        trainable: numbers that are trained, DoRA's magnitudes among them.
        sizes: numbers in each trained tensor, in order. Without them an adapter counts as one tensor, which tells too
            little of the 8-bit optimizers' small tensors and too much of a step on the CPU; with `--method full` they
            are read from the shape.

    Raises:
        ConfigError: a quantised base in full.
    """
    return States(
        weights=weight_bytes(shape, setup),
        adapter=adapter_bytes(setup, trainable),
        gradients=gradient_bytes(setup, trainable),
        optimizer=optimizer_bytes(shape, setup, trainable, sizes),
        step=step_bytes(shape, setup, trainable, sizes),
    )


def kept_type(setup: Setup) -> str:
    """The type of the base's weights: `qlora` is NF4, whatever was computed with before."""
    return "nf4" if setup.method == "qlora" else setup.dtype


def weight_bytes(shape: Shape, setup: Setup) -> int:
    """Bytes of the base's weights, tied ones once.

    What bitsandbytes leaves alone (embeddings, norms, biases, the output layer, and experts that are one parameter of
    three dimensions) stays in the type that is computed in. The tables of 16 and 256 values that all blocks share are
    not counted.
    """
    return sum(bytes_of(each, shape, setup) for each in shape.weights)


def bytes_of(weight: Weight, shape: Shape, setup: Setup) -> int:
    """Bytes of one of them."""
    kind = kept_type(setup)
    if kind in FLOAT_BYTES:
        return weight.count * FLOAT_BYTES[kind]
    if not is_quantised(weight, shape):
        return weight.count * setup.activation_bytes
    return nf4_bytes(weight) if kind == "nf4" else int8_bytes(weight)


def is_quantised(weight: Weight, shape: Shape) -> bool:
    """Whether bitsandbytes' integration in transformers replaces the layer: linear ones, but for the output layer."""
    output = weight.out == shape.vocabulary and layer_index(weight.path, ()) is None
    return weight.kind in ("linear", "conv1d") and not output


def nf4_bytes(weight: Weight) -> int:
    """Bytes of one matrix in NF4 with double quantisation: 4.127 bits a number (Dettmers et al. 2023, arXiv:2305.14314).

    4 bits each, 8 bits for the scale of 64, and an fp32 scale for 256 of those: 4 + 8 / 64 + 32 / (64 * 256).
    """
    blocks = math.ceil(weight.count / _NF4_BLOCK)
    return math.ceil(weight.count / 2) + blocks + 4 * math.ceil(blocks / _NF4_SCALES)


def int8_bytes(weight: Weight) -> int:
    """Bytes of one matrix in LLM.int8: 8 bits a number and an fp32 scale a row (Dettmers et al. 2022, arXiv:2208.07339)."""
    return weight.count + 4 * weight.out


def adapter_bytes(setup: Setup, trainable: int) -> int:
    """Bytes of the adapter: fp32."""
    return 0 if setup.method == "full" else trainable * trained_size(setup)


def gradient_bytes(setup: Setup, trainable: int) -> int:
    """Bytes of the gradients, from the first backward pass of a step to its end, accumulated in place."""
    return trainable * trained_size(setup)


def trained_size(setup: Setup) -> int:
    """Bytes of one number that is trained.

    Raises:
        ConfigError: a quantised base in full.
    """
    if setup.method != "full":
        return FLOAT_BYTES["fp32"]
    if setup.dtype not in FLOAT_BYTES:
        raise ConfigError(
            f"weights in {setup.dtype} are not trained with --method full", "use --dtype fp32 or bf16"
        )
    return FLOAT_BYTES[setup.dtype]


def optimizer_bytes(shape: Shape, setup: Setup, trainable: int, sizes: Sequence[int] = ()) -> int:
    """Bytes of both moments.

    AdamW of torch keeps them in the type of what is trained, bitsandbytes in fp32 or in 8 bits (Dettmers et al. 2021,
    arXiv:2110.02861) with tensors under 4,096 numbers in fp32. Paged ones count in full, since a step needs them on
    the device: what the driver may move to the host meanwhile is `pageable_bytes`. PyTorch's own counter does not see
    those, since bitsandbytes allocates them.
    """
    if setup.optimizer == "adamw":
        return 2 * trainable * trained_size(setup)
    return sum(_moments(setup, size) for size in _sizes(shape, setup, trainable, sizes))


def pageable_bytes(shape: Shape, setup: Setup, trainable: int, sizes: Sequence[int] = ()) -> int:
    """Of the moments, the bytes that the driver may move to the host where the device is full: slower, and it fits.

    0 without a paged optimizer; bitsandbytes pages those of tensors from 100,000 numbers on.
    """
    if not setup.optimizer.startswith("paged"):
        return 0
    bits = 1 if setup.optimizer.endswith("8bit") else 4
    return sum(2 * bits * size for size in _sizes(shape, setup, trainable, sizes) if size >= _PAGED)


def step_bytes(shape: Shape, setup: Setup, trainable: int, sizes: Sequence[int] = ()) -> int:
    """Bytes that an optimizer step takes while it lasts, beside gradients and moments.

    AdamW of torch writes the root of the second moment beside it: on CUDA of all tensors at once (`foreach`, its
    default there), on the CPU of one after another, where the root, what it is divided to, and the divisor of the
    tensor before are there together. bitsandbytes, and the fused AdamW that is the default of transformers' trainer,
    write nothing beside.
    """
    if setup.optimizer != "adamw" or setup.engine == "script":
        return 0
    if setup.device == "cuda":
        return trainable * trained_size(setup)
    each = _sizes(shape, setup, trainable, sizes)
    return trained_size(setup) * max(
        (before + 2 * now for before, now in zip([0, *each], each, strict=False)), default=0
    )


def _moments(setup: Setup, size: int) -> int:
    """Bytes of bitsandbytes' moments of a tensor of `size` numbers."""
    if not setup.optimizer.endswith("8bit") or size < _SMALL:
        return 2 * 4 * size
    return 2 * (size + 4 * math.ceil(size / _MOMENT_BLOCK))


def _sizes(shape: Shape, setup: Setup, trainable: int, sizes: Sequence[int]) -> Sequence[int]:
    """Numbers in each trained tensor."""
    if setup.method == "full":
        return [each.count for each in shape.weights]
    return sizes or (trainable,)
