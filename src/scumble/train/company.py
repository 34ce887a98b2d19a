"""`Company`: the gradients and losses of all lanes on one frozen model.

Lanes share the weights, the layers below the first that any of them adapts (`trunks`), and on a GPU the base's matrix
products: there `together` of them are laid end to end in one micro-batch (`mixed`). On a CPU one lane's rows fill the
cores, so that lanes take turns, each with the micro-batches that it would have alone and to the last digit the same
result. Knows engines and examples, and nothing of optimizers, schedules and files.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch

from scumble.compare.loss import groups_of, lay_out, loss_sum
from scumble.data.encoding import Encoded
from scumble.models.checkpointing import checkpointed
from scumble.models.lean import lean
from scumble.progress import Reporter
from scumble.train.engine import Ask, Engine, StepLoss, ran_out
from scumble.train.mixed import can_mix, mixed_gradients
from scumble.train.trunks import Trunks


class Company:
    """Engines on one model.

    Args:
        model: which all of them compute with.
        reporter: is told what holds for all.

    Attributes:
        together: lanes whose rows are computed at once.
    """

    def __init__(self, model: torch.nn.Module, reporter: Reporter, *, together: int | None = None) -> None:
        self.model, self.reporter = model, reporter
        self.together = together or 1
        self._asked = together is not None
        self._engines: list[Engine] = []

    @contextmanager
    def running(self, engines: Sequence[Engine], seen: Sequence[Sequence[Encoded]]) -> Iterator[None]:
        """Gradients are made within the body of a `with`.

        Args:
            engines: of the lanes that begin.
            seen: for each, all examples that it will see, whose longest decide on memory.
        """
        for engine in engines:
            engine.tell_layout()
        with lean(self.model):
            for engine, examples in zip(engines, seen, strict=True):
                engine.settle_repeat(examples)
            self.repeat = max(engine.repeat or 0 for engine in engines)
            if not self._asked and self.repeat == 0 and engines[0].device.type == "cuda":
                self._put_together(engines, seen)
            with checkpointed(self.model, self.repeat):
                self.join(engines)
                yield

    def _put_together(self, engines: Sequence[Engine], seen: Sequence[Sequence[Encoded]]) -> None:
        """Compute the rows of as many lanes at once as there is memory for: one lane's seldom fill a GPU."""
        needs = [engine.need(examples) for engine, examples in zip(engines, seen, strict=True)]
        if any(need is None for need in needs):
            return
        most = max(needs, key=lambda need: need.kept)  # type: ignore[union-attr]
        assert most is not None
        self.together = most.times
        self.reporter.note(
            f"rows of {min(self.together, len(engines))} adapters are computed at once: each keeps up to "
            f"{most.kept / 1e9:.1f} GB, and {most.free / 1e9:.1f} GB are free"
        )

    def join(self, engines: Sequence[Engine]) -> None:
        """Let engines come."""
        for engine in engines:
            if engine not in self._engines:
                engine.repeat = self.repeat
                self._engines.append(engine)
        self._cut()

    def leave(self, engine: Engine) -> None:
        """Let one go."""
        if engine in self._engines:
            self._engines.remove(engine)
            engine.trunks = None
            self._cut()

    def _cut(self) -> None:
        """Decide anew which layers are computed once for several lanes."""
        depths = [engine.subject.depth for engine in self._engines]
        self.trunks = Trunks(self.model, depths)
        for engine, depth in zip(self._engines, depths, strict=True):
            engine.trunks = self.trunks if depth >= self.trunks.depth > 0 else None

    def gradients(self, asks: Sequence[Ask]) -> list[StepLoss]:
        """Add the gradient of one optimizer step of each lane to its parameters.

        Raises:
            TrainingError: memory runs out with one example at once.
        """
        mixed = [number for number, ask in enumerate(asks) if can_mix(ask.engine)]
        if self.together < 2 or len(mixed) < 2:
            return [ask.engine.step(ask.step, ask.examples) for ask in asks]
        found = dict(zip(mixed, self._mixed([asks[number] for number in mixed]), strict=True))
        for number, ask in enumerate(asks):
            if number not in found:
                found[number] = ask.engine.step(ask.step, ask.examples)
        return [found[number] for number in range(len(asks))]

    def _mixed(self, asks: Sequence[Ask]) -> list[StepLoss]:
        """The same of adapters whose rows stand side by side; where memory runs out, of half as many at once."""
        try:
            return mixed_gradients(asks)
        except RuntimeError as error:
            if not ran_out(error):
                raise
        for ask in asks:
            ask.engine.clear()
        self.together = max(1, len(asks) // 2)
        self.reporter.note(
            f"memory ran out: from here on {self.together} adapters at once, with the same result"
        )
        parts = [asks[i : i + self.together] for i in range(0, len(asks), self.together)]
        return [one for part in parts for one in self.gradients(part)]

    def forget(self) -> None:
        """A round is over: the next one has other examples."""
        self.trunks.forget()

    @torch.no_grad()
    def losses(self, asks: Sequence[tuple[Engine, Sequence[Encoded]]]) -> list[float | None]:
        """The mean loss of each lane over its validation examples, in nats; None where it has none.

        Lanes with the same examples and micro-batches go through them together, so that what is below all of them is
        computed once.
        """
        found: list[float | None] = [None] * len(asks)
        alike: dict[tuple[int, ...], list[int]] = {}
        for number, (engine, examples) in enumerate(asks):
            if examples:
                alike.setdefault((engine.batch, *map(id, examples)), []).append(number)
        for numbers in alike.values():
            # before training most adapters are the base itself, which is computed once
            bare = [number for number in numbers if asks[number][0].subject.bare]
            computed = [number for number in numbers if number not in bare[1:]]
            losses = self._means([asks[number][0] for number in computed], asks[numbers[0]][1])
            found_of = dict(zip(computed, losses, strict=True))
            for number in numbers:
                found[number] = found_of[bare[0] if number in bare else number]
        return found

    def _means(self, engines: Sequence[Engine], examples: Sequence[Encoded]) -> list[float]:
        totals, targets = [0.0] * len(engines), 0
        for group in groups_of(self.model, examples, engines[0].batch):
            batch = lay_out(self.model, group).to(engines[0].device)
            for number, engine in enumerate(engines):
                begun = engine.trunks.beginning(group, batch) if engine.trunks is not None else nullcontext()
                with engine.subject.using(), begun:
                    totals[number] += float(loss_sum(self.model, batch))
            self.trunks.forget()
            targets += batch.targets
        return [total / targets for total in totals]
