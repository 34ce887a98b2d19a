"""`advise`: what a run, or a sweep of runs, says of itself, and what to run next.

Silent where the evidence is thin: then it says what is missing. Knows the order of the steps; the tests are in
`diagnoses` and `sweep`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from scumble.train.advice.case import Case
from scumble.train.advice.command import unsaid
from scumble.train.advice.diagnoses import FEW_STEPS, diagnose
from scumble.train.advice.finding import Finding
from scumble.train.advice.reading import read_run
from scumble.train.advice.sweep import advise_sweep

# of the next run: with a rate that falls to zero five of them, the fewest whose trend can have p < 0.01,
# are in the second half of its clock
_EVALUATIONS = 6
_OF_RANK = ("rank", "rank wasted")


@dataclass(frozen=True)
class Advice:
    """What to make of a run or a sweep.

    Attributes:
        path: the folder.
        kind: what it is.
        findings: the most important first; empty where the evidence is thin.
        missing: what would have to be there to say more, in one line each.
        about: what was looked at, in one line.
    """

    path: Path
    kind: Literal["run", "sweep"]
    findings: tuple[Finding, ...]
    missing: tuple[str, ...]
    about: str

    @property
    def verdict(self) -> str | None:
        """The topic of the first finding; None where nothing is said."""
        return self.findings[0].topic if self.findings else None

    def to_dict(self) -> dict[str, Any]:
        """What `--json` prints."""
        return {
            "path": str(self.path),
            "kind": self.kind,
            "about": self.about,
            "verdict": self.verdict,
            "findings": [finding.to_dict() for finding in self.findings],
            "missing": list(self.missing),
        }


def advise(path: str | Path) -> Advice:
    """Advise on a run, or on a sweep, from what it wrote down.

    Args:
        path: folder that `scumble train` or `scumble sweep` wrote; the base is not needed.

    Returns:
        The findings, each with its figures, its confidence and the command of the next run.

    Raises:
        MissingFileError: it is neither.
        ConfigError: one of its files is damaged.
    """
    folder = Path(getattr(path, "out", path)).expanduser()
    if (folder / "sweep.json").is_file():
        found, missing, about, best = advise_sweep(folder)
        if best is not None:
            case = Case.of(read_run(best))
            # what trials of several ranks measured goes before what one adapter's spectrum suggests
            measured = any(each.topic in _OF_RANK for each in found)
            found += [each for each in diagnose(case) if not (measured and each.topic in _OF_RANK)]
            missing += [f"of {best.name}: {each}" for each in _missing(case)]
        return Advice(folder, "sweep", tuple(found), tuple(missing), about)
    case = Case.of(read_run(folder))
    return Advice(folder, "run", tuple(diagnose(case)), tuple(_missing(case)), _about(case))


def _missing(case: Case) -> list[str]:
    """What would have to be there to say more."""
    missing = []
    reading, evaluations = case.reading, len(case.curve.trained_evals)
    if case.steps < FEW_STEPS and case.broken is None:
        made = f"{case.steps} steps were made" if case.steps else "no step was made"
        missing.append(f"{made}: from {FEW_STEPS} on there is a curve to read")
    elif reading.facts.get("validation") is None:
        missing.append("no validation data: leave --eval 0 out, or give --eval FILE, to see overfitting")
    elif evaluations < 3:
        many = f"{evaluations} evaluation{'' if evaluations == 1 else 's'}"
        every = max(1, int(reading.training["steps"]) // _EVALUATIONS)
        missing.append(f"{many} after the start: --eval-every {every} shows whether the loss rises again")
    if case.shifted:
        how = case.reading.options["init"]
        missing.append(
            f"{how} saves a difference of two adapters, which does not show how much of the rank is used"
        )
    if case.cut_off:
        missing.append(
            "the run has not come to its end: this is said of what there is; --resume goes on with it"
        )
    if names := unsaid(reading):
        missing.append(
            f"the run was given {', '.join(names)} from Python, which no command line can say: a command here leaves "
            "them out; run it from Python with the same lora="
        )
    return [*missing, *reading.missing]


def _about(case: Case) -> str:
    data, passes = case.reading.facts["data"], case.reading.passes
    evaluations = len(case.curve.evals)
    return (
        f"{case.steps:,} steps, {passes:.3g} passes, {data['examples']:,} examples, "
        f"{evaluations} evaluation{'' if evaluations == 1 else 's'}"
    )
