"""The search behind `learn_weights`: Adam on a few numbers through a bank whose adapters stand still.

Each step takes as many examples of every set, and every set counts alike. Knows a bank and tokens, and nothing
of where they come from.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scumble.compare.loss import loss_sum, mean_loss
from scumble.data.batches import collate
from scumble.data.encoding import Encoded
from scumble.errors import TrainingError
from scumble.lora.bank import Bank
from scumble.lora.routing import ByModule
from scumble.lora.targets import layer_index
from scumble.progress import Reporter

EVALUATIONS = 10  # on the part held back, over the steps


@dataclass(frozen=True)
class Point:
    """The state after a number of steps.

    Attributes:
        step: steps made.
        training: mean loss of the steps since the last point, in nats; None at the start.
        validation: loss on the part held back, in nats.
        weights: for each layer that has weights of its own, those of the adapters.
    """

    step: int
    training: float | None
    validation: float
    weights: list[list[float]]


@dataclass(frozen=True)
class TaskSet:
    """One set of examples as tokens."""

    train: list[Encoded]
    held: list[Encoded]
    examples: int
    hash: str

    def order(self, seed: int) -> Iterator[Encoded]:
        """The training part again and again, in another order each time, decided by the seed."""
        generator = torch.Generator().manual_seed(seed)
        while True:
            for i in torch.randperm(len(self.train), generator=generator).tolist():
                yield self.train[i]


@dataclass
class Search:
    """The search for weights; a tensor of weights is (layers, adapters), in fp64 on the CPU."""

    bank: Bank
    names: list[str]
    start: list[float]
    sets: list[TaskSet]
    steps: int
    rate: float
    batch: int
    seed: int
    per_layer: bool

    def __post_init__(self) -> None:
        self.device = next(self.bank.model.parameters()).device
        reached = {
            path
            for name in self.names
            for path in (*self.bank.adapter(name).factors, *self.bank.adapter(name).biases)
        }
        indexes = {layer_index(path, ()) for path in reached} if self.per_layer else {None}
        self.layers: list[int | None] = [
            *sorted(i for i in indexes if i is not None), *([None] if None in indexes else [])
        ]  # fmt: skip

    def begun(self) -> Tensor:
        """The starting weights."""
        return self.tensor([self.start] * len(self.layers))

    def tensor(self, weights: list[list[float]]) -> Tensor:
        """Weights as a tensor."""
        return torch.tensor(weights, dtype=torch.float64)

    def run(self, reporter: Reporter) -> tuple[Point, list[Point]]:
        """Search; the best point, and all that were evaluated."""
        weights = self.begun().requires_grad_()
        optimizer = torch.optim.Adam([weights], lr=self.rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)
        orders = [each.order(self.seed * 1_000_003 + i) for i, each in enumerate(self.sets)]
        curve = [self._evaluated(0, None, weights, reporter)]
        if not math.isfinite(curve[0].validation):
            raise TrainingError(
                f"the loss with the weights {shown(self.start)} is {curve[0].validation}",
                "start from smaller weights, or load the base in fp32",
            )
        every, recent = max(1, self.steps // EVALUATIONS), []
        for step in range(1, self.steps + 1):
            loss, gradient = self._gradient(weights, orders)
            if not (math.isfinite(loss) and bool(torch.isfinite(gradient).all())):
                reporter.warn(f"step {step}: the loss is {loss}; the best weights until here are kept")
                break
            weights.grad = gradient
            optimizer.step()
            schedule.step()
            recent.append(loss)
            reporter.advance(shown=f"loss {loss:.4f}")
            if step % every == 0 or step == self.steps:
                point = self._evaluated(step, sum(recent) / len(recent), weights, reporter)
                recent = []
                if not math.isfinite(point.validation):
                    reporter.warn(
                        f"step {step}: that loss is no number; the best weights until here are kept"
                    )
                    break
                curve.append(point)
        return min(curve, key=lambda point: point.validation), curve

    def losses(self, weights: Tensor) -> list[float]:
        """The loss of each set on the part held back."""
        with self.bank.using_learned(self._by_name(weights.detach())):
            return [mean_loss(self.bank.model, each.held, self.batch, self.device) for each in self.sets]

    def _gradient(self, weights: Tensor, orders: Sequence[Iterator[Encoded]]) -> tuple[float, Tensor]:
        """The loss of one step and its gradient, set by set: similar lengths stand beside each other."""
        total, gradient = 0.0, torch.zeros_like(weights)
        share = max(1, self.batch // len(self.sets))
        for order in orders:
            laid = collate([next(order) for _ in range(share)]).to(self.device)
            with self.bank.using_learned(self._by_name(weights)):
                loss = loss_sum(self.bank.model, laid) / laid.targets / len(self.sets)
            # not backward(): a slot that trains in this bank is no business of ours
            gradient += torch.autograd.grad(loss, weights)[0]
            total += float(loss.detach())
        return total, gradient

    def _by_name(self, weights: Tensor) -> dict[str, ByModule]:
        # moved once for all modules; Apple's GPUs know no fp64
        moved = weights.to(self.device, torch.float32 if self.device.type == "mps" else weights.dtype)

        def of(column: int) -> ByModule:
            return lambda path: moved[layer_row(path, self.layers), column]

        return {name: of(i) for i, name in enumerate(self.names)}

    def _evaluated(self, step: int, training: float | None, weights: Tensor, reporter: Reporter) -> Point:
        losses = self.losses(weights)
        point = Point(step, training, sum(losses) / len(losses), weights.detach().tolist())
        means = shown(weights.detach().mean(dim=0).tolist())
        layers = ", mean over layers" if self.per_layer else ""
        reporter.note(
            f"step {step}: loss on what is held back {point.validation:.4f}, weights {means}{layers}"
        )
        return point


def layer_row(path: str, layers: Sequence[int | None]) -> int:
    """Which of `layers` the module of this path belongs to; all do where there is one alone."""
    return 0 if len(layers) == 1 else layers.index(layer_index(path, ()))


def shown(weights: Sequence[float]) -> str:
    """Weights to be read."""
    return ", ".join(f"{weight:.4g}" for weight in weights)
