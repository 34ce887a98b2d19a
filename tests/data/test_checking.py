"""`check` as a whole: what it counts, where validation comes from, what it holds, and in which order it reports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from scumble.data import checking, token_cache
from scumble.data.checking import check
from scumble.data.checks import leakage
from scumble.data.checks.finding import KEPT
from scumble.data.encoding import encode_all, encode_each
from scumble.data.examples import iter_examples, read_examples, split_by_hash
from scumble.errors import ConfigError, DataError, MissingFileError
from tests.bases import CHATML, chat, letters_tokenizer, sums


def written(path: Path, rows: list[Any]) -> str:
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return str(path)


def named(found: Any) -> list[str]:
    return [each.check for each in found.findings]


class Remembering:
    """Stands in for the index: says what was put in, and what was asked."""

    made: list[Remembering] = []  # noqa: RUF012

    def __init__(self) -> None:
        self.added: list[str] = []
        self.asked: list[str] = []
        self.made.append(self)

    def add(self, example: Any) -> None:
        self.added.append(example.question)

    def near(self, example: Any) -> list[int]:
        self.asked.append(example.question)
        return []


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> list[Remembering]:
    monkeypatch.setattr(Remembering, "made", [])
    monkeypatch.setattr(leakage, "can_look", lambda: True)
    monkeypatch.setattr(leakage, "NearIndex", Remembering)
    return Remembering.made


def test_the_counts_are_those_of_encoding() -> None:
    rows = sums(70)
    whole = encode_all(read_examples(rows), letters_tokenizer(), 4096)
    found = check(rows, tokenizer=letters_tokenizer(), eval=0)
    assert (found.examples, found.tokens, found.supervised_tokens) == (70, whole.tokens, whole.targets)
    assert (found.format, found.format_reason) == ("chat", "70 of 70 examples have `messages`")
    assert (found.findings, found.validation) == ((), "")


def test_everything_wrong_with_a_file_is_found_at_once_errors_first(tmp_path: Path) -> None:
    rows = [*sums(70), "{", chat("a", ""), chat("b", "c", "d"), {"messages": [{"role": "x", "content": "y"}]}]
    found = check(written(tmp_path / "data.jsonl", rows), tokenizer=letters_tokenizer(), eval=0)
    assert named(found) == ["unreadable", "unknown_role", "no_answer_at_the_end", "empty_answers"]
    assert [each.lines for each in found.findings] == [(71,), (74,), (73,), (72,)]
    assert [each.check for each in found.errors] == ["unreadable", "unknown_role"]
    assert found.examples == 72
    assert "1 of 74 examples" in found.findings[0].message
    assert found.findings[0].where.endswith("data.jsonl, line 71")


def test_a_document_has_the_keys_of_the_contract() -> None:
    found = check([*sums(70), chat("a", "")], tokenizer=letters_tokenizer(), eval=0).to_dict()
    assert json.loads(json.dumps(found)) == found
    assert {"examples", "tokens", "supervised_tokens", "findings"} <= set(found)
    assert {"check", "severity", "lines", "message", "fix"} <= set(found["findings"][0])


def test_without_a_tokenizer_what_needs_none_is_found() -> None:
    found = check([*sums(70), chat("a", "")])
    assert "empty_answers" in named(found)
    assert (found.tokens, found.supervised_tokens) == (0, 0)
    with pytest.raises(ConfigError, match="a template is given without a tokenizer"):
        check(sums(3), template="x.jinja")


def test_many_lines_are_counted_and_the_first_are_named() -> None:
    rows = [chat(f"{i}", "") for i in range(KEPT + 50)]
    found = next(each for each in check(rows, eval=0).findings if each.check == "empty_answers")
    assert found.count == KEPT + 50
    assert found.lines == tuple(range(1, KEPT + 1))


def test_a_generator_is_read_once_and_checked_whole() -> None:
    found = check((row for row in sums(70)), tokenizer=letters_tokenizer())
    assert found.examples == 70


def test_a_file_is_never_held_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many examples there are, few of them are alive at once."""
    alive = most = 0

    class Row(dict):
        def __init__(self, *of: Any) -> None:
            nonlocal alive, most
            super().__init__(*of)
            alive += 1
            most = max(most, alive)

        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    def rows(*args: Any, **options: Any) -> Any:
        for example in iter_examples(*args, **options):
            yield type(example)(tuple(map(Row, example.messages)), example.where, number=example.number)

    monkeypatch.setattr(checking, "iter_examples", rows)
    file = written(tmp_path / "data.jsonl", sums(3000))
    assert check(file, tokenizer=letters_tokenizer()).examples == 3000
    assert 0 < most < 2000  # of 6000 messages; 256 examples of two are tokenized at once, a few times


@pytest.mark.parametrize(("train", "validation"), [(80, 20), (20, 80)])
def test_the_smaller_part_is_indexed_and_the_larger_looked_up(
    tmp_path: Path, index: list[Remembering], train: int, validation: int
) -> None:
    data = written(tmp_path / "train.jsonl", sums(train))
    held = written(tmp_path / "validation.jsonl", sums(validation, start=1000))
    found = check(data, eval=held)
    assert (len(index[0].added), len(index[0].asked)) == (20, 80)
    assert (found.examples, found.validation) == (train, held)


@pytest.mark.parametrize("share", [None, 0.3, 0.8])
def test_of_a_share_the_smaller_part_is_indexed(index: list[Remembering], share: float | None) -> None:
    rows = sums(200)
    kept, held = split_by_hash(read_examples(rows), share or 0.1)
    smaller, larger = sorted([kept, held], key=len)
    check(rows, eval=share)
    assert index[0].added == [each.question for each in smaller]
    assert index[0].asked == [each.question for each in larger]


def test_a_shipped_set_is_validated_by_its_own_part(index: list[Remembering]) -> None:
    found = check("cron")
    assert found.validation == "cron validation"
    assert len(index[0].added) < len(index[0].asked)


@pytest.mark.parametrize("name", ["cron", "tickets"])
def test_nothing_is_wrong_with_what_is_shipped(name: str) -> None:
    found = check(name, tokenizer=letters_tokenizer())
    missing = [] if leakage.can_look() else ["near_duplicates_not_looked_for"]
    assert named(found) == missing


def test_the_same_examples_in_both_are_found_whichever_is_smaller(tmp_path: Path) -> None:
    few, many = sums(20), sums(80)
    for train, held in ((few, many), (many, few)):
        data = written(tmp_path / "train.jsonl", train)
        found = check(data, eval=written(tmp_path / "validation.jsonl", held)).findings
        both = next(each for each in found if each.check == "in_both_parts")
        assert both.lines == tuple(range(1, 21))
        assert both.source.endswith("validation.jsonl")


def test_validation_is_checked_like_the_rest(tmp_path: Path) -> None:
    held = written(tmp_path / "validation.jsonl", [*sums(5, start=500), chat("a", "")])
    found = [each for each in check(sums(70), eval=held).findings if each.check == "empty_answers"]
    assert [(each.source, each.lines) for each in found] == [(held, (6,))]


@pytest.mark.parametrize(
    ("length", "fix"),
    [(40, "--max-length 40 keeps all"), (30, "--max-length 36 keeps 99 %, and --max-length 140 keeps all")],
)
def test_the_length_that_keeps_99_percent(length: int, fix: str) -> None:
    """200 examples of 36 tokens or fewer, and one or two of more."""
    marks = len(encode_all(read_examples([chat("", "a")]), letters_tokenizer(), 99).examples[0].ids) - 1
    rows = [chat(f"{i:03d}", "b" * (36 - 3 - marks)) for i in range(200)]
    rows.append(chat("x", "c" * ((40 if length == 40 else 140) - 1 - marks)))
    found = check(rows, tokenizer=letters_tokenizer(), eval=0, max_length=39 if length == 40 else length)
    assert next(each for each in found.findings if each.check == "too_long").fix.startswith(fix)


def test_a_template_of_a_file_is_used(tmp_path: Path) -> None:
    file = tmp_path / "template.jinja"
    file.write_text(CHATML.replace("<|im_start|>", "<|im_start|><|im_start|>"))
    plain, doubled = (
        check(sums(70), tokenizer=letters_tokenizer(), template=each, eval=0) for each in (None, file)
    )
    assert doubled.tokens == plain.tokens + 2 * 70
    assert doubled.supervised_tokens == plain.supervised_tokens


def test_only_the_last_answer(tmp_path: Path) -> None:
    rows = [chat("a", "bbbb", "c", f"{i}") for i in range(70)]
    everything, last = (
        check(rows, tokenizer=letters_tokenizer(), train_on=each, eval=0)
        for each in ("all", "last")
    )  # fmt: skip
    assert everything.supervised_tokens - last.supervised_tokens == 70 * 5  # four letters and the end


def test_a_source_that_cannot_be_read_is_raised(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError):
        check(str(tmp_path / "nothing.jsonl"))
    with pytest.raises(MissingFileError):
        check(sums(3), eval=str(tmp_path / "nothing.jsonl"))
    with pytest.raises(DataError, match="empty"):
        check(written(tmp_path / "empty.jsonl", []))
    for wrong in ({"format": "csv"}, {"train_on": "first"}, {"eval": 2}, {"max_length": 0}):
        with pytest.raises(ConfigError):
            check(sums(3), **wrong)


def test_what_a_finding_quotes_is_printable(tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "\x1b[31m\n", "content": "y"}]}, *sums(3)]
    found = check(written(tmp_path / "data.jsonl", rows)).findings[0]
    assert found.check == "unknown_role"
    assert found.message.isprintable()
    assert found.detail.isprintable()


@pytest.mark.parametrize("worth", [1, 10**9])
def test_tokens_of_a_large_file_are_made_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, worth: int
) -> None:
    monkeypatch.setattr(checking, "WORTH_KEEPING", worth)
    file = written(tmp_path / "data.jsonl", [*sums(70), chat("a", ""), chat("b", "c", "d")])
    options: dict[str, Any] = {"tokenizer": letters_tokenizer(), "eval": 0, "cache": tmp_path / "tokens"}
    first = check(file, **options)
    monkeypatch.setattr(token_cache, "encode_each", None)  # the second time nothing may be tokenized
    monkeypatch.setattr(checking, "encode_each", encode_each if worth > 1 else None)
    assert check(file, **options) == first
    assert (tmp_path / "tokens").exists() == (worth == 1)


def test_kept_tokens_know_which_examples_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checking, "WORTH_KEEPING", 1)
    monkeypatch.setattr(token_cache, "TOGETHER", 5)
    silent = chat("x", "y")
    silent["messages"][1]["weight"] = 0
    rows = [*sums(7), silent, *sums(60, start=100), silent]
    found = check(
        written(tmp_path / "data.jsonl", rows),
        tokenizer=letters_tokenizer(),
        eval=0,
        cache=tmp_path / "tokens",
    )
    assert next(each.lines for each in found.findings if each.check == "nothing_supervised") == (8, 69)
    assert found.examples == 69
