"""What the figures of a plan rest on, in words: what was assumed, what is an estimate, what training does otherwise."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scumble.config import ELSEWHERE, PlanOptions
from scumble.plan.cards import CONTEXT, Card
from scumble.plan.setup import Setup
from scumble.plan.shape import Shape

if TYPE_CHECKING:
    from scumble.plan.plan import PlannedData


def notes_of(
    shape: Shape, setup: Setup, options: PlanOptions, data: PlannedData | None, card: Card | None
) -> list[str]:
    """The notes, the weightiest first."""
    notes = []
    if not shape.known:
        notes.append(
            f"an estimate: what layers of {shape.model_type} keep for their backward pass is counted as if they were "
            "Llama's; parameters are exact"
        )
    notes += _of_data(setup, options, data)
    notes += _of_training(shape, setup)
    if setup.device == "cuda":
        notes.append("3 % of activations and logits are added for gaps between the allocator's blocks")
        besides = "besides" if card is None else f"of {card.name}, which is taken off"
        notes.append(f"the driver and its kernels take about {CONTEXT / 1e9:.1f} GB {besides}")
    return notes


def _of_data(setup: Setup, options: PlanOptions, data: PlannedData | None) -> list[str]:
    if data is None:
        share = options.supervised or 1.0
        losses = "a loss on every token" if share == 1 else f"a loss on {share:.0%} of the tokens"
        return [
            f"the worst case: {setup.batch} examples of {setup.longest:,} tokens at once, {losses}; --data FILE takes "
            "real lengths"
        ]
    notes = [
        f"the largest micro-batch of the run: {setup.tokens:,} positions, {setup.losses:,} of them with a loss, the "
        f"longest example of {setup.longest:,} tokens"
    ]
    if data.approximate:
        notes.append(
            f"lengths are approximate: the base has no tokenizer here, and that of {data.tokenizer} was used"
        )
    if data.too_long[0]:
        count, longest = data.too_long
        notes.append(
            f"{count:,} example{'s are' * (count > 1) or ' is'} too long and left out, "
            f"the longest of {longest:,} tokens; the plain script cuts them"
        )
    return notes


def _of_training(shape: Shape, setup: Setup) -> list[str]:
    notes = []
    if setup.method == "full" and setup.dtype != "fp32":
        notes.append(f"scumble train --method full takes fp32 unless told: add --dtype {setup.dtype} there")
    if (setup.method == "qlora" or setup.dtype in ("nf4", "int8")) and "qlora" in ELSEWHERE:
        notes.append("quantised bases are planned by formula: training on them comes with a later version")
    if setup.sharding == "fsdp2":
        notes.append(
            "planned by formula: training with weights divided among devices comes with a later version"
        )
    if setup.adapters > 1:
        notes.append(
            f"{setup.adapters} adapters in training at once take turns: their numbers and moments stay, gradients and "
            "activations are those of one"
        )
    if setup.processes > 1:
        notes.append(f"memory is that of one of {setup.processes} devices, each with its own examples")
    return notes
