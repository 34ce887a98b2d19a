"""Parts by content: nothing is on two sides, and adding examples moves no others."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import scumble.data
from scumble.errors import ConfigError, DataError, OutputExistsError
from tests.bases import chat


def rows(n: int, **fields: Any) -> list[dict[str, Any]]:
    return [
        {**chat(f"question {i}", f"answer {i}"), **{name: make(i) for name, make in fields.items()}}
        for i in range(n)
    ]


def cut(data: Any, folder: Path, share: float | None = None, **options: Any) -> dict[str, list[Any]]:
    """The rows of each part."""
    found = scumble.data.split(data, share, out=folder, force=True, **options)
    parts = {
        name: [json.loads(line) for line in Path(file).read_text(encoding="utf-8").splitlines()]
        for name, file in found.files.items()
    }
    assert {name: len(held) for name, held in parts.items()} == found.examples
    return parts


def keys(held: list[Any]) -> set[str]:
    return {json.dumps(row["messages"]) for row in held}


def test_every_row_is_in_one_part_as_it_was(tmp_path) -> None:
    data = rows(200, note=lambda i: {"n": [i, None, "ä"]})
    parts = cut(data, tmp_path / "out")
    assert sorted(map(json.dumps, parts["train"] + parts["validation"])) == sorted(map(json.dumps, data))
    assert set(parts) == {"train", "validation"}
    assert 8 <= len(parts["validation"]) <= 35  # 20 are expected, with a spread of 4


def test_rows_keep_their_order(tmp_path) -> None:
    data = rows(100)
    for held in cut(data, tmp_path / "out").values():
        assert held == [row for row in data if row in held]


def test_adding_examples_moves_no_others(tmp_path) -> None:
    data = rows(400)
    few, many = cut(data[:200], tmp_path / "a"), cut(data[::-1], tmp_path / "b")
    for part in few:
        assert keys(few[part]) == keys(many[part]) & keys(data[:200])


def test_duplicates_are_on_one_side(tmp_path) -> None:
    data = rows(60)
    parts = cut(data * 3, tmp_path / "out", 0.3)
    assert not keys(parts["train"]) & keys(parts["validation"])
    assert all(count == 3 for held in parts.values() for count in Counter(map(json.dumps, held)).values())


def test_groups_are_on_one_side_and_those_with_an_equal_example_together(tmp_path) -> None:
    data = rows(120, document=lambda i: i // 4)
    bridge = {**data[0], "document": 29}  # document 29 holds the first example of document 0 too
    parts = cut([*data, bridge], tmp_path / "out", 0.3, group="document")
    held = {name: {row["document"] for row in each} for name, each in parts.items()}
    assert not held["train"] & held["validation"]
    assert ({0, 29} <= held["train"]) or ({0, 29} <= held["validation"])
    found = scumble.data.split([*data, bridge], 0.3, out=tmp_path / "again", group="document")
    assert (found.groups, found.repeated) == (29, 1)


def test_the_same_prompt_is_on_one_side(tmp_path) -> None:
    data = [chat(f"q{i % 50}", f"a{i}") for i in range(200)]
    parts = cut(data, tmp_path / "out", 0.3, group="@prompt")
    prompts = [{row["messages"][0]["content"] for row in held} for held in parts.values()]
    assert not prompts[0] & prompts[1]
    assert len(prompts[1]) > 5


def test_strata_are_in_proportion(tmp_path) -> None:
    data = rows(400, meta=lambda i: {"language": "de" if i % 10 == 0 else "en"})
    parts = cut(data, tmp_path / "out", 0.25, stratify="meta.language", test=0.1)
    counts = {name: Counter(row["meta"]["language"] for row in held) for name, held in parts.items()}
    assert counts["validation"] == {"en": 90, "de": 10}
    assert counts["test"] == {"en": 36, "de": 4}


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(20, 80), st.integers(0, 79))
def test_with_strata_an_added_example_moves_one_other_at_most(tmp_path, n: int, added: int) -> None:
    data = rows(80, kind=lambda i: i % 3)
    before = [row for row in data[:n] if row != data[added]]
    few = cut(before, tmp_path / "a", 0.2, stratify="kind")
    more = cut([*before, data[added]], tmp_path / "b", 0.2, stratify="kind")
    moved = keys(few["train"]) & keys(more["validation"]) | keys(few["validation"]) & keys(more["train"])
    assert len(moved) <= 1


def test_another_seed_cuts_elsewhere(tmp_path) -> None:
    data = rows(200)
    assert keys(cut(data, tmp_path / "a", seed=1)["validation"]) != keys(
        cut(data, tmp_path / "b")["validation"]
    )


def test_what_train_splits_off_by_itself_is_another_cut(tmp_path) -> None:
    from scumble.data.examples import read_examples, split_by_hash

    kept = cut(rows(300), tmp_path / "out", 0.1)["train"]
    _, held = split_by_hash(read_examples(kept), 0.1)
    assert len(held) > 10


@pytest.mark.parametrize("n", [2, 3, 5])
def test_no_part_is_empty(tmp_path, n: int) -> None:
    assert all(cut(rows(n), tmp_path / "out", 0.01).values())
    assert all(cut(rows(n), tmp_path / "out", 0.98).values())
    assert all(cut(rows(n), tmp_path / "out", 0.01, stratify="messages").values())


def test_fewer_examples_than_parts_are_refused(tmp_path) -> None:
    with pytest.raises(DataError, match="1 different examples, and 2 parts"):
        cut(rows(1) * 5, tmp_path / "out")
    with pytest.raises(DataError, match="2 different examples, and 3 parts"):
        cut(rows(2), tmp_path / "out", test=0.1)
    with pytest.raises(DataError, match="1 groups"):
        cut(rows(9, doc=lambda i: 0), tmp_path / "out", group="doc")
    assert not (tmp_path / "out").exists()


def test_a_missing_field_is_named_with_its_line(tmp_path) -> None:
    data = [*rows(3, doc=lambda i: i), *rows(1)]
    with pytest.raises(DataError, match="example 4: there is no field 'doc'") as error:
        cut(data, tmp_path / "out", group="doc")
    assert error.value.line == 4
    with pytest.raises(DataError, match="is null"):
        cut(rows(3, doc=lambda i: None), tmp_path / "out", group="doc")


def test_a_malformed_line_is_named_and_nothing_is_written(tmp_path) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_text(json.dumps(rows(1)[0]) + "\n{\n")
    with pytest.raises(DataError, match="line 2"):
        cut(file, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("wrong", [{"share": 0.0}, {"share": 1.0}, {"share": 0.6, "test": 0.5}])
def test_impossible_shares_are_refused(tmp_path, wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        cut(rows(5), tmp_path / "out", **wrong)


def test_nothing_is_overwritten_unasked(tmp_path) -> None:
    scumble.data.split(rows(9), out=tmp_path / "out")
    with pytest.raises(OutputExistsError):
        scumble.data.split(rows(9), out=tmp_path / "out")


def test_a_source_that_can_be_read_once_is_split_too(tmp_path) -> None:
    parts = cut(iter(rows(50)), tmp_path / "out")
    assert sum(map(len, parts.values())) == 50


def test_half_a_surrogate_pair_survives(tmp_path) -> None:
    data = [{**row, "note": "\ud800"} for row in rows(9)]
    assert all(row["note"] == "\ud800" for held in cut(data, tmp_path / "out").values() for row in held)


def components(drawn: list[tuple[int, int]]) -> int:
    """How many sets of groups hang together by equal contents, by merging until nothing changes."""
    sets = [{("content", content), ("group", group)} for content, group in drawn]
    while pair := next(((a, b) for a in sets for b in sets if a is not b and a & b), None):
        sets = [each for each in sets if each is not pair[0] and each is not pair[1]] + [pair[0] | pair[1]]
    return len(sets)


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.filter_too_much],
)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 5)), min_size=4, max_size=25), st.booleans())
def test_no_content_and_no_group_is_on_two_sides(
    tmp_path, drawn: list[tuple[int, int]], strata: bool
) -> None:
    data = [{**chat(f"q{content}", "a"), "group": group, "kind": content % 2} for content, group in drawn]
    assume(components(drawn) > 1)
    parts = cut(data, tmp_path / "out", 0.4, group="group", stratify="kind" if strata else None)
    assert all(parts.values())
    assert not keys(parts["train"]) & keys(parts["validation"])
    held = [{row["group"] for row in each} for each in parts.values()]
    assert not held[0] & held[1]


def test_tables_and_datasets_are_split_as_objects(tmp_path) -> None:
    import datasets

    table = tmp_path / "table.csv"
    table.write_text("instruction,output,topic\n" + "".join(f"ask {i},say {i},t{i % 9}\n" for i in range(60)))
    parts = cut(table, tmp_path / "out", 0.3, group="topic")
    assert parts["train"][0].keys() == {"instruction", "output", "topic"}
    assert sum(map(len, parts.values())) == 60
    held = datasets.Dataset.from_list([{"text": f"word {i}"} for i in range(60)])
    assert {"text": "word 3"} in [row for each in cut(held, tmp_path / "out", 0.3).values() for row in each]
