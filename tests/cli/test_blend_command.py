"""`scumble blend` and `scumble resize` on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.lora.synthetic import made


@pytest.fixture
def folders(here: Path) -> list[str]:
    """Two adapters, `a0` and `a1`."""
    for seed in range(2):
        made(seed=seed).save(here / f"a{seed}")
    return ["a0", "a1"]


def test_blend_prints_one_document_and_says_the_error_first(scumble, folders, here) -> None:
    ended = scumble("blend", "a0=0.7", "a1=0.3", "--method", "svd", "--rank", 3, "--out", "b", "--json")
    assert ended.code == 0, ended
    document = json.loads(ended.out)
    assert document["out"] == "b"
    assert document["rank"] == 3
    assert document["error"]["predicted"] == pytest.approx(document["error"]["measured"], rel=1e-4)
    assert f"predicted error {document['error']['predicted']:.2%}" in ended.err
    assert json.loads((here / "b" / "blend.json").read_text())["error"] == document["error"]


def test_blend_for_people(scumble, folders) -> None:
    ended = scumble("blend", "a0=0.7", "a1=-0.3", "--out", "b")
    assert ended.code == 0, ended
    assert "b: rank 8 on 4 modules" in ended.out
    assert "error: predicted " in ended.out


def test_resize_by_rank_and_by_energy(scumble, folders) -> None:
    by_rank = scumble("resize", "a0", "--rank", 2, "--out", "r", "--json")
    assert by_rank.code == 0, by_rank
    assert json.loads(by_rank.out)["rank"] == 2
    by_energy = scumble("resize", "a0", "--energy", 0.9, "--shared", "--out", "e", "--json")
    assert by_energy.code == 0, by_energy
    # what is kept has 0.9 of the square, so that at most the root of a tenth is missing
    assert json.loads(by_energy.out)["error"]["measured"] <= 0.1**0.5 + 1e-6


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (["blend", "a0=x", "--out", "b"], "the weight of a0 is 'x'", "PATH=WEIGHT"),
        (["blend", "none=1", "--out", "b"], "the adapter none does not exist", "name an adapter"),
        (["blend", "a0=1", "--out", "a1"], "a1 exists already", "--force"),
        (["blend", "a0=1", "--out", "a0", "--force"], "a0 is a0, which is read", "choose another"),
        (["blend", "a0=1", "--density", "0.3", "--out", "b"], "--density has no meaning", "ties"),
        (["blend", "a0=1", "--learn-steps", "3", "--out", "b"], "--learn-steps has no meaning", "learn from"),
        (["blend", "a0=1", "--method", "svd", "--out", "b"], "--method svd needs a rank", "--rank"),
        (["blend", "a0=1", "--method", "tie", "--out", "b"], "--method is 'tie'", "did you mean ties?"),
        (["blend", "a0=1", "--density", "2", "--out", "b"], "--density is 2.0", "share"),
        (["resize", "a0", "--out", "b"], "a new size is one of --rank and --energy", "one of the two"),
        (["resize", "a0", "--rank", "4", "--out", "b"], "would become smaller", "its ranks are 4"),
        (["resize", "a0", "--energy", "1.5", "--out", "b"], "--energy is 1.5", "share"),
        (
            ["resize", "none", "--rank", "4", "--out", "b"],
            "the adapter none does not exist",
            "name an adapter",
        ),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    fails, folders, here, words: list[str], message: str, hint: str
) -> None:
    said, told = fails(*words)
    assert message in said
    assert hint in told
    assert not (here / "b").exists()


@pytest.mark.parametrize("words", [["blend", "run=1"], ["resize", "run", "--rank", 2]])
def test_the_adapter_of_a_run_that_is_read_is_not_replaced(fails, here, words) -> None:
    made(seed=0).save(here / "run" / "adapter")
    before = {path.name: path.read_bytes() for path in (here / "run" / "adapter").iterdir()}
    said, _ = fails(*words, "--out", "run/adapter", "--force")
    assert "which is read" in said
    assert {path.name: path.read_bytes() for path in (here / "run" / "adapter").iterdir()} == before


@pytest.mark.parametrize("weights", [["a0=0"], ["a0=1", "a0=-1"]])
def test_a_sum_of_nothing_is_said(scumble, folders, weights) -> None:
    ended = scumble("blend", *weights, "--out", "b")
    assert ended.code == 0, ended
    assert "warning: the weighted sum of these updates is zero" in ended.err
    assert "is zero" not in scumble("blend", "a0=1", "a1=-1", "--out", "c").err


def test_bases_without_a_hash_are_named_without_one(scumble, here) -> None:
    for seed, base in enumerate(("one", "two")):
        adapter = made(seed=seed)
        adapter.spec = adapter.spec.with_base(base)
        adapter.save(here / f"a{seed}")
    assert "(a0: one, a1: two)" in scumble("blend", "a0", "a1", "--out", "b").err


def test_inspect_says_what_an_adapter_was_made_of(scumble, folders) -> None:
    scumble("blend", "a0=0.7", "a1=-0.3", "--method", "svd", "--rank", 3, "--out", "b")
    scumble("resize", "a0", "--rank", 2, "--out", "r")
    assert "blended (svd) from 0.7 * a0 + -0.3 * a1; its error was" in scumble("inspect", "b").out
    assert "resized from a0 to rank 2; its error was" in scumble("inspect", "r").out
    found = json.loads(scumble("inspect", "b", "--json").out)["adapters"][0]["made_from"]
    assert [(part["name"], part["weight"]) for part in found["parts"]] == [("a0", 0.7), ("a1", -0.3)]
