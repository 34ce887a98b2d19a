"""The roof of `scumble bench train`: how fast this machine multiplies matrices of the shapes that the model has.

    forward Y = X W^T, backward dX = dY W, X of shape (rows, in), W of shape (out, in): 4 rows in out operations

A frozen base needs no more of it for a token than `4 x weights outside the embedding`, and of the head
`4 x head x share of tokens with a loss`; a part that several examples begin with is needed once. Attention, norms and
the adapter come on top and are not counted, so that a system's share of the roof is below 1. Knows shapes, and no model.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from scumble.models.threads import Shape, with_threads

ROWS = (512, 1024, 2048, 4096)


@dataclass(frozen=True)
class Work:
    """What a token of a job costs.

    Attributes:
        weights: of the linear layers, embedding and head left out.
        head: weights of the head.
        supervised: share of the tokens that have a loss.
        distinct: share of the tokens that remain where a prefix that examples share is counted once.
    """

    weights: int
    head: int
    supervised: float
    distinct: float

    @property
    def operations(self) -> float:
        """Multiplications and additions for each token of the examples."""
        return 4 * self.weights * self.distinct + 4 * self.head * self.supervised


@dataclass(frozen=True)
class Speed:
    """The fastest products found.

    Attributes:
        operations: multiplications and additions a second.
        rows: how many rows they had.
        threads: how many threads.
    """

    operations: float
    rows: int
    threads: int


def roof(shapes: Sequence[Shape], threads: Sequence[int], rows: Sequence[int] | None = None) -> Speed:
    """The best speed over numbers of rows and of threads, all shapes weighted by what they cost in the model.

    Args:
        shapes: (out, in) of each linear layer, each as often as it occurs.
        threads: numbers to try.
        rows: numbers to try; by default a few hundred to a few thousand.
    """
    rows = rows or ROWS
    counts = Counter(shapes)
    cost = sum(count * 4 * out * inner for (out, inner), count in counts.items())
    best = Speed(0.0, rows[0], threads[0])
    for many in rows:
        work = [
            (count, torch.full((many, inner), 0.01), torch.full((out, inner), 0.01))
            for (out, inner), count in counts.items()
        ]
        for number in threads:
            with torch.inference_mode(), with_threads(number):
                seconds = 0.0
                for count, x, weight in work:
                    y = x @ weight.T  # wakes the threads, and is not timed
                    started = time.perf_counter()
                    y = x @ weight.T
                    y @ weight
                    seconds += count * (time.perf_counter() - started)
            best = max(best, Speed(cost * many / seconds, many, number), key=lambda each: each.operations)
    return best
