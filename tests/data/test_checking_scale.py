"""A million examples through all checks: they stream, and what is kept of each is a few numbers."""

from __future__ import annotations

import contextlib
import json
import random
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

EXAMPLES = 1_000_000
LIMIT = 1.5e9  # bytes at the peak, torch and transformers (0.4 GB) and all worker processes among them
# A process of its own, whose memory is that of checking alone.
CHECK = """
import json, sys
from scumble.data.checking import check
from tests.bases import letters_tokenizer
found = check(sys.argv[1], tokenizer=letters_tokenizer())
print(json.dumps({"examples": found.examples, "tokens": found.tokens,
                  "findings": [each.check for each in found.findings]}))
"""


def write_chats(path: Path, examples: int) -> None:
    """Chats of 6 to 16 random words each way, nearly all of them different."""
    draw = random.Random(0)
    words = [f"{a}{b}{c}" for a in "bdfgklmnprst" for b in "aeiou" for c in "lnrst"]
    with path.open("w", encoding="utf-8") as file:
        for _ in range(examples):
            asked, answer = (" ".join(draw.choices(words, k=draw.randint(6, 16))) for _ in range(2))
            turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
            file.write(json.dumps({"messages": turns}) + "\n")


def memory_of(process: int) -> list[int]:
    """Bytes of a process and of each that it started, what they share divided among them."""
    used = []
    with contextlib.suppress(psutil.NoSuchProcess):
        tree = psutil.Process(process)
        for each in [tree, *tree.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                used.append(each.memory_full_info().pss)
    return used


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_a_million_examples_fit_in_memory(tmp_path: Path) -> None:
    file = tmp_path / "chats.jsonl"
    write_chats(file, EXAMPLES)
    peak, processes = 0, 0
    with subprocess.Popen(
        [sys.executable, "-c", CHECK, str(file)], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
    ) as running:
        while running.poll() is None:
            used = memory_of(running.pid)
            peak, processes = max(peak, sum(used)), max(processes, len(used))
            time.sleep(0.5)
        assert running.stdout is not None
        found = json.load(running.stdout)
    assert running.returncode == 0
    said = f"{found['examples']:,} examples, {found['tokens']:,} tokens"
    print(f"{said}, peak {peak / 1e9:.2f} GB in {processes} processes")
    assert found["examples"] == EXAMPLES
    assert "near_duplicates_not_looked_for" not in found["findings"]
    assert peak < LIMIT
