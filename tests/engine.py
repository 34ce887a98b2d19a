"""The engine's gradient and PEFT's own of the same adapter on the same base: padded on the right, loss by hand.

PEFT's side is kept in the model's type to the last digit: attention by SDPA (transformers' eager one rounds its softmax
to fp32), the cross-entropy by hand (its `.loss` rounds logits to fp32), norms of `tests.tiny`.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any
from unittest import mock

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from torch.nn import functional

from scumble.compare.loss import loss_sum
from scumble.data import packing
from scumble.data.batches import IGNORED, Batch
from scumble.data.encoding import Encoded
from scumble.data.packing import Packed, pack, shared_tree
from scumble.lora.adapter import Adapter
from scumble.lora.bank import Bank
from scumble.models import attention
from scumble.models.checkpointing import checkpointed
from scumble.models.lean import lean
from tests.lora.conftest import peft_model

EXACT = {torch.float64: 1e-10, torch.float32: 1e-5}  # the issue's, by the Frobenius norm of each tensor
SLOT = "trained"


class Pair:
    """One adapter, all of it random and not zero, in PEFT and in a bank."""

    def __init__(self, base: Any, *, trained: torch.dtype | None = None, **config: Any) -> None:
        self.dtype = base.dtype
        self.oracle: PeftModel = peft_model(base, **config)
        with tempfile.TemporaryDirectory() as folder:
            self.oracle.save_pretrained(folder)
            self.start = Adapter.load(folder)
        self.bank = Bank(copy.deepcopy(base))
        self.bank.trainable(SLOT, self.start.spec, start=self.start)
        self.bank.use(SLOT)
        assert all(p.dtype == (trained or self.dtype) for p in self.bank.parameters(SLOT).values())

    def against_fp64(self, base: Any, **config: Any) -> Pair:
        """Hold it against PEFT in fp64 with the same numbers, whose rounding is none."""
        kept = dict(self.oracle.named_parameters())
        self.oracle = peft_model(base, **config)
        with torch.no_grad():
            for name, parameter in self.oracle.named_parameters():
                parameter.copy_(kept[name])
        return self

    def wanted(self, examples: Sequence[Encoded]) -> tuple[float, dict[str, Tensor]]:
        """PEFT's mean loss and its gradients."""
        inputs = right_padded(examples)
        labels = inputs.pop("labels")
        self.oracle.zero_grad()
        logits = self.oracle(**inputs, use_cache=False).logits[:, :-1]
        assert logits.dtype == self.oracle.dtype
        loss = functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED)
        loss.backward()
        found = {}
        for name, parameter in self.oracle.named_parameters():
            if parameter.requires_grad:
                name = name.replace(".modules_to_save.default", "").replace(".default", "")
                grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
                found[name.removesuffix(".weight") if "token_adapter" in name else name] = grad
        return float(loss.detach()), found

    def found(
        self, laid: Sequence[Packed | Batch], *, lean_too: bool = False, repeat: int = 0
    ) -> tuple[float, dict[str, Tensor]]:
        """The engine's, from the micro-batches of a step; the first `repeat` layers computed twice."""
        model = self.bank.model
        parameters = self.bank.parameters(SLOT)
        for parameter in parameters.values():
            parameter.grad = None
        targets, total = sum(each.targets for each in laid), 0.0
        with lean(model) if lean_too else nullcontext(), checkpointed(model, repeat):
            for each in laid:
                loss = loss_sum(model, each) / targets
                loss.backward()
                total += float(loss.detach())
        return total, {
            name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in parameters.items()
        }


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny products on several threads cost many times what they do on one where the cores are busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def right_padded(examples: Sequence[Encoded]) -> dict[str, Tensor]:
    longest = max(len(each.ids) for each in examples)
    ids, mask = (torch.zeros((len(examples), longest), dtype=torch.long) for _ in range(2))
    labels = torch.full_like(ids, IGNORED)
    for row, each in enumerate(examples):
        size = len(each.ids)
        ids[row, :size], mask[row, :size] = torch.tensor(each.ids), 1
        labels[row, :size] = torch.where(torch.tensor(each.supervised), ids[row, :size], IGNORED)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def off(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    """The largest difference of any tensor by its Frobenius norm, relative to that tensor's.

    A gradient that is zero but for rounding (of queries and keys where every token sees one key only) is held against
    a hundredth of the largest.
    """
    assert found.keys() == wanted.keys()
    largest = max(float(w.norm()) for w in wanted.values())
    assert largest > 0
    return max(
        float((found[name] - w).norm()) / max(float(w.norm()), 1e-2 * largest) for name, w in wanted.items()
    )


@contextmanager
def sharing(least: int, block: int) -> Iterator[None]:
    """Trees from a few tokens on whatever they save, and attention in blocks so small that short examples have several."""
    in_blocks: Callable[..., Any] = partial(attention.products, block=block)
    with (
        mock.patch.object(packing, "shared_tree", partial(shared_tree, least=least)),
        mock.patch.object(packing, "WORTH", 0.0),
        mock.patch.object(attention, "products", in_blocks),
    ):
        yield


def trees(examples: Sequence[Encoded], least: int = 1) -> Packed:
    with sharing(least, 112):
        return pack(examples, share=True)
