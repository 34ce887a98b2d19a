"""Running a command in this process as the console script does, on a base that takes a tenth of a second."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from scumble.cli.main import main
from tests.bases import letters_model, letters_tokenizer, sums


class Ended(NamedTuple):
    """What a command came to."""

    code: int
    out: str
    err: str

    @property
    def failure(self) -> list[str]:
        """The lines of the failure, what was said before it aside."""
        lines = self.err.splitlines()
        return lines[next(i for i, line in enumerate(lines) if line.startswith("error: ")) :]


def write_rows(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """An empty folder, which the command is run in, with 12 good examples in `good.jsonl`."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.delenv("SCUMBLE_DEBUG", raising=False)
    monkeypatch.delenv("SCUMBLE_BASE", raising=False)
    write_rows(folder / "good.jsonl", sums(12))
    return folder


@pytest.fixture
def scumble(here, capsys, monkeypatch) -> Callable[..., Ended]:
    """Run a command in `here`."""

    def run(*words: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["scumble", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return Ended(int(end.value.code or 0), said.out, said.err)

    return run


@pytest.fixture
def fails(scumble) -> Callable[..., tuple[str, str]]:
    """Run a command that fails with 1, one line and a hint; gives both."""

    def run(*words: object) -> tuple[str, str]:
        ended = scumble(*words)
        assert ended.code == 1, ended
        assert ended.out == ""
        lines = ended.failure
        assert len(lines) <= 2, lines
        assert len(lines) == 1 or lines[1].startswith("  hint: ")
        return lines[0].removeprefix("error: "), lines[1].removeprefix("  hint: ") if len(lines) > 1 else ""

    return run


@pytest.fixture
def unloaded(monkeypatch) -> None:
    """No base may be loaded: what is wrong is said before that."""

    def load(*args: object, **kwargs: object) -> None:
        raise AssertionError("the base was loaded")

    import scumble.compare.run
    import scumble.serve.session
    import scumble.train.opening

    for module in (scumble.train.opening, scumble.compare.run, scumble.serve.session):
        monkeypatch.setattr(module, "load_base", load)


@pytest.fixture(scope="session")
def letters_folder(tmp_path_factory) -> Path:
    """A base of two layers whose tokens are bytes, as a folder."""
    folder = tmp_path_factory.mktemp("bases") / "letters"
    letters_model().save_pretrained(folder)
    letters_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory, letters_folder) -> Path:
    """A run on that base, whose adapter changes what is answered."""
    from scumble.train.run import train

    folder = tmp_path_factory.mktemp("runs") / "first"
    train(sums(12), out=folder, base=str(letters_folder), max_steps=3, learning_rate=0.5, quiet=True)
    return folder


def start(*words: object, cwd: Path, **options: Any) -> subprocess.Popen[str]:
    """Start the real command; Ctrl-C reaches it also where the tests run in the background."""
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "SCUMBLE_THREADS": "1",
        "PYTHONPATH": "",
    }
    before = options.pop("before", lambda: None)

    def prepare() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        before()

    return subprocess.Popen(
        [sys.executable, "-c", "from scumble.cli.main import main; main()", *map(str, words)],
        cwd=cwd,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=prepare,
        **options,
    )
