"""The plain script's step as planned, against allocations of real steps of transformers and PEFT, and what must hold of it."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from scumble.lab.allocated import most_allocated
from scumble.plan.memory import Memories
from scumble.plan.setup import Setup
from scumble.plan.shape import Shape

SIZES: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 352,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 512,
    "max_position_embeddings": 1024,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "use_cache": False,
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
# Not planned are tables of a fixed size that the CPU's attention keeps for each thread, numbers by row, and scalars: up
# to 0.1 MB, of peaks from 5 to 20 MB.
TOLERANCE = 0.02


def _config(model_type: str, dtype: str) -> dict[str, Any]:
    return {**SIZES, "model_type": model_type, "dtype": {"fp32": "float32", "bf16": "bfloat16"}[dtype]}


def _setup(lengths: tuple[int, ...], **options: Any) -> Setup:
    longest, batch = max(lengths), len(lengths)
    losses = sum(lengths) - batch
    sizes = {"tokens": batch * longest, "longest": longest, "batch": batch, "losses": losses}
    return Setup(**{"engine": "script", "device": "cpu", "dtype": "fp32", "targets": ALL, **sizes, **options})


def _model(config: dict[str, Any], setup: Setup) -> Any:
    given = {key: value for key, value in config.items() if key != "model_type"}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(config["model_type"], **given))
    model = model.to(DTYPES[setup.dtype])
    if setup.repeat == "all":
        model.gradient_checkpointing_enable()
    if setup.method == "lora":
        targets = [setup.targets] if isinstance(setup.targets, str) else list(setup.targets)
        lora = LoraConfig(
            r=setup.rank, lora_dropout=setup.dropout, target_modules=targets, use_dora=setup.dora
        )
        model = get_peft_model(model, lora)
    return model.train()


def _measured(config: dict[str, Any], setup: Setup, lengths: tuple[int, ...]) -> int:
    """The peak of a second step, beside weights, adapter and moments."""
    model = _model(config, setup)
    ids = torch.randint(3, 512, (len(lengths), max(lengths)))
    real = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    batch = {"input_ids": ids, "attention_mask": real.long(), "labels": torch.where(real, ids, -100)}
    trained = [each for each in model.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(trained, fused=True)

    def step() -> None:
        for _ in range(setup.accumulate):
            model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    step()
    return most_allocated(step)


def _planned(config: dict[str, Any], setup: Setup) -> int:
    found = Memories(Shape.of_config(config, "small", "test"))(setup)
    return found.peak - sum(found.parts[part] for part in ("weights", "adapter", "optimizer"))


@pytest.mark.parametrize(
    ("model_type", "lengths", "options"),
    [
        ("llama", (96, 64), {"dtype": "bf16", "dropout": 0.05}),
        ("llama", (256, 256), {"targets": ("q_proj", "v_proj"), "dropout": 0.05, "rank": 32}),
        ("llama", (400, 300), {"repeat": "all", "dropout": 0.05}),
        ("llama", (160, 100), {"method": "full", "accumulate": 2}),
        ("llama", (160, 100), {"dora": True, "dropout": 0.05}),
        ("qwen2", (512,), {"method": "full", "repeat": "all"}),
        ("qwen3", (200, 150, 100), {}),
        ("gemma3_text", (96, 64), {"dtype": "bf16"}),
        ("phi3", (256, 256), {"targets": ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")}),
    ],
)
def test_a_step_takes_what_is_planned(model_type: str, lengths: tuple[int, ...], options: Any) -> None:
    setup = _setup(lengths, **options)
    config = _config(model_type, setup.dtype)
    measured = _measured(config, setup, lengths)
    assert measured > 5e6
    assert _planned(config, setup) == pytest.approx(measured, rel=TOLERANCE)


LLAMA = Memories(Shape.of_config(_config("llama", "bf16"), "small", "test"))
CUDA = replace(_setup((256, 256)), device="cuda", dtype="bf16")


def _grows(setups: list[Setup]) -> bool:
    peaks = [LLAMA(setup).peak for setup in setups]
    return all(before < after for before, after in pairwise(peaks))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("repeat", [0, "all"])
def test_more_tokens_ranks_and_targets_take_more(device: Any, repeat: Any) -> None:
    setup = replace(CUDA, device=device, repeat=repeat)
    assert _grows([replace(setup, batch=n, tokens=n * 256, losses=n * 255) for n in (1, 2, 5, 16)])
    assert _grows([replace(setup, longest=n, tokens=2 * n, losses=2 * n - 2) for n in (128, 256, 1000)])
    assert _grows([replace(setup, rank=n) for n in (1, 8, 64)])
    assert _grows([replace(setup, targets=ALL[:n]) for n in (1, 2, 4, 7)])


def test_checkpoints_take_less_and_dropout_more() -> None:
    half = replace(CUDA, repeat=1)
    assert _grows([replace(CUDA, repeat="all"), half, CUDA, replace(CUDA, dropout=0.05)])


def test_padding_costs_a_mask() -> None:
    assert _grows([CUDA, replace(CUDA, losses=300)])


def test_logits_of_every_position_are_there_and_are_the_largest_part_of_a_large_vocabulary() -> None:
    config = {**_config("llama", "fp32"), "vocab_size": 50_000}
    found = Memories(Shape.of_config(config, "wide", "test"))(_setup((256, 256)))
    # as shares, and two gradients, all in fp32
    assert found.largest["logits"] == pytest.approx(3 * 512 * 50_000 * 4)
    assert found.at == "backward pass of the loss"


@pytest.mark.parametrize(
    ("targets", "numbers"),
    [
        # of rank 8 on an embedding or a head of 512 tokens, and on queries, of two layers, of as many numbers as x
        (("embed_tokens",), 8 * (512 + 128)),
        (("lm_head",), 8 * (512 + 128)),
        (("embed_tokens", "q_proj", "lm_head"), 8 * (2 * (512 + 128) + 2 * (128 + 128))),
    ],
)
def test_adapters_outside_the_layers_have_gradients_too(targets: tuple[str, ...], numbers: int) -> None:
    assert LLAMA(replace(CUDA, targets=targets)).largest["gradients"] == 4 * numbers


def test_a_layer_that_is_not_llamas_is_estimated() -> None:
    config = {"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 100}
    plans = Memories(Shape.of_config(config, "old", "test"))
    attention, both = (
        plans(replace(CUDA, targets=targets)).largest["activations"]
        for targets in (("c_attn",), ("c_attn", "c_fc"))
    )
    # each adapter's input, in fp32
    assert both - attention == pytest.approx(2 * 512 * 64 * 4, rel=0.05)
