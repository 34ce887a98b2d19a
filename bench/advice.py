"""How often `scumble advise` is right about runs whose truth is known, and whether following it helps.

    python bench/advice.py                           # family `letters`, seeds 0 to 9: those that thresholds were fixed on
    python bench/advice.py --family digits --seeds 100-109     # another base, other data: those of the tests
    python bench/advice.py --truths hot,cold --seeds 0-2

Prints a confusion table, and what was said wrongly with its figures. A truth takes about half a minute on one thread.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # the worlds are the tests'

from tests.train.advice.judged import judge, table
from tests.train.advice.worlds import FAMILIES, TRUTHS, taught_base


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--family", choices=sorted(FAMILIES), default="letters")
    parser.add_argument("--seeds", default="0-9", help="first and last")
    parser.add_argument("--truths", help="names with commas between them")
    parser.add_argument("--keep", type=Path, help="folder to keep the runs in")
    asked = parser.parse_args()
    first, _, last = asked.seeds.partition("-")
    names = asked.truths.split(",") if asked.truths else [truth.name for truth in TRUTHS]
    family = FAMILIES[asked.family]
    base = taught_base(family.base)
    with tempfile.TemporaryDirectory() as temporary:
        judged = []
        for truth in (truth for truth in TRUTHS if truth.name in names):
            folder = (asked.keep or Path(temporary)) / truth.name.replace(" ", "-")
            judged += judge(base, family, range(int(first), int(last or first) + 1), folder, truths=[truth])
            print(table([each for each in judged if each.truth is truth]).splitlines()[-1], flush=True)
    print()
    print(table(judged))
    for each in judged:
        if not each.right or each.better is False:
            print(f"\n{each.truth.name}, seed {each.seed}: {each.before:.4g} -> {each.after}")
            for finding in each.advice.findings:
                print(f"  {finding.topic} ({finding.confidence}): {finding.evidence}")


if __name__ == "__main__":
    main()
