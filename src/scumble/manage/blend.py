"""`blend`: adapter folders and their weights, made into one adapter folder."""

from __future__ import annotations

import contextlib
import hashlib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

from scumble.config import BlendOptions, make
from scumble.data.examples import read_examples
from scumble.errors import AdapterError, ConfigError
from scumble.files import refuse_existing
from scumble.lora.adapter import CONFIG_NAME, WEIGHTS_NAME, Adapter, find_adapter
from scumble.lora.bank import Bank
from scumble.lora.blend import Blended, Recipe
from scumble.lora.blend import blend as blend_parts
from scumble.lora.part import Part
from scumble.manage.learning.curve import curve_svg
from scumble.manage.learning.learn import Learned, learn_weights
from scumble.manage.written import WrittenAdapter, write_blended
from scumble.models.base import Base, load_base
from scumble.models.checkpoint import Checkpoint, open_checkpoint
from scumble.progress import Reporter

RECORD = "blend.json"
CURVE = "learned.svg"
Weighted: TypeAlias = Mapping[Any, float] | Iterable[tuple[Any, float]] | Iterable[str | Path] | str | Path


def blend(
    adapters: Weighted,
    *,
    out: str | Path,
    base: Base | str | None = None,
    learn: Any = None,
    force: bool = False,
    quiet: bool = False,
    **options: Any,
) -> WrittenAdapter:
    """Make one adapter of several: the weighted sum of their updates, or a method's version of it.

    Args:
        adapters: from the folder of an adapter or a run to its weight; or a list of pairs, in which one may stand
            twice; or a list of texts `PATH=WEIGHT`.
        out: folder of the result, in the PEFT format, with `blend.json` beside it.
        base: needed where an adapter is DoRA or replaces parts of the base, and to learn weights; by default the
            one that the adapters name.
        learn: data to learn the weights from, starting from those given: a path, a shipped set, a list of
            examples, or a list of several of these.
        force: replace `out` where it exists.
        quiet: say nothing on stderr.
        **options: the fields of `BlendOptions`.

    Raises:
        ScumbleError: with one line on what is wrong, where, and what to do.
    """
    settings = make(BlendOptions, **options)
    _check_meaning(settings, learn)
    pairs = read_weights(adapters)
    reporter = Reporter(quiet=quiet)
    places = [find_adapter(getattr(path, "adapter", path)) for path, _ in pairs]
    # the folder that a run's adapter lies in too, which is inside what was named
    read = [*(path for path, _ in pairs), *places, base, *_sets(learn)]
    folder = refuse_existing(out, force=force, inputs=read)
    loaded = {place: Adapter.load(place) for place in dict.fromkeys(places)}
    parts = [
        Part(loaded[place], weight, str(path)) for place, (path, weight) in zip(places, pairs, strict=True)
    ]
    learned = None
    if learn is not None:
        base = base if isinstance(base, Base) else load_base(_named_base(parts, base))
        learned = _learned(parts, base, learn, settings, reporter)
        parts = [_weighted(part, place, learned) for place, part in enumerate(parts)]
        _tell_what_was_learned(parts, learned, reporter)
    with contextlib.ExitStack() as stack:
        tensors = None
        if needs_base(parts, settings.interpolate):
            named = base.name if isinstance(base, Base) else base
            tensors = stack.enter_context(open_checkpoint(_named_base(parts, named)))
            check_base(parts, tensors)
        found: Blended = blend_parts(parts, _recipe(settings), tensors)
        _tell_of_nothing(found, reporter)
        _tell_of_conversion(parts, reporter)
        made_from = _made_from(parts, places, settings, learned)
        curve = {}
        if learned is not None:
            curve[CURVE] = curve_svg(replace(learned, names=[part.title for part in parts]))
        return write_blended(found, folder, made_from, RECORD, force=force, reporter=reporter, beside=curve)


def _recipe(settings: BlendOptions) -> Recipe:
    """What the mathematics is told of the options."""
    names = ("method", "rank", "density", "seed", "normalize", "interpolate")
    return Recipe(**{name: getattr(settings, name) for name in names})


def _made_from(
    parts: Sequence[Part], places: Sequence[Path], settings: BlendOptions, learned: Learned | None
) -> dict[str, Any]:
    """What `blend.json` says of how the adapter came about."""
    return {
        "parts": [
            {"path": str(place), "weight": _shown(part), **hashes(place)}
            for place, part in zip(places, parts, strict=True)
        ],
        **settings.model_dump(),
        "learned": learned.to_dict() if learned is not None else None,
    }


def _check_meaning(settings: BlendOptions, learn: Any) -> None:
    """Refuse options that nothing would read, rather than leave them out without a word."""
    asked = settings.model_fields_set
    if "density" in asked and settings.method in ("exact", "svd"):
        raise ConfigError(
            f"--density has no meaning for --method {settings.method}", "use ties, dare or magnitude with it"
        )
    unread = sorted(name for name in asked if name.startswith("learn_")) if learn is None else []
    if unread:
        raise ConfigError(
            f"--{unread[0].replace('_', '-')} has no meaning without --learn", "say what to learn from"
        )


def _learned(
    parts: Sequence[Part], base: Base, data: Any, settings: BlendOptions, reporter: Reporter
) -> Learned:
    """Weights for the parts, learned from the first examples of each set."""
    sets = [read_examples(each, "train")[: settings.learn_limit] for each in _sets(data)]
    bank = Bank(base)
    try:
        names = [f"part{place}" for place in range(len(parts))]
        for name, part in zip(names, parts, strict=True):
            bank.add(name, part.adapter)
        return learn_weights(
            bank,
            names,
            [part.at("") for part in parts],
            sets,
            base.tokenizer,
            steps=settings.learn_steps,
            seed=settings.seed,
            per_layer=settings.learn_per == "layer",
            reporter=reporter,
        )
    finally:
        bank.close()


def _sets(data: Any) -> list[Any]:
    """The sets to learn from, where one may be given, or a list of several; none without any."""
    several = isinstance(data, list | tuple) and not any(isinstance(each, Mapping) for each in data)
    return [] if data is None else list(data) if several else [data]


def _tell_what_was_learned(parts: Sequence[Part], learned: Learned, reporter: Reporter) -> None:
    """The weights, and the loss on each set before and after; a set that lost by it is a warning."""
    means = ", ".join(
        f"{part.title} {weight:.3f}" for part, weight in zip(parts, learned.mixture.values(), strict=True)
    )
    of = "means over layers" if learned.per_layer else "one for each adapter"
    reporter.note(f"learned weights ({of}): {means}")
    for number, each in enumerate(learned.sets, 1):
        told = (
            f"set {number}: loss {each.before:.3f} -> {each.after:.3f} on the {each.held_back} of "
            f"{each.examples} examples that were held back"
        )
        (reporter.warn if each.after > each.before else reporter.note)(told)


def _weighted(part: Part, place: int, learned: Learned) -> Part:
    """The part with its learned weight, or weights by module."""
    if learned.per_layer:
        return replace(part, weight=lambda path: learned.at(path)[learned.names[place]])
    return replace(part, weight=learned.weights[0][place])


def read_weights(adapters: Weighted) -> list[tuple[Any, float]]:
    """The adapters and their weights, from any of the forms in which they are given.

    Raises:
        ConfigError: a weight is no finite number.
        AdapterError: there is none.
    """
    given: Sequence[Any]
    if isinstance(adapters, Mapping):
        given = list(adapters.items())
    else:
        given = [adapters] if isinstance(adapters, str | Path) else list(adapters)
    pairs = [each if isinstance(each, tuple) else _read_weight(each) for each in given]
    for path, weight in pairs:
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
            raise ConfigError(
                f"the weight of {path} is {weight!r}", "a weight is a finite number, such as 0.7"
            )
    if not pairs:
        raise AdapterError("no adapters were given", "name at least one, as PATH=WEIGHT")
    return [(path, float(weight)) for path, weight in pairs]


def needs_base(parts: Sequence[Part], interpolate: bool = False) -> bool:
    """Whether the adapters alone do not decide the blend."""
    if any(f.magnitude is not None for part in parts for f in part.adapter.factors.values()):
        return True
    alone = len(parts) == 1 and parts[0].weight == 1
    if alone:
        return False
    return any(p.adapter.biases or (p.adapter.exclusive and interpolate) for p in parts)


def _read_weight(text: Any) -> tuple[Any, float]:
    """`PATH=WEIGHT`, or a path, which has the weight 1."""
    path, sign, number = str(text).rpartition("=")
    if not sign or Path(str(text)).expanduser().exists():
        return text, 1.0
    # float() would also take 'nan', 'inf' and '1_0'
    if not re.fullmatch(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*", number):
        raise ConfigError(
            f"the weight of {path} is {number!r}", "write PATH=WEIGHT with a number, such as legal=0.7"
        )
    return path, float(number)


def _named_base(parts: Sequence[Part], given: str | None) -> str:
    """The base to read: the one given, or the one that the adapters name."""
    names = list(dict.fromkeys(part.adapter.spec.base_name for part in parts if part.adapter.spec.base_name))
    if given is None and len(names) != 1:
        told = f"name different bases ({', '.join(names)})" if names else "name no base"
        raise AdapterError(f"the adapters {told}, and one is needed here", "say which with --base")
    return given if given is not None else names[0]


def check_base(parts: Sequence[Part], tensors: Checkpoint) -> None:
    """Refuse a base that lacks a module the adapters update, or has it in another size."""
    for part in parts:
        for path, factors in part.adapter.factors.items():
            size = (int(factors.B.shape[0]), int(factors.A.shape[1]))
            has = tensors.shape_of(path) if path in tensors.modules else None
            if has != size:
                what = f"is {has[0]} x {has[1]}" if has else "is missing"
                raise AdapterError(
                    f"{part.title} updates {path} as {size[0]} x {size[1]}, which in {tensors.name} {what}",
                    "it belongs to another base; name that one with --base",
                )


def _tell_of_conversion(parts: Sequence[Part], reporter: Reporter) -> None:
    dora = [part.title for part in parts if part.adapter.spec.dora]
    if dora:
        reporter.note(
            f"{', '.join(dora)}: DoRA's update has full rank and is written as a plain one, which is why there is "
            "an error; a bank blends it exactly at run time"
        )


def _tell_of_nothing(found: Blended, reporter: Reporter) -> None:
    """Weights of zero, or parts that cancel each other: the adapter is one that changes nothing."""
    if found.norms and not any(norm > 1e-12 * found.sizes[path] for path, norm in found.norms.items()):
        reporter.warn("the weighted sum of these updates is zero")


def _shown(part: Part) -> Any:
    """A weight as the record has it: one number, or one for each module."""
    if callable(part.weight):
        return {path: part.at(path) for path in sorted(part.adapter.factors)}
    return part.weight


def hashes(place: Path) -> dict[str, str]:
    """What identifies an adapter: the sums of its two files."""
    return {
        "sha256": hashlib.sha256((place / WEIGHTS_NAME).read_bytes()).hexdigest(),
        "config_sha256": hashlib.sha256((place / CONFIG_NAME).read_bytes()).hexdigest(),
    }
