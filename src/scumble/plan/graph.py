"""`Graph`: an autograd graph of sizes, which puts on a tape what PyTorch would allocate, forward and backward.

    graph = Graph(tape)
    y = graph.op([x], width, saves=[x])
    graph.backward(y)

An operation makes a `Sized`, a tensor that is a number of bytes and nothing else. Its bytes go when the last reference
to it goes, as a tensor's do, so that a layer written like the module it plans holds what that module's locals hold. A
backward pass visits operations in the reverse of the order in which they were made, lets go of what each saved as soon
as it had its turn, and adds gradients in place where nobody else holds them (PyTorch's autograd engine, input_buffer.cpp).
Knows nothing of models.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from scumble.plan.tape import Held, Tape

Rule = Callable[["Graph", "Sized", "Like"], "Sized"]


class Storage:
    """Bytes that are held for as long as something refers to this."""

    def __init__(self, tape: Tape, size: float, part: str) -> None:
        self._tape, self._held = tape, tape.take(size, part)

    def __del__(self) -> None:
        self._tape.free(self._held)


@dataclass(eq=False)
class Like:
    """How large a tensor is: numbers in it, bytes of each, and the part of the tape that it is of."""

    count: float
    size: int
    part: str = "activations"


@dataclass(eq=False)
class Sized(Like):
    """A tensor.

    Attributes:
        storage: its bytes, which a view shares; None where they are not counted.
        node: what made it; None where it needs no gradient.
    """

    storage: Storage | None = None
    node: Node | None = None


@dataclass(eq=False)
class Parameter(Like):
    """A weight that is trained, and its gradient, which stays on the tape."""

    grad: Held | None = None


@dataclass(eq=False)
class Node:
    """An operation as the backward pass sees it.

    Attributes:
        inputs: the node, the size and the rule of each input that needs a gradient.
        trained: weights whose gradients it makes, first.
        within: bytes that its backward takes and gives back, beside the gradients.
        frame, number: the checkpointed function it is in, which makes again what it saved.
    """

    order: int
    doing: str
    inputs: Sequence[tuple[Node, Like, Rule]]
    trained: Sequence[Parameter]
    within: float
    saved: list[Sized]
    frame: Frame | None = None
    number: int = 0

    def __lt__(self, other: Node) -> bool:
        return self.order > other.order


class EnoughError(Exception):
    """All that a checkpointed function's backward needs is made again."""


@dataclass(eq=False)
class Frame:
    """A checkpointed function: its input stays, and what its operations save is made again in the backward pass."""

    function: Callable[[Sized], Sized]
    x: Sized
    count: int = 0
    last: int = -1
    again: dict[int, list[Sized]] | None = None


def new(graph: Graph, g: Sized, like: Like) -> Sized:
    """The rule of a gradient that is written anew."""
    return graph.take(like)


def same(graph: Graph, g: Sized, like: Like) -> Sized:
    """The rule of a gradient that is the output's own, or a copy of it in the input's type."""
    return g if g.size == like.size else graph.take(like)


def view(graph: Graph, g: Sized, like: Like) -> Sized:
    """The rule of a gradient that is part of the output's own."""
    return Sized(like.count, like.size, like.part, g.storage)


@dataclass
class Graph:
    """Operations in their order.

    Attributes:
        tape: where allocations are put.
        doing: what goes on now, in words.
    """

    tape: Tape
    doing: str = ""
    _order: int = 0
    _frame: Frame | None = None
    _repeating: bool = False
    _buffers: dict[Node, Sized] = field(default_factory=dict)

    def take(self, like: Like) -> Sized:
        """A new tensor that needs no gradient."""
        storage = Storage(self.tape, like.count * like.size, like.part)
        return Sized(like.count, like.size, like.part, storage)

    def op(
        self,
        inputs: Sequence[Sized],
        count: float,
        *,
        size: int | None = None,
        saves: Sequence[Sized] = (),
        keeps: bool = False,
        saves_output: bool = False,
        rules: Sequence[Rule] | Rule = new,
        trained: Sequence[Parameter] = (),
        within: tuple[float, float] = (0, 0),
        part: str = "activations",
        shares: Sized | None = None,
    ) -> Sized:
        """Do an operation.

        Args:
            inputs: the tensors it reads, those that may need a gradient.
            count, size: of the output; a number takes as much as one of the first input.
            saves: what backward needs; `keeps` where that is nothing but weights, `saves_output` the output itself.
            rules: how each input's gradient comes to be.
            trained: weights whose gradients backward makes.
            within: bytes that forward and backward take and give back.
            shares: the tensor of which the output is a view.
        """
        size = inputs[0].size if size is None else size
        needs = [each for each in inputs if each.node is not None]
        number = self._count(bool(saves or keeps), bool(needs or trained))
        tape = self.tape
        with tape.at(f"{'second ' if self._repeating else ''}forward pass of {self.doing}"):
            out = Sized(count, size, part, shares.storage) if shares else self.take(Like(count, size, part))
            tape.pulse(within[0])
        if not needs and not trained:
            return out
        each_rule = [rules] * len(inputs) if callable(rules) else rules
        edges = [
            (x.node, Like(x.count, x.size, x.part), rule)
            for x, rule in zip(inputs, each_rule, strict=True)
            if x.node is not None
        ]
        kept = [*saves, Sized(count, size, part, out.storage)] if saves_output else list(saves)
        self._order += 1
        node = Node(self._order, self.doing, edges, trained, within[1], kept)
        out.node = node
        self._save(node, number, bool(kept or keeps))
        return out

    def input(self, count: float, size: int) -> Sized:
        """A tensor that needs a gradient, which nobody reads."""
        x = self.take(Like(count, size))
        self._order += 1
        x.node = Node(self._order, self.doing, (), (), 0, [])
        return x

    # -- checkpoints -------------------------------------------------------------------------------

    def checkpoint(self, function: Callable[[Sized], Sized], x: Sized) -> Sized:
        """`function(x)`, of which nothing but x is kept (torch.utils.checkpoint, not reentrant)."""
        self._frame = Frame(function, x)
        try:
            return function(x)
        finally:
            self._frame = None

    def _count(self, saves: bool, is_node: bool) -> int:
        """The number of an operation in its frame; one that would be the last to save again ends the repetition."""
        frame = self._frame
        if frame is None or not is_node:
            return 0
        frame.count += 1
        if self._repeating and saves and frame.count == frame.last:
            # saved before it is computed
            raise EnoughError
        return frame.count

    def _save(self, node: Node, number: int, saves: bool) -> None:
        frame = self._frame
        if frame is None or not saves:
            return
        if self._repeating:
            assert frame.again is not None
            frame.again[number] = node.saved
            return
        frame.last = number
        node.frame, node.number, node.saved = frame, number, []

    def _again(self, node: Node) -> list[Sized]:
        """What an operation in a frame saved, made again with all the others' of the frame at the first of them."""
        frame = node.frame
        if frame is None:
            return node.saved
        if frame.again is None:
            frame.again, frame.count = {}, 0
            doing, self._frame, self._repeating = self.doing, frame, True
            try:
                frame.function(replace(frame.x))
            except EnoughError:
                pass
            finally:
                self.doing, self._frame, self._repeating = doing, None, False
        return frame.again.pop(node.number, [])

    # -- backward ----------------------------------------------------------------------------------

    def backward(self, root: Sized) -> None:
        """The backward pass from a tensor, whose own gradient is the caller's."""
        assert root.node is not None
        waiting = [root.node]
        self._buffers = {root.node: Sized(root.count, root.size)}
        while waiting:
            node = heapq.heappop(waiting)
            with self.tape.at(f"backward pass of {node.doing}"):
                self._visit(node, waiting)

    def _visit(self, node: Node, waiting: list[Node]) -> None:
        g = self._buffers.pop(node)
        saved = self._again(node)
        within = Storage(self.tape, node.within, "activations")
        grads = [(target, rule(self, g, like)) for target, like, rule in node.inputs]
        for weight in node.trained:
            made = self.tape.take(weight.count * weight.size, "gradients")
            if weight.grad is None:
                weight.grad = made
            else:
                self.tape.free(made)  # added to the one that is there
        node.inputs, node.saved, node.frame = (), [], None
        del g, saved, within
        while grads:
            target, grad = grads.pop(0)
            if target in self._buffers:
                grad = self._added(self._buffers.pop(target), grad)
            else:
                heapq.heappush(waiting, target)
            self._buffers[target] = grad
            del grad

    def _added(self, there: Sized, grad: Sized) -> Sized:
        """The sum of two gradients, in the first one's place where nothing else refers to it."""
        others = (grad, *self._buffers.values())
        alone = there.storage is not None and all(there.storage is not each.storage for each in others)
        return there if alone else self.take(there)
