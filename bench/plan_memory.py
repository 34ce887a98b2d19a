"""Planned against measured: the peak of memory of real training steps, over many ways to train.

    python bench/plan_memory.py                 # on the CPU: allocations of PyTorch, counted by its profiler
    python bench/plan_memory.py --device cuda
    python bench/plan_memory.py --only 3,17     # some of the cases

Models have random weights and the shapes of SmolLM2 135M and Qwen2.5 0.5B (and, as extras, layers like Gemma 3's, Qwen3's
and Phi-3's): what is in the weights changes no memory. The error is that of the peak less the weights.
"""

from __future__ import annotations

import argparse
import gc
import json
from dataclasses import dataclass, replace

import torch
from transformers import AutoConfig

from scumble.lab.planned import Measured, measure, random_base, random_examples
from scumble.plan.memory import plan_memory
from scumble.plan.setup import Setup
from scumble.plan.shape import Shape, find_shape

EXTRAS = {
    "gemma3": {"model_type": "gemma3_text", "hidden_size": 640, "intermediate_size": 2048, "num_hidden_layers": 18,
               "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256, "vocab_size": 64000,
               "sliding_window": 512, "max_position_embeddings": 32768},
    "qwen3": {"model_type": "qwen3", "hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 16,
              "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 128, "vocab_size": 60000,
              "tie_word_embeddings": True, "max_position_embeddings": 32768},
    "phi3": {"model_type": "phi3", "hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12,
             "num_attention_heads": 12, "num_key_value_heads": 12, "vocab_size": 32064, "pad_token_id": 0,
             "max_position_embeddings": 4096},
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One way to train: the lengths of the examples at once, and the share of their tokens that has a loss."""

    shape: str
    lengths: tuple[int, ...]
    losses: float = 0.3
    method: str = "lora"
    targets: str = "minimal"
    rank: int = 8
    repeat: int | str = 0
    dtype: str = "fp32"
    dropout: float = 0.0
    accumulate: int = 1
    dora: bool = False

    def setup(self, device: str) -> Setup:
        """What is planned."""
        tokens = sum(self.lengths)
        return Setup(
            method=self.method, dtype=self.dtype, rank=self.rank, targets=self.targets, dropout=self.dropout,
            tokens=tokens, longest=max(self.lengths), batch=len(self.lengths), losses=int(self.losses * tokens),
            accumulate=self.accumulate, repeat=self.repeat, dora=self.dora,
            device=device, threads=torch.get_num_threads(),
        )  # fmt: skip


SMALL, LARGE = "HuggingFaceTB/SmolLM2-135M-Instruct", "Qwen/Qwen2.5-0.5B"
CASES = [
    Case(SMALL, (64,) * 4),
    Case(SMALL, (256,) * 4),
    Case(SMALL, (512,) * 4),
    Case(SMALL, (512,) * 4, rank=64),
    Case(SMALL, (512,) * 4, 0.05, targets="standard"),
    Case(SMALL, (512,) * 4, 0.05, targets="comprehensive"),
    Case(SMALL, (512,) * 4, 1.0, targets="comprehensive", rank=64),
    Case(SMALL, (2048,), 0.02, targets="standard", rank=16),
    Case(SMALL, (100, 200, 300, 400, 500, 600), 0.2),
    Case(SMALL, (30, 60, 900), 0.1, targets="comprehensive", rank=16),
    Case(SMALL, (512,) * 4, 0.05, repeat="all"),
    Case(SMALL, (512,) * 4, 0.05, repeat=12, targets="comprehensive"),
    Case(SMALL, (1024,) * 4, 0.1, repeat="all", targets="standard"),
    Case(SMALL, (512,) * 4, 0.05, dropout=0.05, targets="standard"),
    Case(SMALL, (512,) * 2, 0.2, accumulate=2, targets="standard"),
    Case(SMALL, (300,) * 4, 0.1, dtype="bf16", targets="standard"),
    Case(SMALL, (256,) * 4, 0.2, dtype="bf16", targets="comprehensive", rank=32),
    Case(SMALL, (32,) * 2, method="full"),
    Case(SMALL, (256,) * 4, method="full"),
    Case(SMALL, (1024,) * 2, 0.2, method="full"),
    Case(SMALL, (512,) * 2, 0.2, method="full", repeat="all"),
    Case(SMALL, (128,) * 4, 0.5, method="full", accumulate=2),
    Case(LARGE, (128,) * 2),
    Case(LARGE, (512,) * 2, 0.1),
    Case(LARGE, (512,) * 4, 0.1),
    Case(LARGE, (512,) * 4, 0.1, targets="comprehensive", rank=32),
    Case(LARGE, (2048,), 0.02, targets="standard", rank=64),
    Case(LARGE, (1024,) * 2, 0.5, targets="standard"),
    Case(LARGE, (100, 250, 700, 950), 0.3, targets="comprehensive"),
    Case(LARGE, (512,) * 4, 0.05, repeat="all"),
    Case(LARGE, (512,) * 4, 0.05, repeat=10, targets="comprehensive"),
    Case(LARGE, (256,) * 4, 0.2, dropout=0.1, targets="standard"),
    Case(LARGE, (256,) * 2, 0.2, accumulate=2),
    Case(LARGE, (64,) * 2, 0.5, method="full"),
    Case(LARGE, (256,) * 4, 0.2, method="full"),
    Case(LARGE, (512,) * 2, 0.1, method="full", repeat="all"),
    Case("qwen3", (512,) * 2, 0.1, targets="comprehensive"),
    Case("gemma3", (400,) * 3, 0.1, targets="standard"),
    Case("gemma3", (1000,), 0.1, targets="standard"),
    Case("phi3", (512,) * 2, 0.1, targets="all-linear"),
]


def main() -> None:
    """Measure the cases, and print a line for each."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    options.add_argument("--only", default="", help="numbers of cases, with commas between")
    options.add_argument("--json", action="store_true")
    asked = options.parse_args()
    only = [int(each) for each in asked.only.split(",") if each]
    found = []
    for number, case in enumerate(CASES):
        if only and number not in only:
            continue
        measured, activations = run(case, asked.device)
        found.append({"case": number, **vars(case), **measured.to_dict(), "activations": activations})
        if asked.json:
            print(json.dumps(found[-1]), flush=True)
        else:
            told(number, case, measured, activations)
    errors = [abs(each["error"]) for each in found]
    heavy = sum(each["activations"] > each["weights"] for each in found)
    if not asked.json:
        print(
            f"{len(found)} steps: mean error {sum(errors) / len(errors):.1%}, largest {max(errors):.1%}; "
            f"activations larger than weights in {heavy}"
        )


def run(case: Case, device: str) -> tuple[Measured, int]:
    """One case measured, and the bytes of its activations as planned."""
    shape = shape_of(case.shape)
    torch.manual_seed(0)
    setup = case.setup(device)
    base = random_base(shape, setup)
    examples = random_examples(setup, shape.vocabulary, case.lengths)
    # as many as there are, since each example rounds its own
    losses = sum(sum(each.supervised) for each in examples) // case.accumulate
    setup = replace(setup, losses=losses)
    measured = measure(base, shape, setup, examples)
    del base
    gc.collect()
    return measured, plan_memory(shape, setup).largest["activations"]


def shape_of(name: str) -> Shape:
    """Of a published model, or of an extra."""
    if name not in EXTRAS:
        return find_shape(name)
    kind = dict(EXTRAS[name])
    config = AutoConfig.for_model(kind.pop("model_type"), **kind)
    return Shape.of_config(config.to_dict(), name, "this file")


def told(number: int, case: Case, measured: Measured, activations: int) -> None:
    """A row of a table in Markdown."""
    extra = [
        f"{name} {getattr(case, name)}"
        for name in ("dropout", "accumulate", "dtype")
        if getattr(case, name) != getattr(Case, name)
    ]
    mb = [
        f"{size / 1e6:,.0f}"
        for size in (measured.weights, measured.peak - measured.weights, measured.planned - measured.weights)
    ]
    lengths = (
        " ".join(map(str, case.lengths))
        if len(set(case.lengths)) > 1
        else f"{len(case.lengths)} x {case.lengths[0]}"
    )
    what = "full" if case.method == "full" else f"rank {case.rank}, {case.targets}"
    print(
        f"| {number} | {case.shape.split('/')[-1]} | {what} | {lengths} | {case.losses:.0%} | {case.repeat} | {', '.join(extra)} | "
        f"{mb[0]} | {mb[1]} | {mb[2]} | {measured.error:+.1%} |",
        flush=True,
    )


if __name__ == "__main__":
    main()
