"""`lab.json` that cannot be gone on with is said to be damaged in one line; what the program wrote can be read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import scumble
from scumble.errors import ConfigError
from scumble.lab.lesson.state import State

WHOLE = Path(__file__).parents[3] / "docs" / "lesson"
TEXT = (WHOLE / "lab.json").read_text(encoding="utf-8")


def test_a_whole_one_is_read() -> None:
    found, written = State.read(WHOLE), json.loads(TEXT)
    assert (found.asked, found.runs, found.parts) == (written["asked"], written["runs"], written["parts"])
    assert found.seconds == written["seconds"]


def test_one_that_was_just_begun_is_read(tmp_path: Path) -> None:
    State(tmp_path, json.loads(TEXT)["asked"]).save()
    assert State.read(tmp_path).runs == {}


def refused(folder: Path, text: str) -> None:
    (folder / "lab.json").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as raised:
        scumble.lab(folder, quick=True, resume=True, quiet=True)
    assert raised.value.message == f"{folder / 'lab.json'} is damaged"
    assert raised.value.hint == "start over with --force"


def first(found: dict[str, Any]) -> Any:
    return next(iter(found.values()))


def cut(found: dict[str, Any]) -> None:
    name = next(iter(found["scores"]))
    found["scores"][name] = found["scores"][name][1:]


DAMAGES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "nothing asked": lambda found: found.update(asked={}),
    "no list of what was asked": lambda found: found.update(asked=[1]),
    "no seeds": lambda found: found["asked"].update(seeds=[]),
    "steps in words": lambda found: found["asked"].update(steps="92"),
    "another number of examples": lambda found: found["asked"].update(examples=1),
    "a whole number beyond every float": lambda found: found.update(seconds=10**400),
    "a rate below nothing": lambda found: first(found["runs"]).update(rate=-1.0),
    "a run without its size": lambda found: first(found["runs"]).pop("bytes"),
    "a mark missing": cut,
    "a part that is null": lambda found: found["parts"].update(memory=None),
    "a spectrum without ranks": lambda found: first(found["spectra"]).pop("held"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_damaged_is_said_in_one_line(tmp_path: Path, damage: str) -> None:
    found = json.loads(TEXT)
    DAMAGES[damage](found)
    refused(tmp_path, json.dumps(found))


def test_nesting_without_end_is_damage(tmp_path: Path) -> None:
    refused(tmp_path, "[" * 200_000)
    refused(tmp_path, TEXT.replace('"named": null', f'"named": {"[" * 200_000}{"]" * 200_000}'))
