"""From how many tokens on a shared beginning pays, and what packing saves against padding.

    python bench/layout.py [--threads 1] [--rounds 3]

16 examples of the embedded base begin with the same n tokens, which are computed once or 16 times, in turns; then 16
examples of log-normal length are padded and packed. Times are of the processor, forward and backward, medians.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable

import torch

from scumble import Bank, load_base
from scumble.compare.loss import loss_sum
from scumble.data.batches import collate
from scumble.data.encoding import Encoded
from scumble.data.packing import pack, shared_tree
from scumble.lora.spec import LoraSpec
from scumble.models.lean import lean

OWN = 60  # tokens of each example's own, a third of them supervised


def examples(shared: int, lengths: list[int], draw: random.Random) -> list[Encoded]:
    """Examples of random tokens that begin alike."""
    common = [draw.randrange(100, 40_000) for _ in range(shared)]
    found = []
    for number, length in enumerate(lengths):
        ids = (*common, *(draw.randrange(100, 40_000) for _ in range(length)))
        found.append(Encoded(ids, tuple(i >= len(ids) - length // 3 for i in range(len(ids))), number, ""))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    base, draw = load_base(), random.Random(0)
    bank = Bank(base)
    bank.trainable("adapter", LoraSpec(16, 32, "standard"))

    def compare(a: Callable[[], object], b: Callable[[], object]) -> tuple[float, float]:
        times: tuple[list[float], list[float]] = ([], [])
        for _ in range(options.rounds):
            for run, into in ((a, times[0]), (b, times[1])):
                started = time.process_time()
                loss_sum(base.model, run()).backward()
                into.append(time.process_time() - started)
        return statistics.median(times[0]), statistics.median(times[1])

    with bank.using("adapter"), lean(base.model):
        for shared in (2, 4, 8, 16, 32, 128):
            made = examples(shared, [OWN] * 16, draw)
            left = shared_tree(made, least=2).tokens / sum(len(each.ids) for each in made)
            once, each = compare(lambda made=made: _shared(made), lambda made=made: pack(made))
            print(
                f"{shared:4} shared of {shared + OWN}: {left:.0%} of the tokens, {once / each:.0%} of the time"
            )
        lengths = [min(512, max(20, round(draw.lognormvariate(5.2, 0.6)))) for _ in range(16)]
        made = examples(0, lengths, draw)
        real = sum(lengths) / (16 * max(lengths))
        packed, padded = compare(lambda: pack(made), lambda: collate(made))
        print(
            f"packed: {real:.0%} of the positions of padded rows hold a token, {packed / padded:.0%} of the time"
        )


def _shared(made: list[Encoded]) -> object:
    from scumble.data import packing

    packing.LEAST, packing.WORTH = 2, 0.0
    packing.shared_tree.__defaults__ = (2,)
    return pack(made, share=True)


if __name__ == "__main__":
    main()
