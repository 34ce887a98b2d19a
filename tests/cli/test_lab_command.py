"""`scumble lab` on the command line: what it prints of a lesson, and what it refuses before anything is loaded."""

import json
from pathlib import Path

import pytest

from scumble.lab.lesson import lesson

DOCUMENT = {
    "asked": {"name": "quick"},
    "claims": [{"says": "More is more.", "verdict": "depends", "why": "One seed."}],
    "ways": [],
    "parts": {},
    "seconds": 1.0,
    "runs": {},
}


@pytest.fixture
def asked(monkeypatch):
    """What the function was asked, which trains nothing here."""
    found = {}

    def lab(out, **options):
        found.update(options, out=out)
        return lesson.Lesson(Path("lesson"), Path("lesson/lesson.html"), DOCUMENT)

    monkeypatch.setattr(lesson, "lab", lab)
    return found


def test_for_people(scumble, asked):
    ended = scumble("lab", "--quick", "--out", "x", "--steps", 5)
    assert ended.code == 0
    assert ended.out.split() == [
        "depends",
        "More",
        "is",
        "more.",
        "One",
        "seed.",
        "page:",
        "lesson/lesson.html",
    ]
    assert asked["quick"]
    assert asked["steps"] == 5
    assert asked["score"] is None
    assert asked["out"] == Path("x")


def test_json(scumble, asked):
    document = json.loads(scumble("lab", "--json").out)
    assert document["claims"] == DOCUMENT["claims"]
    assert document["page"] == "lesson/lesson.html"
    assert "runs" not in document  # it is long, and lies in lab.json


def test_other_experiments_do_not_start_it(scumble, asked):
    assert scumble("lab", "cron", "--help").code == 0
    assert asked == {}


def test_wrong_use(fails, here, monkeypatch):
    monkeypatch.setattr(lesson, "load_base", lambda *args: pytest.fail("the base was loaded"))
    assert fails("lab", "--resume")[0] == "--resume needs --out"
    assert fails("lab", "--steps", 0)[0] == "--steps is 0, and must be 2 or more"
    assert fails("lab", "--score", 2000)[0] == "--score is 2000, and must be 1000 or less"
    (here / "taken").mkdir()
    assert fails("lab", "--out", "taken")[0] == "taken exists already"
    assert fails("lab", "--out", "taken", "--resume")[0] == "taken has no lab.json"
