"""A plan held against a real step: the peak of memory that a training step has here, and the one that was planned.

On a GPU the allocator counts its peak itself. On a CPU every allocation of PyTorch is counted by its profiler, so that
it is the tensors' bytes and not the process's size, which the system rounds, shares and keeps. The second of two steps is
measured: the first one makes the moments.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from transformers import AutoModelForCausalLM

from scumble.data.encoding import Encoded
from scumble.errors import ConfigError, NotSupportedError
from scumble.lab.allocated import most_allocated
from scumble.lora.bank import Bank
from scumble.models.base import Base
from scumble.models.threads import threads_for, with_threads
from scumble.models.weights import DTYPES, device_named
from scumble.models.weights import quiet as quiet_libraries
from scumble.plan.measured import Measured
from scumble.plan.memory import Memories, Memory, plan_memory
from scumble.plan.parameters import spec_of
from scumble.plan.plan import Plan
from scumble.plan.setup import Setup
from scumble.plan.shape import Shape
from scumble.progress import Reporter
from scumble.train.company import Company
from scumble.train.engine import Ask, Engine
from scumble.train.memory import free_bytes
from scumble.train.optimizer import make_optimizer
from scumble.train.settings import Settings
from scumble.train.subject import AdapterSubject, Subject
from scumble.train.whole import WholeModel

_SLOT = "planned"
_SHARE = 0.9  # of the free memory that a step may take: the process has more than tensors


def measure_plan(found: Plan, reporter: Reporter) -> Measured:
    """Make a step of a plan here, with random weights, which change no memory, and random tokens.

    Args:
        found: the plan, for a device that is here.
        reporter: is told what is done.

    Raises:
        NotSupportedError: the setup is one that is not trained here.
        ConfigError: there is no such device here, or the step takes more memory than there is.
    """
    _refuse(found.setup)
    device = device_named(found.setup.device)
    # as many positions at once as planned, also where the examples of two micro-steps would go into one
    full = found.setup.tokens == found.setup.batch * found.setup.longest
    setup = replace(found.setup, accumulate=min(2, found.setup.accumulate) if full else 1)
    needed, free = plan_memory(found.shape, setup).peak, free_bytes(device)
    if free is not None and needed > _SHARE * free:
        raise ConfigError(
            f"a step takes {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free here, of which it may have "
            f"{_SHARE:.0%}",
            "measure with a smaller --batch or --max-length: the plan is held against the same step",
        )
    reporter.note(f"measuring: two steps with random weights on {device.type}")
    base = random_base(found.shape, setup)
    with with_threads(threads_for(base.model).train):
        setup = replace(setup, threads=torch.get_num_threads())
        return measure(base, found.shape, setup, random_examples(setup, found.shape.vocabulary))


def random_base(shape: Shape, setup: Setup) -> Base:
    """A base of a shape, of the setup's type and on its device, with random weights."""
    with torch.device(setup.device), quiet_libraries():
        return Base(AutoModelForCausalLM.from_config(shape.skeleton.model.config, dtype=DTYPES[setup.dtype]))


def measure(base: Base, shape: Shape, setup: Setup, examples: Sequence[Encoded]) -> Measured:
    """Make two steps, and hold the second one against the plan.

    Args:
        base: with its weights, on the setup's device.
        shape: of it.
        setup: what is planned; its engine is ours, and its base not quantised.
        examples: of one optimizer step, as `random_examples` makes them for a setup.

    Raises:
        NotSupportedError: the setup is one that is not trained here.
    """
    if setup.method == "qlora" or setup.engine != "scumble" or setup.processes > 1:
        raise NotSupportedError(
            "only what is trained here by one process is measured",
            "leave --measure out, or use --method lora",
        )
    planned: Memory = plan_memory(shape, setup)
    weights = sum(p.numel() * p.element_size() for p in base.model.parameters())
    peak, seconds = _second_step(subject_of(base, setup), setup, examples)
    return Measured(peak, planned.peak, weights, seconds)


def _refuse(setup: Setup) -> None:
    quantised = setup.method == "qlora" or setup.dtype not in DTYPES
    if quantised or setup.engine != "scumble" or setup.processes > 1:
        raise NotSupportedError(
            "only what is trained here, by one process and with no quantised base, is measured",
            "leave --measure out, or use --method lora and one process",
        )


def random_examples(setup: Setup, vocabulary: int, lengths: Sequence[int] = ()) -> list[Encoded]:
    """Examples of one optimizer step that share nothing: as many tokens, and as many with a loss, as the setup says.

    Args:
        setup: whose batch and accumulation say how many.
        vocabulary: tokens to draw from.
        lengths: of the examples of a micro-step; where not told, the longest as often as it goes, and what is left.
    """
    draw = random.Random(0)
    whole, rest = divmod(setup.tokens, setup.longest)
    lengths = list(lengths) or [setup.longest] * whole + [rest] * (rest > 1)
    share = setup.losses / setup.tokens
    found = []
    for number, length in enumerate(list(lengths) * setup.accumulate):
        silent = max(1, length - round(share * length))
        ids = tuple(draw.randrange(vocabulary) for _ in range(length))
        found.append(Encoded(ids, tuple(i >= silent for i in range(length)), number, ""))
    return found


def subject_of(base: Base, setup: Setup) -> Subject:
    """What a setup trains of a base; to be closed, which gives the base back."""
    if setup.method == "full":
        return WholeModel(base, None, keep=True)
    bank = Bank(base)
    try:
        bank.trainable(_SLOT, spec_of(setup), seed=0)
    except BaseException:
        bank.close()
        raise
    return AdapterSubject(bank, _SLOT)


def _second_step(subject: Subject, setup: Setup, examples: Sequence[Encoded]) -> tuple[int, float]:
    """The peak in bytes of all that PyTorch holds, and the seconds."""
    repeat = 10_000 if setup.repeat == "all" else setup.repeat
    engine = Engine(subject, setup.batch, repeat=repeat, reporter=Reporter(quiet=True))
    parameters = subject.parameters()
    optimizer = make_optimizer(parameters, settings_of(setup))

    def step(number: int) -> None:
        engine.step(number, examples)
        torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    try:
        with subject.using(), engine.running(examples):
            step(0)
            started = time.perf_counter()
            peak = _peak_of(lambda: step(1), engine.device)
            seconds = time.perf_counter() - started
        if engine.device.type == "cpu":
            moments = [t for state in optimizer.state.values() for t in state.values() if torch.is_tensor(t)]
            held = {id(t): t.numel() * t.element_size() for t in (*subject.model.parameters(), *moments)}
            peak += sum(held.values())
        return peak, seconds
    finally:
        subject.close()


def _peak_of(work: Callable[[], None], device: torch.device) -> int:
    """The most that is allocated during the work: in all on a GPU, on a CPU beside what was there before."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        torch.cuda.synchronize(device)
        return int(torch.cuda.max_memory_allocated(device))
    return most_allocated(work)


def settings_of(setup: Setup) -> Settings:
    """What an optimizer needs to be told of a run, for a few steps that nobody keeps."""
    return Settings(
        steps=2,
        steps_per_epoch=2,
        epochs=1.0,
        batch=setup.batch,
        accumulate=setup.accumulate,
        learning_rate=1e-4,
        schedule="constant",
        warmup=0,
        weight_decay=0.0,
        clip=1.0,
        seed=0,
        choices=(),
        optimizer=setup.optimizer,
    )


def measure_at_once(
    base: Base, shape: Shape, setups: Sequence[Setup], examples: Sequence[Encoded]
) -> Measured:
    """The peak of a second round of adapters that are trained at once, each of which sees the same examples.

    Args:
        base: whose model is trained on, and given back.
        shape: of it.
        setups: one for each adapter.
        examples: of an optimizer step.
    """
    planned = Memories(shape).at_once(setups)
    weights = sum(p.numel() * p.element_size() for p in base.model.parameters())
    bank, quiet = Bank(base), Reporter(quiet=True)
    lanes = []
    for number, setup in enumerate(setups):
        bank.trainable(f"{_SLOT}{number}", spec_of(setup), seed=0)
        subject = AdapterSubject(bank, f"{_SLOT}{number}", keep=True)
        engine = Engine(subject, setup.batch, repeat=int(setup.repeat), reporter=quiet)
        parameters = subject.parameters()
        lanes.append((engine, parameters, make_optimizer(parameters, settings_of(setup))))
    company = Company(bank.model, quiet)

    def round_of_all(number: int) -> None:
        for engine, parameters, optimizer in lanes:
            company.gradients([Ask(engine, number, examples)])
            torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        company.forget()

    try:
        with company.running([engine for engine, _, _ in lanes], [examples] * len(lanes)):
            round_of_all(0)
            started = time.perf_counter()
            peak = _peak_of(lambda: round_of_all(1), lanes[0][0].device)
            seconds = time.perf_counter() - started
        if lanes[0][0].device.type == "cpu":
            states = [state for *_, optimizer in lanes for state in optimizer.state.values()]
            moments = [t for state in states for t in state.values() if torch.is_tensor(t)]
            held = {id(t): t.numel() * t.element_size() for t in (*base.model.parameters(), *moments)}
            peak += sum(held.values())
    finally:
        bank.close()
    return Measured(peak, planned.peak, weights, seconds)
