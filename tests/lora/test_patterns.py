"""Patterns out of a stranger's configuration: none runs on, and each means what it means to PEFT or is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scumble.errors import AdapterError
from scumble.lora import patterns
from scumble.lora.adapter import CONFIG_NAME
from scumble.lora.bank import Bank
from scumble.lora.patterns import PatternTable, bounded_matching, find
from scumble.lora.spec import LoraSpec
from scumble.lora.targets import layer_index
from tests.tiny import tiny_llama

PLAIN = {"peft_type": "LORA", "r": 4, "target_modules": ["q_proj"]}
# patterns that take `re` longer than anybody waits, on the path of a module
ENDLESS = [
    r"(\w*)*[=!]",
    r"(\w+\.?)+=",
    r"((\w|\.|q)+)+[=!]",
    r"(.*)(.*)(.*)(.*)(.*)(.*)(.*)(.*)(.*)(.*)(.*)(.*)[=!]",
    r"(?=(.*.*.*.*.*.*.*.*=))q",
]
# and those that take `regex` too long as well
RUNAWAY = [r"(?:.|..)*[=!]", r"(?:(.|.)(?:.|..)?)*[=!]", "(?:q|q)?" * 30 + "(a|a)*" * 3 + "(.|.)*[=!]"]
# what Python's `re` reads, and `regex` in another way
DIFFERENT = ["(foo){e}", "(foo){i<=1}", "[[:alpha:]]", "a{ 1}", "a{}"]


def change(folder: Path, **values: Any) -> Path:
    config = json.loads((folder / CONFIG_NAME).read_text())
    (folder / CONFIG_NAME).write_text(json.dumps({**config, **values}))
    return folder


@pytest.mark.parametrize("pattern", [*ENDLESS, *RUNAWAY], ids=range(len(ENDLESS) + len(RUNAWAY)))
@pytest.mark.parametrize(
    "key", ["target_modules", "exclude_modules", "rank_pattern", "alpha_pattern", "layers_pattern"]
)
def test_patterns_without_end_come_to_one(made, key, pattern):
    values: dict[str, Any] = {key: {pattern: 2} if key in ("rank_pattern", "alpha_pattern") else pattern}
    if key == "layers_pattern":
        values["layers_to_transform"] = [0]
    folder, bank = change(made(tiny_llama()), **values), Bank(tiny_llama())
    if pattern in ENDLESS and key not in ("target_modules", "layers_pattern"):
        assert bank.add("a", folder).matched  # it names no module, and is no more than that
        return
    with pytest.raises(
        AdapterError, match=r"takes more than 0\.1 s" if pattern in RUNAWAY else "match nothing"
    ) as error:
        bank.add("a", folder)
    assert str(error.value).isprintable()
    assert len(error.value.message) < 500


PLAINLY_READ = [
    r".*\.(q|k|v|o)_proj",
    r".*\.(?:up|down)_proj",
    "q_proj",
    r"model\.layers\.\d\.mlp\.up_proj",
    "[a-z]+",
]


@pytest.mark.parametrize("pattern", PLAINLY_READ)
def test_usual_patterns_go_to_re_itself(pattern):
    assert isinstance(patterns._compiled(pattern, "whole"), re.Pattern)


@pytest.mark.parametrize(
    "pattern", [*ENDLESS, *RUNAWAY, "(a|b)" * 30 + "c", r"(a)\1+", "(?=a)a+", ".*.*", "a?b?"]
)
def test_what_could_backtrack_far_does_not(pattern):
    assert not isinstance(patterns._compiled(pattern, "whole"), re.Pattern)


TEXTS = st.lists(st.sampled_from(["q", ".", "x", "_", "0"]), max_size=6).map("".join)
PIECES = st.sampled_from(
    ["q", r"\.", ".", "x", "*", "+", "?", "(", ")", "|", "[qx]", "{2}", "{1,}", r"\d", "_", "(?:", "^", "$"]
)


@given(pattern=st.lists(PIECES, max_size=7).map("".join), path=TEXTS)
def test_matching_is_that_of_re(pattern, path):
    try:
        want = {form: re.compile(text.format(pattern)) for form, text in patterns._FORMS.items()}
    except (re.error, OverflowError):
        with pytest.raises(AdapterError):
            for form in patterns._FORMS:
                find(pattern, path, form)
        return
    for form, compiled in want.items():
        call = compiled.fullmatch if form == "whole" else compiled.match
        assert bool(find(pattern, path, form)) == bool(call(path)), form


@pytest.mark.parametrize("pattern", DIFFERENT)
def test_what_the_two_engines_read_differently_is_refused(pattern):
    with pytest.raises(AdapterError, match=r"brace|class"):
        LoraSpec(targets=f".*{pattern}.*")


@pytest.mark.parametrize(
    "pattern",
    [
        "a{99999999999}",
        "(" * 3000 + ")" * 3000,
        "(?:a?){65535}" * 50,
        "x" * 5000 + "*",
        "(?R)",
        r"\p{L}",
        "(?V1)a",
    ],
)
def test_patterns_that_cost_before_they_match(pattern):
    with pytest.raises(AdapterError):
        LoraSpec.from_peft({**PLAIN, "rank_pattern": {pattern: 2}})


def test_a_flag_inside_a_pattern_means_what_it_means_to_peft():
    with pytest.raises(AdapterError, match="global flags"):
        LoraSpec.from_peft({**PLAIN, "rank_pattern": {"(?i)Q_PROJ": 2}})


def test_many_names_times_many_patterns(monkeypatch):
    """A pattern for each of 10,000 modules is looked up; as many that must be tried in turn are not waited for."""
    names = [f"model.layers.{i}.mlp.experts.{j}.up_proj" for i in range(100) for j in range(100)]
    with bounded_matching():
        table = PatternTable({name: index for index, name in enumerate(names)})
        assert [table.value(name, -1) for name in names] == list(range(len(names)))
    monkeypatch.setattr(patterns, "TOTAL_SECONDS", 0.2)
    slow = PatternTable({f"[a-c]{i}.*x.*y": 1 for i in range(1000)})
    with pytest.raises(AdapterError, match="take more than"), bounded_matching():
        for name in names:
            slow.value(name, 0)


def test_patterns_are_bounded_together():
    with pytest.raises(AdapterError, match="20,000 characters together"):
        LoraSpec.from_peft({**PLAIN, "rank_pattern": {f".*{i}x*": 2 for i in range(5000)}})


WORDS = ["q_proj", "proj", "layers", "0", "mlp", "x", "qxproj", "a-b"]


@given(
    path=st.lists(st.sampled_from(WORDS), min_size=1, max_size=5).map(".".join),
    keys=st.lists(
        st.lists(st.sampled_from(WORDS), min_size=1, max_size=3).map(".".join), max_size=6, unique=True
    ),
)
def test_names_that_are_looked_up_match_as_patterns(path, keys):
    want = next((key for key in keys if re.match(rf"(.*\.)?({key})$", path)), None)
    table = PatternTable({key: index for index, key in enumerate(keys)})
    assert table.value(path, -1) == (-1 if want is None else keys.index(want))


def test_numbers_of_layers_without_end():
    assert layer_index(f"layers.x.{'9' * 10_000}.q", ()) == int("9" * 18)
    spec = LoraSpec.from_peft({**PLAIN, "layers_to_transform": [*range(0, 2**31, 2**14)]})
    assert not spec.matches("model.layers.1.q_proj")
    assert spec.matches("model.layers.16384.q_proj")
