"""How many examples are computed at once, and how many make an optimizer step, where nobody says.

The lesson's 16 in a step, and fewer where a run would have too few steps. Knows numbers, and nothing of data.
"""

from __future__ import annotations

from scumble.config import Choice, RunOptions

EFFECTIVE = 16  # the lesson's effective batch
ENOUGH_STEPS = 300  # a run with fewer optimizer steps gets a smaller batch
SMALLEST = 4
MICRO = 8  # examples in a micro-step, where the effective batch allows


def settle_batch(options: RunOptions, examples: int | None) -> tuple[int, int, list[Choice]]:
    """Examples in a micro-step, micro-steps in an optimizer step, and what was decided of them, with the reason.

    Args:
        options: the user's.
        examples: in the training data; None where there are none yet, and enough are expected.
    """
    if options.batch and options.accumulate:
        return options.batch, options.accumulate, []
    effective = EFFECTIVE
    while (
        examples is not None and effective > SMALLEST and examples * options.epochs / effective < ENOUGH_STEPS
    ):
        effective //= 2
    if options.batch:
        accumulate = max(1, effective // options.batch)
        reason = f"{options.batch * accumulate} examples in an optimizer step, for about {effective}"
        return options.batch, accumulate, [Choice("accumulate", accumulate, reason)]
    if options.accumulate:
        batch = max(1, effective // options.accumulate)
        reason = f"{batch * options.accumulate} examples in an optimizer step, for about {effective}"
        return batch, options.accumulate, [Choice("batch", batch, reason)]
    batch = min(MICRO, effective)
    reason = f"{effective} examples in an optimizer step"
    if effective < EFFECTIVE:
        reason += (
            f": with {EFFECTIVE} a run over {examples} examples would have fewer than {ENOUGH_STEPS} steps"
        )
    choices = [Choice("batch", batch, reason)]
    if effective > batch:
        choices.append(Choice("accumulate", effective // batch, reason))
    return batch, effective // batch, choices
