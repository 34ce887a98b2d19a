"""Options: ranges, words, files of them, and errors that name the option, the line and the nearest right one."""

import pytest

from scumble.config import (
    ELSEWHERE,
    ChatOptions,
    CompareOptions,
    DataOptions,
    LoraOptions,
    TrainOptions,
    make,
    read_yaml,
)
from scumble.errors import ConfigError, MissingFileError, NotSupportedError


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


@pytest.fixture
def yaml_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write(content):
        path = tmp_path / "run.yaml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return "run.yaml"

    return write


def test_keys_are_written_with_either_dash(yaml_file):
    values = read_yaml(yaml_file("max-steps: 3\nlearning_rate: 1e-3\ntargets: [q_proj]\nbase:\n"))
    assert values == {"max_steps": 3, "learning_rate": "1e-3", "targets": ["q_proj"]}
    assert make(TrainOptions, **values).learning_rate == 0.001


def test_a_byte_order_mark_and_windows_line_ends(yaml_file):
    assert read_yaml(yaml_file(b"\xef\xbb\xbfrank: 3\r\nseed: 1\r\n")) == {"rank": 3, "seed": 1}


@pytest.mark.parametrize(
    ("content", "message", "hint"),
    [
        ("", "run.yaml holds no options", "`option: value`"),
        ("# nothing\n", "run.yaml holds no options", ""),
        ("- a\n- b\n", "run.yaml holds no options", ""),
        ("hello", "run.yaml holds no options", ""),
        ("rank: [1\nseed: 2", "run.yaml, line 2: not YAML", ""),
        ("rank:\t4\n\tx: 3", "run.yaml, line 1: not YAML", ""),
        ("rank: 1\n---\nrank: 2\n", "run.yaml, line 2: not YAML", ""),
        (b"rank: \xff", "run.yaml: not YAML (invalid start byte)", ""),
        (b"rank: \x00", "run.yaml: not YAML", ""),
        ("rank: " + "[" * 20_000, "run.yaml: not YAML", ""),
        ("rank: 1\nrank: 2\n", "run.yaml, line 2: rank is given a second time, first in line 1", "keep one"),
        ("max-steps: 1\n\nmax_steps: 2\n", "run.yaml, line 3: max_steps is given a second time", ""),
        ("rank: 1\nrnak: 2\n", "run.yaml, line 2: rnak is not a known option", "did you mean rank?"),
        ("3: x\n", "run.yaml, line 1: 3 is not a known option", "there are rank, alpha"),
        (
            "seed: 1\nrank: lots\n",
            "run.yaml, line 2: rank is 'lots', and must be a whole number",
            "default is 8",
        ),
        ("rank: yes\n", "run.yaml, line 1: rank is True, and must not be true or false", ""),
        ("out: runs/x\n", "run.yaml, line 1: out cannot be given here", "command line"),
        ("data: x.jsonl\n", "run.yaml, line 1: data cannot be given here", "command line"),
        ("rank: {a: 1}\n", "run.yaml, line 1: rank is {'a': 1}, and must be a whole number", ""),
        ("? [a]\n: 1\n", "run.yaml, line 1: not YAML", ""),
    ],
)
def test_a_file_that_is_wrong_is_refused_with_its_line(yaml_file, content, message, hint):
    with pytest.raises(ConfigError) as caught:
        read_yaml(yaml_file(content))
    assert caught.value.message.startswith(message)
    assert hint in caught.value.hint
    assert "\n" not in caught.value.message


def test_what_is_not_done_is_refused_with_its_line(yaml_file):
    with pytest.raises(NotSupportedError) as caught:
        read_yaml(yaml_file("rank: 3\nmethod: dpo\n"))
    assert caught.value.message == "run.yaml, line 2: method dpo: preference tuning is not done here"


def test_a_file_runs_no_code(yaml_file, tmp_path):
    text = f"rank: !!python/object/apply:os.mkdir ['{tmp_path}/made']\n"
    with pytest.raises(ConfigError, match="line 1: not YAML"):
        read_yaml(yaml_file(text))
    assert not (tmp_path / "made").exists()


@pytest.mark.timeout(20)
def test_a_file_that_blows_up_is_one_short_line(yaml_file):
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    lines += [f"{b}: &{b} [{', '.join(['*' + a] * 9)}]" for a, b in zip("abcdefgh", "bcdefghi", strict=True)]
    with pytest.raises(ConfigError) as caught:
        read_yaml(yaml_file("\n".join([*lines, "rank: *i"])))
    assert len(str(caught.value)) < 500


def test_a_missing_file_and_a_folder(tmp_path):
    with pytest.raises(MissingFileError, match="does not exist"):
        read_yaml(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="is a folder"):
        read_yaml(tmp_path)
