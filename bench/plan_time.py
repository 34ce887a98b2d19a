"""Planned against measured: the seconds of an epoch of real training, after a calibration of a few seconds.

    python bench/plan_time.py                        # the embedded base, all data sets: about five minutes on two cores
    python bench/plan_time.py --only cron,long --method full --share 0.5
    python bench/plan_time.py --device cuda --dtype bf16 --share 8
    python bench/plan_time.py --own-time --share 0.35        # where other work runs: processor time of one thread

Data sets: `cron` (short, with a system prompt that all share), docstrings of Python's standard library as chats (216 tokens
on average), the same with a system prompt of 512 tokens, and texts of log-normal lengths up to 1,800 tokens. Each is
calibrated before its run and once more after it, since a machine's speed changes; both plans are shown against
`run.seconds`, which is training alone.
"""

from __future__ import annotations

import argparse
import os
import random
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

from scumble import load_base, train
from scumble.data.encoding import encode_all
from scumble.data.examples import read_examples
from scumble.data.shipped import load_shipped
from scumble.lab.calibrated import SECONDS, calibrate
from scumble.lab.docstrings import chats, shuffled, standard_library
from scumble.models.base import Base
from scumble.plan.setup import Setup
from scumble.plan.shape import Shape
from scumble.plan.timing import Epoch, EpochTime, epoch_time
from scumble.progress import Reporter

LONGEST = 2048
PROMPT = 512  # tokens of the system prompt


def main() -> None:
    """Plan and train, and print a row of a table for each data set."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default=",".join(SETS), help="data sets, with commas between")
    parser.add_argument("--base", default=None)
    parser.add_argument("--method", default="lora", choices=["lora", "full"])
    parser.add_argument("--targets", default="minimal")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--checkpointing", default="none", choices=["none", "all"])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--share", type=float, default=1.0, help="times so many examples")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of a calibration")
    parser.add_argument(
        "--own-time",
        action="store_true",
        help="processor time, not seconds: for one thread on a busy machine",
    )
    options = parser.parse_args()
    if options.own_time:
        os.environ["SCUMBLE_THREADS"] = "1"
        time.perf_counter = time.process_time
    base = load_base(options.base, device=options.device, dtype=options.dtype)
    print(
        "| data | examples | tokens | steps | planned | again | measured | ratios | calibrating |", flush=True
    )
    for name in options.only.split(","):
        compared(name, SETS[name](base.tokenizer, options.share), base, options)


def compared(name: str, rows: list[dict[str, Any]], base: Base, options: argparse.Namespace) -> None:
    """One data set: plan, train, plan again."""
    model: Any = base.model
    shape = Shape.of_config(model.config.to_dict(), base.name, "its configuration")
    setup = Setup(
        method=options.method, dtype=options.dtype, rank=options.rank, targets=options.targets, dropout=options.dropout,
        batch=options.batch, accumulate=options.accumulate, device=options.device,
        repeat="all" if options.checkpointing == "all" else 0,
    )  # fmt: skip
    encoded = encode_all(read_examples(rows), base.tokenizer, LONGEST)
    epoch = Epoch.of(encoded.examples, setup)

    def planned() -> tuple[EpochTime, float]:
        made = calibrate(
            shape, setup, epoch.micro_batches, seconds=options.seconds, reporter=Reporter(quiet=True)
        )
        return epoch_time(made, shape, setup, epoch), made.seconds

    before, spent = planned()
    adapter = {"rank": options.rank, "targets": options.targets, "dropout": options.dropout}
    with tempfile.TemporaryDirectory() as place:
        run = train(
            rows,
            out=Path(place) / "run",
            base=base,
            method=options.method,
            eval=0,
            epochs=1.0,
            batch=options.batch,
            accumulate=options.accumulate,
            max_length=LONGEST,
            gradient_checkpointing=options.checkpointing,
            examples_in_report=0,
            quiet=True,
            **(adapter if options.method == "lora" else {}),
        )
    after, _ = planned()
    assert (run.steps, run.tokens) == (before.steps, before.tokens)
    print(
        f"| {name} | {len(encoded.examples)} | {run.tokens:,} | {run.steps} | {before.seconds:.1f} s ± {before.spread:.0%} | "
        f"{after.seconds:.1f} s ± {after.spread:.0%} | {run.seconds:.1f} s | "
        f"{before.seconds / run.seconds:.2f} {after.seconds / run.seconds:.2f} | {spent:.0f} s |",
        flush=True,
    )


def cron(tokenizer: Any, share: float) -> list[dict[str, Any]]:
    """The first of the shipped set."""
    examples = load_shipped("cron", "train")[: round(160 * share)]
    return [dict(example) for example in examples]


def docstrings(tokenizer: Any, share: float) -> list[dict[str, Any]]:
    """Chats of the standard library, in a random order."""
    fitting = (row for row in shuffled(chats(standard_library()), 97) if len(str(row["messages"])) < 3000)
    return [{"messages": row["messages"]} for row in islice(fitting, round(64 * share))]


def prompted(tokenizer: Any, share: float) -> list[dict[str, Any]]:
    """The same behind a system prompt that all share."""
    words = tokenizer(" ".join(text_of(random.Random(0), 2 * PROMPT)))["input_ids"][:PROMPT]
    system = {"role": "system", "content": tokenizer.decode(words)}
    return [{"messages": [system, *row["messages"]]} for row in docstrings(tokenizer, share * 0.75)]


def long(tokenizer: Any, share: float) -> list[dict[str, Any]]:
    """Texts of very different lengths, of which the second half is learnt."""
    draw = random.Random(1)
    rows = []
    for _ in range(round(32 * share)):
        words = text_of(draw, int(min(1100, max(20, draw.lognormvariate(5.3, 0.9)))))
        half = len(words) // 2
        turns = (("user", words[:half]), ("assistant", words[half:]))
        rows.append({"messages": [{"role": role, "content": " ".join(said)} for role, said in turns]})
    return rows


def text_of(draw: random.Random, words: int) -> list[str]:
    """So many words without much sense."""
    known = (
        "the",
        "rate",
        "of",
        "a",
        "run",
        "falls",
        "after",
        "every",
        "layer",
        "that",
        "keeps",
        "what",
        "it",
        "needs",
    )
    return [draw.choice(known) for _ in range(words)]


SETS: dict[str, Callable[[Any, float], list[dict[str, Any]]]] = {
    "cron": cron,
    "docstrings": docstrings,
    "prompted": prompted,
    "long": long,
}

if __name__ == "__main__":
    main()
