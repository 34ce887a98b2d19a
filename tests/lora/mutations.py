"""Adapter folders spoiled at random: `spoil(folder, seed)` changes a valid one, always the same way for a seed.

Knows files and bytes. It makes what damage and ill will make; what a mutant should be is for the tests to say.
"""

from __future__ import annotations

import json
import math
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.lora import mutated_weights
from tests.lora.mutated_weights import WEIGHTS

CONFIG, MANIFEST = "adapter_config.json", "manifest.json"
KEEPS_MANIFEST = 0.15  # of the mutants, which it then has to find

# fmt: off
ODD: list[Any] = [
    None, True, False, 0, 1, -1, 2**16, 2**31, 2**63, 10**400, 0.5, 8.0, 1e308, -1e308, 1e-320, math.nan,
    math.inf, -math.inf, "", " ", "q_proj", "all-linear", "ALL-LINEAR", ".*", "(a*)*b", "((.*)*)*x",
    "(?:.*.*.*.*.*.*)*zzz", "[", "(?P<x>", "a{1,99999}{1,99999}", "a" * 5000, "../../x", "/etc/passwd",
    "http://localhost/x", "a\nb", "\x1b[31mred\x1b[0m", "\u202egnp.exe", "\ud800", "\0", "\U0001f600", [],
    {}, [[]], [[["q_proj"]]], ["q_proj", None], ["q_proj", ["v_proj"]], [1, 2], [-1], [math.nan], [True],
    ["q_proj"] * 70_000, {"a": {"b": {}}}, {"q_proj": 3}, {"q_proj": "3"}, {"q_proj": [3]}, {"(a*)*b": 2},
    {"": 1}, {"q_proj": math.nan}, {"q_proj": 10**400}, {"embed_tokens": [1, 2]}, {"embed_tokens": 3},
    ["", "."],
]
# fmt: on


def spoil(folder: Path, seed: int) -> str:
    """Spoil an adapter folder in place.

    Returns:
        The kind of mutation.
    """
    draw = random.Random(seed)
    # of those a large part hits what is never loaded
    kind = draw.choices(list(KINDS), [3 if kind == "config: value" else 1 for kind in KINDS])[0]
    keeps = kind.startswith("manifest") or draw.random() < KEEPS_MANIFEST
    if not keeps:
        (folder / MANIFEST).unlink()
    KINDS[kind](folder, draw)
    return kind


# -- the configuration ---------------------------------------------------------------------------------


def _config(folder: Path, draw: random.Random, change: Callable[[dict[str, Any], str], None]) -> None:
    config = json.loads((folder / CONFIG).read_text())
    for _ in range(draw.choice([1, 1, 1, 1, 1, 3])):
        change(config, draw.choice(sorted(config)))
        if not config:
            break
    (folder / CONFIG).write_text(json.dumps(config))


def _value(folder: Path, draw: random.Random) -> None:
    _config(folder, draw, lambda config, key: config.__setitem__(key, draw.choice(ODD)))


def _deleted(folder: Path, draw: random.Random) -> None:
    _config(folder, draw, lambda config, key: config.__delitem__(key))


def _nested(folder: Path, draw: random.Random) -> None:
    def nest(config: dict[str, Any], key: str) -> None:
        for _ in range(draw.choice([1, 2, 300])):
            config[key] = [config[key]] if draw.random() < 0.7 else {draw.choice(["a", key]): config[key]}

    _config(folder, draw, nest)


def _retyped(folder: Path, draw: random.Random) -> None:
    kinds: list[Callable[[Any], Any]] = [
        str,
        lambda value: [str(value)],
        lambda value: float(value) if isinstance(value, int) else repr(value),
        lambda value: bool(value),
        lambda value: [*value, *value] if isinstance(value, list) else value,
        lambda value: value * 3 if isinstance(value, int | str) else value,
        lambda value: list(value) if isinstance(value, str | dict) else {str(value): value},
    ]
    _config(folder, draw, lambda config, key: config.__setitem__(key, draw.choice(kinds)(config[key])))


def _added(folder: Path, draw: random.Random) -> None:
    keys = [
        "x",
        "alora_invocation_tokens",
        "layer_replication",
        "use_qalora",
        "auto_map",
        "\x1b[2J",
        "r" * 9999,
    ]
    _config(folder, draw, lambda config, key: config.__setitem__(draw.choice(keys), draw.choice(ODD)))


def _cut(name: str) -> Callable[[Path, random.Random], None]:
    def cut(folder: Path, draw: random.Random) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: draw.choice([0, 1, 7, 8, 9, draw.randrange(len(data))])])

    return cut


def _flipped(name: str, within: int | None = None) -> Callable[[Path, random.Random], None]:
    """Bytes changed: anywhere, or among the first `within`."""

    def flip(folder: Path, draw: random.Random) -> None:
        data = bytearray((folder / name).read_bytes())
        for _ in range(draw.choice([1, 1, 2, 8])):
            data[draw.randrange(min(within or len(data), len(data)))] ^= 1 << draw.randrange(8)
        (folder / name).write_bytes(data)

    return flip


# -- the files themselves ------------------------------------------------------------------------------


def _linked(folder: Path, draw: random.Random) -> None:
    name = draw.choice([CONFIG, WEIGHTS, MANIFEST])
    path, other = folder / name, folder / (WEIGHTS if name == CONFIG else CONFIG)
    moved = folder / "blob"
    odd = [folder / "missing", other, "/dev/zero", "/dev/null", "/dev/full", folder, path, "/proc/self/mem"]
    goal = moved if draw.random() < 0.4 else draw.choice(odd)  # a blob, as in the hub's cache
    if path.exists():
        path.rename(moved)
    os.symlink(goal, path)


def _replaced(folder: Path, draw: random.Random) -> None:
    path = folder / draw.choice([CONFIG, WEIGHTS, MANIFEST])
    path.unlink(missing_ok=True)
    kind = draw.choice(["folder", "pipe", "empty", "gone", "text"])
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind != "gone":
        path.write_text("" if kind == "empty" else "version https://git-lfs.github.com/spec/v1\n")


def _manifest(folder: Path, draw: random.Random) -> None:
    document = json.loads((folder / MANIFEST).read_text())
    part = draw.choice(["sha256", "bytes"])
    names = [
        "../x",
        "/etc/passwd",
        "..",
        "",
        "a\\b",
        "a/b",
        "\0",
        "\x1b[2J",
        "x" * 300,
        MANIFEST,
        "harmless.txt",
    ]
    choice = draw.randrange(6)
    if choice == 0:
        document[part][draw.choice([CONFIG, WEIGHTS])] = draw.choice([*ODD, "0" * 64, "z" * 64])
    elif choice == 1:
        name = draw.choice(names)
        document["sha256"][name], document["bytes"][name] = "0" * 64, 1
    elif choice == 2:
        del document[draw.choice(["sha256", "bytes", "format"])]
    elif choice == 3:
        document[draw.choice(["sha256", "bytes", "format"])] = draw.choice(ODD)
    elif choice == 4:
        for each in ("sha256", "bytes"):
            document[each].pop(draw.choice([CONFIG, WEIGHTS]))
    else:
        document = draw.choice(ODD)
    (folder / MANIFEST).write_text(json.dumps(document))


KINDS: dict[str, Callable[[Path, random.Random], None]] = {
    "config: value": _value,
    "config: deleted": _deleted,
    "config: nested": _nested,
    "config: retyped": _retyped,
    "config: added": _added,
    "config: cut": _cut(CONFIG),
    "config: flipped": _flipped(CONFIG),
    **mutated_weights.KINDS,
    "weights: cut": _cut(WEIGHTS),
    "weights: flipped": _flipped(WEIGHTS),
    "weights: header flipped": _flipped(WEIGHTS, within=400),
    "files: linked": _linked,
    "files: replaced": _replaced,
    "manifest: edited": _manifest,
    "manifest: flipped": _flipped(MANIFEST),
    "manifest: cut": _cut(MANIFEST),
}
