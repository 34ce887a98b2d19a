"""What can be changed about a way to train so that it takes less memory, the cheapest in quality first.

A change has values, from the mildest to the strongest; each says what is lost and what to type. The first ones lose
nothing: fewer examples at once with more micro-steps is the same step, and so is a layer computed twice.

Whether a change saves anything, and how much of it is needed, is not known here (`fitting`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from scumble.config import ELSEWHERE
from scumble.lora.targets import TARGET_SETS
from scumble.plan.setup import Setup

SHORTEST = 128  # tokens of the longest example, below which no length is suggested
_CARDS = (2, 4, 8, 16, 32, 64)
_LATER = "not trained here yet"
_ADAPTER = (
    "an adapter in place of all weights: as good on data that it has room for (Schulman et al. 2025), behind where "
    "much is to be learnt (Biderman et al. 2024, arXiv:2405.09673)"
)


@dataclass(frozen=True)
class Change:
    """One kind of change.

    Attributes:
        name: of what is changed.
        values: from the mildest to the strongest, for a setup; none where nothing can be changed.
        apply: the setup with a value.
        options: what to type for a value, given the setup before.
        cost: what is lost by a value, in words, given the setup before.
        exact: the result is the same.
        here: the project trains that way.
    """

    name: str
    values: Callable[[Setup], Sequence[Any]]
    apply: Callable[[Setup, Any], Setup]
    options: Callable[[Setup, Any], str]
    cost: Callable[[Setup, Any], str]
    exact: bool = False
    here: bool = True


def with_batch(setup: Setup, batch: int) -> Setup:
    """Other examples at once, as many as before in an optimizer step or the fewest above.

    The longest example is always among them: tokens do not fall below its own.
    """
    tokens = max(_scaled(setup.tokens, batch, setup.batch), min(setup.longest, setup.tokens))
    return replace(
        setup,
        batch=batch,
        accumulate=-(-setup.batch * setup.accumulate // batch),
        tokens=tokens,
        losses=_scaled(setup.losses, tokens, setup.tokens),
    )


def with_length(setup: Setup, length: int) -> Setup:
    """Another length of the longest example; the others shrink and grow with it, as where all are that long."""
    return replace(
        setup,
        longest=length,
        tokens=_scaled(setup.tokens, length, setup.longest),
        losses=_scaled(setup.losses, length, setup.longest),
    )


def with_rank(setup: Setup, rank: int) -> Setup:
    """Another rank, with the same alpha over rank."""
    return replace(setup, rank=rank, alpha=setup.alpha * rank / setup.rank)


def changes(lengths: Sequence[int] = ()) -> tuple[Change, ...]:
    """All there are, in the order in which they are tried.

    Args:
        lengths: tokens of each example, where the data are known.
    """
    return (_BATCH, _REPEAT, _OPTIMIZER, _DTYPE, _length(lengths), _LORA, _TARGETS, _RANK, _QLORA, _SHARDED)


def _scaled(size: int, to: int, of: int) -> int:
    return max(1, -(-size * to // of))


def _smaller_batches(setup: Setup) -> list[int]:
    """Those that make up the same optimizer step."""
    whole = setup.batch * setup.accumulate
    return [batch for batch in range(setup.batch - 1, 0, -1) if whole % batch == 0]


_BATCH = Change(
    "batch",
    values=_smaller_batches,
    apply=with_batch,
    options=lambda s, batch: f"--batch {batch} --accumulate {s.batch * s.accumulate // batch}",
    cost=lambda s, batch: (
        f"nothing: the same {s.batch * s.accumulate} examples in an optimizer step, {batch} at once; "
        "a GPU may be busy less"
    ),
    exact=True,
)
_REPEAT = Change(
    "gradient_checkpointing",
    values=lambda s: [] if s.repeat == "all" else ["all"],
    apply=lambda s, value: replace(s, repeat=value),
    options=lambda s, value: f"--gradient-checkpointing {value}",
    # of N weights, forward 2 N operations a token, backward 2 N where they are frozen and 4 N where they are trained
    cost=lambda s, value: (
        f"time: every layer is computed twice, about {8 / 6 if s.method == 'full' else 6 / 4:.1f} times as long; "
        "the result is the same"
    ),
    exact=True,
)
_OPTIMIZER = Change(
    "optimizer",
    values=lambda s: ["adamw8bit"] if s.device == "cuda" and not s.optimizer.endswith("8bit") else [],
    apply=lambda s, value: replace(s, optimizer=value),
    options=lambda s, value: f"--optimizer {value}",
    cost=lambda s, value: (
        "moments in 8 bits: another result, as good in the paper's runs (Dettmers et al. 2021, arXiv:2110.02861); "
        "needs bitsandbytes"
    ),
)
_DTYPE = Change(
    "dtype",
    values=lambda s: ["bf16"] if s.dtype == "fp32" and s.method != "qlora" else [],
    apply=lambda s, value: replace(s, dtype=value),
    options=lambda s, value: f"--dtype {value}",
    cost=lambda s, value: (
        "weights have 8 bits: steps below a 256th of a weight are lost"
        if s.method == "full"
        else "the frozen weights have 8 bits, as most models are published; the adapter stays fp32"
    ),
)
_LORA = Change(
    "method",
    values=lambda s: ["lora"] if s.method == "full" else [],
    apply=lambda s, value: replace(s, method=value),
    options=lambda s, value: f"--method {value}",
    cost=lambda s, value: _ADAPTER,
)
_TARGETS = Change(
    "targets",
    values=lambda s: _fewer_targets(s),
    apply=lambda s, value: replace(s, targets=value),
    options=lambda s, value: f"--targets {value}",
    cost=lambda s, value: (
        "updates in attention alone learn less than those of all layers at the same size (Schulman et al. 2025)"
    ),
)
_RANK = Change(
    "rank",
    values=lambda s: [] if s.method == "full" else range(s.rank - 1, 0, -1),
    apply=with_rank,
    options=lambda s, rank: f"--rank {rank} --alpha {s.alpha * rank / s.rank:g}",
    cost=lambda s, rank: f"room: {1 - rank / s.rank:.0%} of the adapter's numbers are gone",
)
_QLORA = Change(
    "method",
    values=lambda s: ["qlora"] if s.method != "qlora" and s.dtype not in ("nf4", "int8") else [],
    apply=lambda s, value: replace(s, method=value, dtype="nf4"),
    options=lambda s, value: f"--method {value}",
    cost=lambda s, value: (
        (f"{_ADAPTER}; " if s.method == "full" else "")
        + "weights in 4 bits: the paper finds the quality of 16 again (Dettmers et al. 2023, arXiv:2305.14314)"
        + (f"; {_LATER}: {ELSEWHERE['qlora'][0]}" if "qlora" in ELSEWHERE else "")
    ),
    here="qlora" not in ELSEWHERE,
)
_SHARDED = Change(
    "sharding",
    values=lambda s: (
        [] if s.device != "cuda" else [n for n in _CARDS if s.sharding != "fsdp2" or n > s.processes]
    ),
    apply=lambda s, cards: replace(s, processes=cards, sharding="fsdp2"),
    options=lambda s, cards: f"--processes {cards} --sharding fsdp2",
    cost=lambda s, cards: f"{cards} cards, among which weights and states are divided; {_LATER}",
    here=False,
)


def _length(lengths: Sequence[int]) -> Change:
    def cost(setup: Setup, length: int) -> str:
        if not lengths:
            return "examples that are longer are left out"
        lost = sum(each > length for each in lengths)
        return f"{lost:,} of {len(lengths):,} examples ({lost / len(lengths):.1%}) are longer, and left out"

    return Change(
        "max_length",
        values=lambda s: range(s.longest - 1, SHORTEST - 1, -1),
        apply=with_length,
        options=lambda s, length: f"--max-length {length}",
        cost=cost,
    )


def _fewer_targets(setup: Setup) -> list[str]:
    """The smaller ones of the lesson's sets."""
    if setup.method == "full" or setup.targets == "minimal":
        return []
    if isinstance(setup.targets, str) and setup.targets in TARGET_SETS:
        names = list(TARGET_SETS)
        return list(reversed(names[: names.index(setup.targets)]))
    return ["standard", "minimal"]
