"""The 95 % interval of a metric over examples, and where a setting was tried with several seeds, over these too.

    one seed:      Wilson's interval of a share
    several seeds: a bootstrap over both: seeds drawn with replacement, examples drawn with replacement (the same ones for
                   every seed, since all were asked the same), the mean of their marks; of 4,000 such means, the middle 95 %

Where every mark is the same a bootstrap has no width, and Wilson's interval over the examples alone stands in.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from scumble.compare.metrics import wilson_interval

DRAWS = 4000


def interval(marks: Sequence[Sequence[float]]) -> tuple[float, float]:
    """The interval of the mean of marks from 0 to 1.

    Args:
        marks: of each seed, those of the same examples in the same order.
    """
    table = np.asarray(marks, dtype=float)  # (seeds, examples)
    seeds, examples = table.shape
    mean = float(table.mean())
    if seeds == 1 or table.min() == table.max():
        return wilson_interval(mean, examples)
    rng = np.random.default_rng(0)
    drawn = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=DRAWS)  # how often each seed is there
    asked = rng.multinomial(examples, np.full(examples, 1 / examples), size=DRAWS)
    means = np.einsum("ds,se,de->d", drawn, table, asked, optimize=True) / (seeds * examples)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)
