"""Mutated adapter folders: each is refused with one line, or loads whole and computes finite numbers.

A case is a number: `spoil(copy of SEEDS[number % len(SEEDS)], number)`; `-k` or `try_case(..., number)` runs it
again. 500 of them are in `make test`, 10,000 in `make soak`.
"""

from __future__ import annotations

import resource
import shutil
import stat
import time
import warnings
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from scumble.errors import ScumbleError
from scumble.lora.adapter import WEIGHTS_NAME, Adapter
from scumble.lora.bank import Bank
from tests.lora.conftest import peft_model
from tests.lora.mutations import KINDS, MANIFEST, spoil
from tests.tiny import logits, tiny_ids, tiny_llama, tiny_qwen2

SEEDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rslora": {"use_rslora": True, "target_modules": "all-linear"},
    "dora": {"use_dora": True, "target_modules": r".*\.(q|v)_proj"},
    "lora_bias": {"lora_bias": True, "exclude_modules": ["layers.1.self_attn.q_proj"]},
    "patterns": {
        "rank_pattern": {"q_proj": 2, r"model.*v_proj": 3},
        "alpha_pattern": {"layers.1.self_attn.q_proj": 3},
        "layers_to_transform": [0, 1],
        "layers_pattern": "layers",
    },
    "saved": {"modules_to_save": ["lm_head"]},
    "tokens": {"trainable_token_indices": {"embed_tokens": [3, 5]}},
    "embedding": {"target_modules": ["embed_tokens", "q_proj"]},
    "bias": {"bias": "all"},
}
SECONDS, MEGABYTES = 2.0, 100
REFUSABLE = {kind for kind in KINDS if kind != "weights: another type"}
# What only damages what is checked, or can be changed so that a valid adapter is left.
LOADABLE = {
    "config: value",
    "config: deleted",
    "config: retyped",
    "config: flipped",
    "weights: another type",
    "weights: metadata",
    "weights: numbers",
    "weights: flipped",
    "files: linked",
    "files: replaced",
}


@dataclass
class Found:
    """How the cases ended, by kind of mutation."""

    loaded: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0
    highest: int = 0
    messages: Counter[str] = field(default_factory=Counter)


@pytest.fixture(scope="module")
def seeds(tmp_path_factory) -> dict[str, tuple[Any, Path]]:
    """By name: a base, and the folder of an adapter for it."""
    made = {}
    for name, config in SEEDS.items():
        base = (tiny_qwen2 if name == "bias" else tiny_llama)()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            peft_model(base, **config).save_pretrained(tmp_path_factory.mktemp("peft") / name)
            made[name] = base, tmp_path_factory.mktemp("seeds") / name
            Adapter.load(next(tmp_path_factory.getbasetemp().glob(f"peft*/{name}"))).save(made[name][1])
        assert (made[name][1] / MANIFEST).is_file()
    return made


def snapshot(folder: Path) -> dict[str, object]:
    """All that lies around: names, kinds, sizes, times and contents."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        text = path.read_bytes() if stat.S_ISREG(status.st_mode) else b""
        found[str(path.relative_to(folder))] = (
            stat.S_IFMT(status.st_mode),
            status.st_size,
            status.st_mtime_ns,
            text,
        )
    return found


def compute(bank: Bank, base: Any, folder: Path) -> None:
    """Load an adapter, compute with it, and hold every tensor against the file."""
    adapter = Adapter.load(folder)
    with safe_open(folder / WEIGHTS_NAME, framework="pt") as file:
        declared = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    bank.add("mutant", adapter)
    try:
        tensors = adapter.tensors()
        copies = {f"{path}.weight" for path in adapter.copies}
        assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == {
            name: shape for name, shape in declared.items() if name in tensors
        }
        assert len(declared) == len(tensors) + len(copies)
        assert all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values())
        bank.use("mutant")
        assert bool(torch.isfinite(logits(bank.model, tiny_ids())).all())
    finally:
        bank.use({})
        bank.remove("mutant")


def check_line(error: ScumbleError) -> None:
    for text in (error.message, error.hint):
        assert text.isprintable(), text
        assert len(text) < 500, text
    assert error.message


def try_case(seeds: dict[str, tuple[Any, Path]], place: Path, number: int, found: Found, banks: dict) -> None:
    name = list(SEEDS)[number % len(SEEDS)]
    base, folder = seeds[name]
    bank = banks.setdefault(name, Bank(base) if name not in banks else banks[name])
    around = place / "around"
    if not around.exists():
        (around / "beside").mkdir(parents=True)
        (around / "beside" / "precious.txt").write_text("precious")
    case = around / "case"
    shutil.copytree(folder, case)
    try:
        kind = spoil(case, number)
        before, high = snapshot(around), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start = time.perf_counter()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                compute(bank, base, case)
            found.loaded[kind] += 1
        except ScumbleError as error:
            check_line(error)
            found.refused[kind] += 1
            found.messages[type(error).__name__] += 1
        seconds = time.perf_counter() - start
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - high) // 1024
        found.slowest, found.highest = max(found.slowest, seconds), max(found.highest, grown)
        assert seconds < SECONDS, f"{seconds:.1f} s"
        assert grown < MEGABYTES, f"{grown} MB"
        assert snapshot(around) == before, "something was written"
        assert bank.names == []
    finally:
        shutil.rmtree(case)


def run_cases(seeds: dict[str, tuple[Any, Path]], place: Path, numbers: range) -> Found:
    found, banks = Found(), {}
    torch.set_num_threads(1)
    failures = []
    for number in numbers:
        try:
            try_case(seeds, place, number, found, banks)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            failures.append(f"case {number}: {type(error).__name__}: {str(error)[:300]}")
    for bank in banks.values():
        bank.close()
    assert not failures, f"{len(failures)} of {len(numbers)}:\n" + "\n".join(failures[:40])
    return found


def check_found(found: Found, numbers: range) -> None:
    """The mutator does what it should: each kind was refused and, where it can, was loaded."""
    assert found.loaded.total() + found.refused.total() == len(numbers)
    lines = [f"{kind}: {found.loaded[kind]} loaded, {found.refused[kind]} refused" for kind in KINDS]
    print(
        *lines, f"slowest {found.slowest:.2f} s, highest {found.highest} MB, {dict(found.messages)}", sep="\n"
    )
    assert REFUSABLE - set(found.refused) == set()
    assert LOADABLE - set(found.loaded) == set()
    # neither ending is rare, so that a check of either is one that can fail
    assert found.loaded.total() > len(numbers) // 20
    assert found.refused.total() > len(numbers) // 2


def test_five_hundred_mutants(seeds, tmp_path):
    numbers = range(500)
    check_found(run_cases(seeds, tmp_path, numbers), numbers)


@pytest.mark.soak
def test_ten_thousand_mutants(seeds, tmp_path):
    numbers = range(10_000)
    check_found(run_cases(seeds, tmp_path, numbers), numbers)
