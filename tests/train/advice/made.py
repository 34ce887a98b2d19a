"""Run folders and sweeps that were never trained: files with figures made to a measure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from scumble.config import TrainOptions, make
from scumble.lora.adapter import Adapter, Factors
from scumble.lora.spec import LoraSpec
from scumble.train.settings import settle
from tests.tiny import tiny_llama


def write_run(
    folder: Path,
    losses: Sequence[float],
    evals: Mapping[int, float] | None = None,
    *,
    examples: int = 1600,
    stopped: str | None = None,
    finished: bool = True,
    adapter: Adapter | None = None,
    **options: Any,
) -> Path:
    """A run folder as `scumble train` writes it, with these losses."""
    asked = make(TrainOptions, **{"batch": 16, "accumulate": 1, "learning_rate": 0.01, **options})
    settled = settle(asked, examples, tiny_llama().config)
    facts = {
        "options": asked.model_dump(),
        "data": {"source": "cron", "examples": examples},
        "validation": {"source": "cron validation", "examples": 60} if evals else None,
        "training": settled.to_dict(),
        "adapter": {"rank": asked.rank, "alpha": asked.alpha},
    }
    if finished:
        facts["result"] = {"stopped": stopped, "best_step": len(losses), "steps": len(losses)}
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps(facts))
    rows = [{"step": step, "epoch": 0.0, "eval_loss": loss} for step, loss in (evals or {}).items()]
    for step, loss in enumerate(losses, start=1):
        rate = 0.01 * (1 - (step - 1) / len(losses))
        epoch = step / settled.steps_per_epoch
        rows.append({"step": step, "epoch": epoch, "loss": loss, "learning_rate": rate, "grad_norm": 1.0})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if adapter is not None:
        adapter.save(folder / "adapter")
    return folder


def an_adapter(rank: int = 8, size: float = 0.1, flat: bool = False) -> Adapter:
    """One module of width 64, A as it begins, B of this size; its spectrum halves, or is flat."""
    drawn = torch.Generator().manual_seed(0)
    A = (torch.rand(rank, 64, generator=drawn) * 2 - 1) / 8
    B = torch.randn(64, rank, generator=drawn) * size
    if flat:
        A, B = torch.linalg.qr(A.T)[0].T.contiguous(), torch.linalg.qr(B)[0].contiguous()
    else:
        B = B * torch.tensor([0.5**k for k in range(rank)])
    spec = LoraSpec(rank=rank, alpha=2 * rank, targets=("down_proj",))
    return Adapter(spec, {"model.layers.0.mlp.down_proj": Factors(A, B)})


def write_sweep(
    folder: Path,
    trials: Sequence[tuple[dict[str, Any], float | None]],
    best: str | None = None,
    **more: Any,
) -> Path:
    """A sweep with these settings and losses, and the name of its best; its runs' folders are all alike."""
    losses = [4.0 / (1 + step / 10) for step in range(100)]
    entries = []
    for number, (settings, loss) in enumerate(trials):
        name = f"{number:03d}"
        options = {name: value for name, value in settings.items() if name in TrainOptions.model_fields}
        write_run(folder / "trials" / name, losses, {0: 4.0, 50: 1.0, 100: 0.5}, **options)
        entries.append({"name": name, "settings": settings, "loss": loss, **more})
    (folder / "sweep.json").write_text(json.dumps({"trials": entries, "best": best and {"trial": best}}))
    return folder
