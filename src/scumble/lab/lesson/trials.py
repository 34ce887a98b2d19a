"""The lesson's runs: adapters trained at once on one base, whole models one after the other, and what each came to.

A run is marked by its loss on the validation examples after the last step; a chosen one by its answers to the unseen
examples. What is found is written into the state at once, and what is large and not needed any more is removed.
Knows runs and data, and nothing of claims.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scumble.compare.exact import exact_by_forward
from scumble.compare.loss import mean_loss
from scumble.config import TrainOptions, make
from scumble.errors import TrainingError
from scumble.lab.lesson.material import Material
from scumble.lab.lesson.plan import Candidate, Configuration, Scope
from scumble.lab.lesson.spectrum import update_spectrum
from scumble.lab.lesson.state import State, finite
from scumble.lora.adapter import WEIGHTS_NAME
from scumble.lora.bank import Bank
from scumble.models.base import Base
from scumble.models.threads import threads_for, with_threads
from scumble.progress import Reporter
from scumble.train.lane import Lane
from scumble.train.loop import Trainer
from scumble.train.many import Trained, Trial, train_many
from scumble.train.settings import settle
from scumble.train.whole import WholeModel

# Adapters in training at once. All would fit in memory; but each writes a state a minute, and there would be many.
RESIDENT = 8
BATCH = 16  # examples of a forward pass that only scores
WARMUP = 10  # of so many steps one is of warm-up
_SLOT = "scored"


class Trials:
    """Runs under way.

    Args:
        state: what was found so far; it is added to and written.
        scope: how much is done.
        material: what is learned from and asked.
        base: of all runs.
        reporter: shows the progress.
    """

    def __init__(
        self, state: State, scope: Scope, material: Material, base: Base, reporter: Reporter
    ) -> None:
        self.state, self.scope, self.material = state, scope, material
        self.base, self.reporter = base, reporter
        self.seconds = 0.0  # of training, in this process

    def folder(self, candidate: Candidate) -> Path:
        """Of a run."""
        return self.state.folder / "runs" / candidate.name

    def options(self, candidate: Candidate) -> dict[str, Any]:
        """Of a run."""
        scope = self.scope
        examples = len(self.material.seen_by(candidate.configuration))
        return {
            **candidate.configuration.options(),
            "learning_rate": candidate.rate,
            "seed": candidate.seed,
            "batch": scope.batch,
            "accumulate": 1,
            "max_steps": scope.steps,
            "epochs": float(math.ceil(scope.examples / examples)),  # enough for the steps, which decide
            "warmup": max(1, scope.steps // WARMUP),
            "eval": 0,
        }

    # -- training ----------------------------------------------------------------------------------

    def train(self, candidates: Sequence[Candidate]) -> None:
        """Train and mark all that are not in the state yet.

        Raises:
            TrainingError: somebody stopped it; what there is can be gone on with.
        """
        left = [each for each in candidates if each.name not in self.state.runs]
        adapters = [each for each in left if each.configuration.method == "lora"]
        if adapters:
            self._adapters(adapters)
        for each in left:
            if each.configuration.method == "full":
                self.reporter.note(f"training all weights, rate {each.rate:g}, seed {each.seed}")
                self._whole(each)
                self.state.save()

    def _adapters(self, candidates: Sequence[Candidate]) -> None:
        trials = [
            Trial(self.folder(each), self.options(each), data=self.material.seen_by(each.configuration))
            for each in candidates
        ]
        self.reporter.note(f"training {len(trials)} adapters on one base")
        found = train_many(
            self.material.all,
            trials,
            base=self.base,
            resume=True,
            reporter=self.reporter,
            ended=lambda number, trained: self._ended(trained),
            resident=RESIDENT,
        )
        with self._bank() as bank, self.reporter.bar("validation loss", len(candidates)):
            for candidate, trained in zip(candidates, found, strict=True):
                self.state.runs[candidate.name] = self._marked(candidate, trained, bank)
                self.state.save()
                self.reporter.advance()

    def _ended(self, trained: Trained) -> None:
        _prune(trained)
        self.state.save()  # the time up to here, should somebody stop it

    def _marked(self, candidate: Candidate, trained: Trained, bank: Bank) -> dict[str, Any]:
        """What is kept of an adapter's run."""
        facts = _facts(candidate)
        if trained.run is None:
            return {**facts, "failed": trained.failed or "it was not finished", "validation": None}
        file = trained.run.adapter / WEIGHTS_NAME
        with _held(bank, trained.run.adapter):
            marks = self._losses(candidate.configuration, bank.model)
        return {
            **facts,
            "failed": None,
            **marks,
            "parameters": _parameters(trained.run.out),
            "bytes": file.stat().st_size,
            "tokens": trained.run.tokens,
            "seconds": trained.run.seconds,
        }

    def _losses(self, way: Configuration, model: Any) -> dict[str, Any]:
        """The loss on the validation examples in nats a token; on few examples also of each, and of training."""
        device = next(model.parameters()).device
        found: dict[str, Any] = {"validation": mean_loss(model, self.material.validation, BATCH, device)}
        if way.data == "few":
            found["losses"] = [mean_loss(model, [each], 1, device) for each in self.material.validation]
            found["train"] = mean_loss(model, self.material.few_encoded, BATCH, device)
        # a loss that is no number counts as none at once, as it does once it was written and read again
        return dict(finite(found))

    def _whole(self, candidate: Candidate) -> None:
        """Train all weights, in memory alone: a state on disk would be three times the model; then mark it."""
        before = {name: p.detach().clone() for name, p in self.base.model.named_parameters()}
        subject = WholeModel(self.base, self.base.tokenizer, keep=False)
        try:
            lane = self._lane(candidate, subject)
            with with_threads(threads_for(self.base.model).train):
                Trainer([lane], self.reporter, total=self.scope.steps).run()
                stopped = lane.outcome.stopped
                if stopped and stopped.startswith("stopped by"):
                    raise TrainingError(stopped, "go on with --resume; this one begins anew")
                facts = {**_facts(candidate), "failed": stopped}
                if stopped:
                    self.state.runs[candidate.name] = {**facts, "validation": None}
                    return
                subject.model.requires_grad_(False)
                self._mark_whole(candidate, facts, lane, before)
        finally:
            subject.close()
            with torch.no_grad():
                for name, parameter in self.base.model.named_parameters():
                    parameter.copy_(before[name])

    def _lane(self, candidate: Candidate, subject: WholeModel) -> Lane:
        encoded = (
            self.material.few_encoded if candidate.configuration.data == "few" else self.material.all_encoded
        )
        settings = settle(make(TrainOptions, **self.options(candidate)), len(encoded), self.base.model.config)
        return Lane(subject, encoded, [], settings, _Nowhere(), Reporter(quiet=True))

    def _mark_whole(
        self, candidate: Candidate, facts: dict[str, Any], lane: Lane, before: dict[str, Tensor]
    ) -> None:
        model: Any = self.base.model
        after = {name: p.detach() for name, p in model.named_parameters()}
        self.reporter.note("singular values of what it changed")
        self.state.spectra[candidate.name] = update_spectrum(before, after, _linear(model)).to_dict()
        self.state.scores[candidate.name] = _bits(exact_by_forward(model, self.material.test, batch=BATCH))
        self.state.runs[candidate.name] = {
            **facts,
            **self._losses(candidate.configuration, model),
            "parameters": sum(p.numel() for p in after.values()),
            "bytes": sum(p.numel() * p.element_size() for p in after.values()),
            "tokens": lane.outcome.tokens,
            "seconds": lane.outcome.seconds,
        }

    # -- choosing and scoring ----------------------------------------------------------------------

    def choose(self, candidates: Sequence[Candidate]) -> None:
        """Take for each way to train the rate of the lowest validation loss, and remove what the others wrote."""
        self.state.chosen = best_rates(candidates, self.state.runs)
        self.state.save()
        for each in candidates:
            if self.state.chosen.get(each.configuration.name) != each.rate:
                shutil.rmtree(self.folder(each), ignore_errors=True)

    def score(self, candidates: Sequence[Candidate]) -> None:
        """Ask the unseen examples of every run that was trained on all examples and is not scored yet."""
        left = [
            each
            for each in candidates
            if each.name not in self.state.scores
            and each.configuration.data == "all"
            and self.state.runs[each.name]["failed"] is None
        ]
        total = len(left) * len(self.material.test)
        with self._bank() as bank, self.reporter.bar("scoring", total):
            for each in left:
                with _held(bank, self.folder(each) / "adapter"):
                    right = exact_by_forward(
                        bank.model, self.material.test, batch=BATCH, done=self.reporter.advance
                    )
                self.state.scores[each.name] = _bits(right)
                self.state.save()

    def agreement(self, candidate: Candidate) -> dict[str, Any]:
        """Whether the marks of one forward pass are those of real answers, on the first of the scored examples."""
        from scumble.compare.generation import generate
        from scumble.compare.metrics import metric_named
        from scumble.data.encoding import encode_prompt
        from scumble.data.shipped import SHIPPED
        from scumble.lab.lesson.material import DATA

        asked = self.material.asked[: self.scope.sampled]
        shipped, tokenizer = SHIPPED[DATA], self.base.tokenizer
        prompts = [encode_prompt(each.prompt, tokenizer) for each in asked]
        _, metric = metric_named(shipped.metric)
        with (
            self._bank() as bank,
            self.reporter.bar("checking by generation", len(asked)),
            _held(bank, self.folder(candidate) / "adapter"),
        ):
            answers = generate(
                bank, tokenizer, prompts, [_SLOT], max_new_tokens=shipped.max_new_tokens,
                done=self.reporter.advance,
            )  # fmt: skip
        real = [metric(text, each.expected) == 1 for [text], each in zip(answers, asked, strict=True)]
        marked = [bit == "1" for bit in self.state.scores[candidate.name][: len(asked)]]
        return {
            "run": candidate.name,
            "n": len(asked),
            "agree": sum(a == b for a, b in zip(real, marked, strict=True)),
            "right_by_forward": sum(marked),
            "right_by_generation": sum(real),
        }

    @contextmanager
    def _bank(self) -> Iterator[Bank]:
        bank = Bank(self.base)
        try:
            with with_threads(threads_for(self.base.model).train):
                yield bank
        finally:
            bank.close()


def best_rates(candidates: Sequence[Candidate], runs: dict[str, dict[str, Any]]) -> dict[str, float]:
    """For each way to train, by name, the rate of the lowest validation loss, the lower one of two alike.

    Args:
        candidates: the runs of the first seed.
        runs: by name, each with `validation`; None where it broke off or is no number. A way of which
            all did has no rate.
    """
    best: dict[str, tuple[float, float]] = {}
    for each in candidates:
        loss = runs[each.name]["validation"]
        if loss is None:
            continue
        name = each.configuration.name
        best[name] = min(best.get(name, (float("inf"), each.rate)), (loss, each.rate))
    return {name: rate for name, (_, rate) in best.items()}


class _Nowhere:
    """A record of a run of which nothing is written."""

    def metrics(self, row: dict[str, Any]) -> None:
        """Nothing."""

    def keep(self, step: int, *, best: bool) -> None:
        """Nothing."""

    def save(self, state: dict[str, Any]) -> None:
        """Nothing."""


def _facts(candidate: Candidate) -> dict[str, Any]:
    way = candidate.configuration
    return {"way": way.name, "title": way.title, "rate": candidate.rate, "seed": candidate.seed}


def _prune(trained: Trained) -> None:
    """Leave of a finished run what `scumble` can use: its checkpoints would be a second copy of the adapter."""
    if trained.run is not None:
        shutil.rmtree(trained.trial.out / "checkpoints", ignore_errors=True)


@contextmanager
def _held(bank: Bank, folder: Path) -> Iterator[None]:
    """The bank's model computes with an adapter within the body of a `with`."""
    bank.add(_SLOT, folder)
    try:
        with bank.using(_SLOT):
            yield
    finally:
        bank.remove(_SLOT)


def _parameters(folder: Path) -> int:
    """Trained numbers of a run."""
    return int(json.loads((folder / "run.json").read_text(encoding="utf-8"))["adapter"]["parameters"])


def _linear(model: Any) -> list[str]:
    """Names of the weights of linear modules within layers: what an adapter on all linear modules reaches."""
    head = model.get_output_embeddings()
    return [
        f"{path}.weight"
        for path, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    ]


def _bits(right: Sequence[bool]) -> str:
    return "".join("1" if each else "0" for each in right)


def read_bits(text: str) -> list[float]:
    """The marks of a run as numbers."""
    return [float(each) for each in text]
