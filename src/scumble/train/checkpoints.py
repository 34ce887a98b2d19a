"""What a run needs to go on exactly where it was: one file for each checkpoint, whole or not there at all.

    checkpoints/state-000090-1f6c0a5e77d2b3a4.safetensors

A state is any nesting of dicts, lists, numbers, texts and tensors. It is written under a temporary name, forced to
the disk and renamed; its name carries the hash of its bytes, so that a broken one is found when it is read, and the
one before is taken instead. Knows files and hashes, and nothing of what is in a state.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from scumble.errors import OutputError, TrainingError

KEPT = 2  # the last one, and the one before, for when that is broken
_NAME = re.compile(r"state-\d{6,}-[0-9a-f]{16}\.safetensors")
_TENSOR, _ITEMS = "tensor:", "items:"

State = dict[str, Any]


def write_state(folder: Path, step: int, state: State) -> list[int]:
    """Write a checkpoint, and remove all but the last `KEPT`.

    Args:
        folder: which is there.
        step: after which the run is in this state.
        state: dicts (keys of any plain type), lists, numbers, texts, None and tensors.

    Returns:
        The steps of the checkpoints that are there now, the last first.

    Raises:
        OutputError: it cannot be written; those before it are still there.
    """
    temporary = folder / f".state-{step:06d}.{os.getpid()}"
    tensors: dict[str, Tensor] = {}
    text = json.dumps(_packed(state, tensors))
    try:
        save_file(tensors, temporary, metadata={"state": text})
        to_disk(temporary)
        temporary.replace(folder / f"state-{step:06d}-{hash_of(temporary)}.safetensors")
        to_disk(folder)
        # of one step only the last: a run that was stopped before an evaluation is written again after it
        steps = list(dict.fromkeys(_step(path) for path in _found(folder)))[:KEPT]
        newest = {_step(path): path for path in reversed(_found(folder))}
        for old in _found(folder):
            if old not in [newest[step] for step in steps]:
                old.unlink()
    except (OSError, SafetensorError) as error:
        # safetensors reports a full disk by an error of its own
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise OutputError(f"the checkpoint of step {step} cannot be written: {reason}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    return steps


def read_state(folder: Path, wrong: Callable[[State], str | None]) -> tuple[State | None, list[str]]:
    """Read the last checkpoint that is whole, and remove later ones, which are broken.

    Args:
        folder: of the checkpoints.
        wrong: says what keeps a state that was read from being used; None where nothing does.

    Returns:
        The state, or None where no checkpoint was ever written; and of each later one, why it was passed over.

    Raises:
        TrainingError: there are checkpoints, and none of them can be used.
    """
    passed: list[str] = []
    found = _found(folder)
    for path in found:
        step = _step(path)
        try:
            state = _read(path)
            reason = wrong(state)
        except (OSError, SafetensorError, ValueError, LookupError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        else:
            if reason is None:
                for broken in found[: len(passed)]:
                    broken.unlink()  # or it would count among the last ones
                return state, passed
        passed.append(f"the checkpoint of step {step} cannot be used: {reason}")
    if passed:
        raise TrainingError(
            f"no checkpoint in {folder} can be used; {'; '.join(passed)}",
            "start over with --force, which replaces the run",
        )
    return None, []


def remove_states(folder: Path) -> None:
    """Remove all of them: the run is over."""
    for path in _found(folder):
        path.unlink()


def hash_of(path: Path) -> str:
    """16 hexadecimal digits over the bytes of a file (XXH3-64)."""
    digest = xxhash.xxh3_64()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _found(folder: Path) -> list[Path]:
    """The checkpoints, the last first."""
    found = [path for path in folder.glob("state-*") if _NAME.fullmatch(path.name)]
    return sorted(found, key=lambda path: (_step(path), path.stat().st_mtime_ns), reverse=True)


def _step(path: Path) -> int:
    return int(path.name.split("-")[1])


def _hash(path: Path) -> str:
    return path.name.split("-")[2].partition(".")[0]


def _read(path: Path) -> State:
    if hash_of(path) != _hash(path):
        raise ValueError("its bytes are not those that its name gives the hash of")
    with safe_open(path, framework="pt") as file:
        text = (file.metadata() or {})["state"]
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - it is no dict
    state = _unpacked(json.loads(text), tensors)
    if not isinstance(state, dict):
        raise ValueError("it holds no state")
    return state


def _packed(value: Any, tensors: dict[str, Tensor]) -> Any:
    """The value as JSON can hold it, its tensors put into `tensors` and named in their place."""
    if isinstance(value, Tensor):
        name = f"{len(tensors):06d}"
        # a copy where it is on the CPU already would be one too many: nothing changes it while it is written
        tensors[name] = value.detach().to("cpu").contiguous()
        return {_TENSOR: name}
    if isinstance(value, dict):
        # a list of pairs, since the optimizer's keys are numbers
        return {_ITEMS: [[key, _packed(each, tensors)] for key, each in value.items()]}
    if isinstance(value, list | tuple):
        return [_packed(each, tensors) for each in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a state holds no {type(value).__name__}")


def _unpacked(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_unpacked(each, tensors) for each in value]
    if not isinstance(value, dict):
        return value
    if _TENSOR in value:
        return tensors[value[_TENSOR]]
    return {key: _unpacked(each, tensors) for key, each in value[_ITEMS]}


def to_disk(path: Path) -> None:
    """Ask the system to have written a file, or the names in a folder, before anything relies on them."""
    handle = os.open(path, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some file systems know no such thing for a folder
            os.fsync(handle)
    finally:
        os.close(handle)
