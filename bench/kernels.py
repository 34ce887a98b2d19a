"""Which way of computing a mixed batch's updates is fastest, by tokens and adapters: the bank's choice, measured.

    python bench/kernels.py [--threads 1]

A loop over adapters (every row through every adapter, masked), stacking, and segments, interleaved in one
run at the embedded base's width; medians in microseconds. `SEGMENTS_FROM` in `lora/kernels.py` is read off it.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from scumble.lora.kernels import Term, low_rank_update, segments, stacked

ROWS = 8


def loop(x: torch.Tensor, terms: list[Term]) -> torch.Tensor:
    """The plain way: one adapter after the other over the whole batch, its rows masked by their weight."""
    out = torch.zeros(*x.shape[:2], terms[0].B.shape[0])
    for term in terms:
        out = out + (x @ term.A.T @ term.B.T) * (term.weight * term.scale)
    return out


def make(adapters: int, length: int, width: int, rank: int) -> tuple[torch.Tensor, list[Term]]:
    x = torch.randn(ROWS, length, width)
    terms = []
    for i in range(adapters):
        weight = torch.zeros(ROWS, 1, 1)
        weight[i % ROWS :: adapters] = 1.0
        terms.append(Term(torch.randn(rank, width), torch.randn(width, rank), 2.0, weight))
    return x, terms


def microseconds(ways: dict[str, Callable[[], torch.Tensor]], repeats: int) -> dict[str, float]:
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(times) * 1e6 for name, times in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--width", type=int, default=576)
    parser.add_argument("--rank", type=int, default=16)
    torch.set_num_threads(parser.parse_args().threads)
    args = parser.parse_args()
    print(f"{ROWS} rows, width {args.width}, rank {args.rank}, {args.threads} threads, fp32; microseconds")
    print(f"{'adapters':>8} {'tokens':>7} {'loop':>9} {'stacked':>9} {'segments':>9}  chosen")
    with torch.no_grad():
        for adapters in (2, 4, 8):
            for length in (1, 4, 16, 24, 32, 64, 128):
                x, terms = make(adapters, length, args.width, args.rank)
                ways = {
                    "loop": lambda x=x, t=terms: loop(x, t),
                    "stacked": lambda x=x, t=terms: stacked(x, t),
                    "segments": lambda x=x, t=terms: segments(x, t),
                    "chosen": lambda x=x, t=terms: low_rank_update(x, t),
                }
                found = microseconds(ways, 60)
                print(
                    f"{adapters:>8} {ROWS * length:>7} {found['loop']:>9.0f} {found['stacked']:>9.0f} "
                    f"{found['segments']:>9.0f}  {found['chosen']:.0f}"
                )


if __name__ == "__main__":
    main()
