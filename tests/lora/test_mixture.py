"""Mixtures as text and as mappings."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scumble.errors import AdapterError
from scumble.lora.mixture import NAME, format_mixture, parse_mixture

NAMES = st.from_regex(NAME, fullmatch=True).filter(lambda name: name != "base")
WEIGHTS = st.floats(allow_nan=False, allow_infinity=False).filter(lambda weight: weight != 0)


@given(st.dictionaries(NAMES, WEIGHTS, max_size=5))
def test_what_is_written_reads_back_the_same(weights):
    assert parse_mixture(format_mixture(weights)) == weights
    assert parse_mixture(weights) == parse_mixture(list(weights.items())) == weights


@given(st.text(alphabet="ab.-_*+0123456789eE base", max_size=20))
def test_any_text_is_read_or_refused(text):
    try:
        weights = parse_mixture(text)
    except AdapterError:
        return
    assert parse_mixture(format_mixture(weights)) == weights


@pytest.mark.parametrize(
    ("mixture", "weights"),
    [
        ("legal", {"legal": 1.0}),
        ("a*0.7+b*-0.3", {"a": 0.7, "b": -0.3}),
        (" a * 1e-2 + b ", {"a": 0.01, "b": 1.0}),
        ("a*.5+a*.25", {"a": 0.75}),
        ("a-b*2", {"a-b": 2.0}),
        ("a.b*2", {"a.b": 2.0}),
        ("a*1+a*-1+b*0", {}),
        ("base", {}),
        ("", {}),
        (None, {}),
        ({}, {}),
        ([("a", 1), ("a", 2)], {"a": 3.0}),
        ({"a": np.float64(0.5)}, {"a": 0.5}),
    ],
    ids=str,
)
def test_the_three_forms(mixture, weights):
    assert parse_mixture(mixture) == weights


def test_numbers_of_numpy_are_written_as_numbers():
    assert format_mixture({"a": np.float64(0.5), "b": 1, "c": 2}) == "a*0.5+b+c*2.0"


@pytest.mark.parametrize(
    "mixture",
    [
        "a*",
        "a+",
        "+a",
        "a**2",
        "a*b",
        "a*1.2.3",
        "a b",
        "a,b",
        "a*nan",
        "a*inf",
        "a*1e999",
        "base*0.5",
        "a+base",
        "*2",
        "a*0.5-b",
        "a++b",
        {"a": float("nan")},
        {"a": "1"},
        {"a": True},
        {"": 1.0},
        {"base": 1.0},
        {"a": None},
    ],
    ids=str,
)
def test_bad_mixtures(mixture):
    with pytest.raises(AdapterError):
        parse_mixture(mixture)
