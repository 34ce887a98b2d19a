"""`compare`: an adapter on disk against its base, on data it has not seen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from scumble.compare.comparison import Comparison, Side, compare_in_bank, compare_sides, side_of
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
    """Compare the base with an adapter, or with the model of a run that trained all weights.

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
    place = getattr(adapter, "out", None) if getattr(adapter, "model", None) else adapter
    if (whole := trained_model(place)) is not None:
        return _compare_models(*whole, data, base, metric, dtype, device, settings, Reporter(quiet=quiet))
    folder = find_adapter(getattr(adapter, "adapter", adapter))
    return _compare_adapter(folder, data, base, metric, dtype, device, settings, Reporter(quiet=quiet))


def _compare_adapter(
    folder: Path,
    data: Any,
    base: Base | str | None,
    metric: str | Metric,
    dtype: str | None,
    device: str | None,
    settings: CompareOptions,
    reporter: Reporter,
) -> Comparison:
    """The base without and with an adapter, both in one bank."""
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


def trained_model(place: Any) -> tuple[Path, str] | None:
    """The model of a run that trained all weights, and the name of its base; None for anything else."""
    if not isinstance(place, str | Path):
        return None
    folder = Path(place).expanduser()
    folder = folder.parent if folder.name == "model" else folder
    try:
        facts = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        full = facts["options"]["method"] == "full"
        name = str(facts["base"]["name"])
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return (folder / "model", name) if full and (folder / "model").is_dir() else None


def _compare_models(
    model: Path,
    name: str,
    data: Any,
    base: Base | str | None,
    metric: str | Metric,
    dtype: str | None,
    device: str | None,
    options: CompareOptions,
    reporter: Reporter,
) -> Comparison:
    """Compare a base with the model that was made of it, one after the other, so that memory holds one of them."""
    examples = read_examples(data, "test")
    sides: list[Side] = []
    sizes: list[tuple[int, int | None]] = []
    for source in (name if base is None else base, str(model)):
        loaded = source if isinstance(source, Base) else load_base(source, dtype=dtype, device=device)
        if loaded.tokenizer is None:
            raise DataError(
                f"the base {loaded.name} has no tokenizer",
                "comparing needs one; add it to the base's folder",
            )
        title = "before" if not sides else "after"
        with (
            with_threads(threads_for(loaded.model).train),
            reporter.bar(f"comparing, {title}", len(examples[: options.limit])),
        ):
            sides.append(side_of(loaded.model, loaded.tokenizer, examples, options, done=reporter.advance))
        sizes.append((loaded.bytes_on_disk, loaded.source_bytes))
        del loaded
    found = compare_sides(
        sides[0],
        sides[1],
        examples,
        metric=metric,
        options=options,
        sizes=(sizes[1][0], sizes[0][0], sizes[0][1]),
        source=_title(data),
        kind="model",
    )
    return Comparison(**{**vars(found), "adapter": str(model)})


def _title(data: Any) -> str:
    """What the data are called in a report."""
    if isinstance(data, str) and data in SHIPPED:
        return f"{data} test"
    return str(data) if isinstance(data, str | Path) else type(data).__name__
