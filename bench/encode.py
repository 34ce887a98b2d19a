"""Rendering, tokenising and masking, beside `datasets.map` doing the template and the tokenizer alone, without masks.

    python bench/encode.py [--examples 50000] [--rounds 3] [--processes 2]

Both read the same JSON-lines file of generated chats, with the embedded base's tokenizer, in turns; the figures are
examples a second of wall time, medians, and the peak of resident memory of each in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SYSTEMS = ("Scumble", "datasets.map")


def write_chats(path: Path, examples: int) -> None:
    """Chats of 20 to 60 random words each way."""
    draw = random.Random(0)
    words = [f"{a}{b}{c}" for a in "bdfgklmnprst" for b in "aeiou" for c in "lnrst"]
    with path.open("w", encoding="utf-8") as file:
        for _ in range(examples):
            asked, answer = (" ".join(draw.choices(words, k=draw.randint(20, 60))) for _ in range(2))
            turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
            file.write(json.dumps({"messages": turns}) + "\n")


def ours(path: str, tokenizer: object) -> int:
    """The tokens and masks of every example, one after the other; gives the number of tokens."""
    from scumble.data.encoding import encode_each
    from scumble.data.examples import iter_examples

    return sum(len(each.ids) for each in encode_each(iter_examples(path), tokenizer))


def theirs(path: str, tokenizer: object, processes: int, cache: str) -> Any:
    """The same by `datasets.map`, without masks; gives the data set, whose tokens are counted once the clock stopped."""
    from datasets import load_dataset

    rows = load_dataset("json", data_files=path, cache_dir=cache, split="train")

    def encoded(batch: dict[str, list]) -> dict[str, list]:
        texts = [tokenizer.apply_chat_template(each, tokenize=False) for each in batch["messages"]]  # type: ignore[attr-defined]
        return {"ids": tokenizer(texts, add_special_tokens=False)["input_ids"]}  # type: ignore[operator]

    return rows.map(encoded, batched=True, num_proc=processes, remove_columns=["messages"])


def measure(system: str, path: str, processes: int) -> None:
    """One system in this process; prints seconds, tokens and the peak of memory, children included."""
    from transformers import AutoTokenizer

    from scumble.models.embedded import ensure

    os.environ["TOKENIZERS_PARALLELISM"] = "true" if system == "Scumble" else "false"
    tokenizer = AutoTokenizer.from_pretrained(ensure().folder)
    with tempfile.TemporaryDirectory() as cache:
        started = time.perf_counter()
        made = ours(path, tokenizer) if system == "Scumble" else theirs(path, tokenizer, processes, cache)
        seconds = time.perf_counter() - started
        tokens = made if isinstance(made, int) else sum(len(row["ids"]) for row in made)
    peak = sum(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    print(json.dumps({"seconds": seconds, "tokens": tokens, "peak": peak * 1024}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument(
        "--one", nargs=2, metavar=("SYSTEM", "FILE"), help="measure one system in this process"
    )
    options = parser.parse_args()
    if options.one:
        measure(options.one[0], options.one[1], options.processes)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "chats.jsonl"
        write_chats(path, options.examples)
        found: dict[str, list[dict[str, float]]] = {system: [] for system in SYSTEMS}
        for _ in range(options.rounds):
            for system in SYSTEMS:
                command = [
                    sys.executable,
                    __file__,
                    "--processes",
                    str(options.processes),
                    "--one",
                    system,
                    str(path),
                ]
                said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
                found[system].append(json.loads(said.strip().splitlines()[-1]))
    speeds = {
        s: options.examples / statistics.median(r["seconds"] for r in rows) for s, rows in found.items()
    }
    for system, rows in found.items():
        each = ", ".join(f"{options.examples / row['seconds']:,.0f}" for row in rows)
        print(
            f"{system:14}{speeds[system]:>9,.0f} examples/s ({each}), {rows[0]['tokens']:,.0f} tokens, "
            f"peak {max(row['peak'] for row in rows) / 1e9:.2f} GB"
        )
    print(
        f"Scumble / datasets.map({options.processes} processes): {speeds['Scumble'] / speeds['datasets.map']:.2f}"
    )


if __name__ == "__main__":
    main()
