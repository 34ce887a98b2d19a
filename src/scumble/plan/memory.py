"""`Memory`: what a step takes at its peak, part by part, and where the peak lies.

    plans = Memories(shape)
    plans(setup).peak, plans(setup).parts["activations"], plans(setup).at

Weights, adapter and moments stay; on top of them a whole step is played through on a tape, by `engine_step` for our
engine and by `script_step` for PEFT's, and the tape says where most was held at once. Knows how to put the others
together, and no sizes of its own but those of a GPU's libraries.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from scumble.lora.adapter import Adapter
from scumble.plan.engine_step import engine_step
from scumble.plan.parameters import adapter_of
from scumble.plan.script_step import script_step
from scumble.plan.setup import Setup
from scumble.plan.shape import Shape
from scumble.plan.sharding import per_device
from scumble.plan.states import States, is_quantised, states_of
from scumble.plan.tape import Tape

# cuBLAS keeps 32 MiB for its products on Hopper, 8 on cards before (torch.backends.cuda, CUBLAS_WORKSPACE_CONFIG)
_WORKSPACE = 32 * 2**20
# what PyTorch's allocator holds beyond what is asked for, in blocks that nothing fits in: an assumption
_SLACK = 0.03


@dataclass(frozen=True)
class Memory:
    """Bytes of one device.

    Attributes:
        parts: at the moment of the peak, by `PARTS`; they sum to `peak`.
        peak: the most that is held at once.
        at: what goes on then, in words.
        largest: the most of each part, whenever that is.
    """

    parts: Mapping[str, int]
    peak: int
    at: str
    largest: Mapping[str, int]

    def to_dict(self) -> dict[str, Any]:
        """What `--json` prints."""
        return {**self.parts, "peak": self.peak, "at": self.at}


def plan_memory(shape: Shape, setup: Setup) -> Memory:
    """The memory of one way to train; `Memories` where there are several.

    Raises:
        AdapterError: the targets match nothing, or what cannot be trained.
        ConfigError: a quantised base in full.
    """
    return Memories(shape)(setup)


class Memories:
    """Plans the memory of a shape in one setup after another.

    Args:
        shape: of the base.
    """

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self._adapters: dict[Any, Adapter] = {}

    def __call__(self, setup: Setup, *, beside: Sequence[Setup] = ()) -> Memory:
        """The memory of one setup.

        Args:
            setup: of what is trained.
            beside: other adapters in training on the same base, which take turns with it: their numbers and moments
                stay, and their gradients and activations are gone while this one makes its step.

        Raises:
            As `plan_memory`.
        """
        adapter = None if setup.method == "full" else self._adapter(setup)
        sizes = [] if adapter is None else [tensor.numel() for tensor in _tensors(adapter)]
        shared = per_device(self.shape, setup, self._states(setup, sizes))
        states, tape = shared.states, Tape()
        others = [self._states(each, self._sizes(each)) for each in beside] + [states] * (setup.adapters - 1)
        with tape.at("between steps"):
            tape.take(states.weights + shared.gathered, "weights")
            tape.take(states.adapter + sum(each.adapter for each in others), "adapter")
            tape.take(states.optimizer + sum(each.optimizer for each in others), "optimizer")
            tape.take(shared.copies, "gradients")
            tape.take(self._libraries(setup), "other")
        ranks = {} if adapter is None else {path: f.rank for path, f in adapter.factors.items()}
        play = engine_step if setup.engine == "scumble" else script_step
        play(tape, self.shape, setup, ranks, states.gradients)
        with tape.at("optimizer step"):
            tape.pulse(states.step, "optimizer")
        return _with_slack(tape) if setup.device == "cuda" else _told(tape)

    def at_once(self, setups: Sequence[Setup]) -> Memory:
        """The memory of several adapters in training on one base: the most that any of them takes beside the others."""
        found = [
            self(setup, beside=[*setups[:number], *setups[number + 1 :]])
            for number, setup in enumerate(setups)
        ]
        return max(found, key=lambda memory: memory.peak)

    def _sizes(self, setup: Setup) -> list[int]:
        """Numbers in each tensor of an adapter."""
        return [tensor.numel() for tensor in _tensors(self._adapter(setup))]

    def _states(self, setup: Setup, sizes: Sequence[int]) -> States:
        trainable = self.shape.parameters if setup.method == "full" else sum(sizes)
        return states_of(self.shape, setup, trainable, sizes)

    def _adapter(self, setup: Setup) -> Adapter:
        asked = (
            setup.targets if isinstance(setup.targets, str) else tuple(setup.targets),
            setup.rank,
            setup.dora,
        )
        if asked not in self._adapters:
            self._adapters[asked] = adapter_of(self.shape, replace(setup, targets=asked[0]))
        return self._adapters[asked]

    def _libraries(self, setup: Setup) -> int:
        """Workspace of a GPU's products, and one matrix of a quantised base, made wide to be computed with."""
        quantised = setup.method == "qlora" or setup.dtype in ("nf4", "int8")
        widest = max((w.count for w in self.shape.weights if is_quantised(w, self.shape)), default=0)
        return _WORKSPACE * (setup.device == "cuda") + quantised * widest * setup.activation_bytes


def _told(tape: Tape) -> Memory:
    return Memory(dict(tape.parts), tape.peak, tape.where, dict(tape.largest))


def _with_slack(tape: Tape) -> Memory:
    """What comes and goes leaves gaps; what stays does not."""
    slack = int(_SLACK * (tape.parts["activations"] + tape.parts["logits"]))
    parts = {**tape.parts, "other": tape.parts["other"] + slack}
    return Memory(parts, tape.peak + slack, tape.where, {**tape.largest, "other": parts["other"]})


def _tensors(adapter: Adapter) -> list[Tensor]:
    """All that is trained, tensor by tensor; a setup has nothing but factors."""
    parts = ((f.A, f.B, f.bias, f.magnitude) for f in adapter.factors.values())
    return [part for each in parts for part in each if part is not None]
