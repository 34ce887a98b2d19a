"""The systems of `scumble bench train`, each as its user would call it, and each with the same job.

    script        the lesson's script with its errors repaired: PEFT and the Trainer of transformers
    trl           TRL's SFTTrainer with its defaults
    trl_best      TRL in fp32, without gradient checkpointing, the loss on the answers alone, its best batch
    scumble       `scumble.train`

The three others begin with the adapter that Scumble begins with, and get the tokens that Scumble makes of the chats;
rate, schedule (constant), clipping and optimizer (AdamW without decay) are the same for all. A round is one training
from that adapter; what is timed are its optimizer steps, from fetching the first batch to the end of the last step.
Knows a job, and nothing of processes and of what is done with the figures.
"""

from __future__ import annotations

import importlib
import json
import os
import tempfile
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch

from scumble.errors import TrainingError
from scumble.lab.train_job import TrainJob
from scumble.models.base import Base, load_base
from scumble.train.run import train

LESSON_BATCH = 4  # in a micro-batch of the lesson's script
TRL_BATCH = 8  # what transformers' TrainingArguments have


@dataclass(frozen=True)
class Layout:
    """How a system lays examples out.

    Attributes:
        batch: examples in a micro-batch.
        padded: side by side with padding; else end to end, where examples cannot see each other.
    """

    batch: int
    padded: bool = True

    def __str__(self) -> str:
        return f"batch {self.batch}, {'padded' if self.padded else 'end to end'}"


@dataclass(frozen=True)
class Trained:
    """What one training came to.

    Attributes:
        seconds: of its optimizer steps.
        losses: of each step, as the system itself reports it.
        adapter: the folder of what was trained, in the PEFT format.
    """

    seconds: float
    losses: tuple[float, ...]
    adapter: Path


class System(Protocol):
    """One system with its model loaded."""

    base: Base
    layouts: tuple[Layout, ...]

    def ready(self) -> None:
        """Load what is loaded when it is first used, so that none of it is timed or counted as training's memory."""

    def train(self, job: TrainJob, layout: Layout, out: Path) -> Trained:
        """Train the job from its first adapter, and leave what was trained under `out`."""


class _Hugging:
    """What the systems on the Trainer of transformers share: the model with the first adapter, set back each time."""

    by_length = False
    library = "transformers"

    def __init__(self, base: Base, job: TrainJob) -> None:
        self.base, self.first = base, job
        self.layouts: tuple[Layout, ...] = (Layout(LESSON_BATCH),)

    def ready(self) -> None:
        """Import the library, and wrap the base."""
        importlib.import_module(self.library)
        _ = self.model

    @cached_property
    def model(self) -> Any:
        """PEFT's model with the adapter that all begin with."""
        from peft import PeftConfig, PeftModel

        config = PeftConfig.from_pretrained(self.first.start)
        config.lora_dropout = self.first.dropout
        config.inference_mode = False
        return PeftModel.from_pretrained(self.base.model, self.first.start, is_trainable=True, config=config)

    def train(self, job: TrainJob, layout: Layout, out: Path) -> Trained:
        """Train from the first adapter; which examples share a micro-batch, `job.order` says."""
        from peft import set_peft_model_state_dict
        from safetensors.torch import load_file

        set_peft_model_state_dict(self.model, load_file(Path(job.start) / "adapter_model.safetensors"))
        clock = _Clock()
        with tempfile.TemporaryDirectory() as place:
            trainer = self.trainer(job, layout, place)
            trainer.add_callback(clock.callback())
            trainer.train()
        losses = tuple(row["loss"] for row in trainer.state.log_history if "loss" in row)
        self.model.save_pretrained(str(out / "adapter"), save_embedding_layers=False)
        return Trained(clock.seconds, losses, out / "adapter")

    def trainer(self, job: TrainJob, layout: Layout, place: str) -> Any:
        """The library's trainer for a job."""
        raise NotImplementedError

    def arguments(self, job: TrainJob, layout: Layout, place: str) -> dict[str, Any]:
        """The arguments that all of them get; the library's own defaults hold for the rest."""
        return {
            "output_dir": place,
            "per_device_train_batch_size": layout.batch,
            "gradient_accumulation_steps": -(-len(job.ids) // layout.batch),
            "max_steps": job.steps,
            "learning_rate": job.learning_rate,
            "lr_scheduler_type": "constant",
            "max_grad_norm": 1.0,
            "seed": job.seed,
            "use_cpu": True,
            "logging_steps": 1,
            # the rows stand in the order of the job already
            "train_sampling_strategy": "sequential",
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "dataloader_pin_memory": False,
        }

    def rows(self, job: TrainJob, *, labels: bool = True) -> Any:
        """The examples of every step one after the other, as a `datasets.Dataset`."""
        from datasets import Dataset

        numbers = [
            number for step in range(job.steps) for number in job.order(step, by_length=self.by_length)
        ]
        made = {"input_ids": [list(job.ids[number]) for number in numbers]}
        if labels:
            # the first token is predicted from nothing, and counts nowhere
            made["labels"] = [[-100, *job.labels[number][1:]] for number in numbers]
        return Dataset.from_dict(made)


class Script(_Hugging):
    """The lesson's script repaired: labels on the answers, a collator that pads, the tokens of the template as they are."""

    def trainer(self, job: TrainJob, layout: Layout, place: str) -> Any:
        """transformers' Trainer; no gradient checkpointing, as the script has none, and fp32, as this is a CPU."""
        from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

        tokenizer: Any = self.base.tokenizer
        return Trainer(
            model=self.model,
            args=TrainingArguments(**self.arguments(job, layout, place)),
            train_dataset=self.rows(job),
            data_collator=DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=-100),
        )


class Trl(_Hugging):
    """TRL's trainer with its defaults: batch 8, bf16, gradient checkpointing, and a loss on the whole conversation."""

    library = "trl"

    def __init__(self, base: Base, job: TrainJob) -> None:
        super().__init__(base, job)
        self.layouts = (Layout(min(TRL_BATCH, len(job.ids))),)

    def trainer(self, job: TrainJob, layout: Layout, place: str) -> Any:
        """`SFTTrainer` on `input_ids` without labels."""
        return self.made(job, self.rows(job, labels=False), self.arguments(job, layout, place))

    def made(self, job: TrainJob, rows: Any, arguments: dict[str, Any]) -> Any:
        """An `SFTTrainer`."""
        from trl import SFTConfig, SFTTrainer

        longest = max(len(ids) for ids in job.ids)
        length: dict[str, Any] = (
            {} if longest <= 1024 or "max_length" in arguments else {"max_length": longest}
        )
        return SFTTrainer(
            model=self.model,
            args=SFTConfig(**arguments, **length),
            train_dataset=rows,
            processing_class=self.base.tokenizer,
        )


class TrlBest(Trl):
    """TRL as fast as it goes here.

    Padded with the examples of a step sorted by length, so that padding is least, or end to end (`padding_free`) with
    the mask that transformers makes of restarted positions; packing proper (`packing=True`) also decides which
    examples share a step, and would train something else.
    """

    by_length = True

    def __init__(self, base: Base, job: TrainJob) -> None:
        super().__init__(base, job)
        sizes = [size for size in (1, 2, 4, 8) if size <= len(job.ids)]
        self.layouts = tuple(Layout(size) for size in sizes)
        self.layouts += tuple(Layout(size, padded=False) for size in sizes if size > 1)

    def trainer(self, job: TrainJob, layout: Layout, place: str) -> Any:
        """`SFTTrainer` in fp32 on the answers alone."""
        best = {"bf16": False, "gradient_checkpointing": False, "max_length": None}
        if not layout.padded:
            best["padding_free"] = True
        return self.made(job, self.rows(job), self.arguments(job, layout, place) | best)


class Scumble:
    """`scumble.train`, with the chats themselves."""

    def __init__(self, base: Base, job: TrainJob) -> None:
        self.base = base
        self.layouts: tuple[Layout, ...] = (Layout(job.batch, padded=False),)

    def ready(self) -> None:
        """All of it is here already."""

    def train(self, job: TrainJob, layout: Layout, out: Path) -> Trained:
        """Train through the public function; its seconds are those of the optimizer steps."""
        count = len(job.ids)
        # one thread count holds for the whole process here, and was measured on the whole of training
        os.environ["SCUMBLE_THREADS"] = str(torch.get_num_threads())
        run = train(
            list(job.chats),
            out=out / "run",
            base=self.base,
            quiet=True,
            eval=0,
            epochs=float(job.steps),
            max_steps=job.steps,
            batch=layout.batch,
            accumulate=-(-count // layout.batch),
            learning_rate=job.learning_rate,
            schedule="constant",
            warmup=0,
            weight_decay=0.0,
            clip=1.0,
            max_length=max(2048, *(len(ids) for ids in job.ids)),
            rank=job.rank,
            alpha=job.alpha,
            targets="standard",
            dropout=job.dropout,
            seed=job.seed,
        )
        if run.tokens != job.steps * job.tokens:
            raise TrainingError(
                f"Scumble saw {run.tokens} tokens, and the others {job.steps * job.tokens}",
                "give --data chats that it reads as they are",
            )
        rows = map(json.loads, (run.out / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
        losses = tuple(row["loss"] for row in rows if "loss" in row)
        return Trained(run.seconds, losses, run.adapter)


SYSTEMS: dict[str, type[Script | Trl | TrlBest | Scumble]] = {
    "script": Script,
    "trl": Trl,
    "trl_best": TrlBest,
    "scumble": Scumble,
}
TITLES = {
    "script": "lesson's script, repaired",
    "trl": "TRL, its defaults",
    "trl_best": "TRL at its best here",
    "scumble": "Scumble",
}
NEEDS = {"script": "peft", "trl": "trl", "trl_best": "trl"}


def load_system(name: str, job: TrainJob) -> System:
    """Load the base, in fp32 on the CPU, and make a system of it."""
    return SYSTEMS[name](load_base(job.base, dtype="fp32", device="cpu"), job)


class _Clock:
    """The seconds from before the first batch is fetched to the end of the last step."""

    seconds = 0.0

    def callback(self) -> Any:
        """As the Trainer of transformers takes it."""
        from transformers import TrainerCallback

        clock = self

        class Watch(TrainerCallback):
            def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
                clock.started = time.perf_counter()

            def on_step_end(self, *args: Any, **kwargs: Any) -> None:
                clock.seconds = time.perf_counter() - clock.started

        return Watch()

    started = 0.0
