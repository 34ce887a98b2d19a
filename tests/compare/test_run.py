"""`compare`: an adapter on disk, by its folder or its run's, on any data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import scumble
from scumble.errors import ConfigError, DataError, MissingFileError
from scumble.models.base import Base
from tests.bases import letters_model, make_letters_base, sums
from tests.compare.adapters import moved_bank


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A folder that holds an adapter as a run does."""
    bank = moved_bank()
    bank.save("adapter", tmp_path / "run" / "adapter")
    bank.close()
    return tmp_path / "run"


def compare(run: Any, **options: Any) -> Any:
    return scumble.compare(
        run, **{"data": sums(3), "base": make_letters_base(), "max_new_tokens": 4, **options}
    )


def test_a_run_is_its_adapter(run: Path) -> None:
    found = compare(run)
    assert found == compare(run / "adapter")
    assert found.adapter == str(run / "adapter")
    assert found.adapter_bytes == (run / "adapter" / "adapter_model.safetensors").stat().st_size
    assert found.answers
    assert any(before != after for before, after in found.answers)


def test_the_base_is_given_back(run: Path) -> None:
    base = make_letters_base()
    before = {name: tensor.clone() for name, tensor in base.model.state_dict().items()}
    compare(run, base=base)
    after = base.model.state_dict()
    assert before.keys() == after.keys()
    assert all(before[name].equal(after[name]) for name in before)


def test_a_shipped_set_brings_its_metric_and_its_length(run: Path) -> None:
    # what the command line leaves open comes as None, and is no reason for another length
    for left_open in ({}, {"max_new_tokens": None}):
        found = scumble.compare(run, data="tickets", base=make_letters_base(), limit=1, **left_open)
        assert found.metric.name == "json_exact_match"
        assert found.settings["max_new_tokens"] == 64
        assert found.data["source"] == "tickets test"


def test_a_file_of_the_name_of_a_shipped_set_is_a_file(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tickets").write_text("".join(json.dumps(row) + "\n" for row in sums(2)))
    found = compare(run, data=Path("tickets"))
    assert (found.metric.name, found.metric.n) == ("exact_match", 2)


def test_what_is_wrong_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'rouge' is not known"):
        compare(run, metric="rouge")
    with pytest.raises(ConfigError, match="limits"):
        compare(run, limits=3)
    with pytest.raises(MissingFileError, match="nowhere"):
        compare(tmp_path / "nowhere")
    with pytest.raises(MissingFileError):
        compare(run, data="nowhere.jsonl")
    with pytest.raises(DataError, match="no tokenizer"):
        compare(run, base=Base(letters_model(), None, "letters"))
