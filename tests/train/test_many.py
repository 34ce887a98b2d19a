"""Many trials at once: folders as `train` writes them, data and ends of their own, stopping, failing and going on."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from scumble.errors import ConfigError, OutputError, ScumbleError, TrainingError
from scumble.models.base import Base
from scumble.train.lane import Lane
from scumble.train.loop import Trainer
from scumble.train.many import Trained, Trial, train_many
from scumble.train.record import held
from scumble.train.run import train
from tests.bases import make_letters_base, sums

DATA = sums(20)
COMMON: dict[str, Any] = {"epochs": 3.0, "batch": 4, "eval": 0.25}
OPTIONS: list[dict[str, Any]] = [
    {"rank": 2},
    {"rank": 4, "targets": "comprehensive", "learning_rate": 3e-3},
    {"rank": 4, "dropout": 0.1, "seed": 5, "batch": 2},
    {"rank": 2, "dora": True, "patience": 1},
    {"rank": 2, "init": "pissa"},
]
TIMES = ("seconds", "tokens_per_second", "peak_bytes")


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCUMBLE_THREADS", "1")


def trials(folder: Path, **more: Any) -> list[Trial]:
    return [Trial(folder / str(i), {**COMMON, **each}, **more) for i, each in enumerate(OPTIONS)]


def rows(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in lines]


def result(folder: Path) -> dict[str, Any]:
    found = json.loads((folder / "run.json").read_text())["result"]
    return {key: value for key, value in found.items() if key not in TIMES}


def same(one: Path, other: Path) -> None:
    """Two runs that came to the same, bit for bit."""
    assert rows(one) == rows(other)
    assert result(one) == result(other)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (one / "adapter" / name).read_bytes() == (other / "adapter" / name).read_bytes()


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCUMBLE_THREADS", "1")
        for i, options in enumerate(OPTIONS):
            given = {**COMMON, **options}
            train(DATA, base=make_letters_base(), out=folder / str(i), quiet=True, **given)
    return folder


@pytest.mark.parametrize("resident", [None, 2])
def test_each_run_is_the_one_that_train_would_make(alone: Path, tmp_path: Path, resident: int | None) -> None:
    said: list[tuple[int, Trained]] = []
    done = train_many(
        DATA,
        trials(tmp_path),
        base=make_letters_base(),
        resident=resident,
        ended=lambda *each: said.append(each),
    )
    assert sorted(number for number, _ in said) == list(range(len(OPTIONS)))
    for number, each in enumerate(done):
        same(alone / str(number), tmp_path / str(number))
        assert each.run is not None
        assert each.failed is None
        assert each.loss == each.run.loss["best_eval"]
        facts, wanted = (json.loads((f / str(number) / "run.json").read_text()) for f in (tmp_path, alone))
        for key in ("options", "base", "data", "adapter", "training", "lora"):
            assert facts[key] == wanted[key], key
        assert (tmp_path / str(number) / "report.html").exists()


def test_the_base_is_given_back_as_it_was(tmp_path: Path) -> None:
    base = make_letters_base()
    before = {name: tensor.clone() for name, tensor in base.model.state_dict().items()}
    train_many(DATA, trials(tmp_path), base=base)
    after = base.model.state_dict()
    assert before.keys() == after.keys()
    assert all(bool((tensor == after[name]).all()) for name, tensor in before.items())


def test_each_may_have_data_of_its_own(tmp_path: Path) -> None:
    other = sums(9, start=300)
    options = {**COMMON, **OPTIONS[0]}
    both = [Trial(tmp_path / "a", options), Trial(tmp_path / "b", options, data=other)]
    train_many(DATA, both, base=make_letters_base())
    train(other, base=make_letters_base(), out=tmp_path / "alone", quiet=True, **options)
    same(tmp_path / "b", tmp_path / "alone")
    assert rows(tmp_path / "a") != rows(tmp_path / "b")


def test_paused_and_gone_on_with_it_is_the_same_run(alone: Path, tmp_path: Path) -> None:
    done = train_many(DATA, trials(tmp_path, until=4), base=make_letters_base())
    assert all(each.paused and each.steps == 4 and each.loss is not None for each in done)
    assert not any((tmp_path / str(i) / "adapter").exists() for i in range(len(OPTIONS)))
    done = train_many(DATA, trials(tmp_path), base=make_letters_base(), resume=True)
    for number, each in enumerate(done):
        assert each.run is not None
        # the loss that was asked for at the pause, which decides nothing
        metrics = tmp_path / str(number) / "metrics.jsonl"
        lines = metrics.read_text().splitlines()
        asked = [json.loads(line) for line in lines if "rung_loss" in line]
        assert [row["step"] for row in asked] in ([4], [])  # none where it is evaluated there anyway
        metrics.write_text("\n".join(line for line in lines if "rung_loss" not in line) + "\n")
        same(alone / str(number), tmp_path / str(number))


@pytest.mark.parametrize("steps", [1, 3, 4, 7])
def test_paused_when_time_was_up_and_gone_on_with_it_is_the_same_run(
    alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    with monkeypatch.context() as patch:
        late = lambda self: any(lane.outcome.steps >= steps for lane in self.live)  # noqa: E731
        patch.setattr(Trainer, "_late", property(late))
        done = train_many(DATA, trials(tmp_path), base=make_letters_base())
    assert any(each.paused and each.steps == steps for each in done)
    train_many(DATA, trials(tmp_path), base=make_letters_base(), resume=True)
    for number in range(len(OPTIONS)):
        same(alone / str(number), tmp_path / str(number))


def test_ended_where_it_paused_it_has_a_result(tmp_path: Path) -> None:
    train_many(DATA, trials(tmp_path, until=4), base=make_letters_base())
    ended = trials(tmp_path, until=4, end="fourth of five")
    done = train_many(DATA, ended, base=make_letters_base(), resume=True)
    for number, each in enumerate(done):
        assert each.run is not None
        assert each.run.steps == 4
        assert each.run.early == "fourth of five"
        assert (tmp_path / str(number) / "adapter" / "adapter_model.safetensors").exists()
    # and is over for good
    again = train_many(DATA, trials(tmp_path), base=make_letters_base(), resume=True)
    assert [each.steps for each in again] == [4] * len(OPTIONS)


def test_one_that_diverges_is_told_and_the_others_go_on(alone: Path, tmp_path: Path) -> None:
    wild = Trial(tmp_path / "wild", {**COMMON, "rank": 2, "learning_rate": 1e30, "warmup": 0})
    done = train_many(DATA, [wild, *trials(tmp_path)], base=make_letters_base())
    assert done[0].run is None
    assert done[0].failed is not None
    assert done[0].failed.startswith("step ")
    for number in range(len(OPTIONS)):
        same(alone / str(number), tmp_path / str(number))


def test_stopped_and_resumed_it_is_the_same(
    alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learn, count = Lane.learn, 0

    def interrupted(*args: Any) -> Any:
        nonlocal count
        count += 1
        if count == 23:
            raise KeyboardInterrupt
        return learn(*args)

    with monkeypatch.context() as patch:
        patch.setattr(Lane, "learn", interrupted)
        with pytest.raises(TrainingError, match=r"stopped by Ctrl-C; 0 of 5 trials are finished"):
            train_many(DATA, trials(tmp_path), base=make_letters_base(), resident=3)
    done = train_many(DATA, trials(tmp_path), base=make_letters_base(), resident=3, resume=True)
    assert all(each.run is not None for each in done)
    for number in range(len(OPTIONS)):
        same(alone / str(number), tmp_path / str(number))


def test_after_the_deadline_all_are_paused(tmp_path: Path) -> None:
    done = train_many(
        DATA, trials(tmp_path), base=make_letters_base(), deadline=time.monotonic() - 1, resident=2
    )
    assert all(each.paused for each in done)
    assert [each.steps for each in done] == [0] * len(OPTIONS)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ([{"rank": 2}, {"targets": "nothing_like_it"}], "match nothing"),
        ([{"rank": 2}, {"rank": 0}], "rank"),
        ([{"rank": 2}, {"method": "full"}], "method differs"),
        ([{"method": "full"}] * 2, "cannot be swept"),
        ([{"dtype": "fp32"}, {"dtype": "bf16"}], "dtype differs"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_any_folder(
    tmp_path: Path, letters_base: Base, options: list[dict[str, Any]], error: str
) -> None:
    asked = [Trial(tmp_path / str(i), {**COMMON, **each}) for i, each in enumerate(options)]
    with pytest.raises(ScumbleError, match=error):
        train_many(DATA, asked, base=letters_base)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_exists_is_refused(tmp_path: Path, letters_base: Base) -> None:
    (tmp_path / "3").mkdir()
    with pytest.raises(ScumbleError, match="exists already"):
        train_many(DATA, trials(tmp_path), base=letters_base)
    assert [path.name for path in tmp_path.iterdir()] == ["3"]


def test_a_folder_that_another_trains_into_is_not_replaced(tmp_path: Path, letters_base: Base) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    with held(folder), pytest.raises(OutputError, match="another process is training into"):
        train(DATA, base=letters_base, out=folder, force=True, quiet=True, max_steps=1)
    assert not list(folder.iterdir())


def test_the_same_folder_twice_is_refused(tmp_path: Path, letters_base: Base) -> None:
    asked = [Trial(tmp_path / "a", COMMON), Trial(tmp_path / "a", {**COMMON, "rank": 2})]
    with pytest.raises(ConfigError, match="two trials"):
        train_many(DATA, asked, base=letters_base)
