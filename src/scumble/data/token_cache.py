"""Tokens kept in a folder, so that the same data are tokenized once.

Examples are kept some thousands together, under the hash of all that decides their tokens: the examples, the
template, the tokenizer, which turns carry a loss. Data that grow at their end are tokenized from there on. What
cannot be read back, or is not what it should be, is made again. Knows nothing of how tokens are made.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import date
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import xxhash
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from scumble.data.encoding import Encoded, TrainOn, encode_each, encoding_processes
from scumble.data.example import Example
from scumble.data.templates import Template
from scumble.errors import DataError
from scumble.files import new_file

# raised where masks or what is written change
FORMAT = 1
TOGETHER = 4096
_OnError: TypeAlias = Callable[[DataError], None]


def encode_once(
    examples: Iterable[Example],
    tokenizer: Any,
    folder: str | Path,
    *,
    train_on: TrainOn = "all",
    template: Template | None = None,
    on_error: _OnError | None = None,
) -> Iterator[Encoded]:
    """As `encode_each`, with the tokens kept in a folder.

    Args:
        examples: as for `encode_each`.
        tokenizer: as for `encode_each`.
        folder: where tokens are kept; made where it is not there.
        train_on: as for `encode_each`.
        template: as for `encode_each`.
        on_error: as for `encode_each`; examples among which there are errors are not kept.

    Raises:
        OutputError: the tokens cannot be written.
    """
    folder = Path(folder).expanduser()
    setting = _setting(tokenizer, template, train_on)
    rest, first = iter(examples), 0
    processes = encoding_processes(tokenizer, train_on=train_on, template=template)
    options = {"train_on": train_on, "template": template, "processes": processes}
    try:
        while group := list(islice(rest, TOGETHER)):
            path = folder / f"{_key(group, setting)}.safetensors"
            kept = _read(path, group)
            if kept is None:
                kept = _made(group, tokenizer, path, on_error, options)
            for encoded in kept:
                yield replace(encoded, number=encoded.number + first)
            first += len(group)
    finally:
        processes.close()


def _made(
    group: Sequence[Example],
    tokenizer: Any,
    path: Path,
    on_error: _OnError | None,
    options: dict[str, Any],
) -> list[Encoded]:
    """A group encoded, and written where nothing is wrong with it."""
    errors: list[DataError] = []

    def note(error: DataError) -> None:
        errors.append(error)
        if on_error is None:
            raise error
        on_error(error)

    made = list(encode_each(group, tokenizer, on_error=note, **options))
    if not errors:
        _write(path, made)
    return made


def _setting(tokenizer: Any, template: Template | None, train_on: TrainOn) -> bytes:
    """What decides tokens beside the examples, as one hash."""
    text = template.text if template is not None else json.dumps(getattr(tokenizer, "chat_template", None))
    names = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    # a template that asks for the date writes another text tomorrow
    day = date.today().isoformat() if "strftime_now" in text else ""
    digest = xxhash.xxh3_128(tokenizer.backend_tokenizer.to_str().encode())
    digest.update(
        json.dumps([FORMAT, text, names, train_on, day], sort_keys=True).encode("utf-8", "surrogatepass")
    )
    return digest.digest()


def _key(group: Sequence[Example], setting: bytes) -> str:
    digest = xxhash.xxh3_128(setting)
    for example in group:
        digest.update(example.hash.to_bytes(8, "little"))
    return digest.hexdigest()


def _write(path: Path, group: Sequence[Encoded]) -> None:
    arrays: dict[str, Any] = {
        "lengths": np.array([len(encoded.ids) for encoded in group], np.int32),
        "ids": np.array([token for encoded in group for token in encoded.ids], np.int32),
        "supervised": np.packbits([loss for encoded in group for loss in encoded.supervised]),
    }
    notes = {str(i): encoded.notes for i, encoded in enumerate(group) if encoded.notes}
    with new_file(path) as temporary:
        save_file(arrays, temporary, metadata={"notes": json.dumps(notes)})


def _read(path: Path, group: Sequence[Example]) -> list[Encoded] | None:
    """The tokens of a group, each with the place of its example; None where they are not there or are damaged."""
    if not path.is_file():
        return None
    try:
        arrays = load_file(path)
        notes = {int(i): tuple(each) for i, each in _notes(path).items()}
        lengths, ids = arrays["lengths"].tolist(), arrays["ids"].tolist()
        supervised = np.unpackbits(arrays["supervised"], count=len(ids)).astype(bool).tolist()
    except (OSError, SafetensorError, KeyError, ValueError):
        return None
    if len(lengths) != len(group) or sum(lengths) != len(ids):
        return None
    found, start = [], 0
    for number, (example, length) in enumerate(zip(group, lengths, strict=True)):
        end = start + length
        found.append(
            Encoded(
                tuple(ids[start:end]),
                tuple(supervised[start:end]),
                number,
                example.where,
                notes.get(number, ()),
            )
        )
        start = end
    return found


def _notes(path: Path) -> dict[str, list[str]]:
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    found: dict[str, list[str]] = json.loads(header["__metadata__"]["notes"])
    return found
