"""`lab.json`: what was asked and all that was found so far, written after each step so that it can be gone on with."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scumble.errors import ConfigError, MissingFileError
from scumble.files import write_text

NAME = "lab.json"
_PARTS = ("chosen", "runs", "scores", "spectra", "parts")


class State:
    """What a folder knows.

    Attributes:
        folder: that `lab.json` lies in.
        asked: what decides the result.
        runs: by name: validation loss, training loss, size, time, or why it broke off.
        chosen: the learning rate of each way to train, by name.
        scores: by name of a run: for each unseen example 1 where it is right.
        spectra: by name of a run of all weights.
        parts: what else was measured, by name.
        seconds: that it took so far, pauses not counted.
    """

    def __init__(self, folder: Path, asked: Mapping[str, Any]) -> None:
        self.folder = folder
        self.asked: dict[str, Any] = json.loads(json.dumps(asked))
        self.runs: dict[str, dict[str, Any]] = {}
        self.chosen: dict[str, float] = {}
        self.scores: dict[str, str] = {}
        self.spectra: dict[str, dict[str, Any]] = {}
        self.parts: dict[str, Any] = {}
        self.seconds, self._since = 0.0, time.monotonic()

    @classmethod
    def read(cls, folder: Path) -> State:
        """What was begun.

        Raises:
            MissingFileError: nothing was.
            ConfigError: it cannot be read.
        """
        path = folder / NAME
        if not path.is_file():
            raise MissingFileError(f"{folder} has no {NAME}", "choose another --out, or leave --resume out")
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            state = cls(folder, found["asked"])
            for name in _PARTS:
                setattr(state, name, dict(found[name]))
            state.seconds = float(found["seconds"])
        except (ValueError, LookupError, TypeError) as error:
            raise ConfigError(f"{path} is damaged", "start over with --force") from error
        return state

    def document(self, **more: Any) -> dict[str, Any]:
        """All of it, and what is given beside it; sorted, so that the way there does not show."""
        now = time.monotonic()
        self.seconds, self._since = self.seconds + now - self._since, now
        found = {
            "asked": self.asked,
            "finished": False,
            "seconds": round(self.seconds, 1),
            **more,
            **{name: dict(sorted(getattr(self, name).items())) for name in _PARTS},
        }
        return dict(finite(found))

    def save(self, **more: Any) -> dict[str, Any]:
        """Write it; what was written."""
        document = self.document(**more)
        write_text(self.folder / NAME, json.dumps(document, indent=1, allow_nan=False) + "\n")
        return document


def finite(value: Any) -> Any:
    """A document without NaN and infinity, which JSON cannot hold: null stands for them."""
    if isinstance(value, dict):
        return {str(key): finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
