"""The page of a sweep, its drawings, and the table that changes while it runs."""

import io
import json
import re
from xml.etree import ElementTree

import pytest
from rich.console import Console

from scumble.train.sweep.drawing import Curve, Point, evaluations_alone, heat_map, loss_curves, tradeoff
from scumble.train.sweep.journal import Journal
from scumble.train.sweep.live import LiveReporter
from scumble.train.sweep.page import render_sweep
from scumble.train.sweep.sweep import sweep
from tests.bases import make_letters_base, sums

PATTERN = ".*[qv]_proj$|$never$"  # two dollars, which matplotlib would take for mathematics


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A sweep whose data, targets and failures have hostile names."""
    place = tmp_path_factory.mktemp("page")
    data = place / "<img src=x>&.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in sums(16)))
    options = {"rank": [2, 4], "targets": [PATTERN, "minimal"], "learning_rate": [0.01, 1e30], "max_steps": 6}
    how = {"eval": 0.25, "eval_every": 2, "batch": 4, "accumulate": 1, "metric": "exact_match"}
    sweep(str(data), out=place / "sweep", base=make_letters_base(), quiet=True, **options, **how)
    return place / "sweep"


def drawings(page):
    return re.findall(r"<svg\b.*?</svg>", page, flags=re.DOTALL)


def test_the_page_shows_all_and_asks_for_nothing(folder):
    page = (folder / "report.html").read_text()
    assert len(drawings(page)) == 6  # three, for wide windows and for narrow ones
    for svg in drawings(page):
        ElementTree.fromstring(svg)
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert "http://" not in page.replace("http-equiv", "")
    assert "https://" not in page
    assert "<script" not in page
    assert "failed: step " in page
    for title in ("What more parameters bring", "Rank by targets", "Losses"):
        assert title in page


def test_what_strangers_wrote_is_escaped(folder):
    page = (folder / "report.html").read_text()
    assert "<img" not in page
    assert "&lt;img src=x&gt;&amp;.jsonl" in page
    assert "$never$" in page


def test_the_same_sweep_gives_the_same_page(folder):
    journal = Journal.opened(folder)
    assert render_sweep(journal) == render_sweep(journal)


def test_one_setting_has_a_page_without_a_tradeoff(tmp_path):
    how = {"max_steps": 2, "eval": 0.25, "batch": 4, "accumulate": 1}
    sweep(sums(12), out=tmp_path / "one", base=make_letters_base(), rank=2, quiet=True, **how)
    page = (tmp_path / "one" / "report.html").read_text()
    assert len(drawings(page)) == 2
    assert "What more parameters bring" not in page


def rows(n, evaluations):
    steps = [{"step": i, "loss": 2 / i, "learning_rate": 1e-3} for i in range(1, n + 1)]
    return steps + [{"step": i * n // evaluations, "eval_loss": 3 / (i + 1)} for i in range(evaluations + 1)]


def test_few_evaluations_are_dots_on_the_training_losses():
    few, many = Curve([rows(20, 1)], "#3f86a6"), Curve([rows(20, 5)], "#3f86a6")
    assert not evaluations_alone([few])
    assert evaluations_alone([many])
    for curve in (few, many, Curve([rows(1, 1)], "#3f86a6"), Curve([[]], "#3f86a6")):
        ElementTree.fromstring(loss_curves([curve], "wide"))


@pytest.mark.parametrize("size", ["wide", "narrow"])
def test_figures_at_their_limits_are_drawn(size):
    same = [Point(f"rank {i}", 1000, 0.0, (0.0, 0.1), i == 0, i == 0) for i in range(3)]
    ElementTree.fromstring(tradeoff(same, "exact match", size, shares=True))
    far = [Point("a", 1, 1e-4, None, True, False), Point("b", 10**10, 50.0, None, False, True)]
    ElementTree.fromstring(tradeoff(far, "validation loss", size, shares=False))
    ElementTree.fromstring(heat_map({("a", "4"): 0.5}, ["4", "8"], ["a", "b" * 90], size, shares=True))


def test_on_a_terminal_a_table_changes_in_place(tmp_path, monkeypatch):
    shown = io.StringIO()
    real = LiveReporter.__init__

    def on_a_terminal(self, *, quiet=False):
        real(self, quiet=quiet)
        self.console = Console(file=shown, force_terminal=True, width=100, height=20)

    monkeypatch.setattr(LiveReporter, "__init__", on_a_terminal)
    monkeypatch.setattr("scumble.train.sweep.live._PAUSE", 0.0)
    how = {"max_steps": 4, "eval": 0.25, "batch": 4, "accumulate": 1, "eval_every": 2}
    sweep(sums(12), out=tmp_path / "s", base=make_letters_base(), rank=[2, 4, 8], **how)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.getvalue())
    assert re.search(r"001-rank2 +2/4 +\d+\.\d+ +\d+\.\d+ +training", text)
    assert "003-rank8" in text
    assert "finished" in text


def test_elsewhere_each_trial_has_its_line_once(tmp_path, capsys):
    how = {"max_steps": 4, "eval": 0.25, "batch": 4, "accumulate": 1}
    sweep(sums(12), out=tmp_path / "s", base=make_letters_base(), rank=[2, 4], metric="exact_match", **how)
    err = capsys.readouterr().err
    assert err.count("001-rank2 finished after step 4, validation loss ") == 1
    assert err.count("002-rank4 finished after step 4, validation loss ") == 1
