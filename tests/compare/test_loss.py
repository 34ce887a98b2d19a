"""The loss against PEFT's and transformers' own, which pad on the right and take a mean."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from peft import PeftModel

from scumble.compare.loss import mean_loss
from scumble.data.batches import IGNORED
from scumble.data.encoding import Encoded
from tests.bases import encoded, make_letters_base, sums
from tests.compare.adapters import moved_bank


def padded(examples: list[Encoded]) -> dict[str, torch.Tensor]:
    """What a plain script hands to transformers: padding on the right, labels -100 where there is no loss."""
    longest = max(len(e.ids) for e in examples)
    spare = [longest - len(e.ids) for e in examples]
    ids = [[*e.ids, *[0] * n] for e, n in zip(examples, spare, strict=True)]
    mask = [[1] * len(e.ids) + [0] * n for e, n in zip(examples, spare, strict=True)]
    labels = [
        [i if s else IGNORED for i, s in zip(e.ids, e.supervised, strict=True)] + [IGNORED] * n
        for e, n in zip(examples, spare, strict=True)
    ]
    return {
        "input_ids": torch.tensor(ids),
        "attention_mask": torch.tensor(mask),
        "labels": torch.tensor(labels),
    }


def test_the_mean_is_that_of_peft(tmp_path: Path) -> None:
    base = make_letters_base(dtype=torch.float64)
    plain = copy.deepcopy(base.model)
    bank = moved_bank(base)
    bank.save("adapter", tmp_path / "adapter")
    examples = encoded(sums(9))
    inputs = padded(examples)
    with torch.no_grad():
        before = float(plain(**inputs).loss)
        after = float(PeftModel.from_pretrained(plain, tmp_path / "adapter").eval()(**inputs).loss)
    found = {}
    for mixture in ("base", "adapter"):
        with bank.using(mixture):
            found[mixture] = mean_loss(bank.model, examples, 4, torch.device("cpu"))
    bank.close()
    # transformers widens logits to fp32 only, so its loss has that rounding
    assert found == {"base": pytest.approx(before, rel=1e-6), "adapter": pytest.approx(after, rel=1e-6)}
    assert abs(before - after) > 1e-3
