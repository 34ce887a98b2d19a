"""One optimizer step of the plain script as events on a tape: a model of transformers, PEFT's LoRA or none, its trainer.

The batch is padded to its longest example, logits are made of every position and widened to fp32
(`transformers.loss.ForCausalLMLoss`), and nothing is recomputed unless gradient checkpointing is on. The step is a later
one: the optimizer's states are there, and the trainer's fused AdamW takes nothing besides. Autocast is not planned.
Knows shapes and bytes.
"""

from __future__ import annotations

from collections.abc import Mapping

from scumble.plan.graph import Graph, Like, Parameter, Sized, same
from scumble.plan.script_layer import NAMES, WIDE, ScriptLayer
from scumble.plan.setup import Setup
from scumble.plan.shape import Shape
from scumble.plan.tape import Tape


def script_step(tape: Tape, shape: Shape, setup: Setup, ranks: Mapping[str, int], trained: int) -> None:
    """Put a step on the tape, on top of what is held already.

    Args:
        tape: with weights, adapter and states held.
        shape: of the model.
        setup: how it is trained; `tokens` are `batch` times `longest`. A batch of several examples has padding, and
            attention a mask, unless all its tokens have a loss.
        ranks: of the adapted modules, by path.
        trained: bytes of the gradients of an adapter.
    """
    _ScriptStep(tape, shape, setup, ranks, trained).run()


class _ScriptStep:
    def __init__(
        self, tape: Tape, shape: Shape, setup: Setup, ranks: Mapping[str, int], trained: int
    ) -> None:
        self.tape, self.shape, self.setup, self.trained = tape, shape, setup, trained
        self.graph = Graph(tape)
        self.whole = setup.method == "full"
        # an example's first token has no loss
        self.padded = setup.batch > 1 and setup.losses < setup.tokens - setup.batch
        self.layers = [self._layer(number, ranks) for number in range(shape.layers)]
        head = {path: rank for path, rank in ranks.items() if path == "lm_head"}
        self.ends = ScriptLayer(self.graph, shape, setup, head, [], self.padded, title="")
        # adapters on the embedding, and those that a layer's operations know nothing of
        known = len(head) + sum(len(layer.ranks) for layer in self.layers)
        self.beneath = known < len(ranks)
        self.repeat = shape.layers if setup.repeat == "all" else setup.repeat
        self.embedding = Parameter(shape.vocabulary * shape.hidden, setup.activation_bytes)
        if shape.tied:
            self.ends.weights["lm_head"] = self.embedding

    def _layer(self, number: int, ranks: Mapping[str, int]) -> ScriptLayer:
        shape = self.shape
        inside = {path: name for path in ranks if (name := _name_in(path, number)) is not None}
        strange = {path for path, name in inside.items() if name not in NAMES}
        # windowed layers lie evenly among the others
        share = shape.windowed_layers
        windowed = (number + 1) * share // shape.layers > number * share // shape.layers
        within = windowed and shape.window is not None and self.setup.longest >= shape.window
        return ScriptLayer(
            self.graph,
            shape,
            self.setup,
            {name: ranks[path] for path, name in inside.items() if path not in strange},
            [weight.in_ for weight in shape.weights if weight.path in strange and weight.in_ > 1],
            masked=self.padded or within,
            title=f"layer {number + 1} of {shape.layers}",
        )

    def run(self) -> None:
        """A step of `accumulate` micro-steps; the second one and those after it find gradients there."""
        before = self.tape.held["gradients"]
        for _ in range(min(2, self.setup.accumulate)):
            other = self.tape.take(self._small(), "other")
            self.graph.backward(self._loss(self._forward()))
            self.tape.free(other)
        # of what no operation here stands for: adapters beside the layers, biases, experts without a token
        made = self.tape.held["gradients"] - before
        trained = self.shape.parameters * self.setup.activation_bytes if self.whole else self.trained
        self.tape.take(max(0, trained - made), "gradients")

    def _forward(self) -> Sized:
        """What the last norm gives. The embedding's output stays with the model's locals to the end of it."""
        graph, count = self.graph, self.setup.tokens * self.shape.hidden
        graph.doing = "the embedding"
        if self.whole:
            ids = graph.take(Like(0, WIDE))
            embedded = graph.op([ids], count, size=self.setup.activation_bytes, trained=[self.embedding])
        elif self.repeat or self.beneath:
            # checkpoints too make it need a gradient (enable_input_require_grads)
            embedded = graph.input(count, self.setup.activation_bytes)
        else:
            embedded = graph.take(Like(count, self.setup.activation_bytes))
        x = embedded
        for number, layer in enumerate(self.layers):
            x = graph.checkpoint(layer, x) if number < self.repeat else layer(x)
        graph.doing = "the final norm"
        return self.ends.norm("norm", x, self.shape.hidden)

    def _loss(self, hidden: Sized) -> Sized:
        """Logits of every position, in fp32 too where they are narrower, and as logarithms of shares."""
        op, count = self.graph.op, self.setup.tokens * self.shape.vocabulary
        self.graph.doing = "the loss"
        logits = self.ends.linear("lm_head", hidden, self.shape.hidden, self.shape.vocabulary, part="logits")
        if self.shape.head_softcap:
            for result in (False, True, False):  # divided, tanh, multiplied
                logits = op([logits], count, saves_output=result, part="logits")
        wide = logits if logits.size == WIDE else op([logits], count, size=WIDE, rules=same, part="logits")
        shares = op([wide], count, saves_output=True, part="logits")
        return op([shares], 1, saves=[shares])

    def _small(self) -> int:
        """Token ids, labels and which of them are padding; cosines and sines of the positions; the mask."""
        setup = self.setup
        masks = setup.tokens * setup.longest if any(layer.masked for layer in self.layers) else 0
        return setup.tokens * 4 * 8 + masks + setup.longest * 2 * self.shape.head_dim * setup.activation_bytes


def _name_in(path: str, number: int) -> str | None:
    """The name of a module within a layer, or None where it is in no layer or in another."""
    parts = path.split(".")
    at = next((index for index, part in enumerate(parts) if part.isdecimal()), None)
    return ".".join(parts[at + 1 :]) if at is not None and int(parts[at]) == number else None
