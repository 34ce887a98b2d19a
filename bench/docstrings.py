"""A real file that nobody here wrote: the docstrings of Python's standard library as 'write a docstring' chats.

    python bench/docstrings.py [--out docstrings] [--steps 20] [--max-length 512]

Every function of the standard library that has a docstring becomes a chat: the function without it is asked, the
docstring is answered. The file goes through `check`, `preview`, `split` (by module, so that no module is on two sides)
and a short `train`, with a figure of each. What is found depends on the version of Python, which is printed.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path

import scumble.data
from scumble import load_base, train
from scumble.lab.docstrings import chats, standard_library


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("docstrings"))
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--base", default=None)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / "docstrings.jsonl"
    with file.open("w", encoding="utf-8") as out:
        for row in chats(standard_library()):
            out.write(json.dumps(row, ensure_ascii=False) + "\n")
    print(f"Python {platform.python_version()}: {file}, {file.stat().st_size / 1e6:.1f} MB")

    base = load_base(options.base)
    started = time.perf_counter()
    checked = scumble.data.check(file, tokenizer=base.tokenizer, max_length=options.max_length)
    print(
        f"check: {time.perf_counter() - started:.1f} s; {checked.examples:,} examples, {checked.tokens:,} tokens, "
        f"{checked.supervised_tokens:,} with a loss"
    )
    for finding in checked.findings:
        lines = f" (lines {', '.join(map(str, finding.lines[:3]))}, ...)" if finding.lines else ""
        print(f"  {finding.severity}: {finding.check}: {finding.message}{lines}")

    started = time.perf_counter()
    page = options.out / "preview.html"
    seen = scumble.data.preview(
        file, tokenizer=base.tokenizer, max_length=options.max_length, html=page, force=True
    )
    assert seen.savings is not None
    print(
        f"preview: {time.perf_counter() - started:.1f} s; {page}; tokens with a loss {seen.supervised_share:.1%}, "
        f"packing saves {seen.savings.packing:.1%}, shared prefixes {seen.savings.prefixes:.1%}"
    )

    parts = scumble.data.split(file, 0.05, out=options.out / "parts", group="module", force=True)
    print(
        f"split: {', '.join(f'{count:,} {name}' for name, count in parts.examples.items())}; "
        f"{parts.groups:,} groups of modules, {parts.repeated:,} examples equal to an earlier one"
    )
    run = train(
        parts.files["train"],
        out=options.out / "run",
        base=base,
        eval=0,
        max_steps=options.steps,
        batch=4,
        accumulate=1,
        max_length=options.max_length,
        force=True,
    )
    losses = f"{run.loss['first']:.3f} -> {run.loss['last']:.3f}"
    print(f"train: {run.steps} steps, {run.tokens:,} tokens, {run.seconds:.0f} s; loss {losses}")


if __name__ == "__main__":
    main()
