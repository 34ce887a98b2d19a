"""Each check on a file that triggers it, and on a near miss that does not."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from scumble.data.checking import check
from scumble.data.checks import leakage
from scumble.data.checks.finding import Finding
from scumble.data.checks.inspection import CHECKS, catalogue
from tests.data.checks.cases import CASES, GOOD, LEAKAGE, Case

ERRORS = {
    "unreadable", "malformed", "unsupported", "unknown_role", "no_assistant_turn", "null_content", "role_order",
    "nothing_supervised", "double_begin_token", "no_template", "template_refuses", "mask_refused", "end_not_supervised",
}  # fmt: skip


class Nothing:
    """An index that finds nothing."""

    def add(self, example: Any) -> None:
        pass

    def near(self, example: Any) -> list[int]:
        return []


def written(path: Path, rows: Sequence[Any]) -> str:
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return str(path)


def findings(folder: Path, name: str, case: Case, rows: Sequence[Any], *, near: bool) -> list[Finding]:
    """What is found; of a case of leakage the lines are those of validation."""
    tokenizer = (case.near_tokenizer if near and case.near_tokenizer else case.tokenizer)()
    options = case.near_options if near and case.near_options is not None else case.options
    if name in LEAKAGE:
        source = written(folder / "train.jsonl", case.good)
        options = {"eval": written(folder / "validation.jsonl", rows)}
    else:
        source = written(folder / "data.jsonl", [*case.good, *rows])
    return list(check(source, tokenizer=tokenizer, **{"eval": 0, **options}).findings)


def test_every_check_has_a_case_and_there_are_twenty_at_least():
    assert set(CASES) == set(CHECKS)
    assert len(CHECKS) >= 20
    assert {each.name for each in CHECKS.values() if each.severity == "error"} == ERRORS


@pytest.mark.parametrize("name", CHECKS)
def test_a_file_that_triggers_it(name, tmp_path, monkeypatch):
    if name == "near_duplicates" and not leakage.can_look():
        pytest.skip("datasketch is not installed")
    if name == "near_duplicates_not_looked_for":
        monkeypatch.setattr(leakage, "can_look", lambda: False)
    case = CASES[name]
    found = [each for each in findings(tmp_path, name, case, case.bad, near=False) if each.check == name]
    assert len(found) == 1
    before = 0 if name in LEAKAGE else len(case.good)
    assert found[0].lines == tuple(before + at for at in case.at)
    assert found[0].count == len(case.at)
    assert found[0].severity == CHECKS[name].severity
    assert Path(found[0].source).name == ("validation.jsonl" if name in LEAKAGE else "data.jsonl")
    assert found[0].message
    assert found[0].fix


@pytest.mark.parametrize("name", CHECKS)
def test_a_near_miss(name, tmp_path, monkeypatch):
    if name == "near_duplicates_not_looked_for":
        monkeypatch.setattr(leakage, "can_look", lambda: True)
        monkeypatch.setattr(leakage, "NearIndex", Nothing)
    case = CASES[name]
    found = findings(tmp_path, name, case, case.near, near=True)
    assert name not in {each.check for each in found}


def test_nothing_is_wrong_with_good_data(tmp_path):
    case = Case((), ())
    assert findings(tmp_path, "", case, (), near=False) == []
    assert len(GOOD) == 80


def test_every_check_says_what_goes_wrong_and_what_to_do():
    for each in catalogue():
        assert each.consequence.endswith(".")
        assert each.consequence.count(". ") == 0, "one sentence"
        assert each.fix
        assert each.title[0].islower()
