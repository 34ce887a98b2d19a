"""One optimizer step of our engine as events on a tape: embedding, layers, loss, backward pass.

The step is a later one: the optimizer's states are there. The peak is where the tape says. Knows shapes and bytes.
"""

from __future__ import annotations

from collections.abc import Mapping

from scumble.plan.layer_backward import LayerBackward
from scumble.plan.layer_events import WIDE, LayerEvents
from scumble.plan.setup import Setup
from scumble.plan.shape import Shape
from scumble.plan.tape import Held, Rows, Tape

CHUNK_BYTES = 64 * 2**20  # of logits in fp32 that are there at once (`compare.loss`)


def engine_step(tape: Tape, shape: Shape, setup: Setup, ranks: Mapping[str, int], gradients: int) -> None:
    """Put a step on the tape, on top of what is held already.

    Args:
        tape: with weights, adapter and states held.
        shape: of the model.
        setup: how it is trained; `engine` is `scumble`.
        ranks: of the adapted modules, by path.
        gradients: bytes of all gradients.
    """
    _EngineStep(tape, shape, setup, ranks, gradients).run()


class _EngineStep:
    def __init__(
        self, tape: Tape, shape: Shape, setup: Setup, ranks: Mapping[str, int], gradients: int
    ) -> None:
        self.tape, self.shape, self.setup, self.gradients = tape, shape, setup, gradients
        self.whole = setup.method == "full"
        self.rows = Rows(tape, setup.tokens, setup.activation_bytes)
        self.losses = Rows(tape, max(1, min(setup.losses, setup.tokens)), setup.activation_bytes)
        self.windowed = _windowed(shape)
        self.layers = [self._layer(number, ranks) for number in range(shape.layers)]
        self.repeat = shape.layers if setup.repeat == "all" else setup.repeat
        self.head_gradient = Held(0, "gradients")

    def _layer(self, number: int, ranks: Mapping[str, int]) -> LayerEvents:
        inside = f"layers.{number}."
        below = any(f"layers.{i}." in path for path in ranks for i in range(number))
        last = number == self.shape.layers - 1
        # the last layer's tokens that nobody reads are left out, where its MLP is known
        trims = last and self.shape.gated and not self.shape.fused_gate_up
        return LayerEvents(
            self.tape,
            self.shape,
            self.setup,
            {path.split(inside)[1]: rank for path, rank in ranks.items() if inside in path},
            grads=below or self.whole or any("embed" in path for path in ranks),
            needed=self.losses.count if trims else None,
            all_weights=self.whole,
            windowed=self.windowed[number],
            title=f"layer {number + 1} of {self.shape.layers}",
        )

    def run(self) -> None:
        """The micro-step that takes most: one that finds gradients there, where there are several."""
        first = self.setup.accumulate == 1
        if not first:
            self.tape.take(self.gradients, "gradients")
        for layer in self.layers:
            layer.first = first
        self._micro_step(first)

    def _micro_step(self, first: bool) -> None:
        tape, h = self.tape, self.shape.hidden
        other = tape.take(self._small(), "other")
        with tape.at("embedding"):
            x = self.rows.take(h)
        embedded = x
        stream = x
        for number, layer in enumerate(self.layers):
            stream = self._through(layer, stream, number < self.repeat, keep=number == 0)
        with tape.at("final norm"):
            inverse = self.rows.take(1, WIDE)
            if self.rows.size != WIDE:
                self.rows.pulse(2 * h, WIDE)
            unit = self.rows.take(h) if self.whole else None
            normed = self.rows.take(h)
        tape.free(embedded if not self.layers[0].keeps_input else None)
        hidden = self.losses.take(h)
        tape.free(normed)
        back = self._loss(hidden, first)
        with tape.at("backward pass of the final norm"):
            g = self.rows.take(h)
            tape.free(back)
            parts = [self.rows.take(h, WIDE), self.rows.take(h, WIDE)]
            if self.whole:
                parts.append(self.rows.take(h, WIDE))
            tape.free(*parts[1:])
            tape.free(inverse, unit, stream, parts[0])
        for number in reversed(range(len(self.layers))):
            self._back_through(self.layers[number], number < self.repeat)
            if first and not self.whole:
                tape.take(self.gradients / len(self.layers), "gradients")
        tape.free(g, embedded)
        if self.whole:
            self._embedding_gradient(first)
        tape.free(other)

    def _through(self, layer: LayerEvents, x: Held, repeated: bool, *, keep: bool) -> Held:
        """Forward through one layer; one that is computed twice keeps its input alone."""
        if keep and not layer.keeps_input:
            # the model holds the embedding's output to its end
            copy = self.tape.take(0)
            out = layer.forward(copy)
        else:
            out = layer.forward(x)
        if repeated:
            self.tape.free(*layer.kept.values())
            layer.kept.clear()
            layer.kept["x"] = x
        elif layer.keeps_input:
            layer.kept["x"] = x
        return out

    def _back_through(self, layer: LayerEvents, repeated: bool) -> None:
        if not layer.active:
            return
        if repeated:
            x = layer.kept.pop("x")
            with self.tape.at(f"second {layer.title}"):
                self.tape.free(layer.forward(self.tape.take(0)))
            layer.kept["x"] = x
        LayerBackward(layer).run()

    def _loss(self, hidden: Held, first: bool) -> Held:
        """Logits by chunks, and the gradient of what they are made of, which is given back."""
        tape, h, vocabulary = self.tape, self.shape.hidden, self.shape.vocabulary
        size = max(1, CHUNK_BYTES // (4 * vocabulary))
        chunk = Rows(tape, min(size, self.setup.losses), self.rows.size)
        if self.whole or self.shape.head_softcap:
            return self._trained_head(hidden, chunk, first)
        with tape.at("loss"):
            grad = self.losses.take(h)
            narrow = tape.take(chunk.bytes(vocabulary), "logits")
            wide = tape.take(chunk.bytes(vocabulary, WIDE), "logits") if chunk.size != WIDE else narrow
            if chunk.size != WIDE:
                tape.free(narrow)
                tape.pulse(chunk.bytes(vocabulary), "logits")
            tape.pulse(chunk.bytes(4 * h, WIDE), "logits")
            tape.free(wide)
        with tape.at("backward pass of the loss"):
            scaled = self.losses.take(h)
            tape.free(grad, hidden)
        return scaled

    def _trained_head(self, hidden: Held, chunk: Rows, first: bool) -> Held:
        """Each chunk's logits are made twice; its gradient is three such matrices, and one of the output layer."""
        tape, vocabulary, h = self.tape, self.shape.vocabulary, self.shape.hidden
        with tape.at("backward pass of the loss"):
            grad = self.losses.take(h)
            chunks = -(-self.setup.losses // chunk.count)
            # all alike, and the third sum of the output layer's gradients is no larger than the second
            for number in range(min(chunks, 2)):
                logits = [tape.take(chunk.bytes(vocabulary, WIDE), "logits") for _ in range(3)]
                tape.free(*logits[1:])
                head = tape.take(self._head_bytes if self.whole else 0, "gradients")
                tape.free(logits[0])
                if number == 0:
                    self.head_gradient = head
                else:  # the sum with that of the chunks before is a third matrix
                    tape.pulse(head.size, "gradients")
                    tape.free(head)
            if not first and not self.shape.tied:
                tape.free(self.head_gradient)  # added to the one that is there
            tape.free(hidden)
        return grad

    def _embedding_gradient(self, first: bool) -> None:
        """The embedding's gradient, which is as large as the embedding; where both are one the sum with the head's, too."""
        tape = self.tape
        with tape.at("backward pass of the embedding"):
            held = tape.take(self._head_bytes, "gradients")
            if self.shape.tied:
                tape.pulse(held.size, "gradients")
                tape.free(held)
            if not first:
                tape.free(held, self.head_gradient)

    def _small(self) -> int:
        """Token ids, positions and numbers of examples; cosines and sines of the positions."""
        return self.setup.tokens * (4 * 8 + 2 * self.shape.head_dim * self.rows.size)

    @property
    def _head_bytes(self) -> int:
        """Of a gradient of the output layer or the embedding; under FSDP2 a process's share."""
        share = self.setup.processes if self.setup.sharding == "fsdp2" else 1
        return self.shape.vocabulary * self.shape.hidden * self.rows.size // share


def _windowed(shape: Shape) -> list[bool]:
    """Which layers have the sliding window."""
    kinds = getattr(shape.skeleton.model.config, "layer_types", None)
    if kinds and len(kinds) == shape.layers:
        return [kind == "sliding_attention" for kind in kinds]
    return [number < shape.windowed_layers for number in range(shape.layers)]
