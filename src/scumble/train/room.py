"""What a training step keeps for its backward pass, measured on one example, and whether there is room for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from scumble.compare.loss import lay_out, loss_sum
from scumble.data.encoding import Encoded
from scumble.lora.dropout import TokenMarks
from scumble.models.checkpointing import Kept, layers_of, layers_to_repeat
from scumble.train.memory import free_bytes
from scumble.train.subject import Subject

_PROBE = 64  # tokens of the example that is measured, about
_SHARE = 0.7  # of the free memory that activations may take


class Need(NamedTuple):
    """What a micro-step keeps.

    Attributes:
        tokens: computed at once.
        kept: bytes that all layers keep for them.
        free: bytes that there are.
        layers: of the model.
        repeat: how many of them must be computed twice so that it fits.
    """

    tokens: int
    kept: int
    free: int
    layers: int
    repeat: int

    @property
    def times(self) -> int:
        """How many such micro-steps fit at once, without any layer computed twice; one at least."""
        return max(1, int(_SHARE * self.free) // max(1, self.kept))


def measure_need(subject: Subject, examples: Sequence[Encoded], tokens: int) -> Need | None:
    """What `tokens` at once keep; None where the system does not say what is free, or the layers are not found.

    Args:
        subject: within its `using`, as it will be trained.
        examples: one of them is measured, of about 64 tokens.
        tokens: computed at once.
    """
    model: Any = subject.model
    first = next(model.parameters())
    layers, free = len(layers_of(model)), free_bytes(first.device)
    if not layers or free is None:
        return None
    example = min(examples, key=lambda e: abs(len(e.ids) - _PROBE))
    kept = bytes_kept(subject, example) * tokens // len(example.ids)
    width = int(getattr(model.config.get_text_config(), "hidden_size", 0)) * first.element_size()
    return Need(
        tokens, kept, free, layers, layers_to_repeat(kept, width * tokens, layers, int(_SHARE * free))
    )


def bytes_kept(subject: Subject, example: Encoded) -> int:
    """Bytes that a forward pass of one example keeps for the backward pass, weights not counted."""
    model: Any = subject.model
    batch = lay_out(model, [example], share=False).to(next(model.parameters()).device)
    counted = Kept(model)
    subject.mark(TokenMarks(batch.examples, batch.positions, 0, getattr(batch, "read", None)))
    with counted.counting():
        loss_sum(model, batch)
    subject.mark(None)
    return counted.bytes
