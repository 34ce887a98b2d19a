"""A slot in training that begins as another method has it: PiSSA, OLoRA, EVA and so on, and what is saved of it.

Where the beginning is an update that is not zero, the bank holds it a second time with weight -1, so that training
starts from the base itself: y = W x - s B0 A0 x + s B A x. The base is never changed. Knows banks, adapters and encoded
examples; the beginnings themselves are `scumble.lora.initial`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import torch

from scumble.data.encoding import Encoded
from scumble.errors import AdapterError
from scumble.lora.adapter import Adapter, from_tensors
from scumble.lora.bank import Bank
from scumble.lora.initial import SHIFTED, Batch, compressed, difference, initial_adapter
from scumble.lora.spec import LoraSpec
from scumble.models.base import Base
from scumble.progress import Reporter
from scumble.train.subject import AdapterSubject, Figures

START = "start"
_ROWS, _BATCHES = 8, 32  # of the training data, that EVA looks at


def begun_subject(
    bank: Bank,
    name: str,
    kind: str,
    seed: int,
    begun: Adapter,
    *,
    compress: bool,
    reporter: Reporter,
    keep: bool = False,
) -> AdapterSubject:
    """A trainable slot that begins as `begun`, which `initial_adapter` made for the bank's base."""
    bank.trainable(name, begun.spec, seed=seed, start=begun)
    if kind not in SHIFTED:
        return AdapterSubject(bank, name, keep=keep)
    return ShiftedSubject(bank, name, begun, kind, compress=compress, reporter=reporter, keep=keep)


class ShiftedSubject(AdapterSubject):
    """A slot less what it was at the beginning.

    Args:
        bank: which is closed with it.
        name: of the slot.
        start: the slot's contents at the beginning.
        kind: the method that made them.
        compress: save the nearest adapter of the rank that is trained, and not the exact one of twice the rank.
        reporter: is told what that misses.
        keep: close its slots only.
    """

    def __init__(
        self,
        bank: Bank,
        name: str,
        start: Adapter,
        kind: str,
        *,
        compress: bool,
        reporter: Reporter,
        keep: bool = False,
    ) -> None:
        super().__init__(bank, name, keep=keep)
        # what is taken from the base was never dropped there; what it replaces of the base, the slot alone does
        spec = replace(start.spec, dropout=0.0, bias="none", modules_to_save=(), trainable_token_indices={})
        factors = {path: replace(each, bias=None) for path, each in start.factors.items()}
        self.start = Adapter(replace(spec, lora_bias=False), factors, base_hash=start.base_hash)
        self.start_name = f"{name}.{START}"
        bank.add(self.start_name, self.start)
        self.kind, self.compress, self.reporter = kind, compress, reporter
        self._loaded = False

    @property
    def plain(self) -> bool:
        """Its beginning is taken away in the same rows."""
        return False

    def using(self) -> AbstractContextManager[object]:
        """Every row is computed with the slot, less its beginning; after `load` with what was loaded."""
        weights = {self.name: 1.0} if self._loaded else {self.name: 1.0, self.start_name: -1.0}
        return self.bank.using(weights)

    def sound(self) -> bool:
        """Whether what would be written could be loaded."""
        try:
            exact = self._exact()
            from_tensors(exact.spec, exact.tensors())
        except AdapterError:
            return False
        return True

    def facts(self) -> Figures:
        """Its shape and size, and the rank that is saved."""
        found = super().facts()
        times = 1 if self.compress else 2
        return found | {
            "init": self.kind,
            "saved_rank": times * found["rank"],
            "bytes": times * found["bytes"],
        }

    def save(self, folder: Path) -> Path:
        """Write the adapter for the base itself, in the PEFT format."""
        exact = self._exact()
        if not self.compress:
            return exact.save(folder)
        small, error = compressed(exact, self.bank.adapter(self.name).spec.rank)
        self.reporter.note(f"saved in rank {small.spec.rank}, which misses {error:.1%} of the update trained")
        return small.save(folder)

    def load(self, folder: Path) -> None:
        """Give the slot the contents of an adapter folder, from whose update nothing is taken any more."""
        super().load(folder)
        self._loaded = True

    def close(self) -> None:
        """Close the bank, or take both slots out of it."""
        super().close()
        if self.keep:
            self.bank.remove(self.start_name)

    def _exact(self) -> Adapter:
        return difference(self.bank.snapshot(self.name), self.start)


def begun_adapter(kind: str, spec: LoraSpec, base: Base, seed: int, examples: Sequence[Encoded]) -> Adapter:
    """What a slot begins as; EVA looks at batches of the training data in an order of its own, decided by the seed."""
    batches = _batches(examples, seed, base.device) if kind == "eva" else []
    return initial_adapter(kind, spec, base.model, seed, batches)


def _batches(examples: Sequence[Encoded], seed: int, device: torch.device) -> list[Batch]:
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(seed)).tolist()
    found: list[Batch] = []
    for first in range(0, min(len(order), _ROWS * _BATCHES), _ROWS):
        rows = [examples[i].ids for i in order[first : first + _ROWS]]
        ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
        mask = torch.zeros_like(ids)
        for number, row in enumerate(rows):
            ids[number, : len(row)] = torch.as_tensor(row)
            mask[number, : len(row)] = 1
        found.append({"input_ids": ids.to(device), "attention_mask": mask.to(device)})
    return found
