"""The drawing of a plan: what stands side by side, its sums, and the file."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from scumble.errors import ConfigError, OutputExistsError
from scumble.plan.picture import bars, check_plot, draw, picture
from scumble.plan.plan import Plan, plan
from scumble.plan.tape import PARTS
from tests.bases import letters_model


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    path = tmp_path_factory.mktemp("base") / "config.json"
    path.write_text(json.dumps(letters_model().config.to_dict()))
    return plan(path, max_length=64, gpu="700MB", method="qlora")


def test_the_order_is_the_same_whatever_was_asked_for(found):
    titles = [title for title, _ in bars(found)]
    assert titles[:3] == ["LoRA", "QLoRA", "full"]
    assert titles[-1] == "plain script, QLoRA, gradient checkpointing"


def test_every_bar_ends_at_its_peak(found):
    axes = picture(found).axes[0]
    ends = {}
    for part in axes.patches:
        row = round(part.get_y() + part.get_height() / 2)
        ends[row] = max(ends.get(row, 0), part.get_x() + part.get_width())
    assert list(ends.values()) == pytest.approx([memory.peak / 1e9 for _, memory in bars(found)])


def test_the_file_has_a_legend_and_titles_as_text(found, tmp_path):
    text = draw(found, tmp_path / "plan.svg").read_text()
    said = re.findall(r"<text[^>]*>([^<]+)", text)
    assert {*PARTS, "LoRA", "full", "700MB"} <= set(said)
    assert list(tmp_path.iterdir()) == [tmp_path / "plan.svg"]
    assert draw(found, tmp_path / "again.svg").read_text() == text


def test_a_file_that_is_there_is_kept_without_force(tmp_path):
    file = tmp_path / "plan.svg"
    file.write_text("mine")
    with pytest.raises(OutputExistsError):
        check_plot(file, force=False)
    check_plot(file, force=True)
    with pytest.raises(ConfigError, match="SVG"):
        check_plot(Path("plan.png"), force=False)
