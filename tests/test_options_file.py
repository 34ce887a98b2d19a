"""Options in a YAML file: what is read, and errors that name the line."""

import pytest

from scumble.config import TrainOptions, make
from scumble.errors import ConfigError, MissingFileError, NotSupportedError
from scumble.options_file import read_yaml


@pytest.fixture
def yaml_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write(content):
        path = tmp_path / "run.yaml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return "run.yaml"

    return write


def test_keys_are_written_with_either_dash(yaml_file):
    values = read_yaml(
        yaml_file("max-steps: 3\nlearning_rate: 1e-3\ntargets: [q_proj]\nbase:\n"), TrainOptions
    )
    assert values == {"max_steps": 3, "learning_rate": "1e-3", "targets": ["q_proj"]}
    assert make(TrainOptions, **values).learning_rate == 0.001


def test_a_byte_order_mark_and_windows_line_ends(yaml_file):
    assert read_yaml(yaml_file(b"\xef\xbb\xbfrank: 3\r\nseed: 1\r\n"), TrainOptions) == {"rank": 3, "seed": 1}


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
        read_yaml(yaml_file(content), TrainOptions)
    assert caught.value.message.startswith(message)
    assert hint in caught.value.hint
    assert "\n" not in caught.value.message


def test_what_is_not_done_is_refused_with_its_line(yaml_file):
    with pytest.raises(NotSupportedError) as caught:
        read_yaml(yaml_file("rank: 3\nmethod: dpo\n"), TrainOptions)
    assert caught.value.message == "run.yaml, line 2: method dpo: preference tuning is not done here"


def test_a_file_runs_no_code(yaml_file, tmp_path):
    text = f"rank: !!python/object/apply:os.mkdir ['{tmp_path}/made']\n"
    with pytest.raises(ConfigError, match="line 1: not YAML"):
        read_yaml(yaml_file(text), TrainOptions)
    assert not (tmp_path / "made").exists()


@pytest.mark.timeout(20)
def test_a_file_that_blows_up_is_one_short_line(yaml_file):
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    lines += [f"{b}: &{b} [{', '.join(['*' + a] * 9)}]" for a, b in zip("abcdefgh", "bcdefghi", strict=True)]
    with pytest.raises(ConfigError) as caught:
        read_yaml(yaml_file("\n".join([*lines, "rank: *i"])), TrainOptions)
    assert len(str(caught.value)) < 500


def test_a_missing_file_and_a_folder(tmp_path):
    with pytest.raises(MissingFileError, match="does not exist"):
        read_yaml(tmp_path / "none.yaml", TrainOptions)
    with pytest.raises(ConfigError, match="is a folder"):
        read_yaml(tmp_path, TrainOptions)
