"""What each device holds where several train on different examples: all of it (DDP), or its share of it (FSDP2).

    ddp     everything on every device. PyTorch's wrapper keeps a copy of all gradients in its buckets of 25 MiB
            (`gradient_as_bucket_view` is False unless told); our engine adds gradients up where they are, and has none
    fsdp2   weights, adapter, gradients and moments in equal shares; beside them in full, while they are computed with,
            a layer and the next one, and all the time what no layer holds (embeddings, last norm, output layer)

From the documentation of PyTorch: docs.pytorch.org/docs/stable/generated/torch.nn.parallel.DistributedDataParallel.html
and docs.pytorch.org/docs/stable/distributed.fsdp.fully_shard.html, with `fully_shard` on every layer and on the model,
and its default `reshard_after_forward`. Activations are each device's own, and are not divided: a setup's tokens are
those of one process. Buffers of NCCL are not counted. Knows states in bytes, and nothing of steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple, dataclass

from scumble.lora.targets import layer_index
from scumble.plan.setup import Setup
from scumble.plan.shape import Shape, Weight
from scumble.plan.states import States, bytes_of, trained_size

_AT_ONCE = 2  # layers gathered: the one computed with, and the one that is fetched meanwhile


@dataclass(frozen=True)
class Shared:
    """Bytes of one device.

    Attributes:
        states: that stay on it.
        gathered: of weights that are there in full beside their shares, throughout forward and backward pass.
        copies: of gradients, on their way to the other devices during the backward pass.
    """

    states: States
    gathered: int
    copies: int


def per_device(shape: Shape, setup: Setup, states: States) -> Shared:
    """What one of `setup.processes` devices holds.

    Args:
        shape: of the base.
        setup: whose `sharding` says how the devices share.
        states: of a process that trains alone.
    """
    if setup.processes == 1 or setup.sharding == "none":
        return Shared(states, gathered=0, copies=0)
    if setup.sharding == "ddp":
        return Shared(states, gathered=0, copies=states.gradients if setup.engine == "script" else 0)
    weights = _groups(shape, lambda weight: bytes_of(weight, shape, setup))
    rest = weights.pop(None, 0)
    layers = max(shape.layers, 1)
    layer = max(weights.values(), default=0) + states.adapter // layers
    if setup.method == "full":
        gradients = max(_groups(shape, lambda weight: weight.count * trained_size(setup)).values(), default=0)
    else:
        gradients = states.gradients // layers
    return Shared(
        _divided(states, setup.processes),
        gathered=min(_AT_ONCE, layers) * layer + rest,
        copies=2 * gradients,  # a group's own, and the buffer that they are sent from
    )


def _divided(states: States, processes: int) -> States:
    """Equal shares; each tensor is cut along its first dimension, and padded to a multiple of the processes."""
    return States(*(-(-part // processes) for part in astuple(states)))


def _groups(shape: Shape, size: Callable[[Weight], int]) -> dict[int | None, int]:
    """Bytes by number of the layer; those that no layer holds under None."""
    groups: dict[int | None, int] = {}
    for weight in shape.weights:
        layer = layer_index(weight.path, ())
        groups[layer] = groups.get(layer, 0) + size(weight)
    return groups
