"""A preview shows what training sees: the same tokens, the same losses."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import scumble.data
from scumble.data.encoding import encode_all
from scumble.data.examples import read_examples
from scumble.data.preview_page import render_preview
from scumble.data.previewing import Preview
from scumble.errors import ConfigError, DataError, OutputExistsError
from tests.bases import END, START, chat, letters_tokenizer, make_letters_base, sums

TOKENIZER = letters_tokenizer()


def look(rows: Any, n: int | None = None, **options: Any) -> Preview:
    return scumble.data.preview(rows, n, tokenizer=TOKENIZER, **options)


def test_the_tokens_are_those_of_training() -> None:
    rows = sums(12)
    found, trained = look(rows, 12), encode_all(read_examples(rows), TOKENIZER, 4096)
    assert [tuple(t.id for t in each.tokens) for each in found.shown] == [e.ids for e in trained.examples]
    assert [tuple(t.supervised for t in each.tokens) for each in found.shown] == [
        e.supervised for e in trained.examples
    ]
    assert (found.examples, found.tokens) == (12, trained.tokens)
    assert found.supervised_tokens == trained.targets
    assert found.complete
    assert sum(bar.examples for bar in found.bars) == 12


def test_answers_and_their_ends_are_supervised_and_special_tokens_are_marked() -> None:
    (shown,) = look([chat("hi", "so")], 1).shown
    assert "".join(token.text for token in shown.tokens if token.supervised) == "so" + END
    assert {token.text for token in shown.tokens if token.special} == {START, END}


def test_only_the_last_answer_where_asked() -> None:
    row = chat("a", "first", "b", "second")
    assert "".join(t.text for t in look([row], 1).shown[0].tokens if t.supervised) == f"first{END}second{END}"
    found = look([row], 1, train_on="last")
    assert "".join(t.text for t in found.shown[0].tokens if t.supervised) == f"second{END}"


def test_the_template_of_a_file_is_used(tmp_path) -> None:
    file = tmp_path / "plain.jinja"
    file.write_text(
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    found = look([chat("q", "a")], 1, template=file)
    assert "".join(token.text for token in found.shown[0].tokens) == f"[user]q{END}[assistant]a{END}"
    assert found.template == str(file)


def test_long_examples_are_measured_and_said_to_be_left_out() -> None:
    found = look([chat("q", "a"), chat("q", "a" * 200)], 2, max_length=100)
    assert [each.kept for each in found.shown] == [True, False]
    assert found.too_long == 1
    assert found.tokens == len(found.shown[0].tokens)
    assert found.lengths.max > 200


def test_the_first_so_many_are_measured() -> None:
    found = look(sums(10), 1, limit=4)
    assert (found.examples, found.complete) == (4, False)
    assert look(sums(4), 1, limit=4).complete


def test_what_cannot_be_read_is_told_and_the_rest_is_shown(tmp_path) -> None:
    file = tmp_path / "mixed.jsonl"
    file.write_text(f"{json.dumps(chat('q', 'a'))}\nno JSON\n{json.dumps({'messages': []})}\n")
    found = look(file, 3)
    assert (found.examples, found.refused) == (1, 2)
    assert "line 2" in found.problems[0]
    assert "line 3" in found.problems[1]


def test_where_nothing_can_be_shown_the_first_reason_is_raised(tmp_path) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_text("no JSON\n" * 3)
    with pytest.raises(DataError, match="line 1"):
        look(file)


@pytest.mark.parametrize("wrong", [{"n": -1}, {"limit": 0}, {"batch": 0}, {"train_on": "first"}])
def test_wrong_options_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        look(sums(2), **wrong)


def test_a_base_is_taken_for_its_tokenizer() -> None:
    found = scumble.data.preview(sums(2), tokenizer=make_letters_base())
    assert found.tokens == look(sums(2)).tokens


def test_what_json_prints() -> None:
    document = json.loads(json.dumps(look(sums(5), 1).to_dict()))
    assert document["shown"][0]["tokens"][0] == {
        "id": TOKENIZER.convert_tokens_to_ids(START),
        "text": START,
        "supervised": False,
        "special": True,
    }
    assert document["supervised_share"] == document["supervised_tokens"] / document["tokens"]
    assert {"packing", "prefixes"} <= set(document["savings"])


# The page.


class Marked(HTMLParser):
    """The texts of the page's tokens, and the classes of each."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.tokens: list[tuple[str, str]] = []
        self._kind: str | None = None
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.add(tag)
        self._kind = dict(attrs).get("class", "") if tag == "bdi" and "title" in dict(attrs) else None
        if self._kind is not None:
            self.tokens.append((self._kind, ""))

    def handle_data(self, data: str) -> None:
        if self._kind is not None:
            self.tokens[-1] = (self._kind, self.tokens[-1][1] + data)

    def handle_endtag(self, tag: str) -> None:
        self._kind = None


def test_the_page_shows_every_token_with_its_kind() -> None:
    found = look([chat("hi", "so")], 1)
    page = Marked(render_preview(found))
    assert len(page.tokens) == len(found.shown[0].tokens)
    assert [text for kind, text in page.tokens if "loss" in kind.split()] == ["s", "o", END]
    assert {text for kind, text in page.tokens if "special" in kind.split()} == {START, END}


def test_texts_of_strangers_are_escaped() -> None:
    hostile = "</bdi><script>alert(1)</script>{{ 7 * 7 }}"
    page = render_preview(look([chat(hostile, "a\x1b[0m")], 1))
    assert "script" not in Marked(page).tags
    assert "\x1b" not in page
    assert "http" not in page.replace("http-equiv", "")


def test_a_very_long_example_is_cut_on_the_page() -> None:
    page = render_preview(look([chat("q" * 9000, "a")], 1, max_length=20_000))
    assert len(Marked(page).tokens) == 3000
    assert "tokens not shown" in page


def test_no_example_shown_is_no_section() -> None:
    assert "The first" not in render_preview(look(sums(3), 0))


def test_a_page_is_not_overwritten(tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    look(sums(2), html=file)
    assert "token by token" in file.read_text(encoding="utf-8")
    with pytest.raises(OutputExistsError):
        look(sums(2), html=file)
    look(sums(3), html=file, force=True)
