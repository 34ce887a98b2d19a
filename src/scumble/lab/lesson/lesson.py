"""`lab`: the lesson's claims tested on the embedded base, from the first run to the page.

    first runs (three rates, or four) -> choose -> other seeds -> score the unseen -> memory and sizes -> judge -> page

Every step asks the state first what is there already, so that a run that was cut off goes on where it was.
"""

from __future__ import annotations

import math
import shlex
import shutil
from contextlib import ExitStack
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from scumble.config import LabOptions, make
from scumble.errors import ConfigError, TrainingError
from scumble.files import new_folder, refuse_existing, write_text
from scumble.lab.lesson.claims import claims, configurations, ranked
from scumble.lab.lesson.material import Material
from scumble.lab.lesson.memory import checkpoint_sizes, judge_modules, judge_sizes, module_memory
from scumble.lab.lesson.page import render_page, write_pictures
from scumble.lab.lesson.plan import (
    QUICK,
    WHOLE,
    Candidate,
    Scope,
    first_runs,
    further_runs,
    later_runs,
    planned_time,
    scope_of,
)
from scumble.lab.lesson.state import NAME, State
from scumble.lab.lesson.summary import table, ways
from scumble.lab.lesson.trials import Trials, best_rates
from scumble.lab.lesson.verdicts import judge
from scumble.models.base import Base, load_base
from scumble.pages.render import duration
from scumble.progress import Reporter
from scumble.train.record import held

PAGE, PICTURES = "lesson.html", "pictures"


@dataclass(frozen=True)
class Lesson:
    """The lesson, tested.

    Attributes:
        out: folder with `lab.json`, the page, the pictures and the runs.
        page: the HTML file.
        document: the content of `lab.json`.
    """

    out: Path
    page: Path
    document: dict[str, Any]

    @property
    def claims(self) -> list[dict[str, Any]]:
        """Each with `says`, `verdict`, `why`, and its figures."""
        return list(self.document["claims"])

    def to_dict(self) -> dict[str, Any]:
        """What `--json` prints."""
        kept = {key: self.document[key] for key in ("asked", "claims", "ways", "parts", "seconds")}
        return {"out": str(self.out), "page": str(self.page), **kept}


def lab(
    out: str | Path | None = None,
    *,
    quick: bool = False,
    resume: bool = False,
    force: bool = False,
    base: str | None = None,
    quiet: bool = False,
    **options: Any,
) -> Lesson:
    """Test the lesson's claims by training, and write one page.

    Args:
        out: folder; a new numbered one where not told.
        quick: one seed and fewer ways to train; nothing is said to hold then.
        resume: go on with what was begun in `out`, as it was asked for then.
        force: replace `out` where it exists.
        base: as `load_base` takes it; the embedded one by default.
        quiet: say nothing on stderr.
        **options: the fields of `LabOptions`, which make it shorter or longer than it was planned to be.

    Raises:
        ScumbleError: with one line on what is wrong, where, and what to do.
        TrainingError: somebody stopped it; what was found is kept.
    """
    reporter = Reporter(quiet=quiet)
    if resume and force:
        raise ConfigError("--resume and --force are both given", "go on with it, or start over")
    asked = _asked(quick, make(LabOptions, **options))
    folder = _numbered() if out is None else Path(out).expanduser()
    if resume and out is None:
        raise ConfigError("--resume needs --out", "name the folder that was begun")
    with ExitStack() as locks:
        state = _state(folder, asked, locks, quick=quick, given=options, resume=resume, force=force)
        try:
            return _run(state, base, reporter)
        except (KeyboardInterrupt, TrainingError) as error:
            state.save()  # the time up to here
            raise _stopped(error, folder) from error


def _stopped(error: KeyboardInterrupt | TrainingError, folder: Path) -> TrainingError:
    """The error with the command that goes on, where going on helps."""
    again = f"go on with: {shlex.join(['scumble', 'lab', '--out', str(folder), '--resume'])}"
    if isinstance(error, KeyboardInterrupt):
        return TrainingError(f"stopped by Ctrl-C; what was found is kept in {folder}", again)
    return TrainingError(error.message, again if "--resume" in (error.hint or "") else error.hint)


def _run(state: State, name: str | None, reporter: Reporter) -> Lesson:
    scope = scope_of(state.asked)
    name = name or state.parts.get("named")
    base = load_base(name)
    _check_base(state, base)
    state.parts["named"] = name
    material = Material.of(base, scope)
    all_ways = configurations(scope)
    planned = planned_time(all_ways, scope, material.tokens)
    reporter.note(
        f"about {planned.runs} runs of {scope.steps} steps: {duration(planned.seconds)} on two quiet cores, of which training "
        f"{duration(planned.training)}; stop it whenever you like, and go on with --resume"
    )
    if state.runs:
        reporter.note(f"{len(state.runs)} of them are done already")
    trials = Trials(state, scope, material, base, reporter)
    first = first_runs(all_ways, scope)
    trials.train(first)
    further = further_runs(all_ways, scope, best_rates(first, state.runs))
    trials.train(further)
    first += further
    trials.choose(first)
    later = later_runs(all_ways, scope, state.chosen)
    trials.train(later)
    kept = [each for each in first if state.chosen.get(each.configuration.name) == each.rate]
    trials.score([*kept, *later])
    _measure(state, trials, name, base, kept)
    for each in later:
        shutil.rmtree(trials.folder(each), ignore_errors=True)
    return _written(state, scope, base, planned.to_dict())


def _measure(state: State, trials: Trials, name: str | None, base: Base, kept: list[Candidate]) -> None:
    """What is neither a run nor a score: the check of the marks, memory and sizes."""
    scope, material = trials.scope, trials.material
    own = next((each for each in kept if each.configuration == ranked(8)), None)
    if own is not None and "agreement" not in state.parts:
        state.parts["agreement"] = trials.agreement(own)
        state.save()
    if own is not None and "sizes" not in state.parts:
        run = state.runs[own.name]
        state.parts["sizes"] = checkpoint_sizes(base, run["bytes"], run["parameters"])
        state.save()
    if "memory" not in state.parts:
        length = math.ceil(material.tokens)
        state.parts["memory"] = module_memory(name, scope.batch, length, trials.reporter)
        state.save()


def _written(state: State, scope: Scope, base: Base, planned: dict[str, Any]) -> Lesson:
    """Judge, and write the document, the page and the pictures."""
    judged = [judge(each, lambda way, measure: table(state, scope, way, measure)) for each in claims(scope)]
    counted = [judge_modules(state.parts["memory"])]
    if "sizes" in state.parts:
        counted.append(judge_sizes(state.parts["sizes"]))
    more = {
        "scumble": metadata.version("scumble"),
        "base": {"name": base.name, "hash": base.hash},
        "finished": True,
        "planned": planned,
        "claims": [each.to_dict() for each in judged] + [each.to_dict() for each in counted],
        "ways": ways(state, scope, configurations(scope)),
    }
    document = state.save(**more)
    page = write_text(state.folder / PAGE, render_page(document))
    write_pictures(document, state.folder / PICTURES)
    return Lesson(state.folder, page, document)


def _asked(quick: bool, options: LabOptions) -> dict[str, Any]:
    """What decides the result."""
    scope = QUICK if quick else WHOLE
    scope = replace(scope, steps=options.steps or scope.steps, scored=options.score or scope.scored)
    scope = replace(
        scope,
        few=min(scope.few, scope.examples),
        sampled=min(scope.sampled, scope.scored),
        validated=min(scope.validated, scope.scored),
    )
    given = {"steps": options.steps, "examples scored": options.score}
    return {
        **scope.to_dict(),
        "shortened": [f"{value} {name}" for name, value in given.items() if value is not None],
    }


def _state(
    folder: Path,
    asked: dict[str, Any],
    locks: ExitStack,
    *,
    quick: bool,
    given: dict[str, Any],
    resume: bool,
    force: bool,
) -> State:
    """What was found before, or nothing yet in a new folder, which is held until `locks` is closed."""
    if resume and folder.exists():
        locks.enter_context(held(folder))
        state = State.read(folder)
        told = any(value is not None for value in given.values())
        if (quick and state.asked["name"] != "quick") or (told and state.asked != State(folder, asked).asked):
            raise ConfigError(
                f"{folder} was begun otherwise: {state.asked['name']}, {state.asked['steps']} steps, "
                f"{state.asked['scored']} examples scored",
                "leave these options out with --resume, or start over with --force",
            )
        return state
    refuse_existing(folder, force=force)
    if folder.exists():
        locks.enter_context(held(folder))  # it is not replaced while another process works in it
    with new_folder(folder, force=force) as temporary:
        locks.enter_context(held(temporary))  # and stays locked under its new name
        State(temporary, asked).save()
    return State(folder, asked)


def _check_base(state: State, base: Base) -> None:
    """Refuse to go on with another base than it was begun with."""
    known = state.parts.setdefault("base", base.hash)
    if known != base.hash:
        raise ConfigError(
            f"the base is not what {state.folder / NAME} was begun with",
            "give the same base, or start over with --force",
        )


def _numbered() -> Path:
    """The first free `lesson-001` here."""
    number = 1
    while (folder := Path(f"lesson-{number:03d}")).exists():
        number += 1
    return folder
