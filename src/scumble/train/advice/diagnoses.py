"""The diagnoses of one run, each with its test; the first that holds is what the run is about.

    diverged          the loss or the gradient was not finite, or the end is above 1.2 times the start; of training losses
                      alone by four standard errors too, or rising all the way with a p as small (3e-5)
    rate too high     growth G >= 4 or setback >= 0.3, P < 10, and a tenth of the loss at the start is left. Steps as large as the
                      numbers that they change undo what was learnt
    overfit           the validation loss ends 10 % above its lowest, two evaluations or more after it, while the training
                      loss went on falling by 10 %: the definition (Prechelt 1998, 'Early stopping - but when?')
    rate too low      persistence P >= 10: ten steps in one direction, and the loss still falls
    rank              no better after five passes: a tenth of the loss is left on data seen five times, which more room could
                      have learnt by heart, the rank is used to its end, the rate is neither, and it comes to an end
    still improving   the second half of the clock won 5 % of all that was won, or more, its evaluations or
                      its training losses fall with p <= 0.01, the evaluations end within 2 % of their lowest,
                      and 2 % of the loss at the start is left. Without evaluations within one pass only
    plateau           none of these, and by the evaluations a quarter of the loss at the start is left
    fine              none of these, and there are evaluations

The figures are those of `curves` and `spectra`. The thresholds were fixed on one family of data and are tested on another
(bench/advice.py). Knows cases, and nothing of files.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from scumble.train.advice.case import Case
from scumble.train.advice.command import NextRun, asked, longer, next_run
from scumble.train.advice.finding import Confidence, Finding

FEW_STEPS = 10  # below which nothing is said of a curve
ABOVE_START = 1.2
GROWTH, SETBACK, LEFT = 4.0, 0.3, 0.1
PERSISTENCE, FAR = 10.0, 20.0  # beyond `FAR` the rate is a decade off, else half a decade
RISEN, FALLEN, AFTER = 0.1, 0.9, 2
DROPOUT, BEYOND_BEST = 0.3, 1.5  # of a run that overfitted: what is tried next
PASSES, SLOWING = 5.0, 0.25
GAIN, LITTLE = 0.05, 0.02
FLAT = 0.25
CHANCE = 0.01
_ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj", "c_attn", "qkv_proj"}


def diagnose(case: Case) -> list[Finding]:
    """What a run is about, and what else is odd; at least one finding for a run of `FEW_STEPS` and evaluations."""
    first = next((found for rule in _RULES if (found := rule(case)) is not None), None)
    if first is None:
        return []
    wasted = _wasted(case) if first.topic in ("fine", "overfit", "plateau") else None
    return [_anew(each) for each in (first, wasted) if each]


def _anew(found: Finding) -> Finding:
    """The same; of a next run that leaves the adapter the run went on from, it says so."""
    if found.next is None or "from_" not in found.next.changed:
        return found
    why = "an adapter that is gone on from keeps its shape, so the next run begins anew, without --from"
    return replace(found, finding=f"{found.finding}; {why}")


def _diverged(case: Case) -> Finding | None:
    curve = case.curve
    above = case.steps >= FEW_STEPS and curve.left > ABOVE_START
    judged = len(curve.trained_evals) > 0
    if case.broken is None and not (above and (judged or curve.climbed())):
        return None
    what = case.broken or f"the loss ended at {curve.end:.3g}, above the {curve.start:.3g} of the start"
    evidence = {"learning_rate": case.rate, "steps": case.steps, **_level(case)} if case.steps else {}
    return Finding(
        "diverged",
        f"it diverged: {what}",
        evidence,
        "high",
        "a loss that is not finite, or above that of the start, needs no test"
        if case.broken or judged
        else "the training losses rose by four standard errors or more, or with a trend as sure",
        next_run(case.reading, learning_rate=_rounded(case.rate / 10)),
    )


def _too_high(case: Case) -> Finding | None:
    if case.steps < FEW_STEPS or case.curve.left < LEFT:
        return None
    setback, growth = case.curve.setback(), case.growth
    if case.persistence is not None and case.persistence >= PERSISTENCE:
        return None  # steps that undo each other turn
    grown = growth is not None and growth >= GROWTH
    if not grown and setback < SETBACK:
        return None
    both = grown and setback >= SETBACK
    signs = [f"A has grown to {growth:.1f} times its start"] if grown else []
    signs += [f"training lost {setback:.0%} of what it had won, for a while"] if setback >= SETBACK else []
    return Finding(
        "rate too high",
        f"the learning rate {case.rate:g} is too high: {' and '.join(signs)}, and {case.curve.left:.0%} of the loss is left",
        {"growth": growth, "setback": setback, "persistence": case.persistence, **_level(case)},
        "high" if both else "medium",
        f"growth is over {GROWTH:g} and setback over {SETBACK:g}"
        if both
        else f"growth is over {GROWTH:g}; high would need the setback over {SETBACK:g} too"
        if grown
        else f"setback is over {SETBACK:g}; high would need growth over {GROWTH:g} too",
        next_run(case.reading, learning_rate=_rounded(case.rate / 10)),
    )


def _overfit(case: Case) -> Finding | None:
    rise = case.curve.rise() if case.steps >= FEW_STEPS else None
    if rise is None:
        return None
    if rise.after < AFTER or rise.share < RISEN or rise.trained > FALLEN:
        return None
    sure: Confidence = "high" if rise.chance < CHANCE else "medium"
    return Finding(
        "overfit",
        f"it overfits: the validation loss was lowest after step {rise.best:,} ({rise.lowest:.3g}) and ended at "
        f"{rise.last:.3g}, while the training loss went on falling",
        {
            "lowest_eval_loss": rise.lowest,
            "last_eval_loss": rise.last,
            "best_step": rise.best,
            "steps": case.steps,
            "evaluations_after": rise.after,
            "rising_p": rise.chance,
            "training_loss_ratio": rise.trained,
            "passes": case.reading.passes,
        },
        sure,
        f"the evaluations after the lowest rise with p < {CHANCE:g}"
        if sure == "high"
        else f"the evaluations after the lowest do not rise with p < {CHANCE:g}, which high would need",
        _held_back(case, rise.best),
    )


def _held_back(case: Case, best: int) -> NextRun:
    """A run that ends soon after the best step, its rate at zero by then, and with more dropout.

    Tried on family `letters` with 32 examples: dropout 0.3 and 1.4 times the best step's passes lowered the best validation
    loss in 5 of 5 seeds, 1.1 times alone in 4 of 5, 0.7 times with rank 2 in none.
    """
    dropout = max(DROPOUT, float(asked(case.reading).get("dropout") or 0.0))
    share = min(1.0, BEYOND_BEST * best / int(case.reading.training["steps"]))
    return longer(case.reading, share, **({} if case.whole else {"dropout": dropout}))


def _too_low(case: Case) -> Finding | None:
    persistence = case.persistence
    if case.steps < FEW_STEPS or persistence is None or persistence < PERSISTENCE:
        return None
    curve = case.curve
    chance = min(curve.falling(), curve.training_falls())
    if curve.gain() <= 0 or chance > CHANCE:
        return None
    times = 10 if persistence >= FAR else 3
    sure: Confidence = "high" if persistence >= FAR and curve.gain() > SLOWING else "medium"
    return Finding(
        "rate too low",
        f"the learning rate {case.rate:g} is too low: the optimizer went the same way for {persistence:.0f} steps, and the "
        "loss still falls",
        {"persistence": persistence, "growth": case.growth, "falling_p": _known(chance), **_level(case)},
        sure,
        ("" if sure == "high" else "high would need ")
        + f"persistence of {FAR:g} or more, and a second half that won more than {SLOWING:.0%}",
        next_run(case.reading, learning_rate=_rounded(case.rate * times)),
    )


def _rank(case: Case) -> Finding | None:
    movement, curve = case.movement, case.curve
    if case.steps < FEW_STEPS or movement is None or case.reading.passes < PASSES:
        return None
    if curve.left < LEFT or curve.gain() > SLOWING or not movement.full:
        return None
    rank = case.rank * (4 if case.rank <= 2 else 2)
    shown = _level(case) | _used(case)
    many = len(curve.trained_evals) >= 4
    return Finding(
        "rank",
        f"more rank would help: after {case.reading.passes:.0f} passes {curve.left:.0%} of the loss is left, and "
        f"rank {case.rank} is used to its end",
        {**shown, "passes": case.reading.passes, "persistence": case.persistence, "growth": case.growth},
        "medium" if many else "low",
        ("there are" if many else "medium would need")
        + " four evaluations or more; high would need a sweep that measures it",
        next_run(case.reading, **_of_rank(case, rank)),
    )


def _improving(case: Case) -> Finding | None:
    curve = case.curve
    rise = curve.rise() if case.steps else None
    # of examples seen before, the training loss falls whether or not anything is learnt
    if case.steps < FEW_STEPS or (rise is None and case.reading.passes > 1):
        return None
    gain = curve.gain()
    if gain < GAIN or curve.left < LITTLE or (rise is not None and rise.share > 0.02):
        return None
    chance, trained = curve.falling(), curve.training_falls()
    if min(chance, trained) > CHANCE:
        return None
    sure: Confidence = "high" if rise and chance <= CHANCE else "medium" if rise else "low"
    return Finding(
        "still improving",
        f"it still improves: the second half of the way won {gain:.0%} of all that was won, and "
        + ("the validation loss ends at its lowest" if rise else "the training loss still falls"),
        {"gain": gain, "falling_p": _known(chance), "training_falling_p": trained, **_level(case)},
        sure,
        {
            "high": f"the evaluations of the second half fall, with p of {CHANCE:g} or less",
            "medium": f"only the training loss falls with p of {CHANCE:g} or less; "
            "high would need the evaluations to",
            "low": "only the training loss is there to fall; medium would need evaluations",
        }[sure],
        longer(case.reading, 2.0),
    )


def _plateau(case: Case) -> Finding | None:
    curve = case.curve
    if case.steps < FEW_STEPS or not len(curve.trained_evals) or curve.left < FLAT:
        return None
    return Finding(
        "plateau",
        f"it has come to a plateau with {curve.left:.0%} of the loss left, and one run cannot say why",
        {"gain": curve.gain(), **_level(case), **_used(case)},
        "low",
        "one run cannot tell too little room from data that hold no more",
        _more_room(case),
    )


def _more_room(case: Case) -> NextRun | None:
    """All linear layers where only attention is trained, else more rank, but where half of it is not used."""
    if case.whole:
        return None
    if case.kinds and case.kinds <= _ATTENTION:
        return next_run(case.reading, targets="all-linear")
    return None if _spare(case) else next_run(case.reading, **_of_rank(case, 2 * case.rank))


def _fine(case: Case) -> Finding | None:
    curve = case.curve
    rise = curve.rise() if case.steps >= FEW_STEPS else None
    if rise is None:
        return None
    many = len(curve.trained_evals) >= 4
    return Finding(
        "fine",
        f"nothing is amiss: the validation loss went from {curve.start:.3g} to {rise.lowest:.3g} and stays there",
        {
            "gain": curve.gain(),
            "rise": rise.share,
            "persistence": case.persistence,
            "growth": case.growth,
            **_level(case),
        },
        "high" if many else "medium",
        "there are four evaluations or more" if many else "high would need four evaluations or more",
    )


def _spare(case: Case) -> bool:
    """Whether half the rank, or less, holds every module's update."""
    return case.movement is not None and case.rank >= 4 and 1 <= case.movement.needed <= case.rank / 2


def _wasted(case: Case) -> Finding | None:
    movement = case.movement
    if movement is None or not _spare(case):
        return None
    return Finding(
        "rank wasted",
        f"rank {movement.needed} holds 99 % of every module's update; rank {case.rank} was trained",
        _used(case),
        "medium",
        "the same update would fit, but whether training would find it is not measured",
        next_run(case.reading, **_of_rank(case, movement.needed)),
    )


_RULES: tuple[Callable[[Case], Finding | None], ...] = (
    _diverged,
    _too_high,
    _overfit,
    _too_low,
    _rank,
    _improving,
    _plateau,
    _fine,
)


def _level(case: Case) -> dict[str, Any]:
    return {"start": case.curve.start, "end": case.curve.end, "left": case.curve.left}


def _used(case: Case) -> dict[str, Any]:
    movement = case.movement
    if movement is None:
        return {}
    return {
        "rank": case.rank,
        "stable_rank_share": movement.stable,
        "effective_rank_share": movement.effective,
        "saturated_modules": movement.saturated,
        "modules": movement.modules,
        "rank_for_99_percent": movement.needed,
    }


def _of_rank(case: Case, rank: int) -> dict[str, Any]:
    """Another rank, at the same alpha over rank."""
    options = asked(case.reading)
    return {"rank": rank, "alpha": float(options["alpha"]) / int(options["rank"]) * rank}


def _rounded(rate: float) -> float:
    return float(f"{rate:.2g}")


def _known(chance: float) -> float | None:
    """A p; None where there were too few points for the test."""
    return chance if chance < 1 else None
