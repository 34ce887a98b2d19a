"""The whole of it on a tiny base: what is written, gone on with after interruptions, refused, and shown."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import scumble
from scumble.errors import (
    ConfigError,
    MissingFileError,
    OutputError,
    OutputExistsError,
    ScumbleError,
    TrainingError,
)
from scumble.lab.lesson import lesson, plan, trials
from scumble.lab.lesson.claims import Claim, Comparison, claims, ranked, versus
from scumble.lab.lesson.lesson import Lesson
from scumble.lab.lesson.page import render_page
from scumble.lab.lesson.plan import QUICK, Configuration, first_runs, unique
from scumble.train import engine
from scumble.train.record import locked
from tests.bases import letters_model, letters_tokenizer

SMALL: dict[str, Any] = {"quick": True, "steps": 2, "score": 6, "quiet": True}
# of rank, few examples and all weights one each: a run writes a report, which takes longer than its steps
FEW = [
    each
    for each in claims(QUICK)
    if each.name
    in ("more rank, more learned", "lower the rank against overfitting", "a thin layer is enough")
]
WAYS = unique([way for each in FEW for way in each.needs])


@pytest.fixture(scope="module", autouse=True)
def fewer() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(lesson, "claims", lambda scope: FEW)
        patched.setattr(lesson, "configurations", lambda scope: sorted(WAYS, key=_whole_last))
        patched.setattr(plan, "RATES", {"lora": (1e-3, 9e-3), "full": (1e-4, 3e-4, 9e-4)})
        yield


def _whole_last(way: Configuration) -> bool:
    return way.method == "full"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("base")
    letters_model().save_pretrained(folder)
    letters_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def whole(base: str, tmp_path_factory: pytest.TempPathFactory) -> Lesson:
    return scumble.lab(tmp_path_factory.mktemp("lab") / "whole", base=base, **SMALL)


def timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: timeless(each) for key, each in value.items() if key != "seconds"}
    return [timeless(each) for each in value] if isinstance(value, list) else value


def read(folder: Path) -> Any:
    return json.loads((folder / "lab.json").read_text())


def test_every_run_is_there_once_and_every_claim_judged(whole: Lesson) -> None:
    found = read(whole.out)
    assert found == whole.document
    assert found["finished"]
    assert list(found["runs"]) == sorted(run.name for run in first_runs(WAYS, QUICK))
    assert [each["name"] for each in found["claims"]][:-2] == [each.name for each in FEW]
    assert [each["name"] for each in found["claims"]][-2:] == ["memory per module", "save only the adapter"]
    # of one seed nothing is said to hold
    assert {each["verdict"] for each in found["claims"][:-2]} == {"depends"}
    scored = {way.name for way in WAYS if way.data == "all"}
    assert {way["way"] for way in found["ways"] if way["mean"] is not None} == scored
    assert all(len(bits) == 6 for bits in found["scores"].values())
    assert found["parts"]["agreement"]["n"] == 6
    assert found["runs"]["full-0.0003-s0"]["parameters"] == sum(
        p.numel() for p in letters_model().parameters()
    )
    for way in found["ways"]:  # the best by validation loss
        losses = {float(rate): loss for rate, loss in way["by_rate"].items()}
        assert losses[way["rate"]] == min(losses.values())


def test_what_is_large_is_gone(whole: Lesson) -> None:
    kept = {f"{name}-{rate:g}-s0" for name, rate in whole.document["chosen"].items() if name != "full"}
    assert {path.name for path in (whole.out / "runs").iterdir()} == kept
    assert not list(whole.out.rglob("checkpoints"))
    assert not list(whole.out.rglob("model.safetensors"))


class Marks(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attributes if name in ("src", "href", "xlink:href")]


def test_the_page_has_every_claim_and_asks_for_nothing_else(whole: Lesson) -> None:
    text = whole.page.read_text()
    marks = Marks()
    marks.feed(text)
    assert all(link.startswith("#") for link in marks.links)
    assert "script" not in marks.tags
    assert marks.tags.count("svg") == 6
    plain = re.sub(r"&#39;", "'", text)
    for claim in whole.claims:
        assert claim["says"] in plain
        assert claim["why"].replace("&", "&amp;") in plain
    assert "one seed" in text
    assert "shortened" in text
    assert "2 steps" in text
    names = {path.stem for path in (whole.out / "pictures").iterdir()}
    assert names == {"evidence", "ways", "rank", "overfitting", "spectrum", "memory"}


def test_the_page_escapes_whatever_is_in_the_document(whole: Lesson) -> None:
    wicked = "<img src=x onerror=alert(1)>"
    document = json.loads(json.dumps(whole.document))
    document["base"]["name"] = wicked
    document["claims"][0] |= {"says": wicked, "why": wicked, "elsewhere": wicked}
    document["claims"][0]["comparisons"][0]["title"] = wicked
    document["ways"][0]["title"] = wicked
    text = render_page(document)
    assert "<img" not in text
    assert text.count("&lt;img") >= 5


def test_a_finished_one_is_not_done_again(whole: Lesson, base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError

    for module, name in ((trials, "train_many"), (trials, "Trainer"), (trials, "exact_by_forward")):
        monkeypatch.setattr(module, name, never)
    before = read(whole.out)
    found = scumble.lab(whole.out, base=base, resume=True, quiet=True)
    assert timeless(found.document) == timeless(before)


def interrupting(true: Callable[..., Any], at: int) -> Callable[..., Any]:
    count = 0

    def broken(*args: Any, **kwargs: Any) -> Any:
        nonlocal count
        count += 1
        if count == at:
            raise KeyboardInterrupt
        return true(*args, **kwargs)

    return broken


def test_stopped_three_times_it_comes_to_the_same(
    whole: Lesson, base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of training, of marking, and of scoring."""
    out = tmp_path / "cut"
    places = ((engine, "loss_sum", 12), (trials, "mean_loss", 9), (trials, "exact_by_forward", 3))
    for number, (module, name, at) in enumerate(places):
        with monkeypatch.context() as patched:
            patched.setattr(module, name, interrupting(getattr(module, name), at))
            begun = {"resume": True, "quiet": True} if number else {"base": base, **SMALL}
            with pytest.raises(TrainingError, match="stopped by Ctrl-C") as raised:
                scumble.lab(out, **begun)
        assert raised.value.hint == f"go on with: scumble lab --out {out} --resume"
        assert not read(out)["finished"]
        assert read(out)["seconds"] > 0
    found = scumble.lab(out, resume=True, quiet=True)  # on the base that it was begun with
    assert timeless(found.document) == timeless(whole.document)


def test_three_seeds_and_a_rate_beyond(
    whole: Lesson, base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole form, of two ranks: the rate beyond is tried, and all of it counts on every seed."""
    two = versus(ranked(8), ranked(4))
    monkeypatch.setattr(
        lesson, "claims", lambda scope: [Claim("two", "8 is more.", (Comparison("8, 4", two),))]
    )
    monkeypatch.setattr(lesson, "configurations", lambda scope: [ranked(8), ranked(4)])
    monkeypatch.setattr(lesson, "module_memory", lambda *args: whole.document["parts"]["memory"])
    found = scumble.lab(tmp_path / "three", base=base, steps=2, score=6, quiet=True).document
    assert {run["seed"] for run in found["runs"].values()} == {0, 1, 2}
    for way in found["ways"]:
        # of two rates the best is always at an end
        assert len(way["tried"]) == 3
        runs = [run for run in found["runs"].values() if run["way"] == way["way"]]
        assert len(runs) == 5
        assert {run["rate"] for run in runs if run["seed"]} == {way["rate"]}
        assert len(way["seeds"]) == 3
    [judged, *_] = found["claims"]
    assert judged["comparisons"][0]["difference"]["seeds"] == 3
    assert "one seed" not in judged["why"]


def test_what_cannot_be_gone_on_with_is_refused(whole: Lesson, base: str, tmp_path: Path) -> None:
    with pytest.raises(OutputExistsError, match="exists already"):
        scumble.lab(whole.out, base=base, **SMALL)
    with pytest.raises(ConfigError, match="begun otherwise: quick, 2 steps"):
        scumble.lab(whole.out, base=base, resume=True, quick=True, steps=9, quiet=True)
    with pytest.raises(ConfigError, match="--resume and --force are both given"):
        scumble.lab(whole.out, base=base, resume=True, force=True, quiet=True)
    with pytest.raises(ConfigError, match="--resume needs --out"):
        scumble.lab(resume=True, quiet=True)
    with pytest.raises(MissingFileError, match=r"no lab\.json"):
        scumble.lab(tmp_path, resume=True, quiet=True)
    with pytest.raises(ConfigError, match="steps"):
        scumble.lab(tmp_path / "x", steps=0, quiet=True)
    letters_model(seed=1).save_pretrained(tmp_path / "other")
    letters_tokenizer().save_pretrained(tmp_path / "other")
    with pytest.raises(ConfigError, match="the base is not what"):
        scumble.lab(whole.out, base=str(tmp_path / "other"), resume=True, quiet=True)
    assert not (tmp_path / "x").exists()


def test_a_damaged_state_is_said(tmp_path: Path) -> None:
    (tmp_path / "lab.json").write_text('{"asked": {}')
    with pytest.raises(ConfigError, match="is damaged"):
        scumble.lab(tmp_path, resume=True, quiet=True)


def test_a_folder_that_another_process_works_in_is_left_alone(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    (tmp_path / "lab.json").write_text("{}")
    handle = locked(tmp_path)
    assert handle is not None
    for how in ("force", "resume"):  # the lock comes before replacing it, and before reading what is in it
        with pytest.raises(OutputError, match="another process is training into"):
            scumble.lab(tmp_path, quiet=True, **{how: True})
    assert (tmp_path / "lab.json").read_text() == "{}"
    os.close(handle)


@pytest.mark.parametrize("force", [False, True])
def test_a_new_folder_is_locked_from_its_first_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, force: bool
) -> None:
    pytest.importorskip("fcntl")
    out = tmp_path / "lesson"
    if force:
        out.mkdir()

    def look(*args: Any) -> Any:
        with pytest.raises(OutputError, match="another process is training into"):
            locked(out)
        raise ScumbleError("seen")

    monkeypatch.setattr(lesson, "_run", look)
    with pytest.raises(ScumbleError, match="seen"):
        scumble.lab(out, quiet=True, force=force)
    handle = locked(out)
    assert handle is not None  # and open to all once it is over
    os.close(handle)


def test_it_is_numbered_where_not_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lesson-001").mkdir()
    assert lesson._numbered() == Path("lesson-002")
