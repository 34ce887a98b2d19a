"""`Engine`: the loss and the gradient of one optimizer step, whatever the layout.

    for each micro-batch: examples end to end, what they share once, logits only where there is a loss;
        loss = sum over its supervised tokens / supervised tokens of the whole step; backward

Which examples share a step is not decided here. How they are laid out, how many at once, and which layers are computed
twice changes time and memory only: where memory runs out, the step is made again with half as many at once.
Knows a subject and encoded examples; nothing of optimizers, schedules and files.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import torch

from scumble.compare.loss import groups_of, lay_out, loss_sum
from scumble.data.batches import Batch
from scumble.data.encoding import Encoded
from scumble.data.packing import Packed
from scumble.errors import TrainingError
from scumble.lora.dropout import TokenMarks
from scumble.models.checkpointing import checkpointed
from scumble.models.lean import lean
from scumble.models.packable import ways_of
from scumble.progress import Reporter
from scumble.train.room import Need, measure_need
from scumble.train.subject import Subject
from scumble.train.trunks import Trunks


@dataclass(frozen=True)
class StepLoss:
    """What one optimizer step came to.

    Attributes:
        loss: mean over its supervised tokens, in nats.
        targets: how many those are.
        tokens: of its examples, shared ones in full.
        computed: tokens that were computed, shared ones once.
    """

    loss: float
    targets: int
    tokens: int
    computed: int


class Ask(NamedTuple):
    """One step that is asked for.

    Attributes:
        engine: of what is trained.
        step: its number, which dropout depends on.
        examples: all of the step.
    """

    engine: Engine
    step: int
    examples: Sequence[Encoded]


class Engine:
    """Computes the gradients of one subject.

    Args:
        subject: what is trained.
        batch: examples in a micro-step.
        repeat: layers to compute twice, at most so many; None: as the memory there is asks for.
        reporter: is told what was decided.

    Attributes:
        trunks: what other engines on the same model have computed already; None: there are none, or they may not.
        scale: of the loss, in fp16.
    """

    def __init__(self, subject: Subject, batch: int, *, repeat: int | None, reporter: Reporter) -> None:
        # with dropout, an example's tokens are computed under masks of its own
        self.subject, self.batch, self.share, self.repeat = subject, batch, not subject.drops, repeat
        self.reporter = reporter
        self.trunks: Trunks | None = None
        self.scale = 1.0
        self._saved = [0, 0]  # tokens, and those computed
        self._process, self._processes = 0, 1
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            self._process, self._processes = torch.distributed.get_rank(), torch.distributed.get_world_size()

    @contextmanager
    def running(self, examples: Sequence[Encoded]) -> Iterator[None]:
        """Steps are made within the body of a `with`.

        Args:
            examples: all that will be seen, whose longest decide on memory.
        """
        model = self.subject.model
        self.tell_layout()
        with lean(model):
            self.settle_repeat(examples)
            with checkpointed(model, self.repeat or 0):
                yield

    @property
    def device(self) -> torch.device:
        """Of the model."""
        return next(self.subject.model.parameters()).device

    @property
    def alone(self) -> bool:
        """Whether no other process computes a part of its steps."""
        return self._processes == 1

    def tell_layout(self) -> None:
        """Say where examples cannot be laid out as usual."""
        ways = ways_of(self.subject.model)
        if not ways.packed:
            self.reporter.note(f"examples are padded: {ways.reason}")
        if not self.share:
            self.reporter.note(
                "shared prefixes are computed for each example: dropout differs between examples"
            )

    def settle_repeat(self, examples: Sequence[Encoded]) -> None:
        """Decide how many layers are computed twice, where nobody said it."""
        if self.repeat is None:
            self.repeat = self._as_memory_asks(examples)

    def step(self, step: int, examples: Sequence[Encoded]) -> StepLoss:
        """Add the gradient of one optimizer step to the parameters.

        Args:
            step: its number, which dropout depends on.
            examples: all of it.
        """
        while True:
            try:
                return self._gradient(step, examples)
            except RuntimeError as error:
                if not ran_out(error):
                    raise
                if self.batch == 1:
                    raise TrainingError(
                        f"step {step + 1}: memory ran out with one example at once, the longest of "
                        f"{max(len(example.ids) for example in examples):,} tokens",
                        "lower --max-length, or use --gradient-checkpointing all",
                    ) from None
                self.clear()
                self.batch = (self.batch + 1) // 2
                self.reporter.note(
                    f"memory ran out: from here on {self.batch} examples at once, with the same result"
                )

    def clear(self) -> None:
        """Forget the gradients of a step that came to nothing, and give their memory back."""
        for parameter in self.subject.parameters().values():
            parameter.grad = None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def groups(self, examples: Sequence[Encoded]) -> list[list[Encoded]]:
        """The micro-batches of a step, of which this process has its share."""
        groups = groups_of(
            self.subject.model, examples, self.batch, share=self.share, processes=self._processes
        )
        return groups[self._process :: self._processes]

    def _gradient(self, step: int, examples: Sequence[Encoded]) -> StepLoss:
        model, targets = self.subject.model, targets_of(examples)
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        computed = tokens = 0
        with self.subject.using():
            for group in self.groups(examples):
                batch = lay_out(model, group, share=self.share).to(self.device)
                self.subject.mark(marks_of(batch, step))
                with self.trunks.beginning(group, batch) if self.trunks is not None else nullcontext():
                    loss = loss_sum(model, batch) / max(targets, 1)
                    (loss * self.scale).backward()
                total += loss.detach()
                computed += batch.computed if isinstance(batch, Packed) else batch.tokens
                tokens += batch.tokens
            self.subject.mark(None)
        self.note(tokens, computed)
        if self._processes > 1:
            self._add_up(total)
            tokens = sum(len(example.ids) for example in examples)
        return StepLoss(float(total), targets, tokens, computed)

    def note(self, tokens: int, computed: int) -> None:
        """Count the tokens of a step, and those computed of them."""
        if not self._saved[0] and self.share:
            self._tell(tokens, computed)
        self._saved = [self._saved[0] + tokens, self._saved[1] + computed]

    def _tell(self, tokens: int, computed: int) -> None:
        """Say once what sharing saves."""
        if computed < tokens:
            saved = f"{1 - computed / tokens:.0%} of the first step's tokens are computed once for several examples"
            self.reporter.note(f"{saved}, which begin with them")
        else:
            self.reporter.note("examples share too little at their beginning to compute it once")

    def _add_up(self, total: torch.Tensor) -> None:
        """Sum the loss and the gradients of all processes, each of which had its share of the micro-batches."""
        torch.distributed.all_reduce(total)
        for parameter in self.subject.parameters().values():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            torch.distributed.all_reduce(parameter.grad)

    def _as_memory_asks(self, examples: Sequence[Encoded]) -> int:
        """As few layers computed twice as the memory allows."""
        need = self.need(examples)
        if need is not None and need.repeat:
            self.reporter.note(
                f"{need.repeat} of {need.layers} layers are computed twice: up to {need.tokens:,} tokens at once would keep "
                f"{need.kept / 1e9:.1f} GB, and {need.free / 1e9:.1f} GB are free"
            )
        return need.repeat if need is not None else 0

    def need(self, examples: Sequence[Encoded]) -> Need | None:
        """What a micro-step keeps; None where the system does not tell what is free."""
        # as `groups_of` fills a group
        longest = max(len(example.ids) for example in examples)
        with self.subject.using():
            return measure_need(self.subject, examples, self.batch * longest)

    @property
    def shared(self) -> float:
        """The share of the tokens seen so far that sharing saved."""
        tokens, computed = self._saved
        return 1 - computed / tokens if tokens else 0.0


def marks_of(batch: Packed | Batch, step: int) -> TokenMarks:
    """Which token of which example stands where, for dropout in an optimizer step."""
    rows = batch.read if isinstance(batch, Packed) else None
    return TokenMarks(batch.examples, batch.positions, step, rows)


def targets_of(examples: Sequence[Encoded]) -> int:
    """Tokens of examples that have a loss."""
    return sum(sum(example.supervised[1:]) for example in examples)


def ran_out(error: RuntimeError) -> bool:
    """Whether memory ran out: a GPU's, or where the process may have no more, the CPU's, which has no class of its own."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator: can't allocate" in str(error)
