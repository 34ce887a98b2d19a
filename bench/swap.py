"""What it costs to change adapters on the embedded base: seconds of each way, and memory over a thousand changes.

    python bench/swap.py [--threads 1] [--cycles 1000]

Two adapters of rank 8 on every linear layer (SmolLM2-135M: 210 modules, 2.4 million numbers), with seeded random
factors. `use` puts another mixture to the rows of a bank that holds both; `swap` gives a name new contents, from a
folder or from memory; `add` and `remove` load and unload. Resident memory is that of /proc/self/statm. The same
logits, bit for bit, are asked for before and after the thousand cycles.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from scumble import Adapter, Bank, load_base
from scumble.lora.fresh import fresh_adapter
from scumble.lora.spec import LoraSpec

SPREAD = 0.02  # of B, which a fresh adapter has as zero


def write_adapters(bank: Bank, folder: str) -> list[Path]:
    written = []
    spec = LoraSpec(rank=8, alpha=16, targets="all-linear")
    for seed in (0, 1):
        adapter = fresh_adapter(spec, bank.modules, bank.model.get_output_embeddings(), seed)
        generator = torch.Generator().manual_seed(seed)
        for factors in adapter.factors.values():
            factors.B = torch.randn(factors.B.shape, generator=generator) * SPREAD
        written.append(adapter.save(f"{folder}/adapter{seed}"))
    return written


def median_ms(way: Callable[[int], object], repeats: int) -> str:
    """Of many calls: the median, and the slowest of ten in a hundred."""
    seconds = []
    for number in range(repeats):
        started = time.perf_counter()
        way(number)
        seconds.append(time.perf_counter() - started)
    seconds.sort()
    slow = seconds[int(0.9 * len(seconds))]
    return (
        f"{statistics.median(seconds) * 1e3:8.3f} ms  (nine in ten below {slow * 1e3:.3f} ms, of {repeats})"
    )


def resident() -> float:
    """MB of this process in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def times(bank: Bank, folders: list[Path]) -> None:
    loaded = [Adapter.load(folder) for folder in folders]
    bank.add("a", loaded[0])
    bank.add("b", loaded[1])
    print(f"use, of two in the bank     {median_ms(lambda n: bank.use('ab'[n % 2]), 1000)}")
    print(f"use, a blend of both        {median_ms(lambda n: bank.use({'a': 0.7, 'b': 0.3 + n % 2}), 1000)}")
    bank.use("a")
    print(f"swap, from memory           {median_ms(lambda n: bank.swap('a', loaded[(n + 1) % 2]), 100)}")
    print(f"swap, from a folder         {median_ms(lambda n: bank.swap('a', folders[(n + 1) % 2]), 100)}")
    bank.use({})
    bank.remove("b")
    print(f"  of which reading it       {median_ms(lambda n: Adapter.load(folders[n % 2]), 100)}")

    def load_and_unload(number: int) -> None:
        bank.add("c", folders[number % 2])
        bank.remove("c")

    print(f"add and remove, a folder    {median_ms(load_and_unload, 100)}")
    bank.remove("a")
    print(f"the first add of a bank     {median_ms(load_and_unload, 20)}")


def cycles(bank: Bank, folders: list[Path], count: int) -> None:
    ids = torch.randint(0, 40_000, (1, 16), generator=torch.Generator().manual_seed(0))

    def logits() -> torch.Tensor:
        with torch.no_grad(), bank.using({"kept": 1.0}):
            return bank.model(input_ids=ids).logits.clone()

    bank.add("kept", folders[0])
    before = logits()
    begun = resident()
    print(f"{count} cycles of add, use, use({{}}), remove")
    print(f"  before          {begun:8.1f} MB resident")
    for number in range(1, count + 1):
        bank.add("guest", folders[number % 2])
        bank.use({"guest": 1.0, "kept": 0.5})
        bank.use({})
        bank.remove("guest")
        if number in (100, count):
            gc.collect()
            print(f"  after {number:5} {resident():13.1f} MB resident")
    print(f"  logits as before, bit for bit: {torch.equal(before, logits())}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cycles", type=int, default=1000)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    bank = Bank(load_base("smollm2"))
    with tempfile.TemporaryDirectory() as folder:
        folders = write_adapters(bank, folder)
        size = (folders[0] / "adapter_model.safetensors").stat().st_size
        print(f"two adapters of {size / 1e6:.1f} MB, {given.threads} thread(s)")
        times(bank, folders)
        cycles(bank, folders, given.cycles)


if __name__ == "__main__":
    main()
