"""`manifest.json`: every flipped bit is found, and a manifest that is itself hostile is refused with one line."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scumble.errors import ManifestError
from scumble.manifest import MANIFEST_NAME, check_manifest, write_manifest


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "a.txt").write_bytes(b"some text")
    (tmp_path / "b.bin").write_bytes(bytes(range(256)) * 20)
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "c.txt").write_text("not listed")
    write_manifest(tmp_path)
    return tmp_path


def _edited(folder: Path, change) -> None:
    document = json.loads((folder / MANIFEST_NAME).read_text())
    change(document)
    (folder / MANIFEST_NAME).write_text(json.dumps(document))


def test_what_it_holds_and_that_it_is_deterministic(folder):
    text = (folder / MANIFEST_NAME).read_text()
    document = json.loads(text)
    assert document["format"] == 1
    assert document["bytes"] == {"a.txt": 9, "b.bin": 5120, "empty": 0}
    assert document["sha256"]["empty"].startswith("e3b0c44298fc1c149afbf4c8996fb924")
    assert check_manifest(folder)
    assert write_manifest(folder).read_text() == text
    assert json.loads(write_manifest(folder, ["a.txt"]).read_text())["bytes"] == {"a.txt": 9}


def test_no_manifest_is_no_error(tmp_path):
    assert check_manifest(tmp_path) is False


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, 5120 * 8 - 1))
def test_every_flipped_bit_is_found(folder, place):
    whole = (folder / "b.bin").read_bytes()
    data = bytearray(whole)
    data[place // 8] ^= 1 << place % 8
    (folder / "b.bin").write_bytes(data)
    with pytest.raises(ManifestError, match=r"b\.bin has another SHA-256"):
        check_manifest(folder)
    assert check_manifest(folder, ["a.txt"])
    (folder / "b.bin").write_bytes(whole)
    assert check_manifest(folder)


def test_which_file_differs_and_how(folder):
    (folder / "b.bin").write_bytes(b"short")
    with pytest.raises(ManifestError, match=r"b\.bin has 5 bytes, and manifest\.json says 5120") as error:
        check_manifest(folder)
    assert "delete manifest.json if it was changed on purpose" in error.value.hint
    (folder / "b.bin").unlink()
    with pytest.raises(ManifestError, match=r"b\.bin is missing"):
        check_manifest(folder)
    (folder / "b.bin").mkdir()
    with pytest.raises(ManifestError, match=r"b\.bin cannot be read: it is no regular file"):
        check_manifest(folder)
    with pytest.raises(ManifestError, match="does not list 'new'"):
        check_manifest(folder, ["new"])


NAMES = [
    "../a.txt",
    "/etc/passwd",
    "inside/c.txt",
    "a\\b",
    "..",
    ".",
    "",
    "\0",
    "\x1b[2J",
    "x" * 256,
    "c:x",
    MANIFEST_NAME,
]


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_a_name_that_leads_elsewhere(folder, name):
    def add(document):
        document["sha256"][name], document["bytes"][name] = "0" * 64, 1

    _edited(folder, add)
    with pytest.raises(ManifestError, match="not the name of a file beside it") as error:
        check_manifest(folder)
    assert str(error.value).isprintable()
    with pytest.raises(ManifestError):
        write_manifest(folder, [name])


def test_sums_that_are_known_are_not_computed_again(folder):
    (folder / "b.bin").write_bytes(b"b")
    text = write_manifest(folder, known={"a.txt": ("0" * 64, 9)}).read_text()
    assert json.loads(text)["sha256"]["a.txt"] == "0" * 64
    assert json.loads(text)["sha256"]["b.bin"] != "0" * 64
    with pytest.raises(ManifestError, match="another SHA-256"):
        check_manifest(folder)


VALUES = [
    None,
    3,
    "x",
    [],
    {},
    math.nan,
    [[]],
    {"a.txt": None},
    {"a.txt": "0" * 63},
    {"a.txt": "Z" * 64},
    {"a.txt": -1},
]


@pytest.mark.parametrize("value", [*VALUES, {"a.txt": True}, {"a.txt": 10**400}, {"a.txt": 1.5}], ids=str)
@pytest.mark.parametrize("key", ["sha256", "bytes", "format", None])
def test_a_malformed_manifest(folder, key, value):
    def change(document):
        document[key] = value

    if key is None:
        (folder / MANIFEST_NAME).write_text(json.dumps(value))
    else:
        _edited(folder, change)
    with pytest.raises(ManifestError) as error:
        check_manifest(folder)
    assert str(error.value).isprintable()
    assert len(error.value.message) < 500


@pytest.mark.parametrize("text", [b"", b"{", b"\xff", b"[" * 100_000, b" " * (4 * 2**20 + 1)], ids=range(5))
def test_a_manifest_that_is_no_json(folder, text):
    (folder / MANIFEST_NAME).write_bytes(text)
    with pytest.raises(ManifestError):
        check_manifest(folder)


@pytest.mark.parametrize("goal", ["/dev/zero", "missing", MANIFEST_NAME, "."])
def test_a_manifest_that_is_a_link_elsewhere(folder, goal):
    (folder / MANIFEST_NAME).unlink()
    (folder / MANIFEST_NAME).symlink_to(goal)
    with pytest.raises(ManifestError):
        check_manifest(folder)
