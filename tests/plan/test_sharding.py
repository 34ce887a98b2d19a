"""What devices share, against PyTorch's own FSDP2 and DDP, each with processes that are only pretended."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import LlamaConfig, LlamaForCausalLM

from scumble.plan.setup import Setup
from scumble.plan.shape import Shape
from scumble.plan.sharding import per_device
from scumble.plan.states import States, states_of

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 96,
    "tie_word_embeddings": False,
}
IN_LAYER = 2 * 64 * 64 + 2 * 32 * 64 + 3 * 64 * 160 + 2 * 64
OUTSIDE = 2 * 96 * 64 + 64  # embedding, output layer, last norm


@pytest.fixture(scope="module")
def shape() -> Shape:
    return Shape.of_config(CONFIG, "small", "a test")


@contextmanager
def pretended(processes: int) -> Iterator[None]:
    """A process group in which the others are not there."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=processes)
    try:
        yield
    finally:
        dist.destroy_process_group()


def model() -> LlamaForCausalLM:
    return LlamaForCausalLM(LlamaConfig(**{k: v for k, v in CONFIG.items() if k != "model_type"}))


def test_one_process_shares_nothing(shape: Shape) -> None:
    states = States(1, 2, 3, 4, 5)
    for setup in (Setup(), Setup(processes=1, sharding="fsdp2"), Setup(processes=4)):
        shared = per_device(shape, setup, states)
        assert (shared.states, shared.gathered, shared.copies) == (states, 0, 0)


def test_ddp_holds_all_of_it_and_pytorchs_wrapper_the_gradients_twice(shape: Shape) -> None:
    states = states_of(shape, Setup(), 1000)
    ours = per_device(shape, Setup(processes=2, sharding="ddp"), states)
    script = per_device(shape, Setup(processes=2, sharding="ddp", engine="script"), states)
    assert ours.states == script.states == states
    assert (ours.copies, script.copies) == (0, 4000)


def test_the_buckets_of_ddp_are_as_large_as_the_gradients(shape: Shape) -> None:
    setup = Setup(method="full", dtype="fp32", processes=2, sharding="ddp", engine="script")
    planned = per_device(shape, setup, states_of(shape, setup, shape.parameters)).copies
    with pretended(2):
        wrapped = torch.nn.parallel.DistributedDataParallel(model())
        data: Any = wrapped._get_ddp_logging_data()
        sizes = data["bucket_sizes"]
    assert sum(int(size) for size in str(sizes).split(",")) == planned


@pytest.mark.parametrize("processes", [2, 4])
def test_fsdp2_divides_as_pytorch_does(shape: Shape, processes: int) -> None:
    setup = Setup(method="full", dtype="fp32", processes=processes, sharding="fsdp2")
    shared = per_device(shape, setup, states_of(shape, setup, shape.parameters))
    with pretended(processes):
        mesh = init_device_mesh("cpu", (processes,))
        sharded = model()
        for layer in sharded.model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(sharded, mesh=mesh)
        held = sum(each.to_local().nbytes for each in sharded.parameters())  # type: ignore[attr-defined]
        whole = _in_full(sharded)
    assert shared.states.weights == held
    assert shared.gathered == 4 * (2 * IN_LAYER + OUTSIDE)
    # the pass itself: what no layer holds is there in full all the time, and one layer at once is computed with
    assert whole == 4 * (IN_LAYER + OUTSIDE)


def _in_full(sharded: Any) -> int:
    """The most bytes of weights that are not divided, as the modules of a forward pass see them."""
    most = 0

    def look(*_: Any) -> None:
        nonlocal most
        plain = [p for p in sharded.parameters() if not hasattr(p, "to_local")]
        most = max(most, sum(p.nbytes for p in plain))

    for layer in sharded.model.layers:
        layer.mlp.register_forward_hook(look)
    sharded(input_ids=torch.zeros(1, 4, dtype=torch.long))
    return most


def test_an_adapter_is_divided_with_its_base(shape: Shape) -> None:
    setup = Setup(dtype="bf16", processes=4, sharding="fsdp2")
    states = states_of(shape, setup, 1200)
    shared = per_device(shape, setup, states)
    assert astuple(shared.states) == tuple(-(-each // 4) for each in astuple(states))
    # the adapter's part of a layer is gathered with it, twice, in fp32
    assert shared.gathered == 2 * (2 * IN_LAYER + 4 * 400) + 2 * OUTSIDE
    assert shared.copies == 2 * 4 * 400


def test_gradients_of_the_largest_group_are_there_in_full_and_as_a_copy(shape: Shape) -> None:
    setup = Setup(method="full", dtype="bf16", processes=8, sharding="fsdp2")
    shared = per_device(shape, setup, states_of(shape, setup, shape.parameters))
    assert shared.copies == 2 * 2 * max(IN_LAYER, OUTSIDE)
