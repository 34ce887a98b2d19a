"""`compare`: an adapter on disk against its base, on data it has not seen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from scumble.compare.comparison import Comparison, compare_in_bank
from scumble.compare.metrics import Metric, metric_named
from scumble.config import CompareOptions, make
from scumble.data.examples import read_examples
from scumble.data.shipped import SHIPPED
from scumble.errors import DataError
from scumble.lora.adapter import WEIGHTS_NAME, Adapter, find_adapter
from scumble.lora.bank import Bank
from scumble.models.base import Base, load_base
from scumble.models.threads import threads_for, with_threads
from scumble.progress import Reporter


def compare(
    adapter: str | Path | Any,
    *,
    data: Any,
    base: Base | str | None = None,
    metric: str | Metric | None = None,
    dtype: str | None = None,
    device: str | None = None,
    quiet: bool = False,
    **options: Any,
) -> Comparison:
    """Compare the base with an adapter.

    Args:
        adapter: the folder of an adapter or of a run, or a `Run`.
        data: a path, a list of examples, a `datasets.Dataset`, or a shipped set, of which the test part is used.
        base: a `Base` or what `load_base` takes; by default the base that the adapter names.
        metric: a name, or a function of (answer, expected); by default the shipped set's own, else exact match.
        dtype, device: of the base, where it is loaded here.
        quiet: say nothing on stderr.
        **options: the fields of `CompareOptions`.

    Raises:
        ScumbleError: with one line on what is wrong, where, and what to do.
    """
    shipped = SHIPPED.get(data) if isinstance(data, str) else None
    if shipped is not None and options.get("max_new_tokens") is None:
        options["max_new_tokens"] = shipped.max_new_tokens
    settings = make(CompareOptions, **options)
    metric = metric or (shipped.metric if shipped else "exact_match")
    metric_named(metric)  # an unknown name is refused before anything is loaded
    folder = find_adapter(getattr(adapter, "adapter", adapter))
    loaded = Adapter.load(folder)
    examples = read_examples(data, "test")
    if not isinstance(base, Base):
        base = load_base(loaded.spec.base_name if base is None else base, dtype=dtype, device=device)
    if base.tokenizer is None:
        raise DataError(
            f"the base {base.name} has no tokenizer", "comparing needs one; add it to the base's folder"
        )
    bank = Bank(base)
    try:
        bank.add("adapter", loaded)
        reporter = Reporter(quiet=quiet)
        threads = threads_for(base.model).train  # prompts of many rows, not the decoding of a few
        with with_threads(threads), reporter.bar("comparing", len(examples[: settings.limit])):
            found = compare_in_bank(
                bank,
                "adapter",
                base.tokenizer,
                examples,
                metric=metric,
                options=settings,
                sizes=((folder / WEIGHTS_NAME).stat().st_size, base.bytes_on_disk, base.source_bytes),
                source=_title(data),
                done=reporter.advance,
            )
    finally:
        bank.close()
    return Comparison(**{**vars(found), "adapter": str(folder)})


def _title(data: Any) -> str:
    """What the data are called in a report."""
    if isinstance(data, str) and data in SHIPPED:
        return f"{data} test"
    return str(data) if isinstance(data, str | Path) else type(data).__name__
