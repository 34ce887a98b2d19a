"""The peak of real steps on the CPU, every allocation of PyTorch counted, against the plan of the same setup."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from scumble.errors import ConfigError, NotSupportedError
from scumble.lab import planned
from scumble.lab.planned import measure, measure_at_once, measure_plan, random_base, random_examples
from scumble.plan.measured import Measured
from scumble.plan.memory import Memories
from scumble.plan.plan import plan
from scumble.plan.setup import Setup
from scumble.plan.shape import Shape
from scumble.progress import Reporter
from tests.engine import one_thread

__all__ = ["one_thread"]

# The limit for any single step, of the peak less the weights. Models so small have besides what the plan leaves
# out: buffers of kernels, a thread each, and tensors of a number a token; bench/plan_memory.py has the real sizes.
OFF = 0.10

LLAMA = {
    "model_type": "llama",
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "vocab_size": 4000,
    "max_position_embeddings": 2048,
}
SHAPES = {
    "llama": LLAMA,
    "qwen2": {**LLAMA, "model_type": "qwen2", "tie_word_embeddings": True},
    "qwen3": {**LLAMA, "model_type": "qwen3", "head_dim": 64},
    "gemma3": {**LLAMA, "model_type": "gemma3_text", "head_dim": 64, "sliding_window": 128},
    "phi3": {**LLAMA, "model_type": "phi3", "num_key_value_heads": 6, "pad_token_id": 0},
}
WAYS = {
    "q and v": {},
    "attention, rank 64": {"targets": "standard", "rank": 64},
    "all": {"targets": "all-linear", "rank": 16},
    "one example": {"batch": 1},
    "MLP alone": {"targets": ("down_proj",)},
    "all layers twice": {"repeat": "all"},
    "two layers twice": {"repeat": 2, "targets": "standard"},
    "accumulated": {"accumulate": 2},
    "dropout": {"dropout": 0.1, "targets": "standard"},
    "bf16": {"dtype": "bf16", "targets": "standard"},
    "every token has a loss": {"losses": 1400},
    "full": {"method": "full"},
    "full, twice": {"method": "full", "repeat": "all"},
    "full, accumulated": {"method": "full", "accumulate": 2},
}


def measured(kind: str, **changed: Any) -> Measured:
    given = dict(SHAPES[kind])
    config = AutoConfig.for_model(given.pop("model_type"), **given)
    targets = "all-linear" if kind == "phi3" and changed.get("method") != "full" else "minimal"
    setup = replace(
        Setup(
            dtype="fp32", targets=targets, tokens=1400, longest=350, batch=4, losses=400, device="cpu",
            threads=torch.get_num_threads(),
        ),
        **changed,
    )  # fmt: skip
    if setup.batch == 1:
        setup = replace(setup, longest=setup.tokens)
    shape = Shape.of_config(config.to_dict(), kind, "this test")
    return measure(random_base(shape, setup), shape, setup, random_examples(setup, shape.vocabulary))


@pytest.mark.parametrize("way", WAYS)
def test_llama(way: str) -> None:
    found = measured("llama", **WAYS[way])
    assert abs(found.error) < OFF
    assert found.peak > found.weights


EIGHT: list[dict[str, Any]] = [
    {"rank": rank, "targets": targets}
    for rank in (4, 64)
    for targets in ("minimal", "standard", "all-linear")
] + [{"rank": 8, "targets": ("down_proj",)}, {"rank": 16, "dropout": 0.1}]


def test_eight_adapters_at_once() -> None:
    shape = Shape.of_config(AutoConfig.for_model(**LLAMA).to_dict(), "llama", "this test")
    one = Setup(
        dtype="fp32",
        tokens=1400,
        longest=350,
        batch=4,
        losses=400,
        device="cpu",
        threads=torch.get_num_threads(),
    )
    setups = [replace(one, **changed) for changed in EIGHT]
    base, examples = random_base(shape, one), random_examples(one, shape.vocabulary)
    found = measure_at_once(base, shape, setups, examples)
    assert abs(found.error) < OFF
    # what each has for itself, and no more than one has for a while
    plans = Memories(shape)
    own = sum(plans(each).largest["adapter"] * 3 for each in setups)
    assert found.peak <= max(plans(each).peak for each in setups) + own
    assert found.planned > max(plans(each).peak for each in setups)


@pytest.mark.parametrize("way", ["q and v", "two layers twice", "full"])
@pytest.mark.parametrize("kind", [kind for kind in SHAPES if kind != "llama"])
def test_other_layers(kind: str, way: str) -> None:
    changed = {name: value for name, value in WAYS[way].items() if name != "targets"}
    assert abs(measured(kind, **changed).error) < OFF


def test_examples_are_as_many_tokens_as_the_setup_says() -> None:
    setup = Setup(tokens=120, longest=30, batch=4, losses=40, accumulate=3)
    examples = random_examples(setup, 50)
    assert [len(each.ids) for each in examples] == [30] * 12
    assert sum(sum(each.supervised) for each in examples[:4]) == 40


@pytest.mark.parametrize("changed", [{"method": "qlora"}, {"engine": "script"}, {"processes": 2}])
def test_what_is_not_trained_here_is_not_measured(changed: dict[str, Any]) -> None:
    with pytest.raises(NotSupportedError, match="measured"):
        measured("llama", **changed)


def test_a_plan_is_measured_with_random_weights(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(LLAMA), encoding="utf-8")
    found = measure_plan(
        plan(file, batch=2, accumulate=2, max_length=256, device="cpu"), Reporter(quiet=True)
    )
    assert abs(found.error) < OFF
    assert found.to_dict()["planned"] == found.planned


def test_what_memory_does_not_take_is_not_tried(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(LLAMA), encoding="utf-8")
    monkeypatch.setattr(planned, "free_bytes", lambda device: 10**6)
    with pytest.raises(ConfigError, match=r"a step takes .* GB, and 0\.0 GB are free here"):
        measure_plan(plan(file, batch=2, max_length=256, device="cpu"), Reporter(quiet=True))
