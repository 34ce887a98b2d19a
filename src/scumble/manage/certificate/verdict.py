"""What a merge is held to: every limit with its reason, and the failures and warnings that come of them.

Two questions are kept apart. Is the code that merged right? Then every element is the wanted value rounded
once, and nothing else changed; no limit is a matter of taste. Was the update lost? That is the rounding's
doing, and a question of degree.

Rounding noise of n times the update's norm, independent of the update, gives a cosine of 1 / sqrt(1 + n^2)
and a ratio of norms of sqrt(1 + n^2). The ordinary loss in bf16, 8 to 32 % of a small update, is a cosine of
0.997 to 0.952 and a ratio of 1.003 to 1.05. The update counts as lost where the noise has more than half of
its power, n^2 > 1/2: cosine below 0.816, ratio above 1.225. In a base that is bf16 to begin with, elements
below half a unit vanish instead; what is left then has less than half of the power at a ratio below 0.707.
The same half is the limit for the effect on prompts, where KL goes with the power. A deleted update has
(0, 0), a doubled one a ratio of 2.

A module whose intended norm is under 1 % of the whole update's warns and does not fail by these, as long as
all modules beyond the limits that are so small hold, together, no more than 1 % of the norm: what is lost with
them cannot be more than that. Many small ones that hold more fail as one. If a module was skipped, that is also
found element by element, as far as its type shows it.

A change that is so small that arithmetic alone may have made it (`achieved.NOISE`) is not judged, and is
warned of with its size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from scumble.manage.certificate.achieved import DORA_NOISE, NOISE, Achieved, Sums
from scumble.manage.certificate.fidelity import Fidelity

LOST = 0.5  # share of the update's power
COSINE = 1 / math.sqrt(1 + LOST)
RATIO = (math.sqrt(1 - LOST), math.sqrt(1 + LOST))
SMALL_PART = 0.01
NOTABLE_LOSS = 0.05
LOGITS, LOGITS_HALF = 1e-4, 1e-2
MEAN_KL, MAX_KL = 1e-8, 1e-6
MISSING = LOST
_SHOWN = 8  # modules that are named one by one

TOLERANCES: dict[str, dict[str, Any]] = {
    "cosine": {
        "least": COSINE,
        "reason": "1 / sqrt(1 + n^2), for rounding noise with half of the update's power, n^2 = 1/2",
    },
    "ratio": {
        "least": RATIO[0],
        "most": RATIO[1],
        "reason": "sqrt(1 + n^2) for the same noise; sqrt(1 - n^2) where elements vanish by rounding",
    },
    "small_part": {
        "share": SMALL_PART,
        "reason": "a module with less of the update's norm warns, where others fail by cosine and ratio; those "
        "that would, and hold more together, fail together",
    },
    "not_judged": {
        "share": NOISE,
        "share_of_untrained_dora": DORA_NOISE,
        "reason": "of the weight's norm: sums in fp64 err by as much; DoRA's magnitude is kept in fp32, and scales "
        "the weight by its rounding where there is no update",
    },
    "misrounded": {
        "most": 0,
        "reason": "each element is the wanted fp64 value rounded once, to half a unit in the last place; near "
        "ties may go either way, as sums in fp64 may be in another order and torch rounds fp64 to half "
        "precision by way of fp32 (2^-24 of the value)",
    },
    "untouched": {"most": 0, "reason": "the base's tensor cast to the written type, bit for bit"},
    "loaded_logits": {
        "most": LOGITS,
        "most_in_half_precision": LOGITS_HALF,
        "reason": "times the largest logit (at least 1): the same weights and kernels give the same logits; in "
        "half precision a near tie in 65,000 may be rounded the other way by another program's merge, which moved "
        "logits by 1e-4 to 1e-3 of the largest; files read wrongly move them by much more",
    },
    "fp32_kl": {
        "mean": MEAN_KL,
        "max": MAX_KL,
        "reason": "nats, where all is fp32: two orders of the same sums; measured 2e-13 on average on tiny models, "
        "2e-11 (3e-10 at most) on 30 layers",
    },
    "missing_share": {
        "most": MISSING,
        "reason": "mean KL(unmerged || merged) over mean KL(unmerged || base); 1 is a merge that did nothing",
    },
}


def judge_modules(
    modules: Mapping[str, Achieved], overall: Sums, all_fp32: bool = False
) -> tuple[list[str], list[str]]:
    """Failures and warnings of the tensors that the adapter reaches, the worst first.

    Args:
        modules: by parameter name.
        overall: the sums over all of them.
        all_fp32: every written tensor is in fp32, so that no wider type can be advised.
    """
    wrong = {name: found for name, found in modules.items() if found.misrounded or found.not_finite}
    failures = _listed(
        [_rounding(name, wrong[name]) for name in sorted(wrong, key=lambda n: -_badness(wrong[n]))]
    )
    lost, small, together = [], [], Sums()
    for name in sorted(modules, key=lambda n: -_badness(modules[n])):
        if line := _out_of_limits(name, modules[name].sums):
            share = _share(modules[name].sums, overall)
            if share < SMALL_PART:
                small.append(f"{line}; it is {share:.2g} of the whole update's norm")
                together += modules[name].sums
            else:
                lost.append(line)
    line = _out_of_limits("the whole update", overall)
    failures = ([line] if line else []) + failures + _listed(lost)
    if _share(together, overall) > SMALL_PART:
        failures.append(
            f"{len(small)} small modules, together {_share(together, overall):.1%} of the update's norm, lost "
            f"{math.sqrt(together.gap / together.ii):.0%} of their part, such as {small[0].partition(':')[0]}"
        )
    warnings = _listed(small) + _not_judged(modules)
    if not line and overall.lost is not None and overall.lost > NOTABLE_LOSS:
        warnings.insert(
            0,
            f"rounding the merged weights loses {overall.lost:.1%} of the update"
            + ("" if all_fp32 else "; --dtype fp32 would keep more of it"),
        )
    return failures, warnings


def judge_fidelity(found: Fidelity, all_fp32: bool) -> list[str]:
    """What the logits say against the merge."""
    failures = []
    if found.failed is not None:
        failures.append(f"transformers cannot load the folder: {found.failed}")
    loaded = found.loaded
    limit = (LOGITS if all_fp32 else LOGITS_HALF) * max(1.0, found.largest)
    if loaded is not None and not (loaded.apart or 0.0) <= limit:
        failures.append(
            f"the logits of the loaded model differ from the computed merge's by {loaded.apart:.3g}, "
            f"above {limit:.1g}"
        )
    missing = found.missing()
    if missing is not None and not missing <= MISSING:
        merged = loaded or found.computed
        failures.append(
            f"the merge misses {missing:.0%} of the adapter's effect "
            f"(mean KL {merged.mean_kl:.3g} of {found.effect.mean_kl:.3g} nats)"
        )
    for title, gap in (("loaded", loaded), ("computed", found.computed)):
        if gap is None:
            continue
        if all_fp32 and not (gap.mean_kl <= MEAN_KL and gap.max_kl <= MAX_KL):
            failures.append(
                f"KL from the unmerged model to the {title} merge is {gap.mean_kl:.3g} nats on average and "
                f"{gap.max_kl:.3g} at most, which fp32 rounding does not explain"
            )
        elif gap.mean_kl != gap.mean_kl:
            failures.append(f"the logits of the {title} merge are not finite numbers")
    return failures


def judge_types(
    stored: Mapping[str, torch.dtype],
    original: Mapping[str, torch.dtype],
    asked: torch.dtype | None,
    base_asked: torch.dtype | None,
) -> list[str]:
    """Hold the written types against the configuration's.

    Where the configuration names what the base's does, a tensor may also keep the type that it has there (a
    router in fp32 beside bf16).

    Args:
        stored: the type of each written tensor.
        original: the type of the base's tensor of that name, where there is one.
        asked, base_asked: what the two configurations name; None for nothing.
    """
    odd: dict[torch.dtype, list[str]] = {}
    for name, kind in stored.items():
        before = original.get(name)
        kept = kind == before and (asked == base_asked or not kind.is_floating_point)
        if not kept and (kind != asked or (before is not None and not before.is_floating_point)):
            odd.setdefault(kind, []).append(name)
    said = _named(asked) if asked else "nothing"
    return [
        f"dtype: config.json says {said}, and {len(names)} tensors are {_named(kind)}, such as {names[0]}"
        for kind, names in odd.items()
    ]


def _share(part: Sums, overall: Sums) -> float:
    """Of the whole update's norm."""
    return math.sqrt(part.ii / overall.ii) if overall.ii else 0.0


def _not_judged(modules: Mapping[str, Achieved]) -> list[str]:
    """A line on the tensors whose change is too small to be told from arithmetic noise, if there are any."""
    names = [name for name, found in modules.items() if found.sums.negligible and found.sums.ii]
    if not names:
        return []
    largest = max(names, key=lambda name: modules[name].sums.relative)
    return [
        f"{len(names)} tensors are to change by {modules[largest].sums.relative:.2g} of their norm at most "
        f"({largest}): too little to be told from arithmetic noise, so whether it arrived is not judged"
    ]


def _out_of_limits(title: str, sums: Sums) -> str | None:
    cosine, ratio = sums.cosine, sums.ratio
    if cosine is None or ratio is None:
        return None
    if cosine >= COSINE and RATIO[0] <= ratio <= RATIO[1]:
        return None
    if ratio < 0.01:
        return f"{title}: the update was lost (achieved {ratio:.2g} of the intended norm)"
    return f"{title}: achieved and intended update differ (cosine {cosine:.3f}, ratio of norms {ratio:.3f})"


def _rounding(name: str, found: Achieved) -> str:
    if found.not_finite:
        return f"{name}: {found.not_finite} elements are not finite numbers"
    lost = "" if found.sums.lost is None else f"; {found.sums.lost:.1%} of the update is wrong"
    return (
        f"{name}: {found.misrounded} of {found.elements} elements are not the base's weight plus the update, "
        f"rounded once (off by up to {found.worst:.3g} units in the last place{lost})"
    )


def _badness(found: Achieved) -> float:
    lost = found.sums.lost
    return math.inf if found.not_finite or lost is None or lost != lost else lost


def _listed(lines: Sequence[str]) -> list[str]:
    """The first lines, and how many more there are."""
    more = len(lines) - _SHOWN
    return [*lines[:_SHOWN], *([f"and {more} more modules like these"] if more > 0 else [])]


def _named(kind: torch.dtype) -> str:
    return str(kind).removeprefix("torch.")
