"""`Portion`: what is computed at once, at worst or in given data, by our engine and by the plain script.

Our engine lays the examples of an optimizer step end to end, in groups that have no more positions than `batch` of its
longest would have side by side (`data.packing`). The script pads `batch` examples, as they come, to their longest. Which
examples meet is decided by the seed, so that the largest group of a run is found and not guessed.

Knows encoded examples and numbers; nothing of models.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from scumble.config import PlanOptions
from scumble.data.encoding import Encoded
from scumble.data.order import order_of
from scumble.data.packing import micro_batches, pack
from scumble.plan.setup import Setup

_EPOCHS = 8  # whose orders are looked through
_STEPS = 64  # of them, those that could be the largest, that are laid out


@dataclass(frozen=True)
class Portion:
    """What is computed at once.

    Attributes:
        tokens: positions; what examples share counts once, padding counts.
        longest: tokens of the longest example.
        losses: tokens that have a loss.
    """

    tokens: int
    longest: int
    losses: int

    def of(self, setup: Setup) -> Setup:
        """A setup that computes so much at once."""
        return replace(setup, tokens=self.tokens, longest=self.longest, losses=self.losses)


@dataclass(frozen=True)
class Portions:
    """The largest ones of a run.

    Attributes:
        ours: of our engine: most positions, most losses, longest example.
        script: of the plain script.
        padding: share of the script's positions that are padding.
    """

    ours: tuple[Portion, ...]
    script: Portion
    padding: float


def worst_case(batch: int, length: int, supervised: float = 1.0) -> Portions:
    """`batch` examples at once, each of `length` tokens, of which a share has a loss."""
    tokens = batch * length
    ours = Portion(tokens, length, max(1, round(supervised * tokens)))
    return Portions((ours,), Portion(tokens, length, tokens), 0.0)


def largest_of(
    examples: Sequence[Encoded], options: PlanOptions, batch: int, accumulate: int, cut: int | None = None
) -> Portions:
    """The largest portions of a run over given examples.

    Args:
        examples: that our engine trains on.
        options: seed, epochs and steps, which decide on the order; dropout, with which nothing is shared.
        batch, accumulate: examples in a micro-step, and micro-steps in an optimizer step.
        cut: tokens that the script cuts longer examples to, which our engine leaves out; None where there are none.
    """
    share = not options.dropout
    lengths = [len(example.ids) for example in examples]
    found: list[Portion] = []
    for step in _largest_steps(lengths, options, batch, accumulate):
        together = [examples[number] for number in step]
        if found and _bound(step, lengths, batch) <= max(portion.tokens for portion in found):
            break
        for group in micro_batches(together, batch, share=share, processes=options.processes):
            laid = pack(group, share=share)
            found.append(Portion(laid.computed, max(len(each.ids) for each in group), laid.targets))
    keys = (
        lambda p: (p.tokens, p.longest, p.losses),
        lambda p: (p.losses, p.tokens),
        lambda p: (p.longest, p.tokens),
    )
    ours = tuple(dict.fromkeys(max(found, key=key) for key in keys))
    script, padding = _padded(examples, options, batch, cut)
    return Portions(ours, script, padding)


def steps_of_run(examples: int, options: PlanOptions, batch: int, accumulate: int) -> tuple[int, int]:
    """Optimizer steps of an epoch, and of the run, as training counts them."""
    per_epoch = math.ceil(examples / (batch * accumulate))
    steps = max(1, round(per_epoch * options.epochs))
    return per_epoch, min(steps, options.max_steps or steps)


def _largest_steps(
    lengths: Sequence[int], options: PlanOptions, batch: int, accumulate: int
) -> list[list[int]]:
    """The optimizer steps that could hold the largest group, by their examples' numbers, the likeliest first."""
    size = batch * accumulate
    per_epoch, left = steps_of_run(len(lengths), options, batch, accumulate)
    steps: list[list[int]] = []
    for epoch in range(min(_EPOCHS, math.ceil(left / per_epoch))):
        order = order_of(len(lengths), options.seed, epoch)
        of_epoch = [order[first : first + size] for first in range(0, len(order), size)]
        steps += of_epoch[: left - epoch * per_epoch]
    return sorted(steps, key=lambda step: _bound(step, lengths, batch), reverse=True)[:_STEPS]


def _bound(step: Sequence[int], lengths: Sequence[int], batch: int) -> int:
    """Positions that no group of a step exceeds."""
    of_step = [lengths[number] for number in step]
    return min(sum(of_step), batch * max(of_step))


def _padded(
    examples: Sequence[Encoded], options: PlanOptions, batch: int, cut: int | None
) -> tuple[Portion, float]:
    """The script's largest batch of an epoch, and the share of its positions that are padding."""
    order = order_of(len(examples), options.seed, 0)
    batches = [[examples[n] for n in order[i : i + batch]] for i in range(0, len(order), batch)]
    portions = [
        Portion(
            len(group) * (longest := max(len(each.ids) for each in group)),
            longest,
            sum(sum(each.supervised[1:]) for each in group),
        )
        for group in batches
    ]
    largest = max(portions, key=lambda portion: (portion.tokens, portion.longest))
    positions = sum(portion.tokens for portion in portions)
    padding = 1 - sum(len(each.ids) for each in examples) / positions
    if cut is not None:
        largest = Portion(min(batch, len(examples) + 1) * cut, cut, largest.losses)
    return largest, padding
