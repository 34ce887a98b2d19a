"""`WrittenAdapter`: an adapter that was made of others and written, with its error before and after.

The error is shown before anything is written, and measured on what was read back from the disk.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scumble.errors import AdapterError, ConfigError
from scumble.files import new_folder
from scumble.lora.adapter import WEIGHTS_NAME, Adapter, from_tensors
from scumble.lora.blend import Blended
from scumble.manifest import write_manifest
from scumble.progress import Reporter


@dataclass(frozen=True)
class WrittenAdapter:
    """An adapter folder that `blend` or `resize` wrote.

    Attributes:
        out: the folder, in the PEFT format.
        rank: the largest of its modules.
        error: `predicted` from the singular values that were left out, `measured` on the file: Frobenius norm of
            what is missing, over that of the wanted update, all modules together.
        ranks: of each module.
        modules: the measured error of each module, relative to its wanted update; None where that is zero.
        parameters: numbers that it holds.
        bytes: of its weights on disk.
        made_from: the adapters with their weights and hashes, and how they were put together.
    """

    out: Path
    rank: int
    error: dict[str, float]
    ranks: dict[str, int]
    modules: dict[str, float | None]
    parameters: int
    bytes: int
    made_from: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """What `--json` prints."""
        return {**vars(self), "out": str(self.out)}


def write_blended(
    found: Blended,
    out: Path,
    made_from: Mapping[str, Any],
    record: str,
    *,
    force: bool,
    reporter: Reporter,
    beside: Mapping[str, str] | None = None,
) -> WrittenAdapter:
    """Say how far off the adapter is, write it, read it back, measure, and only then put it in its place.

    Args:
        found: what is written.
        out: the folder.
        made_from: for `record`, a JSON file beside the adapter.
        record: its name.
        force: replace `out` where it exists.
        reporter: is told the predicted error.
        beside: other files of the folder, from name to text.
    """
    ranks = {path: factors.rank for path, factors in found.adapter.factors.items()}
    lowest, highest = min(ranks.values(), default=0), max(ranks.values(), default=0)
    shown = f"rank {highest}" if lowest == highest else f"ranks {lowest} to {highest}"
    reporter.note(f"{shown} on {len(ranks)} modules; predicted error {found.predicted:.2%}")
    _check_size(found.adapter)
    with new_folder(out, force=force) as temporary:
        found.adapter.write_into(temporary)
        written = Adapter.load(temporary)
        measured, gaps = found.measured(written)
        error = {"predicted": found.predicted, "measured": measured}
        document = json.dumps({**made_from, "error": error}, indent=2) + "\n"
        for name, text in {record: document, **(beside or {})}.items():
            (temporary / name).write_text(text, encoding="utf-8")
        write_manifest(temporary)
    return WrittenAdapter(
        out,
        highest,
        error,
        ranks,
        {path: gap / found.norms[path] if found.norms[path] else None for path, gap in gaps.items()},
        written.parameters,
        (out / WEIGHTS_NAME).stat().st_size,
        dict(made_from),
    )


def _check_size(adapter: Adapter) -> None:
    """Refuse what could not be loaded again, before it is written."""
    try:
        from_tensors(adapter.spec, adapter.tensors())
    except AdapterError as error:
        raise ConfigError(
            f"the result cannot be an adapter: {error.message.removeprefix('the adapter: ')}",
            "smaller weights make smaller numbers",
        ) from error
