"""`scumble merge` and `scumble unmerge` on the command line."""

import json

import pytest


@pytest.fixture
def merged(scumble, here, run_folder):
    """A merge with its difference, and what the command printed."""
    ended = scumble("merge", run_folder, "--out", "merged", "--keep-difference", "--json")
    assert ended.code == 0, ended
    return json.loads(ended.out)


def test_json(scumble, here, merged):
    assert {"out", "certificate", "base", "dtype", "tensors", "changed"} <= merged.keys()
    assert merged["out"] == "merged"
    assert merged["certificate"]["passed"]
    assert merged["certificate"] == json.loads((here / "merged" / "certificate.json").read_text())
    ended = scumble("unmerge", "merged", "--out", "base", "--json")
    assert ended.code == 0
    document = json.loads(ended.out)
    assert document["out"] == "base"
    assert document["tensors"] == merged["tensors"]


def test_for_people(scumble, here, run_folder, letters_folder):
    ended = scumble("merge", run_folder, "--out", "merged", "--prompts", "a lamp", "--prompts", "and a ship")
    assert ended.code == 0
    assert ended.out.startswith("merged: ")
    assert "certificate: passed" in ended.out
    assert "largest logit difference" in ended.out
    found = json.loads((here / "merged" / "certificate.json").read_text())
    assert found["prompts"]["texts"] == ["a lamp", "and a ship"]


def test_a_merged_folder_is_a_base(scumble, here, run_folder, merged):
    from scumble import load_base

    assert load_base("merged", device="cpu").hash != load_base(merged["base"], device="cpu").hash


def test_bytes_come_back(scumble, here, letters_folder, merged):
    ended = scumble("unmerge", "merged", "--out", "again")
    assert ended.code == 0
    assert "all" in ended.out
    name = "model.safetensors"
    assert (here / "again" / name).read_bytes() == (letters_folder / name).read_bytes()


def test_failures_are_one_line(fails, here, run_folder, merged):
    assert "exists already" in fails("merge", run_folder, "--out", "merged")[0]
    assert "does not exist" in fails("merge", "no-such-run", "--out", "x")[0]
    assert "dtype 'int3'" in fails("merge", run_folder, "--out", "x", "--dtype", "int3")[0]
    (here / "merged" / "merge.difference").unlink()
    message, hint = fails("unmerge", "merged", "--out", "x")
    assert f"that is at {merged['base']}" in message
    assert "--keep-difference" in hint
    assert not (here / "x").exists()


def test_a_merge_that_loses_the_update_exits_1(fails, here, run_folder):
    from scumble import Adapter

    small = Adapter.load(run_folder)
    for factors in small.factors.values():
        factors.B.mul_(1e-6)
    small.save(here / "small")
    message, hint = fails("merge", "small", "--out", "x", "--dtype", "bf16")
    assert message.startswith("the merge failed its certificate: ")
    assert "--dtype fp32" in hint
    assert not (here / "x").exists()
    fails("merge", "small", "--out", "x", "--dtype", "bf16", "--keep-failed")
    assert not json.loads((here / "x" / "certificate.json").read_text())["passed"]
