import json

import pytest

from scumble.models import embedded
from scumble.models.doctor import diagnose


@pytest.fixture(autouse=True)
def two_threads(home, monkeypatch):
    monkeypatch.setenv("SCUMBLE_THREADS", "2,1")


def test_it_reports_and_builds_nothing(tiny_build, home):
    report = diagnose().to_dict()
    json.dumps(report)
    assert tiny_build == []
    assert not home.exists()
    assert report["versions"]["transformers"].startswith("5.")
    assert report["threads"]["train"] == 2
    assert report["cache"]["path"] == str(home)
    assert report["cache"]["writable"]
    assert report["default_base"] == "smollm2"
    assert not report["embedded"]["ready"]
    assert report["embedded"]["source_bytes"] == 4
    assert report["devices"][0]["kind"] == "cpu"


def test_it_finds_the_copy(tiny_build):
    copy = embedded.ensure()
    found = diagnose().embedded
    assert found["ready"]
    assert found["hash"] == copy.weights_hash
    assert found["path"] == str(copy.folder)
    assert diagnose().cache["bytes"] > copy.weight_bytes


def test_it_names_a_missing_package(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install" in diagnose().embedded["problem"]
