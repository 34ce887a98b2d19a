"""Where an adapter comes from: the run that trained it, or the adapters that it was made of; its manifest, its settings.

A `run.json` may be of another program, of a later version, or broken: then it says so, and nothing fails.
Knows folders and JSON, and nothing of weights.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scumble.errors import ManifestError, printable
from scumble.lora.spec import LoraSpec
from scumble.lora.targets import ALL_LINEAR
from scumble.manifest import check_manifest

RUN_NAME = "run.json"
BLEND_NAME, RESIZE_NAME = "blend.json", "resize.json"
_PARTS = 64  # of a blend that are named
_BIGGEST = 16 * 2**20  # bytes of a JSON file that are read


@dataclass(frozen=True)
class Origin:
    """What is known of how an adapter came about.

    Attributes:
        run: what the `run.json` of its run says; None where there is none, or none that can be read.
        note: why not, or what it was made of, in words; or empty.
        made_from: what `blend` or `resize` wrote beside it: `parts` (name, weight, sha256), method, error; None where
            it was not made of others.
    """

    run: dict[str, Any] | None
    note: str = ""
    made_from: dict[str, Any] | None = None


@dataclass(frozen=True)
class Manifest:
    """The state of the files that a `manifest.json` names.

    Attributes:
        state: `absent`, `right` or `wrong`.
        note: what is wrong, or empty.
    """

    state: str
    note: str = ""


def origin_of(adapter: Path) -> Origin:
    """Read what `blend` or `resize` wrote beside an adapter; else the `run.json` beside it, or that of the run folder
    which it or its checkpoint lies in."""
    folder = adapter.resolve()
    for name in (BLEND_NAME, RESIZE_NAME):
        if (folder / name).is_file():  # before a run.json, which is that of the folder that it was put into
            return _made(folder / name)
    places = [folder, folder.parent]
    if folder.parent.name == "checkpoints":
        places.append(folder.parent.parent)
    path = next((place / RUN_NAME for place in places if (place / RUN_NAME).is_file()), None)
    if path is None:
        return Origin(None, f"no {RUN_NAME} beside it: what it was trained on is not known")
    try:
        facts = _read_json(path)
    except (OSError, ValueError, RecursionError) as error:
        return Origin(None, f"{path.parent.name}/{RUN_NAME} cannot be read: {_short(error)}")
    if not isinstance(facts, dict) or "scumble" not in facts or not isinstance(facts.get("data"), dict):
        return Origin(None, f"{path.parent.name}/{RUN_NAME} is no record of a Scumble run")
    return Origin(_run(facts))


def manifest_of(adapter: Path) -> Manifest:
    """Hold every file that an adapter's `manifest.json` lists against it, where it has one."""
    try:
        return Manifest("right" if check_manifest(adapter) else "absent")
    except ManifestError as error:
        return Manifest("wrong", error.message)


def sha256(path: Path) -> str:
    """The sum of a file, 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def settings_in_words(spec: LoraSpec) -> list[tuple[str, str]]:
    """What an adapter's configuration asks for, as (name, words); what it does not use is left out."""
    root = "alpha / sqrt(rank), rsLoRA" if spec.rslora else "alpha / rank"
    scale = spec.alpha / (spec.rank**0.5 if spec.rslora else spec.rank)
    rows = [
        ("rank", str(spec.rank)),
        ("alpha", f"{spec.alpha:g}"),
        ("scale", f"{scale:g} ({root})"),
        ("targets", _targets(spec)),
    ]
    for name, pattern in (("ranks", spec.rank_pattern), ("alphas", spec.alpha_pattern)):
        if pattern:
            rows.append((f"other {name}", ", ".join(f"{key}: {value:g}" for key, value in pattern.items())))
    if spec.exclude_modules:
        excluded = spec.exclude_modules
        rows.append(("left out", excluded if isinstance(excluded, str) else ", ".join(excluded)))
    if spec.layers_to_transform:
        rows.append(("layers", ", ".join(map(str, spec.layers_to_transform))))
    if spec.dora:
        rows.append(("DoRA", "yes: direction and magnitude apart"))
    if spec.lora_bias:
        rows.append(("lora_bias", "yes: B has a bias"))
    if spec.bias != "none":
        rows.append(("biases of the base", "all trained" if spec.bias == "all" else "trained where updated"))
    if spec.modules_to_save:
        rows.append(("replaced whole", ", ".join(spec.modules_to_save)))
    if spec.trainable_token_indices:
        count = sum(len(tokens) for tokens in spec.trainable_token_indices.values())
        rows.append(("token rows", f"{count} replaced"))
    if spec.dropout:
        rows.append(("dropout", f"{spec.dropout:g} while training"))
    return rows


def _targets(spec: LoraSpec) -> str:
    if spec.targets == ALL_LINEAR:
        return "all linear layers but the output layer"
    return f"pattern {spec.targets}" if isinstance(spec.targets, str) else ", ".join(spec.targets)


def _made(path: Path) -> Origin:
    """What an adapter was made of, from a record that may be of another program, or broken."""
    try:
        facts = _mapping(_read_json(path))
    except (OSError, ValueError, RecursionError) as error:
        return Origin(None, f"{path.name} cannot be read: {_short(error)}")
    resized = path.name == RESIZE_NAME
    listed = [{**facts, "path": facts.get("adapter"), "weight": 1}] if resized else facts.get("parts")
    parts = [_part(_mapping(each)) for each in (listed if isinstance(listed, list) else [])[:_PARTS]]
    if not parts or any(part["name"] is None for part in parts):
        return Origin(None, f"{path.name} does not say what the adapter was made of")
    made: dict[str, Any] = {
        "by": "resize" if resized else "blend",
        "parts": parts,
        "method": _text(facts.get("method")),
        "learned": bool(facts.get("learned")),
        "error": _number(_mapping(facts.get("error")).get("measured")),
    }
    made |= {key: _number(facts.get(key)) for key in ("rank", "energy")}
    return Origin(None, _made_in_words(made), made)


def _part(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Of one adapter: its name without the folders around it, its weight (the mean where modules differ), its sum."""
    path, weight = Path(_text(facts.get("path")) or ""), facts.get("weight")
    if isinstance(weight, dict):
        each = [value for value in map(_number, weight.values()) if value is not None]
        weight = sum(each) / len(each) if each else None
    name = path.parent.name or path.name if path.name == "adapter" else path.name
    return {"name": name or None, "weight": _number(weight), "sha256": _text(facts.get("sha256"))}


def _made_in_words(made: Mapping[str, Any]) -> str:
    parts = made["parts"]
    if made["by"] == "resize":
        size = f"an energy of {made['energy']:g}" if made["energy"] is not None else f"rank {made['rank']}"
        told = f"resized from {parts[0]['name']} to {size}"
    else:
        weights = ["–" if part["weight"] is None else f"{part['weight']:.3g}" for part in parts]
        told = f"blended ({made['method']}) from " + " + ".join(
            f"{weight} * {part['name']}" for weight, part in zip(weights, parts, strict=True)
        )
        told += ", weights learned" if made["learned"] else ""
    if made["error"] is not None:
        told += f"; its error was {made['error']:.2%}"
    return printable(told)


def _run(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a record that is shown; what is missing, or of another kind, is None."""
    data, result, base = (_mapping(facts.get(key)) for key in ("data", "result", "base"))
    training, validation = _mapping(facts.get("training")), _mapping(facts.get("validation"))
    loss = _mapping(result.get("loss"))
    return {
        "scumble": _text(facts.get("scumble")),
        "started": _text(facts.get("started")),
        "base": {key: _text(base.get(key)) for key in ("name", "hash", "dtype")},
        "data": {"source": _text(data.get("source")), "hash": _text(data.get("hash"))}
        | {key: _number(data.get(key)) for key in ("examples", "tokens")},
        "validation": _text(validation.get("source")),
        "steps": _number(result.get("steps")),
        "best_step": _number(result.get("best_step")),
        "loss": {key: _number(loss.get(key)) for key in ("first", "last", "best_eval")},
        "seconds": _number(result.get("seconds")),
        "epochs": _number(training.get("epochs")),
        "learning_rate": _number(training.get("learning_rate")),
        "seed": _number(training.get("seed")),
        "finished": bool(result),
        "stopped": _text(result.get("stopped")),
        "versions": {str(k): str(v)[:40] for k, v in list(_mapping(facts.get("versions")).items())[:20]},
    }


def _read_json(path: Path) -> Any:
    if path.stat().st_size > _BIGGEST:
        raise ValueError("it is larger than any record")
    return json.loads(path.read_text(encoding="utf-8"))


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: Any) -> str | None:
    return value[:300] if isinstance(value, str) and value else None


def _number(value: Any) -> int | float | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:120]
