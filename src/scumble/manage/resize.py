"""`resize`: an adapter folder, made into one of smaller rank."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from scumble.config import ResizeOptions, make
from scumble.errors import AdapterError
from scumble.files import refuse_existing
from scumble.lora.adapter import Adapter, find_adapter
from scumble.lora.part import Part
from scumble.lora.resize import resize as resize_adapter
from scumble.manage.blend import check_base, hashes
from scumble.manage.written import WrittenAdapter, write_blended
from scumble.models.checkpoint import open_checkpoint
from scumble.progress import Reporter

RECORD = "resize.json"


def resize(
    adapter: str | Path | Any,
    *,
    out: str | Path,
    base: str | None = None,
    force: bool = False,
    quiet: bool = False,
    **options: Any,
) -> WrittenAdapter:
    """Make an adapter smaller: the best update of a rank, or the smallest that keeps an energy.

    Args:
        adapter: the folder of an adapter or of a run.
        out: folder of the result, in the PEFT format, with `resize.json` beside it.
        base: needed by DoRA alone; by default the one that the adapter names.
        force: replace `out` where it exists.
        quiet: say nothing on stderr.
        **options: the fields of `ResizeOptions`: rank or energy, and shared.

    Raises:
        ScumbleError: with one line on what is wrong, where, and what to do.
    """
    settings = make(ResizeOptions, **options)
    named = getattr(adapter, "adapter", adapter)
    place = find_adapter(named)
    folder = refuse_existing(out, force=force, inputs=(named, place, base))
    loaded = Adapter.load(place)
    with contextlib.ExitStack() as stack:
        tensors = None
        if loaded.spec.dora:
            name = base or loaded.spec.base_name
            if name is None:
                raise AdapterError(f"{place} is DoRA and names no base", "say which with --base")
            tensors = stack.enter_context(open_checkpoint(name))
            check_base([Part(loaded, title=str(place))], tensors)
        found = resize_adapter(
            loaded,
            rank=settings.rank,
            energy=settings.energy,
            shared=settings.shared,
            base=tensors,
            title=str(place),
        )
        made_from = {"adapter": str(place), **hashes(place), **settings.model_dump()}
        return write_blended(found, folder, made_from, RECORD, force=force, reporter=Reporter(quiet=quiet))
