"""Two processes that share the micro-batches of a step come to what one comes to."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, multiprocessing

from tests.bases import encoded, make_letters_base, sums
from tests.train.test_loop import far
from tests.train.trainers import bank_of, make_trainer, parameters

DROPOUTS = (0.0, 0.1)


def trained(dropout: float) -> tuple[list[float], dict[str, Tensor]]:
    trainer = make_trainer(
        make_letters_base(dtype=torch.float64), encoded(sums(16)), [], dropout=dropout, spread=0.3, steps=3, batch=4,
        accumulate=4, steps_per_epoch=1,
    )  # fmt: skip
    outcome = trainer.run()
    return outcome.losses, parameters(bank_of(trainer))


def one_of_two(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ["ACCELERATE_USE_CPU"] = "true"
    distributed.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    torch.save([trained(dropout) for dropout in DROPOUTS], f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


# fp64: only the order of sums differs, and Adam turns a difference d of a gradient g into d / |g| of a step
def test_two_processes_are_one(tmp_path: Path) -> None:
    multiprocessing.spawn(one_of_two, (str(tmp_path),), nprocs=2)
    found: list[Any] = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    for dropout, first, second in zip(DROPOUTS, *found, strict=True):
        losses, wanted = trained(dropout)
        assert first[0] == pytest.approx(losses, rel=1e-12)
        assert far(first[1], wanted) < 1e-9
        assert second[0] == first[0]
        assert all(torch.equal(first[1][key], second[1][key]) for key in wanted)
