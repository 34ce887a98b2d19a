import json

import pytest
import torch

from scumble.errors import ConfigError
from scumble.models import threads
from scumble.models.threads import choose_threads, layer_shapes, threads_for, with_threads

from .conftest import tiny_model

SHAPES = [(32, 16), (16, 16)]
pytestmark = pytest.mark.usefixtures("home")


@pytest.fixture(autouse=True)
def idle(monkeypatch):
    """Four cores and nothing else to do, whatever the machine."""
    monkeypatch.setattr(threads, "available_cores", lambda: 4)
    monkeypatch.setattr(threads, "_busy", lambda cores: False)
    monkeypatch.setattr(threads, "_SECONDS", 0.05)


@pytest.fixture
def measured(monkeypatch):
    """Count the measurements, and let each find the seconds given here."""
    calls = []
    seconds = {1: 1.0, 2: 0.8, 4: 0.75}

    def measure(shapes, phase, dtype, cores):
        calls.append(phase)
        return dict(seconds)

    monkeypatch.setattr(threads, "_measure", measure)
    return calls, seconds


@pytest.mark.parametrize(
    ("seconds", "best"),
    [
        ({1: 1.0, 2: 0.95}, 1),
        ({1: 1.0, 2: 0.89}, 2),
        ({1: 1.0, 2: 0.95, 4: 0.6}, 4),
        ({1: 1.0, 2: 0.5, 4: 0.48}, 2),
        ({1: 1.0, 2: 7.0}, 1),
    ],
)
def test_more_threads_must_be_worth_it(seconds, best):
    assert threads._best(seconds) == best


def test_a_real_measurement_leaves_torch_as_it_was():
    before = torch.get_num_threads()
    for phase in ("train", "decode"):
        assert choose_threads(SHAPES, phase) in (1, 2, 4)
    assert torch.get_num_threads() == before


def test_it_is_remembered(measured, home):
    calls, _ = measured
    assert choose_threads(SHAPES, "train") == choose_threads(SHAPES[::-1], "train") == 2
    assert calls == ["train"]
    choose_threads(SHAPES, "decode")
    choose_threads(SHAPES, "train", dtype=torch.bfloat16)
    choose_threads([*SHAPES, SHAPES[0]], "train")
    assert len(calls) == 4
    assert len(json.loads((home / "threads.json").read_text())) == 4
    assert [path.name for path in home.iterdir()] == ["threads.json"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"x": 3}', '{"x": {"a": 1}}', '{"x": null}'])
def test_a_broken_cache_is_rewritten(measured, home, text):
    home.mkdir()
    (home / "threads.json").write_text(text)
    assert choose_threads(SHAPES, "train") == 2
    assert len(json.loads((home / "threads.json").read_text())) == 1


def test_a_cache_that_cannot_be_written_does_no_harm(measured, home):
    home.write_text("a file where the folder should be")
    assert choose_threads(SHAPES, "train") == 2


def test_what_a_busy_machine_gave_is_kept_marked_and_can_be_forgotten(measured, monkeypatch):
    # kept, because a run is repeatable bit for bit only with the same number of threads
    calls, _ = measured
    monkeypatch.setattr(threads, "_busy", lambda cores: True)
    choice = threads_for(tiny_model())
    assert "busy" in choice.reason
    monkeypatch.setattr(threads, "_busy", lambda cores: False)
    assert threads_for(tiny_model()) == choice
    assert calls == ["train", "decode"]
    threads.forget()
    assert "busy" not in threads_for(tiny_model()).reason
    assert calls == ["train", "decode"] * 2


def test_the_environment_overrides_both(measured, monkeypatch):
    calls, _ = measured
    monkeypatch.setenv("SCUMBLE_THREADS", "3")
    assert (choose_threads(SHAPES, "train"), choose_threads(SHAPES, "decode")) == (3, 3)
    monkeypatch.setenv("SCUMBLE_THREADS", "2, 1")
    choice = threads_for(tiny_model())
    assert (choice.train, choice.decode, choice.reason) == (2, 1, "SCUMBLE_THREADS")
    assert calls == []


@pytest.mark.parametrize("text", ["0", "many", "2,1,1", "2,", "-1"])
def test_a_wrong_environment_is_named(monkeypatch, text):
    monkeypatch.setenv("SCUMBLE_THREADS", text)
    with pytest.raises(ConfigError, match="SCUMBLE_THREADS"):
        choose_threads(SHAPES, "train")


def test_shapes_are_those_of_the_layers_the_head_in_decoding_only():
    model = tiny_model()
    train, decode = layer_shapes(model, "train"), layer_shapes(model, "decode")
    assert len(train) == 14
    assert sorted([*train, (32, 16)]) == decode
    # A layer that was wrapped since is still found.
    layer = model.model.layers[0].self_attn
    layer.q_proj = torch.nn.Sequential(layer.q_proj)
    assert layer_shapes(model, "train") == train


def test_choice_of_a_model(measured):
    choice = threads_for(tiny_model())
    assert (choice.train, choice.decode) == (2, 2)
    assert choice.to_dict()["measured"]["train"] == {"1": 1.0, "2": 0.8, "4": 0.75}
    json.dumps(choice.to_dict())


def test_one_core_needs_no_measurement(measured, monkeypatch):
    monkeypatch.setattr(threads, "available_cores", lambda: 1)
    assert threads_for(tiny_model()).train == 1
    assert measured[0] == []


def test_with_threads_restores_also_after_an_error():
    before = torch.get_num_threads()

    def fail() -> None:
        with with_threads(before + 1):
            assert torch.get_num_threads() == before + 1
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert torch.get_num_threads() == before
    with pytest.raises(ConfigError), with_threads(0):
        pass
