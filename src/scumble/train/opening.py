"""From options to what is trained: the base, the shape of the adapter, and the subject made of them.

Knows bases, specs and adapters, and hands encoded examples on; nothing of how to train.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from scumble.config import LoraOptions, TrainOptions
from scumble.data.encoding import Encoded
from scumble.errors import ConfigError
from scumble.lora.adapter import Adapter, find_adapter
from scumble.lora.bank import Bank
from scumble.lora.initial import DEFAULT, SHIFTED, check_initial
from scumble.lora.spec import LoraSpec
from scumble.lora.targets import expand_targets
from scumble.models.base import Base, load_base
from scumble.models.weights import device_named, dtype_named
from scumble.progress import Reporter
from scumble.train.checkpoints import hash_of
from scumble.train.resume import Earlier
from scumble.train.shifted import begun_adapter, begun_subject
from scumble.train.subject import AdapterSubject, Figures, Subject
from scumble.train.whole import WholeModel

SLOT = "trained"


@dataclass(frozen=True)
class Shape:
    """What kind of thing is trained.

    Attributes:
        spec: of the adapter; None where all weights are trained.
        start: the adapter to go on from; None for a fresh one.
        options: the user's, with the numbers of `spec`.
    """

    spec: LoraSpec | None
    start: Adapter | None
    options: TrainOptions

    def facts(self) -> Figures:
        """What `run.json` holds of it beside the options, so that the same can be made again."""
        found: Figures = {"lora": self.spec.to_peft() if self.spec else None}
        if self.start is not None and self.options.from_ is not None:
            folder = find_adapter(self.options.from_)
            found["from"] = {
                "path": str(folder.absolute()),
                "hash": hash_of(folder / AdapterSubject.weights_name),
            }
        return found


def shape_of(options: TrainOptions, lora: LoraSpec | Any | None, earlier: Earlier | None) -> Shape:
    """What is trained: as given, as the adapter has it that is gone on from, or as the earlier run was begun.

    Raises:
        ConfigError: two things that were given contradict each other.
    """
    asked = sorted(options.model_fields_set & set(LoraOptions.model_fields)) if earlier is None else []
    if options.method == "full":
        named = {"from": options.from_, "lora": lora, "init": options.init != DEFAULT}
        wrong = [*asked, *(name for name, given in named.items() if given)]
        if wrong:
            raise ConfigError(
                f"{', '.join(wrong)} is given with --method full, which trains no adapter", "leave it out"
            )
        return Shape(None, None, options)
    start = Adapter.load(options.from_) if options.from_ else None
    if earlier is not None:
        spec = LoraSpec.from_peft(earlier.facts["lora"])
    elif start is not None:
        spec = _going_on(options, start.spec, asked)
    else:
        targets = options.targets if isinstance(options.targets, str) else tuple(options.targets)
        spec = LoraSpec(options.rank, options.alpha, targets, options.dropout, options.rslora, options.dora)
    if lora is not None:
        given = lora if isinstance(lora, LoraSpec) else LoraSpec.from_peft(lora)
        if (start is not None or earlier is not None) and given.shape() != spec.shape():
            raise ConfigError(
                f"lora is another shape than there is: {spec.difference(given)}", "leave it out"
            )
        spec = given
    check_initial(options.init, spec)
    if options.init != DEFAULT and start is not None:
        raise ConfigError(
            f"--init {options.init} and --from are both given", "an adapter that there is has begun already"
        )
    if options.init_compress and (options.init not in SHIFTED or spec.rank_pattern):
        raise ConfigError(
            "--init-compress is for --init pissa or olora with one rank", "leave --init-compress out"
        )
    adopted = {
        "rank": spec.rank,
        "alpha": float(spec.alpha),
        "targets": spec.targets if isinstance(spec.targets, str) else list(spec.targets),
        "dropout": spec.dropout,
        "rslora": spec.rslora,
        "dora": spec.dora,
    }
    return Shape(spec, start, options.model_copy(update=adopted) if start is not None else options)


def open_base(base: Base | str | None, shape: Shape, earlier: Earlier | None) -> Base:
    """The base: as given, by the name given, or the one that the adapter to go on from was made for."""
    options = shape.options
    if not isinstance(base, Base):
        # an empty name is one that was given, and is refused by `load_base`
        adapters = shape.start.spec.base_name if shape.start is not None else None
        name = next((each for each in (base, options.base, adapters) if each is not None), None)
        device = options.device or (earlier.facts["base"]["device"] if earlier else None)
        # small steps of all weights need the digits, unless the user says otherwise
        dtype = options.dtype or ("fp32" if shape.spec is None else None)
        return load_base(name, dtype=dtype, device=device)
    # one place decides on precision: a base that is there already is what it is
    if options.dtype is not None and dtype_named(options.dtype, base.device) not in (None, base.dtype):
        has = str(base.dtype).removeprefix("torch.")
        raise ConfigError(f"dtype is {options.dtype}, and the base given is {has}", "load it in that type")
    if options.device is not None and device_named(options.device).type != base.device.type:
        raise ConfigError(f"device is {options.device}, and the base given is on {base.device}", "move it")
    return base


def open_subject(
    shape: Shape,
    base: Base,
    tokenizer: Any,
    reporter: Reporter,
    *,
    own: bool,
    examples: Sequence[Encoded] = (),
    bank: Bank | None = None,
    slot: str = SLOT,
    beginning: Adapter | None = None,
) -> Subject:
    """What is trained, to be closed when the run is over.

    Args:
        shape: of it.
        base: which it is made of.
        tokenizer: with the template that is trained with.
        reporter: is warned where an adapter goes on over another base.
        own: the base was loaded for this run, and nobody wants it back.
        examples: to train on, which `--init eva` looks at.
        bank: of the base, where there is one already, which stays open.
        slot: the adapter's name there.
        beginning: what `beginning_of` gave for it, of a bank where others are beside the base already.
    """
    if shape.spec is None:
        return WholeModel(base, tokenizer, keep=not own)
    start = shape.start
    if start is not None and start.base_hash and start.base_hash != base.hash:
        reporter.warn(
            f"the adapter {shape.options.from_} was trained on a base with hash {start.base_hash} "
            f"({start.spec.base_name}), and this base has hash {base.hash} ({base.name})"
        )
    kind, seed = shape.options.init, shape.options.seed
    if kind != DEFAULT:
        reporter.note(f"beginning as {kind} has it")
        start = beginning or beginning_of(shape, base, examples)
    kept = bank is not None
    bank = bank or Bank(base)
    try:
        if kind != DEFAULT and start is not None:
            how: dict[str, Any] = {
                "compress": shape.options.init_compress,
                "reporter": reporter,
                "keep": kept,
            }
            return begun_subject(bank, slot, kind, seed, start, **how)
        bank.trainable(slot, shape.spec, seed=seed, start=start)
    except BaseException:
        if not kept:
            bank.close()
        raise
    return AdapterSubject(bank, slot, keep=kept)


def beginning_of(shape: Shape, base: Base, examples: Sequence[Encoded]) -> Adapter | None:
    """What an adapter begins as where `--init` asks for more than chance; made of the base with nothing beside it."""
    if shape.spec is None or shape.options.init == DEFAULT:
        return None
    return begun_adapter(shape.options.init, shape.spec, base, shape.options.seed, examples)


def _going_on(options: TrainOptions, spec: LoraSpec, asked: list[str]) -> LoraSpec:
    """The shape of the adapter to go on from; only the dropout may be another one.

    Raises:
        ConfigError: an option says otherwise.
    """
    for name in asked:
        has, wanted = getattr(spec, name), getattr(options, name)
        if name == "targets":
            has, wanted = (
                _names(has),
                _names(expand_targets(wanted if isinstance(wanted, str) else tuple(wanted))),
            )
        if name != "dropout" and has != wanted:
            raise ConfigError(
                f"{name} is {getattr(options, name)}, and the adapter {options.from_} has "
                f"{', '.join(has) if isinstance(has, list) else has}",
                f"leave --{name} out: an adapter keeps its shape",
            )
    return replace(spec, dropout=options.dropout if "dropout" in asked else spec.dropout)


def _names(targets: str | tuple[str, ...]) -> str | list[str]:
    return targets if isinstance(targets, str) else sorted(targets)
