"""Advice on a configuration before it is run, each piece with its evidence and where that comes from.

Silent where nothing is amiss. Figures are counted for this base and these data; where the lesson's rule and the evidence
differ, both are said. Knows shapes, setups and options, and how to ask for the peak of a setup; nothing of training.

    capacity    an adapter stores about 2 bits a parameter (Allen-Zhu and Li 2024, arXiv:2404.05405), and a token of an
                answer holds about 1 bit at most (Schulman et al. 2025): more parameters than half the tokens are enough
    rate        of LoRA about ten times that of full fine-tuning, and hardly dependent on the rank (Schulman et al. 2025)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from scumble.config import TrainOptions
from scumble.errors import AdapterError
from scumble.lora.targets import layer_index
from scumble.plan.fitting import Peak
from scumble.plan.parameters import count_parameters
from scumble.plan.rate import default_rate
from scumble.plan.setup import Setup
from scumble.plan.shape import Shape

SCHULMAN = "Schulman et al. 2025, 'LoRA Without Regret', thinkingmachines.ai/blog/lora"
_BIDERMAN = "Biderman et al. 2024, arXiv:2405.09673"
_COUNTED = "counted for this base"
BITS_KEPT = 2.0  # that an adapter keeps, a parameter
BITS_SAID = 1.0  # that a token with a loss holds at most, on average
HIGH_RANK = 64  # from which on the scale alpha / rank makes updates small
BIG_BATCH = 32  # examples in a step, above which LoRA falls behind full fine-tuning
SHORT_RUN = 300  # optimizer steps
LESSON_WARMUP = 100
_RATIOS = (
    0.5,
    4.0,
)  # of alpha over rank that need no word: the lesson's 1 to 2, and twice that on both sides
_ALPHA = 32.0  # of all ranks in Schulman et al. 2025
_OFF = 3.0  # times the usual rate, either way, that need no word: a sweep in half decades steps over them


@dataclass(frozen=True)
class Facts:
    """What is known of the data.

    Attributes:
        examples: of the training part.
        supervised: tokens with a loss in one pass over them.
    """

    examples: int
    supervised: int


@dataclass(frozen=True)
class Advice:
    """One piece.

    Attributes:
        topic: a word: `alpha`, `rslora`, `targets`, `rank`, `module`, `rate`, `batch`, `capacity`, `dropout`, `warmup`.
        message: what is amiss here, and what to type instead.
        evidence: why.
        source: whose evidence that is.
    """

    topic: str
    message: str
    evidence: str
    source: str

    def to_dict(self) -> dict[str, Any]:
        """The same by name."""
        return asdict(self)


@dataclass(frozen=True)
class _Case:
    """All that a rule looks at."""

    shape: Shape
    setup: Setup
    options: TrainOptions
    facts: Facts | None
    peak: Peak | None

    @property
    def effective(self) -> int:
        return self.setup.batch * self.setup.accumulate

    @property
    def steps(self) -> int | None:
        """Optimizer steps of the run; None where neither the data nor the options say."""
        if self.facts is None:
            return self.options.max_steps
        steps = max(1, round(math.ceil(self.facts.examples / self.effective) * self.options.epochs))
        return min(steps, self.options.max_steps or steps)

    def trained(self) -> int:
        """Numbers that are trained."""
        return count_parameters(self.shape, self.setup).trainable

    def everywhere(self, rank: int) -> int | None:
        """Numbers that are trained where all linear layers are targets; None where some cannot be."""
        try:
            return count_parameters(
                self.shape, replace(self.setup, rank=rank, targets="all-linear")
            ).trainable
        except AdapterError:
            return None

    def reached(self) -> set[str]:
        """What the adapter reaches, by the last part of the modules' names."""
        return set(count_parameters(self.shape, self.setup).by_module)

    def attention_only(self) -> bool:
        """Whether the base has linear layers outside attention, and the adapter reaches none of them."""
        attention, rest = _layers(self.shape)
        reached = self.reached()
        return bool(rest) and bool(reached) and reached <= attention - rest


def advise_configuration(
    shape: Shape,
    setup: Setup,
    options: TrainOptions,
    facts: Facts | None = None,
    *,
    peak: Peak | None = None,
) -> list[Advice]:
    """What to change about a configuration, and why.

    Args:
        shape: of the base.
        setup: what is planned.
        options: as the user gave them: the rate, the warm-up, and how long the run is.
        facts: of the data; without them nothing is said of capacity, and of the run's length only by `max_steps`.
        peak: plans the memory of a setup: what a further module takes.

    Raises:
        AdapterError: the targets match nothing.
    """
    case = _Case(shape, setup, options, facts, peak)
    rules = _RULES if setup.method != "full" else (_rate, _warmup)
    return [found for rule in rules if (found := rule(case)) is not None]


def _alpha(case: _Case) -> Advice | None:
    setup = case.setup
    ratio = setup.alpha / setup.rank
    low, high = _RATIOS
    # beyond what the lesson and the experiments do; a low ratio at a high rank is rsLoRA's matter
    much = ratio > high and setup.alpha > _ALPHA
    little = ratio < low and setup.alpha < _ALPHA and setup.rank < HIGH_RANK
    if setup.rslora or not (much or little):
        return None
    return Advice(
        "alpha",
        f"alpha / rank is {ratio:g}; 1 to 2 is usual: --alpha {2 * setup.rank}, or another learning rate instead",
        "the lesson says that only the ratio matters; the evidence is that ratio and learning rate trade off, so "
        f"that one of them is enough to tune, and that with alpha {_ALPHA:g} at every rank the best rate hardly "
        "depends on the rank",
        SCHULMAN,
    )


def _rslora(case: _Case) -> Advice | None:
    setup = case.setup
    if setup.rank < HIGH_RANK or setup.rslora:
        return None
    now, then = setup.alpha / setup.rank, setup.alpha / math.sqrt(setup.rank)
    return Advice(
        "rslora",
        f"rank {setup.rank} with alpha / rank, which is {now:g}: try --rslora, with which alpha {setup.alpha:g} "
        f"scales by {then:.3g}",
        "with alpha / rank updates shrink as the rank grows, and high ranks come out like low ones; with alpha / "
        "sqrt(rank) they come out better. Against it: Schulman et al. 2025 match full fine-tuning with alpha / rank "
        "at high ranks too. The lesson says that ranks of 64 and above are rarely needed",
        "Kalajdzievski 2023, arXiv:2312.03732",
    )


def _targets(case: _Case) -> Advice | None:
    if not case.attention_only():
        return None
    return Advice(
        "targets",
        f"the targets are in attention alone ({', '.join(sorted(case.reached()))}): take the MLP in, "
        "with --targets all-linear",
        "the lesson says to start with few modules; in the experiments attention alone at rank 256 learns less than "
        "the MLP alone at rank 128, of about as many numbers, and all layers match full fine-tuning on data that fit",
        f"{SCHULMAN}; {_BIDERMAN}",
    )


def _rank(case: _Case) -> Advice | None:
    """The same numbers, spread over all layers."""
    one = case.everywhere(1)
    if one is None or not case.attention_only():
        return None
    now = case.trained()
    rank = now // one
    if not 1 <= rank < case.setup.rank:
        return None
    return Advice(
        "rank",
        f"rank {case.setup.rank} here is {now:,} numbers; rank {rank} on all layers is {case.everywhere(rank):,}: "
        f"--rank {rank} --alpha {case.setup.alpha * rank / case.setup.rank:g} --targets all-linear",
        "a low rank on many modules beats a high rank on few; the lesson (rank 8 on all before 32 on attention) and "
        "the experiments agree",
        f"{_COUNTED}; {SCHULMAN}",
    )


def _module(case: _Case) -> Advice | None:
    """What each further module takes."""
    peak = case.peak
    if peak is None or not case.attention_only():
        return None
    reached = case.reached()
    attention, rest = _layers(case.shape)

    def needed(*names: str) -> int:
        return peak(replace(case.setup, targets=names)).peak

    try:
        before = needed(*sorted(reached))
        shares = {
            name: needed(*sorted(reached), name) / before - 1 for name in sorted((attention | rest) - reached)
        }
    except AdapterError:  # such as for a router of experts
        return None
    least, most = (f"{100 * share:.1f}" for share in (min(shares.values()), max(shares.values())))
    return Advice(
        "module",
        f"a further target module adds {least} to {most} % of memory here",
        "the lesson says 15 to 20 % for each; here: "
        + ", ".join(f"{name} {100 * share:.1f} %" for name, share in shares.items()),
        f"{_COUNTED}, with this setup",
    )


def _rate(case: _Case) -> Advice | None:
    given, full = case.options.learning_rate, case.setup.method == "full"
    usual = default_rate(case.shape.hidden, case.shape.model_type)[0] / (10 if full else 1)
    if given is None or usual / _OFF <= given <= usual * _OFF:
        return None
    return Advice(
        "rate",
        f"the learning rate {given:g} is {given / usual:.2g} times the {usual:g} that is usual for this base: leave "
        "--learning-rate out, or try both",
        "LoRA's best rate is about ten times that of full fine-tuning, "
        + ("so that a tenth of LoRA's is usual here" if full else "whatever the rank")
        + "; the lesson's 2e-4 is for LoRA on a base of 8B",
        SCHULMAN,
    )


def _batch(case: _Case) -> Advice | None:
    if case.effective <= BIG_BATCH:
        return None
    return Advice(
        "batch",
        f"{case.effective} examples in an optimizer step: at most {BIG_BATCH}, with --batch or --accumulate "
        "lower, is safer",
        "LoRA loses more than full fine-tuning at big batches, and a higher rank does not help; the lesson has 16",
        SCHULMAN,
    )


def _capacity(case: _Case) -> Advice | None:
    if case.facts is None:
        return None
    trained = case.trained()
    kept, said = BITS_KEPT * trained, BITS_SAID * case.facts.supervised
    if said <= kept:
        return None
    rank = math.ceil(case.setup.rank * said / kept)
    more = case.everywhere(case.setup.rank)
    wider = (
        f"; --targets all-linear has {more:,} numbers, for {BITS_KEPT * more / 8e6:.3g} MB"
        if more is not None and more > trained
        else ""
    )
    return Advice(
        "capacity",
        f"{case.facts.supervised:,} tokens with a loss hold up to {said / 8e6:.3g} MB, and {trained:,} numbers keep "
        f"about {kept / 8e6:.3g} MB: that would take rank {rank}{wider}",
        f"{BITS_KEPT:g} bits a parameter, {BITS_SAID:g} bit a token at most; an adapter with too little room learns "
        "as fast as others at first and falls behind later. The lesson says to raise the rank when validation loss "
        "stops falling: learning rate, targets and passes over the data come first",
        f"Allen-Zhu and Li 2024, arXiv:2404.05405; {SCHULMAN}",
    )


def _dropout(case: _Case) -> Advice | None:
    steps = case.steps
    if not case.setup.dropout or steps is None or steps >= SHORT_RUN:
        return None
    return Advice(
        "dropout",
        f"dropout {case.setup.dropout:g} in a run of {steps:,} steps: leave --dropout out",
        f"a run under {SHORT_RUN} steps has little time to overfit by, and averages over few masks; beginnings that "
        "examples share are then computed for each of them, which takes time. The lesson has 0.05",
        "a rule of this project; no published measurement is known",
    )


def _warmup(case: _Case) -> Advice | None:
    steps, asked = case.steps, case.options.warmup
    if steps is None or asked is None or asked <= steps // 10:
        return None
    reached = "never reached" if asked > steps else f"reached in step {asked:,}"
    return Advice(
        "warmup",
        f"a warm-up of {asked:,} steps in a run of {steps:,}: training cuts it to {steps // 10}",
        f"as asked for, the highest rate would be {reached}; the lesson's {LESSON_WARMUP} steps need a run of "
        f"{10 * LESSON_WARMUP:,}",
        "a warm-up ends within a tenth of a run: a rule of this project",
    )


_RULES: tuple[Callable[[_Case], Advice | None], ...] = (
    _alpha,
    _rslora,
    _targets,
    _rank,
    _module,
    _rate,
    _batch,
    _capacity,
    _dropout,
    _warmup,
)


def _layers(shape: Shape) -> tuple[set[str], set[str]]:
    """Names of the linear layers within attention, and of the others, the output layer left out."""
    attention: set[str] = set()
    rest: set[str] = set()
    for weight in shape.weights:
        if weight.kind in ("linear", "conv1d") and layer_index(weight.path, ()) is not None:
            inside = "attn" in weight.path or "attention" in weight.path
            (attention if inside else rest).add(weight.path.rpartition(".")[2])
    return attention, rest
