"""Which modules are reached: PEFT's own rules, over random paths and configurations, and on whole models."""

from __future__ import annotations

import re

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key

from scumble.errors import AdapterError
from scumble.lora.spec import LoraSpec
from scumble.lora.targets import TARGET_SETS, expand_targets, pattern_value

WORDS = [
    "q_proj",
    "proj",
    "k",
    "layers",
    "h",
    "mlp",
    "experts",
    "0",
    "1",
    "10",
    "model",
    "self_attn",
    "a_q_proj",
]
PATHS = st.lists(st.sampled_from(WORDS), min_size=1, max_size=6).map(".".join)
NAMES = st.lists(
    st.sampled_from([*WORDS, "mlp.q_proj", "layers.1.q_proj", "model.layers.0.mlp"]), min_size=1, max_size=4
)
REGEXES = st.sampled_from(
    [
        r".*q_proj",
        r"q_proj",
        r".*\.(mlp|self_attn)\..*",
        r"model\.layers\.[01]\..*",
        "model.layers",
        "a,b",
        r"(?i).*K",
        "mlp",
    ]
)
LAYERS = st.one_of(st.none(), st.integers(0, 2), st.lists(st.integers(0, 10), max_size=3))
PATTERNS = st.one_of(
    st.none(), st.sampled_from(["layers", "h", ""]), st.lists(st.sampled_from(["layers", "h", r"la\w+"]))
)


@settings(max_examples=400, deadline=None)
@given(
    path=PATHS,
    targets=st.one_of(NAMES, REGEXES),
    layers=LAYERS,
    patterns=PATTERNS,
    exclude=st.one_of(st.none(), NAMES, REGEXES),
    saved=st.one_of(st.none(), NAMES),
)
@example(
    "model.layers.0.mlp", ["model.layers.0.mlp"], [1], None, None, None
)  # a whole path, whatever its layer
@example("model.layers.1.experts.0.k", ["k"], [0], None, None, None)  # the first number, not the last
@example("q_proj", "q_proj,k", None, None, None, None)
def test_matching_equals_peft(path, targets, layers, patterns, exclude, saved):
    try:
        config = LoraConfig(
            target_modules=targets,
            layers_to_transform=layers,
            layers_pattern=patterns,
            exclude_modules=exclude,
            modules_to_save=saved,
        )
        want = check_target_module_exists(config, path)
    except ValueError:
        assume(False)
    spec = LoraSpec.from_peft(config)
    assert spec.matches(path) == bool(want)
    # and after a round through the file
    assert LoraSpec.from_peft(spec.to_peft()).matches(path) == bool(want)


@given(
    path=PATHS,
    patterns=st.dictionaries(
        st.sampled_from([*WORDS, r"layers\.\d+\..*", ".*proj", "^model.*"]), st.integers(1, 99)
    ),
)
def test_patterns_of_ranks_equal_peft(path, patterns):
    want = patterns.get(get_pattern_key(patterns.keys(), path), 8)
    assert pattern_value(patterns, path, 8) == want


@pytest.mark.parametrize(
    ("text", "targets"),
    [
        *TARGET_SETS.items(),
        ("all-linear", "all-linear"),
        ("All-Linear", "all-linear"),
        ("q_proj", ("q_proj",)),
        (" q_proj , mlp.up_proj ", ("q_proj", "mlp.up_proj")),
        (r".*\.q_proj", r".*\.q_proj"),
        (["q_proj", "v_proj"], ("q_proj", "v_proj")),
    ],
    ids=str,
)
def test_what_a_user_writes(text, targets):
    assert expand_targets(text) == targets


@pytest.mark.parametrize("text", ["", "  ", [], ["q", ""], "(a", "*a"], ids=str)
def test_what_a_user_cannot_mean(text):
    with pytest.raises(AdapterError):
        expand_targets(text)


def test_a_regular_expression_of_peft_stays_one():
    for text in ("q_proj", "minimal", "a,b", "standard"):
        spec = LoraSpec.from_peft({"peft_type": "LORA", "r": 1, "target_modules": text})
        assert isinstance(spec.targets, str)
        assert re.fullmatch(spec.targets, text)
        assert LoraSpec.from_peft(spec.to_peft()) == spec


@settings(max_examples=100, deadline=None)
@given(
    rank=st.integers(1, 64),
    alpha=st.floats(0.25, 64),
    rslora=st.booleans(),
    patterns=st.dictionaries(st.sampled_from(["q_proj", "mlp"]), st.integers(1, 9)),
    tokens=st.lists(st.integers(0, 9), unique=True, max_size=3),
)
def test_a_specification_survives_its_file(rank, alpha, rslora, patterns, tokens):
    spec = LoraSpec(
        rank=rank,
        alpha=alpha,
        rslora=rslora,
        rank_pattern=patterns,
        trainable_token_indices={"": tuple(tokens)} if tokens else {},
        targets=("k", "q_proj"),
        base_name="x/y",
    )
    assert LoraSpec.from_peft(spec.to_peft()) == spec
    assert LoraConfig(**{k: v for k, v in spec.to_peft().items() if k != "peft_type"}).r == rank
