"""`Fidelity`: how near a merged model's answers are to the unmerged one's, on prompts, in fp32 on the CPU.

Three models compute the same prompts, one after the other: the base in a bank with the adapter in use (the
unmerged one); the base with the update put into its own parameters, rounded to the written types ("computed");
and what transformers loads from the written folder ("loaded"). All of them compute in fp32 whatever the files
hold, so that the rounding of the weights alone is judged. Logits are kept, models are not.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from scumble.lora.adapter import Adapter
from scumble.lora.bank import Bank
from scumble.manage.certificate.achieved import rounded
from scumble.manage.certificate.intended import Wanted, blocks
from scumble.manage.certificate.prompts import EncodedPrompts
from scumble.manage.certificate.result import Result
from scumble.models.base import Base
from scumble.models.checkpoint import Checkpoint
from scumble.models.identity import hash_parameters
from scumble.models.threads import with_threads
from scumble.models.weights import read_model

_NAME = "adapter"
# Below this mean KL an adapter's effect cannot be told from fp32's own rounding in the forward pass, whose
# KL was measured at 2e-13 to 2e-11 nats.
NO_EFFECT = 1e-9
_POSITIONS = 8  # compared at once: a few MB in fp64, which stay in the processor's cache
_PROBE = 16  # tokens, to see what threads are worth
_WORTH = 0.7  # several threads must need less than this share of one's time


@dataclass
class Gap:
    """How far one model's logits are from the unmerged model's, over positions.

    Attributes:
        difference: the largest absolute difference of a logit.
        divergences: KL(unmerged || other) of each position, in nats.
        agreeing: positions at which both have the same most likely token.
        apart: of a loaded model, the largest difference of a logit from the computed one's.
    """

    difference: float = 0.0
    divergences: list[float] = field(default_factory=list)
    agreeing: int = 0
    apart: float | None = None

    def add(self, unmerged: Tensor, other: Tensor) -> None:
        """Count one prompt's positions, both (positions, vocabulary); the KL is computed in fp64."""
        for one, two in zip(unmerged.split(_POSITIONS), other.split(_POSITIONS), strict=True):
            self.difference = _largest(self.difference, one, two)
            log_p, log_q = one.double().log_softmax(-1), two.double().log_softmax(-1)
            kl = (log_p.exp() * log_p.sub(log_q)).sum(-1)
            self.divergences += kl.clamp(min=0).tolist()  # rounding can leave -1e-17; a NaN stays
            self.agreeing += int((one.argmax(-1) == two.argmax(-1)).sum())

    @property
    def mean_kl(self) -> float:
        """In nats per position."""
        return sum(self.divergences) / max(1, len(self.divergences))

    @property
    def max_kl(self) -> float:
        """Of one position, in nats; not a number where any is."""
        return max(self.divergences, key=lambda kl: (kl != kl, kl), default=0.0)

    def to_dict(self) -> dict[str, Any]:
        """Figures over all positions."""
        found = {
            "largest_difference": self.difference,
            "mean_kl": self.mean_kl,
            "max_kl": self.max_kl,
            "top1_agreement": self.agreeing / max(1, len(self.divergences)),
            "positions": len(self.divergences),
        }
        return found if self.apart is None else {**found, "difference_from_computed": self.apart}


@dataclass(frozen=True)
class Fidelity:
    """The figures of one merge.

    Attributes:
        computed, loaded: against the unmerged model; `loaded` is None where the folder could not be loaded.
        effect: of the base without the adapter against the unmerged model: what the adapter does.
        largest: the largest absolute logit of the unmerged model.
        failed: why the folder could not be loaded.
        base_hash, result_hash: of the parameters, loaded in fp32.
    """

    computed: Gap
    loaded: Gap | None
    effect: Gap
    largest: float
    failed: str | None
    base_hash: str
    result_hash: str | None

    def missing(self) -> float | None:
        """The share of the adapter's effect that the merge misses: mean KL of the merged over that of the base.

        None where the adapter has no effect that fp32 arithmetic could show.
        """
        merged = self.loaded or self.computed
        return merged.mean_kl / self.effect.mean_kl if self.effect.mean_kl > NO_EFFECT else None

    def to_dict(self) -> dict[str, Any]:
        """Both gaps, the adapter's effect, and the share of it that is missing."""
        return {
            "computed": self.computed.to_dict(),
            "loaded": self.loaded.to_dict() if self.loaded else None,
            "adapter_effect": {"mean_kl": self.effect.mean_kl, "max_kl": self.effect.max_kl},
            "missing_share": self.missing(),
            "largest_logit": self.largest,
            "dtype": "fp32",
        }


def measure(
    base: Checkpoint,
    adapter: Adapter,
    result: Result,
    wanted: Mapping[str, Wanted],
    prompts: EncodedPrompts,
) -> Fidelity:
    """Compute the prompts with the unmerged, the computed and the loaded model, one in memory at a time.

    Raises:
        AdapterError: the bank cannot hold the adapter beside this base.
        BaseModelError: the base cannot be loaded.
    """
    model = read_model(str(base.folder), dtype=torch.float32, device=torch.device("cpu"))
    with with_threads(_threads(model, prompts.ids)):
        held = Base(model, name=base.name)
        unmerged, effect = _unmerged(held, adapter, prompts.ids)
        put_into(model, wanted, result)
        computed, expected = Gap(), []
        for ids, logits in zip(prompts.ids, unmerged, strict=True):
            expected.append(_logits(model, ids))
            computed.add(logits, expected[-1])
        base_hash = held.hash
        del model, held  # before the next one is loaded
        loaded, result_hash, failed = _loaded(result, prompts.ids, unmerged, expected)
    largest = max((float(logits.abs().max()) for logits in unmerged), default=0.0)
    return Fidelity(computed, loaded, effect, largest, failed, base_hash, result_hash)


def put_into(model: nn.Module, wanted: Mapping[str, Wanted], result: Result) -> None:
    """Put what is wanted into a model's own parameters, each rounded to its written type, in place.

    A tied parameter that is wanted gets a tensor of its own, and its twin keeps the old one.
    """
    old = {name: parameter.detach() for name, parameter in model.named_parameters(remove_duplicate=False)}
    new: dict[str, Tensor] = {}
    for name, want in wanted.items():
        # a bias that the base does not have starts from zeros
        start = old[name] if name in old else torch.zeros(_size(want))
        new[name] = _filled(want, start, _kind(result, name))
    for name, parameter in model.named_parameters():
        kind = _kind(result, name)
        if parameter.is_floating_point():
            parameter.data = parameter.detach().to(kind).to(parameter.dtype)
    for name, value in new.items():
        path, _, last = name.rpartition(".")
        setattr(model.get_submodule(path), last, nn.Parameter(value, requires_grad=False))


def _filled(want: Wanted, old: Tensor, kind: torch.dtype) -> Tensor:
    shape = tuple(old.shape)

    def rows(start: int, stop: int) -> Tensor:
        return old[start:stop]

    gain = want.gain(rows, shape)
    new = torch.empty_like(old)
    for start, stop in blocks(shape):
        new[start:stop] = rounded(want.block(start, stop, old[start:stop], gain), kind).to(new.dtype)
    return new


def _size(want: Wanted) -> int:
    """How many numbers a new bias has."""
    assert want.added is not None
    return want.added.numel()


def _kind(result: Result, parameter: str) -> torch.dtype:
    """The type that a parameter was written in; the configuration's where the files have it in another form."""
    name = result.own(parameter)
    kind = result.tensors[name].dtype if name else result.dtype
    return kind if kind is not None and kind.is_floating_point else torch.float32


def _unmerged(held: Base, adapter: Adapter, ids: Sequence[Sequence[int]]) -> tuple[list[Tensor], Gap]:
    bank = Bank(held)
    with warnings.catch_warnings():
        # of a base with another hash, which is among the certificate's own warnings
        warnings.simplefilter("ignore")
        bank.add(_NAME, adapter)
    unmerged, effect = [], Gap()
    for row in ids:
        bank.use({})
        plain = _logits(bank.model, row)
        bank.use(_NAME)
        unmerged.append(_logits(bank.model, row))
        effect.add(unmerged[-1], plain)
    bank.close()
    return unmerged, effect


def _loaded(
    result: Result, ids: Sequence[Sequence[int]], unmerged: Sequence[Tensor], expected: Sequence[Tensor]
) -> tuple[Gap | None, str | None, str | None]:
    try:
        model = read_model(str(result.folder), dtype=torch.float32, device=torch.device("cpu"))
    except Exception as error:  # whatever transformers says of a broken folder is the verdict on it
        line = (str(error).splitlines() or [type(error).__name__])[0].replace(str(result.folder), "it")
        return None, None, line[:200]
    gap, apart = Gap(), 0.0
    for row, logits, other in zip(ids, unmerged, expected, strict=True):
        found = _logits(model, row)
        if found.shape != logits.shape:
            return None, None, f"its logits have shape {tuple(found.shape)}, not {tuple(logits.shape)}"
        gap.add(logits, found)
        for one, two in zip(found.split(_POSITIONS), other.split(_POSITIONS), strict=True):
            apart = _largest(apart, one, two)
    gap.apart = apart
    return gap, hash_parameters(model), None


def _threads(model: Any, ids: Sequence[Sequence[int]]) -> int:
    """How many threads the passes get: one, unless torch's number makes a short one much faster.

    On a machine that others use, threads wait for each other, busily, and take several times as long. The
    number is one for all models of a merge, since it may change the last bits.
    """
    many, row = torch.get_num_threads(), max(ids, key=len, default=())[:_PROBE]
    if many == 1 or not row:
        return many
    _logits(model, row)  # the first pass reads the weights from the disk
    seconds = []
    for count in (1, many):
        with with_threads(count):
            begin = time.perf_counter()
            _logits(model, row)
            seconds.append(time.perf_counter() - begin)
    return many if seconds[1] < _WORTH * seconds[0] else 1


@torch.no_grad()
def _logits(model: Any, ids: Sequence[int]) -> Tensor:
    """(positions, vocabulary) of one prompt, in fp32 on the CPU."""
    return cast(Tensor, model(input_ids=torch.tensor([list(ids)])).logits[0].float().clone())


def _largest(before: float, one: Tensor, two: Tensor) -> float:
    now = float((one.double() - two.double()).abs().max())
    return now if now != now or now > before else before
