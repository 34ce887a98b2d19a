"""The 95 % interval of a metric over examples, and where a setting was tried with several seeds, over these too.

    one seed:      Wilson's interval of a share
    several seeds: seeds and examples are both drawn at random (`scumble.compare.crossed`), within 0 and 1, and never
                   less than Wilson's interval over the examples: where nearly all answers are right, or nearly none,
                   they hardly vary, and what varies little seems certain

Wilson's is made for marks of 0 and 1. Those between vary less with the same mean, so that it is wide for them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from scumble.compare.crossed import half_width
from scumble.compare.metrics import wilson_interval


def interval(marks: Sequence[Sequence[float]]) -> tuple[float, float]:
    """The interval of the mean of marks from 0 to 1.

    Args:
        marks: of each seed, those of the same examples in the same order.
    """
    table = np.asarray(marks, dtype=float)  # (seeds, examples)
    seeds, examples = table.shape
    mean = float(table.mean())
    low, high = wilson_interval(mean, examples)
    if seeds == 1:
        return low, high
    half = half_width(table)
    return min(low, max(0.0, mean - half)), max(high, min(1.0, mean + half))
