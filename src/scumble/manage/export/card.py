"""The model card of an adapter or of a merged model: README.md with the facts that are in its files.

What is not known is said to be unknown: no licence is guessed, no figure is made up, and paths of this machine
are left out. Knows JSON beside weights, and nothing of the weights themselves.
"""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from scumble.errors import ConfigError, DataError, MissingFileError
from scumble.files import read_bounded, refuse_existing, write_text
from scumble.lora.adapter import CONFIG_NAME, WEIGHTS_NAME, read_config
from scumble.lora.spec import LoraSpec
from scumble.manage.export.holding import folder_of, holding, named
from scumble.manage.export.licence import licence_of
from scumble.manage.inspection.origin import Origin, origin_of, settings_in_words

_BIGGEST = 64 * 2**20  # bytes of a comparison that are read
_LIBRARIES = ("scumble", "peft", "transformers", "torch")


@dataclass(frozen=True)
class Card:
    """A card that was written.

    Attributes:
        out: README.md.
        about: `adapter` or `model`.
        base: its base's name, None where it is not known.
        licence: of the base, None where it is not known.
        unknown: what could not be found out.
    """

    out: str
    about: str
    base: str | None
    licence: str | None
    unknown: list[str]

    def to_dict(self) -> dict[str, Any]:
        """What `--json` prints."""
        return {"kind": "card", **asdict(self)}


@dataclass(frozen=True)
class Facts:
    """What a card says.

    Attributes:
        about: `adapter` or `model`.
        title: the heading.
        base: its base's name; of a base in a folder the folder's last part.
        base_hash: by which the base is known.
        licence: of the base.
        origin: of the adapter.
        settings: of the adapter, as (name, words).
        comparison: what `scumble compare --json` wrote.
        certificate: of a merge.
        bytes: of the weights.
    """

    about: str
    title: str
    base: str | None
    base_hash: str | None
    licence: str | None
    origin: Origin
    settings: list[tuple[str, str]]
    comparison: Mapping[str, Any] | None
    certificate: Mapping[str, Any] | None
    bytes: int

    @property
    def on_hub(self) -> bool:
        """Whether the base's name is one of the hub's."""
        return bool(self.base) and str(self.base).count("/") == 1


def export_card(
    what: str | Path | Any,
    *,
    out: str | Path,
    comparison: str | Path | None = None,
    force: bool = False,
) -> Card:
    """Write the card of an adapter or of a merged model.

    Args:
        what: its folder, or that of a run.
        out: README.md, or the folder that it goes into.
        comparison: a file that `scumble compare --json` wrote.
        force: replace the card where there is one.

    Raises:
        MissingFileError, ConfigError: `what` holds neither, or there is no such comparison.
        DataError: the comparison is not one.
        OutputExistsError, OutputError: the card cannot be written.
    """
    folder = folder_of(what)
    path = Path(out).expanduser()
    path = path / "README.md" if path.is_dir() or not path.suffix else path
    if path.suffix.lower() != ".md":  # --force would replace whatever file was named, weights too
        raise ConfigError(f"--out {out} does not end in .md", "such as --out README.md")
    refuse_existing(path, force=force, file=True, inputs=(comparison,))
    found = gather(folder, holding(what), comparison, Path(named(what)).resolve().name)
    write_text(path, render(found))
    missing = {
        "the base": found.base,
        "the licence of the base": found.licence,
        "the data": found.origin.run,
        "figures before and after (--comparison)": found.comparison,
    }
    unknown = [title for title, value in missing.items() if not value]
    return Card(str(path), found.about, found.base, found.licence, unknown)


def gather(folder: Path, about: str, comparison: str | Path | None, title: str) -> Facts:
    """Read the facts of a folder.

    Args:
        folder: of an adapter or of a model.
        about: which of the two.
        comparison: a file that `scumble compare --json` wrote.
        title: the heading.
    """
    certificate = _json(folder / "certificate.json")
    settings: list[tuple[str, str]] = []
    base = _text((certificate or {}).get("base"), "name")
    base_hash = _text((certificate or {}).get("base"), "hash")
    if about == "adapter":
        spec = LoraSpec.from_peft(read_config(folder / CONFIG_NAME))
        base, settings, weights = spec.base_name, settings_in_words(spec), [folder / WEIGHTS_NAME]
    else:
        weights = sorted(folder.glob("*.safetensors"))
    origin = origin_of(folder)
    if origin.run is not None:
        base, base_hash = base or origin.run["base"]["name"], origin.run["base"]["hash"]
    licence = licence_of(base, folder if about == "model" else None)
    shown = Path(base).name if base and Path(base).is_absolute() else base  # no path of this machine
    size = sum(file.stat().st_size for file in weights)
    found = _comparison(comparison) if comparison is not None else None
    return Facts(about, title, shown, base_hash, licence, origin, settings, found, certificate, size)


def render(facts: Facts) -> str:
    """The card: YAML for the hub, then Markdown for people."""
    front: dict[str, Any] = {}
    if facts.on_hub:
        front["base_model"] = facts.base
        front["base_model_relation"] = "adapter" if facts.about == "adapter" else "finetune"
    front["library_name"] = "peft" if facts.about == "adapter" else "transformers"
    front["license"] = facts.licence or "unknown"
    front["pipeline_tag"] = "text-generation"
    front["tags"] = ["lora", "scumble"] if facts.about == "adapter" else ["merged", "scumble"]
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False).strip()}\n---",
        f"# {facts.title}",
        _opening(facts),
        _training(facts),
        _figures(facts),
        _merge(facts),
        _loading(facts),
        _versions(facts),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _opening(facts: Facts) -> str:
    base = f"`{facts.base}`" if facts.base else "a base that its files do not name"
    known = f" (hash of its weights `{facts.base_hash}`)" if facts.base_hash else ""
    what = (
        "A LoRA adapter for"
        if facts.about == "adapter"
        else "A model with a LoRA adapter merged into it, made of"
    )
    licence = (
        f"The licence of the base is `{facts.licence}`."
        if facts.licence
        else "The licence of the base is not known here: look it up before you share this."
    )
    return f"{what} {base}{known}. {licence} Its weights take {facts.bytes:,} bytes."


def _training(facts: Facts) -> str:
    rows: list[tuple[str, Any]] = [*facts.settings]
    run = facts.origin.run
    if run is not None:
        data, loss = run["data"], run["loss"]
        rows += [
            ("data", Path(data["source"]).name if data["source"] else "not named"),
            ("examples", data["examples"]),
            ("hash of the data", data["hash"]),
            ("steps", run["steps"]),
            ("epochs", run["epochs"]),
            ("learning rate", run["learning_rate"]),
            ("seed", run["seed"]),
            ("loss of the first step", _rounded(loss["first"])),
            ("loss of the last step", _rounded(loss["last"])),
            ("best loss on validation", _rounded(loss["best_eval"])),
            ("started", run["started"]),
        ]
    elif facts.origin.made_from is not None:
        rows.append(("made", facts.origin.note))
    elif facts.about == "adapter":
        rows.append(("data", "unknown: there is no record of its training beside it"))
    return _table("Training", "setting", "value", rows)


def _figures(facts: Facts) -> str:
    if facts.comparison is None:
        return ""
    metric, loss, data = (facts.comparison[key] for key in ("metric", "loss", "data"))
    source = Path(str(data.get("source") or "not named")).name
    lines = [
        f"On {metric['n']} unseen examples ({source}, hash `{data.get('hash')}`):",
        "",
        "| | base | with the adapter |",
        "|---|---|---|",
        f"| {metric['name']} | {metric['before']:.1%} | {metric['after']:.1%} |",
        f"| loss | {loss['before']:.3f} | {loss['after']:.3f} |",
    ]
    return "## Before and after\n\n" + "\n".join(lines)


def _merge(facts: Facts) -> str:
    certificate = facts.certificate
    if not certificate:
        return ""
    said = "passed" if certificate.get("passed") else "failed"
    return f"## Merge\n\nThe certificate of the merge, `certificate.json`, {said}."


def _loading(facts: Facts) -> str:
    base = str(facts.base or "BASE")
    if facts.about == "model":
        body = (
            "```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
            'model = AutoModelForCausalLM.from_pretrained("FOLDER")\n'
            'tokenizer = AutoTokenizer.from_pretrained("FOLDER")\n```\n\n'
            "With vLLM: `vllm serve FOLDER`. As GGUF: `scumble export gguf FOLDER --out model.gguf`."
        )
        return f"## How to load it\n\n`FOLDER` is this folder, or its name on the hub.\n\n{body}"
    body = (
        "With PEFT:\n\n```python\nfrom peft import PeftModel\nfrom transformers import AutoModelForCausalLM\n\n"
        f'base = AutoModelForCausalLM.from_pretrained("{base}")\n'
        'model = PeftModel.from_pretrained(base, "FOLDER")\n```\n\n'
        "With Scumble: `scumble chat FOLDER`.\n\n"
        f"With vLLM: `vllm serve {base} --enable-lora --lora-modules NAME=FOLDER`, after `scumble export vllm` where "
        "it is DoRA or has patterns."
    )
    return f"## How to load it\n\n`FOLDER` is this folder, or its name on the hub.\n\n{body}"


def _versions(facts: Facts) -> str:
    run = facts.origin.run
    if run is not None and run["versions"]:
        found = {"scumble": run["scumble"], **run["versions"]}
        return (
            "## Versions\n\nIt was trained with " + ", ".join(f"{k} {v}" for k, v in found.items() if v) + "."
        )
    here = {name: importlib.metadata.version(name) for name in _LIBRARIES}
    return "## Versions\n\nThis card was written with " + ", ".join(f"{k} {v}" for k, v in here.items()) + "."


def _rounded(figure: float | None) -> str | None:
    return None if figure is None else f"{figure:.4g}"


def _table(title: str, first: str, second: str, rows: list[tuple[str, Any]]) -> str:
    known = [(name, str(value).replace("|", "\\|")) for name, value in rows if value is not None]
    if not known:
        return ""
    body = "\n".join(f"| {name} | {value} |" for name, value in known)
    return f"## {title}\n\n| {first} | {second} |\n|---|---|\n{body}"


def _comparison(path: str | Path) -> Mapping[str, Any]:
    path = Path(path).expanduser()
    if not path.is_file():
        raise MissingFileError(
            f"the comparison {path} does not exist", "write one: scumble compare ... --json > FILE"
        )
    hint = "it should be what scumble compare --json prints"
    try:
        found = json.loads(read_bounded(path, _BIGGEST))
        _figures(Facts("adapter", "", None, None, None, Origin(None), [], found, None, 0))
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is no comparison: {type(error).__name__}: {error}"[:200], hint) from error
    if not isinstance(found, dict):
        raise ConfigError(f"{path} is no comparison", hint)
    return found


def _json(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(read_bounded(path, _BIGGEST))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _text(value: Any, key: str) -> str | None:
    found = value.get(key) if isinstance(value, dict) else None
    return found if isinstance(found, str) and found else None
