"""Trackers through Accelerate: every row, the options, and a tracker that fails; with a stand-in for the libraries."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from accelerate import tracking
from accelerate.utils import LoggerType

from scumble.errors import MissingExtraError
from scumble.progress import Reporter
from scumble.train.trackers import Tracked, check_tracker
from tests.train.test_run import rows, train


class Fake(tracking.GeneralTracker):
    name = "tensorboard"
    requires_logging_directory = True
    made: ClassVar[list[Any]] = []
    fails: ClassVar[tuple[str, ...]] = ()

    def __init__(self, run_name: str, logging_dir: str, **kwargs: Any) -> None:
        super().__init__()
        self.run_name, self.logging_dir, self.kwargs = run_name, logging_dir, kwargs
        self.rows: list[tuple[int, dict[str, Any]]] = []
        self.config: dict[str, Any] = {}
        self.finished = False
        Fake.made.append(self)

    @property
    def tracker(self) -> Any:
        return self

    def start(self) -> None:
        if "start" in self.fails:
            raise RuntimeError("no network\nat all")

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.config = values

    def log(self, values: dict[str, Any], step: int | None, **kwargs: Any) -> None:
        if "log" in self.fails and step == 2:
            raise RuntimeError("no network\nat all")
        assert step is not None
        self.rows.append((step, values))

    def finish(self) -> None:
        self.finished = True


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[Fake]:
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "tensorboard", Fake)
    monkeypatch.setattr(tracking, "_available_trackers", [LoggerType.TENSORBOARD])
    monkeypatch.setattr(Fake, "made", [])
    monkeypatch.setattr(Fake, "fails", ())
    return Fake


def test_a_tracker_gets_every_row_and_the_options(tmp_path: Path, fake: type[Fake]) -> None:
    run = train(tmp_path, track="tensorboard")
    (found,) = fake.made
    kept = rows(run.out)
    assert len(kept) > 5
    assert [{"step": step, **values} for step, values in found.rows] == kept
    assert (found.run_name, str(found.logging_dir)) == ("tensorboard", str(run.out))
    assert found.config["rank"] == 8
    assert found.config["learning_rate"] == 0.02
    assert all(isinstance(value, int | float | str) for value in found.config.values())
    assert found.finished


def test_it_changes_nothing_of_the_run(tmp_path: Path, fake: type[Fake]) -> None:
    plain, tracked = train(tmp_path / "plain"), train(tmp_path / "tracked", track="tensorboard")
    names = [(run.adapter / "adapter_model.safetensors").read_bytes() for run in (plain, tracked)]
    assert names[0] == names[1]


@pytest.mark.parametrize("where", ["start", "log"])
def test_one_that_fails_is_told_of_once_and_the_run_goes_on(
    tmp_path: Path,
    fake: type[Fake],
    where: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(fake, "fails", (where,))
    run = train(tmp_path, track="tensorboard", quiet=False)
    assert capsys.readouterr().err.count("tensorboard gets no more figures: no network; metrics.jsonl") == 1
    assert rows(run.out)[-1]["step"] == run.steps


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow", "trackio"])
def test_a_missing_library_is_said_before_there_is_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(tracking, "_available_trackers", [])
    with pytest.raises(MissingExtraError, match=f"--track {name} needs") as caught:
        train(tmp_path, track=name)
    assert caught.value.hint == f"pip install {name}"
    assert not (tmp_path / "run").exists()
    with pytest.raises(MissingExtraError):
        check_tracker(name)


def test_what_is_kept_and_saved_is_the_records_own(tmp_path: Path, fake: type[Fake]) -> None:
    class Own:
        def __init__(self) -> None:
            self.seen: list[Any] = []

        def metrics(self, row: dict[str, Any]) -> None:
            self.seen.append(row)

        def keep(self, step: int, *, best: bool) -> None:
            self.seen.append((step, best))

        def save(self, state: dict[str, Any]) -> None:
            self.seen.append(state)

    own = Own()
    tracked = Tracked(
        own, "tensorboard", tmp_path, {"a": 1, "b": [2]}, torch.device("cpu"), Reporter(quiet=True)
    )
    tracked.metrics({"step": 1, "loss": 2.0})
    tracked.keep(1, best=True)
    tracked.save({"x": 1})
    tracked.close()
    assert own.seen == [{"step": 1, "loss": 2.0}, (1, True), {"x": 1}]
    assert fake.made[0].rows == [(1, {"loss": 2.0})]
    assert fake.made[0].config == {"a": 1}
