"""`Thin`: a model of the same shape with few of its layers and random weights, whose steps tell what those of the whole cost.

Kept are the first layer, the last, and some of each kind in between. Layers are of one kind where nothing that costs time
tells them apart; see `_kinds`. Knows shapes, setups and modules; nothing of data and of clocks.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from scumble.errors import ConfigError, NotSupportedError
from scumble.models.weights import DTYPES, quiet
from scumble.plan.parameters import adapter_of
from scumble.plan.setup import Setup
from scumble.plan.shape import Shape
from scumble.train.memory import free_bytes

_LAYERS = 4  # in the middle of a thin model: more give a steadier mean, and weights that no cache holds
_COPIES = {"lora": 1, "full": 4}  # of the weights: gradients and both moments too


@dataclass(frozen=True)
class Thin:
    """Which layers of a shape are kept.

    Attributes:
        shape: of the whole model.
        setup: with the targets, and the layers computed twice, of the thin one.
        kept: numbers of the layers, in order.
        kinds: by kind, places of its layers among those kept; what is in none of them counts as it is.
        counts: by kind, layers of the whole model that those stand for.
        more: times as many numbers are trained in the whole model's layers as in those kept.
    """

    shape: Shape
    setup: Setup
    kept: tuple[int, ...]
    kinds: tuple[tuple[int, ...], ...]
    counts: tuple[int, ...]
    more: float

    @classmethod
    def of(cls, shape: Shape, setup: Setup) -> Thin:
        """Choose the layers.

        Raises:
            NotSupportedError: the model has no list of layers.
            AdapterError: the targets match nothing.
        """
        stack = _stack_of(shape)
        sizes = Counter[int | None]()
        for weight in shape.weights:
            sizes[_layer_in(weight.path, stack)] += weight.count
        adapted: dict[str, int] = {}
        if setup.method != "full":
            adapter = adapter_of(shape, setup)
            adapted = {path: f.A.numel() + f.B.numel() for path, f in adapter.factors.items()}
            sizes = Counter()
            for path, size in adapted.items():
                sizes[_layer_in(path, stack)] += size
        kinds = _kinds(shape, setup, stack, adapted)
        kept = _chosen(shape.layers, kinds)
        places = {number: place for place, number in enumerate(kept)}
        repeat = shape.layers if setup.repeat == "all" else setup.repeat
        thin = replace(setup, repeat=sum(number < repeat for number in kept))
        if adapted:
            renamed = ((path, _layer_in(path, stack)) for path in adapted)
            thin = replace(
                thin,
                targets=tuple(
                    path
                    if layer is None
                    else path.replace(f"{stack}.{layer}.", f"{stack}.{places[layer]}.", 1)
                    for path, layer in renamed
                    if layer is None or layer in places
                ),
            )
        sizes.pop(None, None)
        of_kept = sum(size for layer, size in sizes.items() if layer in places)
        return cls(
            shape,
            thin,
            kept,
            tuple(tuple(places[n] for n in numbers if n in places) for numbers in kinds),
            tuple(map(len, kinds)),
            sum(sizes.values()) / of_kept if of_kept else 1.0,
        )

    def in_layers(self, name: str) -> bool:
        """Whether a trained parameter is one of a layer's."""
        return f"{_stack_of(self.shape)}." in name

    def build(self, device: torch.device) -> Any:
        """The model, with random weights.

        Raises:
            ConfigError: there is too little memory for it.
            NotSupportedError: its configuration cannot say that only these layers are there.
        """
        from transformers import AutoModelForCausalLM

        stack = _stack_of(self.shape)
        numbers = sum(w.count for w in self.shape.weights if _layer_in(w.path, stack) in (None, *self.kept))
        self._check_room(device, numbers)
        config = copy.deepcopy(self.shape.skeleton.model.config)
        for name, value in list(vars(config).items()):
            if isinstance(value, list | tuple) and len(value) == self.shape.layers:
                setattr(config, name, [value[number] for number in self.kept])
        config.num_hidden_layers = len(self.kept)
        with quiet(), torch.random.fork_rng(devices=[]), torch.device(device):
            torch.manual_seed(0)
            model: Any = AutoModelForCausalLM.from_config(config, dtype=DTYPES[self.setup.dtype])
        if sum(parameter.numel() for parameter in model.parameters()) != numbers:
            raise NotSupportedError(
                f"the layers of {self.shape.name} differ in a way that a model of a few of them cannot have",
                "leave --calibrate out",
            )
        return model

    def _check_room(self, device: torch.device, numbers: int) -> None:
        needed = numbers * DTYPES[self.setup.dtype].itemsize * _COPIES[self.setup.method]
        free = free_bytes(device)
        if free is not None and needed > free:
            raise ConfigError(
                f"calibrating needs {needed / 1e9:.1f} GB of memory for {len(self.kept)} of {self.shape.layers} layers, and "
                f"{free / 1e9:.1f} GB are free",
                "leave --calibrate out, or do it on a machine with more memory",
            )


def _stack_of(shape: Shape) -> str:
    """The path of the list of layers."""
    for path, module in shape.skeleton.modules.items():
        if isinstance(module, nn.ModuleList) and len(module) == shape.layers:
            return path
    raise NotSupportedError(f"the layers of {shape.name} are not found", "leave --calibrate out")


def _layer_in(path: str, stack: str) -> int | None:
    """The number of the layer that a module or parameter is in; None outside of them."""
    number = path.removeprefix(f"{stack}.").partition(".")[0] if path.startswith(f"{stack}.") else ""
    return int(number) if number.isdecimal() else None


def _kinds(shape: Shape, setup: Setup, stack: str, adapted: Mapping[str, int]) -> list[list[int]]:
    """Numbers of the layers that cost the same, between the first and the last, which are like no other.

    What layers differ in: what the configuration says of each, their weights, what is trained of them, whether the
    backward pass comes through them (to the first that is trained it comes, and no further), and whether they are
    computed twice.
    """
    count = shape.layers
    repeat = count if setup.repeat == "all" else setup.repeat
    said = [
        value
        for value in vars(shape.skeleton.model.config).values()
        if isinstance(value, list | tuple) and len(value) == count
    ]
    inside: list[list[Any]] = [[] for _ in range(count)]
    trained = set()
    sizes = [(w.path, w.out, w.in_) for w in shape.weights]
    for path, *what in (*sizes, *((path, "trained", size) for path, size in adapted.items())):
        layer = _layer_in(path, stack)
        if layer is not None:
            inside[layer].append((path.removeprefix(f"{stack}.{layer}."), *what))
            trained |= {layer} if path in adapted else set()
    first = min(trained, default=0) if setup.method != "full" else 0
    kinds: dict[str, list[int]] = {}
    for number in range(1, count - 1):
        costs = (inside[number], [value[number] for value in said], number > first, number < repeat)
        kinds.setdefault(repr(costs), []).append(number)
    return list(kinds.values())


def _chosen(layers: int, kinds: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """Layers to keep: those that are like no other, and of each kind its share, two at least."""
    middle = sum(map(len, kinds))
    kept = set(range(layers)) - {number for numbers in kinds for number in numbers}
    for numbers in kinds:
        kept |= set(numbers[: max(2, round(_LAYERS * len(numbers) / middle))])
    return tuple(sorted(kept))
