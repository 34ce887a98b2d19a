"""What a plan says of this machine: a step measured, an epoch timed, and suggestions that fit when they are followed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import scumble
from scumble.lab.planning import plan
from scumble.plan.plan import Plan
from tests.bases import letters_model, letters_tokenizer

SIZES = {
    "hidden_size": 256,
    "intermediate_size": 640,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
ASKED: dict[str, Any] = {
    "batch": 8,
    "accumulate": 1,
    "max_length": 800,
    "targets": "all-linear",
    "max_steps": 2,
    "gradient_checkpointing": "none",
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    letters_model(**SIZES).save_pretrained(folder)
    letters_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("data") / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": f"{n:02}" + "ab" * 300}) + "\n" for n in range(16)))
    return file


def planned(base: Path, data: Path, **more: Any) -> Plan:
    return plan(base, data=str(data), device="cpu", eval="0", quiet=True, **{**ASKED, **more})


# In a process of its own, whose memory is capped once all is loaded and a first small run has imported what training
# imports: tensors of the size planned, and a twentieth for what the allocator and Python add.
CAPPED = """
import json, resource, sys
from pathlib import Path
import torch, scumble
from scumble.train.run import train
torch.set_num_threads(1)
folder, data, out, limit, options = *sys.argv[1:4], int(sys.argv[4]), json.loads(sys.argv[5])
base = scumble.load_base(folder)
fixed = {"base": base, "eval": 0, "examples_in_report": 0}
train([{"text": "warm up"}] * 4, out=out + "-first", max_steps=1, **fixed)
weights = sum(p.numel() * p.element_size() for p in base.model.parameters())
lines = Path("/proc/self/status").read_text().splitlines()
now = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmData"))
resource.setrlimit(resource.RLIMIT_DATA, (now + int(1.05 * (limit - weights)) + 2**24, -1))
train(data, out=out, **fixed, **options)
"""


def trained(base: Path, data: Path, out: Path, limit: int, options: dict[str, Any]) -> str:
    """What training said in so much memory, every large tensor of which the system counts by itself."""
    # malloc would keep freed blocks for others of the same size, which are no tensor's then
    apart = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_MMAP_MAX_": "10000000", "OMP_NUM_THREADS": "1"}
    given = [str(base), str(data), str(out), str(limit), json.dumps(options)]
    ended = subprocess.run(
        [sys.executable, "-c", CAPPED, *given], capture_output=True, text=True, env={**os.environ, **apart}
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    return ended.stderr


def followed(found: Plan) -> dict[str, Any]:
    """The options asked for, and those suggested."""
    assert found.fit is not None
    words = found.fit.options.split()
    changed = {
        name.removeprefix("--").replace("-", "_"): int(value) if value.isdigit() else value
        for name, value in zip(words[::2], words[1::2], strict=True)
    }
    return {**ASKED, **changed}


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is capped by Linux's own means")
@pytest.mark.parametrize("share", [0.6, 0.3])
def test_suggestions_followed_do_fit(base: Path, data: Path, tmp_path: Path, share: float) -> None:
    peak = planned(base, data).memory.peak
    limit = int(share * peak)
    found = planned(base, data, gpu=f"{limit}B" if limit < 10**6 else f"{limit / 1e6:.0f}MB")
    assert found.fits is False
    assert found.fit is not None
    assert found.fit.suggestions[-1].fits
    said = trained(base, data, tmp_path / "run", limit, followed(found))
    assert "memory ran out" not in said


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is capped by Linux's own means")
def test_what_does_not_fit_runs_out_and_is_halved(base: Path, data: Path, tmp_path: Path) -> None:
    limit = int(0.6 * planned(base, data).memory.peak)
    assert "memory ran out: from here on 4 examples at once" in trained(
        base, data, tmp_path / "run", limit, ASKED
    )


def test_a_step_is_measured_and_an_epoch_timed(
    base: Path, data: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setenv("SCUMBLE_HOME", str(tmp_path))
    asked = {**ASKED, "batch": 2, "max_steps": None, "quiet": True, "eval": "0"}
    before = scumble.plan(base, data=str(data), device="cpu", **asked)
    assert (before.measured, before.time) == (None, None)
    found = scumble.plan(base, data=str(data), measure=True, calibrate=True, **asked)
    assert found.measured is not None
    assert abs(found.measured.error) < 0.1  # the limit for any single step
    assert found.time is not None
    assert found.time.steps == 8
    assert found.time.tokens == 16 * 603
    assert found.to_dict()["time"]["seconds"] == found.time.seconds > 0
    again = scumble.plan(base, data=str(data), device="cpu", **asked)
    assert again.time == found.time  # by the calibration that was kept


def test_without_data_an_optimizer_step_is_timed(base: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("SCUMBLE_HOME", str(tmp_path))
    found = scumble.plan(base, batch=2, accumulate=2, max_length=64, calibrate=True, quiet=True)
    assert found.time is not None
    assert (found.time.steps, found.time.tokens) == (1, 4 * 64)
