"""Options: ranges, words, and errors that name the option and the nearest right one."""

import pytest

from scumble.config import (
    ELSEWHERE,
    ChatOptions,
    CompareOptions,
    DataOptions,
    LoraOptions,
    TrainOptions,
    make,
)
from scumble.errors import ConfigError, NotSupportedError


def refused(group, **values) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        make(group, **values)
    assert "\n" not in caught.value.message
    return caught.value


def test_the_defaults_are_the_lesson_s():
    options = make(TrainOptions)
    assert (options.rank, options.alpha, options.targets, options.epochs) == (8, 16, "minimal", 3)
    assert (options.dropout, options.weight_decay, options.clip, options.max_length) == (0, 0, 1, 2048)
    assert (options.batch, options.learning_rate, options.eval) == (None, None, None)


def test_none_is_not_given():
    assert make(TrainOptions, rank=None, seed=3).model_fields_set == {"seed"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rank": 0}, "--rank is 0, and must be 1 or more"),
        ({"rank": 2.5}, "--rank is 2.5, and must be a whole number"),
        ({"rank": "many"}, "--rank is 'many', and must be a whole number"),
        ({"rank": True}, "--rank is True, and must not be true or false"),
        ({"alpha": -1}, "--alpha is -1, and must be above 0"),
        ({"alpha": 0}, "--alpha is 0, and must be above 0"),
        ({"alpha": float("nan")}, "--alpha is nan, and must be a finite number"),
        ({"alpha": "x"}, "--alpha is 'x', and must be a number"),
        ({"dropout": 1}, "--dropout is 1, and must be below 1"),
        ({"dora": "perhaps"}, "--dora is 'perhaps', and must be true or false"),
        (
            {"targets": ["q_proj", 3]},
            "--targets is ['q_proj', 3], and is of a kind that this option does not take",
        ),
        ({"targets": 3}, "--targets is 3, and is of a kind that this option does not take"),
        ({"learning_rate": float("inf")}, "--learning-rate is inf, and must be a finite number"),
        ({"epochs": float("inf")}, "--epochs is inf, and must be a finite number"),
        ({"seed": 2**32}, "--seed is 4294967296, and must be 4294967295 or less"),
        ({"dtype": "float99"}, "--dtype is 'float99', and must be 'fp32', 'bf16', 'fp16' or 'auto'"),
        ({"eval": 1}, "--eval is 1, and must, as a share, be 0 or more and below 1"),
        ({"eval": "-0.1"}, "--eval is '-0.1', and must, as a share"),
        ({"eval": " "}, "--eval is ' ', and must not be empty"),
        ({"max_length": 1}, "--max-length is 1, and must be 2 or more"),
        ({"device": 3}, "--device is 3, and must be text"),
    ],
)
def test_a_value_that_cannot_be(values, message):
    assert refused(TrainOptions, **values).message.startswith(message)


def test_a_long_value_is_cut():
    assert len(refused(TrainOptions, rank="x" * 10_000).message) < 120


def test_a_clip_of_infinity_is_no_clip():
    assert make(TrainOptions, clip=float("inf")).clip == float("inf")


def test_shares_and_files_of_validation():
    assert make(TrainOptions, eval="0.25").eval == 0.25
    assert make(TrainOptions, eval=0).eval == 0
    assert make(TrainOptions, eval="data/0.1.jsonl").eval == "data/0.1.jsonl"


def test_an_unknown_option_names_the_nearest():
    error = refused(TrainOptions, rnak=3)
    assert (error.message, error.hint) == ("--rnak is not a known option", "did you mean rank?")
    assert refused(TrainOptions, learning_rat=3).hint == "did you mean learning-rate?"
    assert "max-steps" in refused(TrainOptions, zzzz=3).hint


def test_a_mistyped_word_names_the_nearest():
    assert refused(TrainOptions, schedule="cosin").hint == "did you mean cosine?"
    assert (
        refused(TrainOptions, schedule="zigzag").hint
        == "how the rate falls after the warm-up; the default is linear"
    )


def test_a_hint_keeps_the_field_s_own_capitals():
    assert refused(TrainOptions, seed=-1).hint.startswith("decides A, the order")


@pytest.mark.parametrize("method", ELSEWHERE)
def test_what_is_not_done_is_refused_by_name_with_what_does_it(method):
    with pytest.raises(NotSupportedError) as caught:
        make(TrainOptions, method=method.upper())
    assert method.upper() in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("group", [LoraOptions, DataOptions, TrainOptions, CompareOptions, ChatOptions])
def test_every_option_says_what_it_is(group):
    assert all(field.description for field in group.model_fields.values())


def test_an_assignment_is_checked_too():
    options = make(TrainOptions)
    with pytest.raises(ValueError, match="greater than or equal"):
        options.rank = 0
