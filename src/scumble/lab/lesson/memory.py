"""What a further target module and a whole checkpoint take: counted for the lesson's own model, and measured for the base.

The lesson says 15 to 20 % more memory for each further module, and 50 MB for an adapter instead of 16 GB. Both are
counts, not samples: there is no interval, and no seed to depend on. Knows plans and files, and nothing of training runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from scumble.lab.planning import plan
from scumble.models.base import Base
from scumble.progress import Reporter

LLAMA = "meta-llama/Llama-3.1-8B-Instruct"
# the lesson's script, but for its targets
SCRIPT: dict[str, Any] = {"rank": 16, "alpha": 32, "batch": 4, "accumulate": 4, "max_length": 2048}
ORDER = ("q_proj", "v_proj", "k_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
FIRST = 2  # of those: what the lesson calls minimal
SAID = (0.15, 0.20)  # more memory for each further module, as the lesson has it
SMALL = 0.01  # an adapter of less than this share of its base is what the lesson means by saving only that
MOMENTS = 2  # of AdamW, each as large as what is trained


@dataclass(frozen=True)
class Counted:
    """A claim that was counted.

    Attributes:
        name, says: as `Claim` has them.
        verdict: holds where every figure is as said, does not hold where none is.
        why: in a sentence.
        rows: the figures.
        elsewhere: what others found.
    """

    name: str
    says: str
    verdict: Literal["holds", "does not hold", "depends"]
    why: str
    rows: tuple[dict[str, Any], ...]
    elsewhere: str = ""

    def to_dict(self) -> dict[str, Any]:
        """What `lab.json` holds of it."""
        return {**vars(self), "rows": [dict(row) for row in self.rows]}


def module_memory(base: str | None, batch: int, length: int, reporter: Reporter) -> dict[str, Any]:
    """The peak of a step with one more target module after another.

    Args:
        base: as `load_base` takes it, for what is measured.
        batch: examples in its micro-step.
        length: tokens of each.
        reporter: is told what is measured.

    Returns:
        Rows by model; each with the module that was added, the peak in bytes and what it grew by, as a share.
    """
    planned = [
        plan(LLAMA, quiet=True, targets=names, device="cuda", **SCRIPT).memory.peak for names in _sets()
    ]
    small: dict[str, Any] = {"rank": 8, "batch": batch, "accumulate": 1, "max_length": length}
    reporter.note("measuring what a further target module takes: a step with each")
    ours, measured = [], []
    for names in _sets():
        found = plan(base, quiet=True, measure=True, targets=names, device="cpu", **small)
        assert found.measured is not None
        ours.append(found.memory.peak)
        measured.append(found.measured.peak)
    return {
        "setup": {"planned": {"base": LLAMA, **SCRIPT}, "measured": small},
        "llama, planned": _growth(planned),
        "base, planned": _growth(ours),
        "base, measured": _growth(measured),
    }


def _sets() -> list[list[str]]:
    return [list(ORDER[:count]) for count in range(FIRST, len(ORDER) + 1)]


def _growth(peaks: Sequence[int]) -> list[dict[str, Any]]:
    names = [" ".join(name.removesuffix("_proj") for name in ORDER[:FIRST]), *ORDER[FIRST:]]
    before = [peaks[0], *peaks[:-1]]
    return [
        {"added": name.removesuffix("_proj"), "peak": peak, "share": peak / earlier - 1}
        for name, peak, earlier in zip(names, peaks, before, strict=True)
    ]


def judge_modules(found: dict[str, Any]) -> Counted:
    """Whether each further module takes 15 to 20 % more."""
    tables = {title: rows for title, rows in found.items() if title != "setup"}
    shares = [row["share"] for rows in tables.values() for row in rows[1:]]
    inside = sum(SAID[0] <= share <= SAID[1] for share in shares)
    verdict: Any = "holds" if inside == len(shares) else "depends" if inside else "does not hold"
    why = f"Of {len(shares)} steps {inside} took 15 to 20 % more; the least {min(shares):.1%}, the most {max(shares):.1%}."
    rows = tuple(
        {"model": title, "added": row["added"], "peak": row["peak"], "share": row["share"]}
        for title, rows in tables.items()
        for row in rows
    )
    said = "Each further target module adds 15 to 20 % memory."
    return Counted("memory per module", said, verdict, why, rows, "0.6 to 9 % by count.")


def checkpoint_sizes(base: Base, adapter: int, trained: int) -> dict[str, Any]:
    """What is saved: of the lesson's model counted, of the base and one of its adapters as they lie on disk.

    Args:
        base: loaded.
        adapter: bytes of an adapter's file.
        trained: numbers that it has.
    """
    llama = plan(LLAMA, quiet=True, targets="standard", device="cuda", **SCRIPT)
    weights = sum(p.numel() * p.element_size() for p in base.model.parameters())
    whole = llama.memory.to_dict()["weights"]
    own = llama.parameters.trainable
    return {
        "llama": {
            "adapter": llama.parameters.file_bytes,
            "adapter_checkpoint": llama.parameters.file_bytes + 4 * MOMENTS * own,
            "model": whole,
            "model_checkpoint": whole + 4 * MOMENTS * llama.parameters.base,
        },
        "base": {
            "adapter": adapter,
            "adapter_checkpoint": adapter + 4 * MOMENTS * trained,
            "model": base.bytes_on_disk or weights,
            "model_checkpoint": weights * (1 + MOMENTS),
        },
    }


def judge_sizes(found: dict[str, Any]) -> Counted:
    """Whether an adapter is small beside its model."""
    shares = {title: each["adapter"] / each["model"] for title, each in found.items()}
    small = sum(share < SMALL for share in shares.values())
    verdict: Any = "holds" if small == len(shares) else "depends" if small else "does not hold"
    names = {"llama": "Llama 3.1 8B", "base": "the base here"}
    told = " and ".join(f"{share:.2%} of {names[title]}" for title, share in shares.items())
    rows = tuple({"model": title, **each} for title, each in found.items())
    said = "Save only the adapter: about 50 MB instead of 16 GB."
    return Counted("save only the adapter", said, verdict, f"The adapter is {told}, by size.", rows)
