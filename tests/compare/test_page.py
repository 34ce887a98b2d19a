"""The page of a comparison: escaped, whole in itself, and the same for the same comparison."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any

import pytest

from scumble.compare.page import render_comparison, size_bars

VOID = {"meta", "br", "hr", "img", "link", "input"}


class Balance(HTMLParser):
    """Fails where a tag is closed that was not open last; keeps the text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.seen.append(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def read(page: str) -> Balance:
    parser = Balance()
    parser.feed(page)
    parser.close()
    assert parser.open == []
    return parser


def example(**changed: Any) -> dict[str, Any]:
    shown = {"prompt": "at noon", "expected": "0 12 * * *", "before": "At noon.", "after": "0 12 * * *"}
    return {**shown, "right_before": False, "right_after": True, **changed}


def comparison(**changed: Any) -> dict[str, Any]:
    metric = {"name": "exact_match", "n": 200, "before": 0.0, "after": 0.705}
    return {
        "metric": {**metric, "before_interval": [0.0, 0.0188], "after_interval": [0.638, 0.764]},
        "loss": {"before": 3.913, "after": 0.2931},
        "perplexity": {"before": 50.05, "after": 1.341},
        "examples": [example()],
        "adapter_bytes": 1_851_288,
        "base_bytes": 538_090_408,
        "source_bytes": 94_012_345,
        "data": {"source": "cron", "hash": "feed" * 8},
        "settings": {"temperature": 0.0, "max_new_tokens": 24},
        **changed,
    }


def test_it_shows_the_figures_and_the_marks() -> None:
    text = read(render_comparison(comparison(base="SmolLM2"))).text
    for shown in (
        "SmolLM2 before and after on cron",
        "70.5\u00a0%",
        "63.8\u00a0% to 76.4\u00a0%",
        "3.913",
        "0.2931",
    ):
        assert shown in text
    for shown in (
        "✗ wrong",
        "✓ right",
        "538\u00a0MB",
        "94.0\u00a0MB",
        "1.85\u00a0MB",
        "feed" * 8,
        "24 at most",
    ):
        assert shown in text


@pytest.mark.parametrize("field", ["prompt", "expected", "before", "after"])
def test_texts_are_escaped(field: str) -> None:
    hostile = "</div><script>alert(1)</script><img src=x onerror=alert(1)>{{ 7 * 7 }}"
    page = render_comparison(comparison(examples=[example(**{field: hostile})]))
    parsed = read(page)
    assert "script" not in parsed.seen
    assert "img" not in parsed.seen
    assert hostile in parsed.text


def test_names_are_escaped() -> None:
    data = {"source": "<script>a</script>", "hash": "<b>"}
    metric = comparison()["metric"] | {"name": "<script>b</script>"}
    page = render_comparison(comparison(data=data, metric=metric, base="<script>c</script>", adapter="<i>"))
    assert not {"script", "i"} & set(read(page).seen)


def test_it_asks_for_nothing_else() -> None:
    page = render_comparison(comparison())
    assert "default-src 'none'" in page
    for outside in ("http:", "https:", "//", "src=", "url(", "@import"):
        assert outside not in page


@pytest.mark.parametrize(
    "changed",
    [
        {"metric": None},
        {"examples": []},
        {"source_bytes": None},
        {"adapter_bytes": 0, "base_bytes": 0},
        {"examples": [example(right_before=None, right_after=None, before="", after=" \n")]},
        {"loss": {"before": float("nan"), "after": float("inf")}, "perplexity": None},
    ],
)
def test_parts_may_be_absent(changed: dict[str, Any]) -> None:
    page = read(render_comparison(comparison(**changed))).text
    assert "Before and after" in page
    assert "None" not in page


def test_no_mark_where_nothing_was_judged() -> None:
    text = read(render_comparison(comparison(examples=[example(right_before=None, right_after=None)]))).text
    assert "✗" not in text
    assert "✓" not in text


def test_without_a_metric_the_examples_are_counted() -> None:
    shown = [example(), example(), example(right_after=False), example(right_before=None, right_after=None)]
    text = read(render_comparison(comparison(metric=None, examples=shown))).text
    assert "Of the 3 examples shown, 0 right before, 2 after." in text


def test_an_empty_answer_is_said_to_be_one() -> None:
    text = read(render_comparison(comparison(examples=[example(before="", after=" ")]))).text
    assert "nothing" in text
    assert "white space only" in text


def test_whatever_is_in_a_text_can_be_written() -> None:
    page = render_comparison(comparison(examples=[example(prompt="\ud800 \0 \U0001f600 שלום")]))
    assert "\0" not in page
    assert "\U0001f600 שלום" in page.encode("utf-8").decode("utf-8")


def test_the_same_comparison_gives_the_same_page() -> None:
    assert render_comparison(comparison()) == render_comparison(comparison())


def test_bars_are_in_proportion() -> None:
    view = size_bars(1, 400, 100)
    assert view is not None
    assert [bar["percent"] for bar in view["bars"]] == [100.0, 25.0, 0.25]
    assert size_bars(0, 400) is None
