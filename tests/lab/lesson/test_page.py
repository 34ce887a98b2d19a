"""The page says of the figures what is so; that of the docs is made of the figures beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from scumble.lab.lesson.page import render_page

WHOLE = Path(__file__).parents[3] / "docs" / "lesson"


@pytest.fixture
def document() -> dict[str, Any]:
    return dict(json.loads((WHOLE / "lab.json").read_text(encoding="utf-8")))


def told(page: str) -> str:
    """What it says; how a picture is drawn depends on the version of what draws it."""
    before, _, after = page.partition("<h2>Pictures</h2>")
    return before + after.partition("<h2>Every way to train</h2>")[2]


def test_the_page_of_the_docs_is_of_their_figures(document: dict[str, Any]) -> None:
    page = render_page(document)
    assert told(page) == told((WHOLE / "lesson.html").read_text(encoding="utf-8"))
    assert "at most one in forty would be said to hold by chance" in page
    assert "one in twenty" not in page
    assert "broke off" not in page


def test_what_broke_off_is_counted(document: dict[str, Any]) -> None:
    name = sorted(document["runs"])[-1]
    document["runs"][name] |= {"failed": "the loss is no number", "validation": None}
    page = render_page(document)
    assert f"1 of {len(document['runs'])} runs broke off" in page
    assert "worst of their rates" not in page
