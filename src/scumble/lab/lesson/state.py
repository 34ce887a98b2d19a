"""`lab.json`: what was asked and all that was found so far, written after each step so that it can be gone on with."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, FiniteFloat, NonNegativeInt, PositiveInt

from scumble.errors import ConfigError, MissingFileError
from scumble.files import write_text

NAME = "lab.json"
_PARTS = ("chosen", "runs", "scores", "spectra", "parts")
# what reading JSON of another kind than was written comes to, deep nesting and huge numbers among it
_DAMAGED = (ValueError, LookupError, TypeError, RecursionError, OverflowError)
_Positive = Annotated[FiniteFloat, Field(gt=0)]


class _Asked(BaseModel):
    name: Literal["quick", "whole"]
    seeds: Annotated[list[NonNegativeInt], Field(min_length=1)]
    steps: PositiveInt
    batch: PositiveInt
    examples: PositiveInt
    few: PositiveInt
    scored: PositiveInt
    validated: PositiveInt
    sampled: PositiveInt
    shortened: list[str]


class _Run(BaseModel):
    way: str
    title: str
    rate: _Positive
    seed: NonNegativeInt
    failed: str | None
    validation: FiniteFloat | None
    train: FiniteFloat | None = None
    losses: list[FiniteFloat | None] | None = None
    parameters: NonNegativeInt | None = None
    bytes: NonNegativeInt | None = None


class _Kind(BaseModel):
    held: dict[str, FiniteFloat]
    values: list[FiniteFloat]


class _Spectrum(BaseModel):
    held: dict[str, FiniteFloat]
    outside: FiniteFloat
    relative: FiniteFloat
    kinds: dict[str, _Kind]


class _Added(BaseModel):
    added: str
    peak: NonNegativeInt
    share: FiniteFloat


class _Size(BaseModel):
    adapter: PositiveInt
    adapter_checkpoint: PositiveInt
    model: PositiveInt
    model_checkpoint: PositiveInt


class _Sizes(BaseModel):
    llama: _Size
    base: _Size


class _Agreement(BaseModel):
    n: NonNegativeInt
    agree: NonNegativeInt
    right_by_forward: NonNegativeInt
    right_by_generation: NonNegativeInt


class _Parts(BaseModel):
    base: str | None = None
    named: str | None = None
    memory: Annotated[dict[str, dict[str, Any] | list[_Added]], Field(min_length=2)] | None = None
    sizes: _Sizes | None = None
    agreement: _Agreement | None = None


class _Document(BaseModel):
    """What `lab.json` has to hold so that it can be gone on with."""

    asked: _Asked
    seconds: Annotated[FiniteFloat, Field(ge=0)]
    chosen: dict[str, _Positive]
    runs: dict[str, _Run]
    scores: dict[str, Annotated[str, Field(pattern="^[01]+$")]]
    spectra: dict[str, _Spectrum]
    parts: _Parts

    def check(self) -> None:
        """Raise `ValueError` where something is missing, or figures are not as many as was asked for."""
        asked, parts = self.asked, self.parts
        if asked.examples != asked.steps * asked.batch:
            raise ValueError("the examples are not those of the steps")
        if any(getattr(parts, name) is None for name in parts.model_fields_set - {"named"}):
            raise ValueError("a part is null: what is not there yet is left out")
        if any(len(marks) != asked.scored for marks in self.scores.values()):
            raise ValueError("a mark is missing")
        for run in self.runs.values():
            if run.failed is None and None in (run.parameters, run.bytes):
                raise ValueError("the size of a run is missing")
            if run.losses is not None and len(run.losses) != asked.validated:
                raise ValueError("a loss is missing")


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
            text = path.read_text(encoding="utf-8")
            found, read = json.loads(text), _Document.model_validate_json(text, strict=True)
            read.check()
            state = cls(folder, found["asked"])
            for name in _PARTS:
                setattr(state, name, found[name])
            state.seconds = read.seconds
        except _DAMAGED as error:
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
