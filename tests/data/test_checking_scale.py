"""A million examples through all checks: they stream, and what is kept of each is a few numbers."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = 1_000_000
LIMIT = 1.5e9  # bytes of the process at its peak, torch and transformers (0.4 GB) among them
# A process of its own, whose peak is that of checking alone.
CHECK = """
import json, resource, sys
from scumble.data.checking import check
from tests.bases import letters_tokenizer
found = check(sys.argv[1], tokenizer=letters_tokenizer())
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps({"examples": found.examples, "tokens": found.tokens, "peak": peak,
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


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_a_million_examples_fit_in_memory(tmp_path: Path) -> None:
    file = tmp_path / "chats.jsonl"
    write_chats(file, EXAMPLES)
    done = subprocess.run(
        [sys.executable, "-c", CHECK, str(file)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    found = json.loads(done.stdout)
    print(f"{found['examples']:,} examples, {found['tokens']:,} tokens, peak {found['peak'] / 1e9:.2f} GB")
    assert found["examples"] == EXAMPLES
    assert "near_duplicates_not_looked_for" not in found["findings"]
    assert found["peak"] < LIMIT
