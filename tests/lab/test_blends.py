"""Two tasks in one adapter, on a base of two layers that answers nothing right: the bookkeeping, not the figures."""

from __future__ import annotations

from pathlib import Path

import pytest

from scumble.lab.blends import TASKS, blend_scores
from scumble.lora.bank import Bank
from scumble.lora.spec import LoraSpec
from scumble.models.base import load_base


@pytest.mark.real
def test_every_system_is_scored_on_both_tasks(tiny_base_folder: Path, tmp_path: Path) -> None:
    base = load_base(str(tiny_base_folder))
    bank = Bank(base)
    for seed, task in enumerate(TASKS):
        bank.trainable(task, LoraSpec(rank=4, alpha=8.0), seed=seed)
        for name, parameter in bank.parameters(task).items():
            if "lora_B" in name:
                parameter.data.normal_()
        bank.save(task, tmp_path / task)
    bank.close()
    found = blend_scores({task: tmp_path / task for task in TASKS}, limit=2, base=base, quiet=True)
    assert found.n == 2
    assert list(found.systems)[:3] == ["base", "cron alone", "tickets alone"]
    assert {"exact 1, 1", "svd rank 4", "ties rank 8", "learned by adapter", "learned by layer"} <= set(
        found.systems
    )
    for row in found.systems.values():
        for task in TASKS:
            low, high = row[task]["interval"]
            assert low <= row[task]["exact_match"] <= high
    assert found.systems["exact 1, 1"]["error"] < 1e-6
    assert found.systems["svd rank 4"]["error"] > 0.1
    assert len(found.systems["learned by adapter"]["weights"]) == len(TASKS)
    assert found.systems["learned by layer"]["weights"] == "by layer"
