"""The graph of sizes against PyTorch's own autograd: what is held, when it goes, and where gradients are added."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import linear, silu
from torch.utils.checkpoint import checkpoint

from scumble.lab.allocated import most_allocated
from scumble.plan.graph import Graph, Like, Parameter, Sized, same
from scumble.plan.tape import Tape

ROWS, WIDTH = 512, 256
COUNT = ROWS * WIDTH
# a checkpoint keeps the state of the random generator, 5056 bytes
STATES = 2 * 5056 + 1024


def _fork(graph: Graph, x: Sized, weight: list[Parameter]) -> Sized:
    """silu(x W) + x W, three times over."""
    for _ in range(3):
        y = graph.op([x], COUNT, saves=[x], trained=weight)
        acted = graph.op([y], COUNT, saves=[y])
        x = graph.op([acted, y], COUNT, rules=same)
        del y, acted
    return x


def _real_fork(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    for _ in range(3):
        y = linear(x, weight)
        acted = silu(y)
        x = acted + y
        del y, acted
    return x


def _planned(*, repeated: bool) -> Tape:
    tape = Tape()
    graph, weight = Graph(tape), [Parameter(WIDTH * WIDTH, 4)]
    x = graph.input(COUNT, 4)

    def work(x: Sized) -> Sized:
        return _fork(graph, x, weight)

    for _ in range(2):
        x = graph.checkpoint(work, x) if repeated else work(x)
    graph.backward(x)
    return tape


def _measured(*, repeated: bool) -> int:
    weight = torch.randn(WIDTH, WIDTH, requires_grad=True)
    gradient = torch.randn(ROWS, WIDTH)

    def step() -> None:
        x = torch.randn(ROWS, WIDTH, requires_grad=True)
        for _ in range(2):
            x = checkpoint(_real_fork, x, weight, use_reentrant=False) if repeated else _real_fork(x, weight)
        x.backward(gradient)

    step()
    weight.grad = None
    return most_allocated(step)


@pytest.mark.parametrize("repeated", [False, True])
def test_a_fork_takes_what_autograd_takes(repeated: bool) -> None:
    assert _planned(repeated=repeated).peak == pytest.approx(_measured(repeated=repeated), abs=STATES)


def test_a_checkpoint_takes_less() -> None:
    assert _planned(repeated=True).peak < _planned(repeated=False).peak


def test_nothing_is_left_but_gradients() -> None:
    tape = Tape()
    graph, weight = Graph(tape), [Parameter(WIDTH * WIDTH, 4)]
    for _ in range(2):
        graph.backward(_fork(graph, graph.take(Like(COUNT, 4)), weight))
        assert tape.held["gradients"] == tape.now == WIDTH * WIDTH * 4


def test_a_tensor_goes_with_its_last_reference() -> None:
    tape = Tape()
    graph = Graph(tape)
    x = graph.take(Like(10, 4))
    seen = graph.op([x], 10, shares=x)
    del x
    assert tape.now == 40
    del seen
    assert (tape.now, tape.peak) == (0, 40)


def test_without_gradients_nothing_is_saved() -> None:
    tape = Tape()
    graph = Graph(tape)
    x = graph.take(Like(COUNT, 4))
    for _ in range(5):
        x = graph.op([x], COUNT, saves=[x], saves_output=True)
    assert (tape.now, tape.peak) == (COUNT * 4, 2 * COUNT * 4)
