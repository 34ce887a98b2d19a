"""Eight adapters at once against the same eight one after the other, and against PEFT with the Trainer one after the other.

    python bench/sweep.py [--data cron] [--steps 12] [--batch 16] [--rounds 1] [--layers all|upper] [--together N]
                           [--sides together alone peft] [--base BASE]
    python bench/sweep.py --memory

Each side is what its user would start: ours at once is one process that trains eight adapters, ours alone is eight
processes of one, PEFT's is eight processes of a script. The seconds are those of the processes from start to end, so
that loading counts; nobody evaluates. Sides take turns within a round. Peak memory is the highest resident size of a
process beyond what it had with the model loaded. Ratios are those of one run on one machine. With `--memory` nothing is
timed: every allocation of PyTorch is counted in a second round of the eight, and of the largest alone, beside the plan.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

RANKS, RATES = (4, 8, 16, 32), (5e-4, 1.3e-3)
UPPER = r".*layers\.(1[5-9]|2\d)\.self_attn\.(q|v)_proj"
NAMES = {
    "together": "ours at once",
    "alone": "ours, one after the other",
    "peft": "PEFT, one after the other",
}


def settings(options: argparse.Namespace) -> list[dict[str, Any]]:
    """The options of each of the eight."""
    targets = UPPER if options.layers == "upper" else "minimal"
    return [
        {
            "rank": rank,
            "alpha": 2.0 * rank,
            "targets": targets,
            "learning_rate": rate,
            "max_steps": options.steps,
            "batch": options.batch,
            "accumulate": 1,
            "eval": 0,
            "schedule": "constant",
            "warmup": 0,
        }
        for rank in RANKS
        for rate in RATES
    ]


def main() -> None:
    options = arguments()
    if options.worker:
        print(json.dumps(WORKERS[options.worker](options)))
        return
    if options.memory:
        memory(options)
        return
    sides = options.sides
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for _ in range(options.rounds):
        for side in sides:
            numbers = [None] if side == "together" else list(range(len(RANKS) * len(RATES)))
            parts = [run(side, number, options) for number in numbers]
            found[side].append(
                {
                    "seconds": sum(part["seconds"] for part in parts),
                    "trained": sum(part["trained"] for part in parts),
                    "peak": max(part["peak"] for part in parts),
                    "loss": parts[-1]["loss"],
                    "threads": parts[0]["threads"],
                }
            )
            print(f"{NAMES[side]}: {found[side][-1]}", flush=True)
    first = sides[0]
    for what, name in (("seconds", "time"), ("peak", "memory of training")):
        best = {side: min(each[what] for each in rounds) for side, rounds in found.items()}
        for side in sides[1:]:
            print(f"{name} of {NAMES[first]} over {NAMES[side]}: {best[first] / best[side]:.2f}")


def memory(options: argparse.Namespace) -> None:
    """The peak of eight at once and of the largest alone, counted and planned."""
    from scumble import load_base
    from scumble.lab.planned import measure_at_once, random_examples
    from scumble.plan.memory import Memories
    from scumble.plan.setup import Setup
    from scumble.plan.shape import find_shape

    base, shape = load_base(options.base, dtype="fp32", device="cpu"), find_shape(options.base)
    tokens = 64 * options.batch
    one = Setup(
        dtype="fp32", tokens=tokens, longest=64, batch=options.batch, losses=tokens // 4, device="cpu"
    )
    setups = [
        replace(one, rank=each["rank"], alpha=each["alpha"], targets=each["targets"])
        for each in settings(options)
    ]
    examples, plans = random_examples(one, shape.vocabulary), Memories(shape)
    alone = measure_at_once(base, shape, setups[-1:], examples)
    eight = measure_at_once(base, shape, setups, examples)
    own = sum(3 * plans(each).largest["adapter"] for each in setups)
    for title, found in (("one alone", alone), ("eight at once", eight)):
        print(
            f"{title}: peak {found.peak / 1e6:,.1f} MB, planned {found.planned / 1e6:,.1f} MB, "
            f"{found.error:+.1%} of the peak less the weights ({found.weights / 1e6:,.1f} MB)"
        )
    print(f"the adapters' own numbers and moments: {own / 1e6:,.1f} MB")
    print(f"eight at once over one alone, less the adapters' own: {(eight.peak - own) / alone.peak:.2f}")
    less = (eight.peak - eight.weights - own) / (alone.peak - alone.weights)
    print(f"the same less the weights: {less:.2f}")


def run(side: str, number: int | None, options: argparse.Namespace) -> dict[str, Any]:
    """One process, timed from outside."""
    command = [sys.executable, __file__, "--worker", side, *sys.argv[1:]]
    if number is not None:
        command += ["--number", str(number)]
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - started
    if done.returncode:
        sys.exit(f"{side} failed: {done.stderr.strip().splitlines()[-1]}")
    return {"seconds": seconds, **json.loads(done.stdout.strip().splitlines()[-1])}


def together(options: argparse.Namespace) -> dict[str, Any]:
    """Ours, all at once."""
    from scumble.train.many import Trial, train_many

    base = loaded(options)
    with tempfile.TemporaryDirectory() as place, Measured() as memory:
        trials = [Trial(Path(place) / f"{i}", each) for i, each in enumerate(settings(options))]
        done = train_many(options.data, trials, base=base, together=options.together)
    assert all(each.run is not None for each in done)
    return told(memory, [each.run for each in done])


def alone(options: argparse.Namespace) -> dict[str, Any]:
    """Ours, one of them."""
    from scumble import train

    base = loaded(options)
    with tempfile.TemporaryDirectory() as place, Measured() as memory:
        given = settings(options)[options.number]
        run = train(
            options.data, base=base, out=Path(place) / "run", quiet=True, examples_in_report=0, **given
        )
    return told(memory, [run])


def told(memory: dict[str, int], runs: list[Any]) -> dict[str, Any]:
    import torch

    return {
        "trained": sum(run.seconds for run in runs),
        "peak": memory["peak"],
        "loss": round(runs[-1].loss["last"], 4),
        "threads": torch.get_num_threads(),
    }


def peft(options: argparse.Namespace) -> dict[str, Any]:
    """PEFT's model in transformers' Trainer, with the tokens and the first adapter that ours has."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

    from scumble.data.encoding import encode_all
    from scumble.data.examples import iter_examples
    from scumble.data.order import order_of

    base = loaded(options)
    given = settings(options)[options.number]
    with tempfile.TemporaryDirectory() as place, Measured() as memory:
        examples = encode_all(list(iter_examples(options.data, "train")), base.tokenizer, 2048).examples
        numbers = [n for epoch in range(9) for n in order_of(len(examples), 0, epoch)]
        rows = [examples[n] for n in numbers[: options.steps * options.batch]]
        data = Dataset.from_dict(
            {
                "input_ids": [list(each.ids) for each in rows],
                "labels": [
                    [t if s else -100 for t, s in zip(each.ids, each.supervised, strict=True)]
                    for each in rows
                ],
            }
        )
        targets = given["targets"] if options.layers == "upper" else ["q_proj", "v_proj"]
        config = LoraConfig(
            r=given["rank"], lora_alpha=given["alpha"], target_modules=targets, task_type="CAUSAL_LM"
        )
        model = get_peft_model(base.model, config)
        trainer = Trainer(
            model=model,
            args=TrainingArguments(
                output_dir=place,
                per_device_train_batch_size=4,
                gradient_accumulation_steps=options.batch // 4,
                max_steps=options.steps,
                learning_rate=given["learning_rate"],
                lr_scheduler_type="constant",
                use_cpu=True,
                train_sampling_strategy="sequential",
                logging_steps=1,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                dataloader_pin_memory=False,
            ),
            train_dataset=data,
            data_collator=DataCollatorForSeq2Seq(base.tokenizer, label_pad_token_id=-100),
        )
        started = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - started
        model.save_pretrained(place)
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    threads = torch.get_num_threads()
    return {"trained": seconds, "peak": memory["peak"], "loss": round(losses[-1], 4), "threads": threads}


def loaded(options: argparse.Namespace) -> Any:
    """The base, every weight of it resident, so that training's memory is what is measured."""
    from scumble import load_base

    base = load_base(options.base, dtype="fp32", device="cpu")
    for parameter in base.model.parameters():
        parameter.sum()
    return base


class Measured:
    """The peak of the resident size in the body of a `with`, beyond what there was before."""

    def __enter__(self) -> dict[str, int]:
        import torch

        from scumble.lab.train_worker import resident_bytes
        from scumble.train.memory import start_peak

        self.before = resident_bytes()
        start_peak(torch.device("cpu"))
        self.found = {"peak": 0}
        return self.found

    def __exit__(self, *raised: object) -> None:
        import torch

        from scumble.train.memory import peak_bytes

        self.found["peak"] = peak_bytes(torch.device("cpu")) - self.before


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="cron", help="a shipped set, or a file")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--layers", choices=["all", "upper"], default="all")
    parser.add_argument("--together", type=int, default=None, help="adapters whose rows are computed at once")
    parser.add_argument("--sides", nargs="+", choices=list(NAMES), default=list(NAMES))
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--base", default=None)
    parser.add_argument("--worker", choices=list(WORKERS), help=argparse.SUPPRESS)
    parser.add_argument("--number", type=int, default=0, help=argparse.SUPPRESS)
    return parser.parse_args()


WORKERS = {"together": together, "alone": alone, "peft": peft}

if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
