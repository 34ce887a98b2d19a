"""`inspect`: what is in an adapter, and how several stand to each other.

Adapters are read whole, the base row by row and only where it lies on this machine; it is loaded only where
data are given. Knows the order of the steps; the mathematics is in `scumble.lora`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import torch

from scumble.data.encoding import encode_all
from scumble.data.examples import Example, read_examples
from scumble.data.shipped import SHIPPED
from scumble.errors import AdapterError, ConfigError, DataError
from scumble.lora.activity import Activity, on_data
from scumble.lora.adapter import WEIGHTS_NAME
from scumble.lora.diagnostics import Diagnosis, Weights, diagnose
from scumble.lora.fit import fit
from scumble.lora.pairs import PairFigures, norm_of_blend, pair_up
from scumble.manage.inspection.expectations import cosine_on_data, expectation, strengths_on_data
from scumble.manage.inspection.findings import (
    AdapterFindings,
    DataFindings,
    DataPair,
    Inspection,
    PairFindings,
)
from scumble.manage.inspection.origin import manifest_of, origin_of, settings_in_words, sha256
from scumble.manage.inspection.sources import Opened, base_weights, open_adapters
from scumble.models.base import Base, load_base
from scumble.models.resolve import resolve
from scumble.models.threads import threads_for, with_threads
from scumble.progress import Reporter

PROMPTS = 32  # examples that updates are run on, where data are given
LONGEST = 2048  # tokens of one


def inspect(
    *adapters: Any,
    base: Base | str | None = None,
    data: Any = None,
    weights: Sequence[float] | None = None,
    limit: int | None = None,
    quiet: bool = False,
) -> Inspection:
    """Look into one adapter, or hold several against each other.

    Args:
        *adapters: folders of adapters or of runs, or `Run`s; the same one may stand twice.
        base: a `Base`, or a base's name; by default the one that the adapters name.
        data: a path, a list of examples, a `datasets.Dataset` or a shipped set (its test part): the base is
            loaded, and the updates' outputs on these texts are measured too.
        weights: one for each adapter: the norm of that blend is given as well.
        limit: examples of `data`, 32 by default.
        quiet: say nothing on stderr.

    Raises:
        MissingFileError, AdapterError: a folder that is no adapter, or an adapter that the `base` given, or
            that of `data`, does not fit. Values that are not finite are reported, not raised.
        ConfigError: no adapter, or the number of weights is not theirs.
    """
    _check(adapters, weights, limit)
    reporter = Reporter(quiet=quiet)
    if isinstance(base, str):
        resolve(base)
    opened = open_adapters(adapters)
    examples = None if data is None else read_examples(data, "test")[: limit or PROMPTS]
    if examples is not None:
        base = _loaded(base, opened)
    measured = _measure(opened, base, weights, reporter)
    if examples is not None:
        assert isinstance(base, Base)
        measured.activity = _run(base, opened, examples, reporter)
    numbers = range(len(opened))
    gram = measured.diagnosis.gram
    return Inspection(
        adapters=tuple(_adapter(opened[i], measured, i) for i in numbers),
        pairs=tuple(_pair(opened, measured, i, j) for i, j in combinations(numbers, 2)),
        gram=tuple(tuple(row) for row in gram.tolist()),
        weights=None if weights is None else tuple(float(each) for each in weights),
        blend_norm=None if weights is None else norm_of_blend(gram, weights),
        data=DataFindings(_title(data), len(examples or []), measured.activity.tokens)
        if measured.activity
        else None,
    )


def parse_weights(text: str) -> list[float]:
    """Read weights with commas between them: `0.7,-0.3`. Raises `ConfigError`."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise ConfigError(
            f"--weights is {text!r}, and must be numbers with commas between them",
            "such as --weights 0.7,0.3",
        ) from error


@dataclass
class _Measured:
    """What was measured, before it is put into words."""

    diagnosis: Diagnosis
    pairs: dict[tuple[int, int], PairFigures]
    notes: list[list[str]]
    activity: Activity | None = field(default=None)


def _measure(
    opened: Sequence[Opened], base: Base | str | None, weights: Sequence[float] | None, reporter: Reporter
) -> _Measured:
    """All figures from weights: with one base for all, or with each adapter's own."""
    names = dict.fromkeys(each.base for each in opened)
    if base is not None or len(names) == 1:
        return _with_base(opened, base, next(iter(names)), weights, reporter)
    # of different bases: each is held against its own, and all against each other without any
    own = [_with_base([each], None, each.base, None, reporter) for each in opened]
    together = _figures(opened, None, weights, reporter)
    modules = tuple(each.diagnosis.modules[0] for each in own)
    return _Measured(
        Diagnosis(modules, together.diagnosis.grams), together.pairs, [each.notes[0] for each in own]
    )


def _with_base(
    opened: Sequence[Opened],
    given: Base | str | None,
    name: str,
    weights: Sequence[float] | None,
    reporter: Reporter,
) -> _Measured:
    wanted = given if given is not None else name
    if wanted == "":
        found = _figures(opened, None, weights, reporter)
        return _noted(found, "no relative norms: it names no base; say which with --base")
    with base_weights(wanted) as (base, known, why):
        try:
            found = _figures(opened, base, weights, reporter)
        except AdapterError as error:
            if given is not None:
                raise
            why = f"no relative norms: {error.message}"
            found = _figures(opened, None, weights, reporter)
    for each, notes in zip(opened, found.notes, strict=True):
        own = each.adapter.base_hash
        if own and known and own != known:
            notes.append(
                f"it was trained on a base with hash {own}, and the base here has hash {known} (in fp32; "
                "the same base in another data type has another hash too)"
            )
    return _noted(found, why) if why else found


def _figures(
    opened: Sequence[Opened],
    base: Weights | None,
    weights: Sequence[float] | None,
    reporter: Reporter,
) -> _Measured:
    adapters = [each.adapter for each in opened]
    broken = [each.broken for each in opened]
    count = len({path for adapter in adapters for path in adapter.factors})
    with reporter.bar("measuring", max(1, count)):
        done = reporter.advance if count > 0 and reporter.console.is_terminal else lambda count: None
        diagnosis = diagnose(adapters, weights=base, broken=broken, done=done)
    pairs = {}
    for i, j in combinations(range(len(opened)), 2):
        index = torch.tensor([i, j])
        asked = [] if weights is None else [(float(weights[i]), float(weights[j]))]
        pairs[i, j] = pair_up(
            adapters[i],
            adapters[j],
            {path: gram[index[:, None], index] for path, gram in diagnosis.grams.items()},
            layers={m.path: m.layer for modules in diagnosis.modules for m in modules},
            weights=base,
            blends=[(1.0, 1.0), (0.5, 0.5), *asked],
            left_out=frozenset(broken[i]) | frozenset(broken[j]),
        )
    notes: list[list[str]] = [[] for _ in opened]
    for each, own, modules in zip(opened, notes, diagnosis.modules, strict=True):
        if each.adapter.spec.dora and not all(module.exact for module in modules):
            own.append("DoRA without its base: norms and cosines are those of the low-rank part alone")
    return _Measured(diagnosis, pairs, notes)


def _run(base: Base, opened: Sequence[Opened], examples: Sequence[Example], reporter: Reporter) -> Activity:
    """The updates' outputs on real texts."""
    if base.tokenizer is None:
        raise DataError(
            f"the base {base.name} has no tokenizer", "texts need one; add it to the base's folder"
        )
    model: Any = base.model
    modules, head = dict(model.named_modules()), model.get_output_embeddings()
    for each in opened:
        fit(each.adapter, modules, head, f"the adapter {each.name}")
    texts = [encoded.ids for encoded in encode_all(examples, base.tokenizer, LONGEST).examples]
    with with_threads(threads_for(base.model).train), reporter.bar("running the base", len(texts)):
        return on_data(base.model, [each.adapter for each in opened], texts, done=reporter.advance)


def _adapter(each: Opened, measured: _Measured, number: int) -> AdapterFindings:
    adapter, activity = each.adapter, measured.activity
    parts = {"biases": adapter.biases, "modules_to_save": adapter.saved, "token rows": adapter.tokens}
    beside = {name: sum(t.numel() for t in tensors.values()) for name, tensors in parts.items() if tensors}
    return AdapterFindings(
        name=each.name,
        path=str(each.folder),
        spec=adapter.spec,
        settings=tuple(settings_in_words(adapter.spec)),
        parameters=adapter.parameters,
        bytes=(each.folder / WEIGHTS_NAME).stat().st_size,
        base_name=adapter.spec.base_name,
        base_hash=adapter.base_hash,
        sha256=sha256(each.folder / WEIGHTS_NAME),
        manifest=manifest_of(each.folder),
        origin=origin_of(each.folder),
        modules=measured.diagnosis.modules[number],
        on_data=None
        if activity is None
        else {path: activity.relative(path, number) for path in adapter.factors if path not in each.broken},
        beside=beside,
        not_finite=each.not_finite,
        notes=tuple(measured.notes[number]),
    )


def _pair(opened: Sequence[Opened], measured: _Measured, i: int, j: int) -> PairFindings:
    first, second = opened[i], opened[j]
    figures, activity = measured.pairs[i, j], measured.activity
    on_texts = strengths = None
    if activity is not None:
        cosines = {module.path: activity.cosine(module.path, i, j) for module in figures.modules}
        on_texts = DataPair(cosine_on_data(activity, i, j), cosines)
        strengths = strengths_on_data(activity, i, j)
    same = _same_base(first, second)
    text = expectation(first.name, second.name, figures, on_texts.cosine if on_texts else None, strengths)
    if same is False:
        text = (
            f"they were trained on different bases, {first.name} on {_base_of(first)} and {second.name} on "
            f"{_base_of(second)}, and a blend fits one of the two at most; as matrices alone: {text}"
        )
    return PairFindings(first.name, second.name, figures, same, text, on_texts)


def _same_base(first: Opened, second: Opened) -> bool | None:
    """Whether two adapters belong to one base: by its hash where both know it, else by its name.

    The same name with other hashes is the same base in another data type, or a base that changed: None.
    """
    hashes = first.adapter.base_hash, second.adapter.base_hash
    if all(hashes) and hashes[0] == hashes[1]:
        return True
    if not first.base or not second.base:
        return None
    if first.base != second.base:
        return False
    return None if all(hashes) else True


def _base_of(each: Opened) -> str:
    return each.adapter.spec.base_name or "an unnamed base"


def _loaded(base: Base | str | None, opened: Sequence[Opened]) -> Base:
    if isinstance(base, Base):
        return base
    names = dict.fromkeys(each.adapter.spec.base_name for each in opened if each.base)
    if base is None and len({each.base for each in opened}) > 1:
        named = ", ".join(str(name) for name in names) or "none"
        raise AdapterError(f"the adapters name different bases: {named}", "say which with --base")
    return load_base(base if base is not None else next(iter(names), None))


def _noted(found: _Measured, note: str) -> _Measured:
    for notes in found.notes:
        notes.append(note)
    return found


def _check(adapters: Sequence[Any], weights: Sequence[float] | None, limit: int | None) -> None:
    if not adapters:
        raise ConfigError("no adapter was named", "name the folder of an adapter or of a run")
    if limit is not None and limit < 1:
        raise ConfigError(
            f"--limit is {limit}, and must be 1 or more", "how many examples of the data are run"
        )
    if weights is None:
        return
    if len(weights) != len(adapters):
        raise ConfigError(
            f"there are {len(weights)} weights for {len(adapters)} adapters",
            "give one for each, in their order",
        )
    for weight in weights:
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
            raise ConfigError(f"the weight {weight!r} is not a finite number", "such as --weights 0.7,0.3")


def _title(data: Any) -> str:
    if isinstance(data, str) and data in SHIPPED:
        return f"{data} test"
    return str(data) if not hasattr(data, "__len__") or isinstance(data, str) else type(data).__name__
