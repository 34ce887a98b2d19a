"""Batches: what stands where, and that laying examples side by side changes no loss."""

from __future__ import annotations

import math

import pytest
import torch

from scumble.compare import loss
from scumble.compare.loss import groups_of, loss_sum, mean_loss, token_losses
from scumble.data.batches import IGNORED, collate
from scumble.data.encoding import Encoded
from scumble.models.packable import Ways
from tests.bases import encoded, letters_model, sums

SHORT = Encoded((5, 6, 7), (False, False, True), 4, "a")
LONG = Encoded((1, 2, 3, 4, 5), (True, False, True, True, False), 9, "b")


def test_examples_lie_at_the_right() -> None:
    batch = collate([SHORT, LONG])
    assert batch.ids.tolist() == [[0, 0, 5, 6, 7], [1, 2, 3, 4, 5]]
    assert batch.mask.tolist() == [[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]]
    assert batch.positions.tolist() == [[0, 0, 0, 1, 2], [0, 1, 2, 3, 4]]
    # nothing comes before the first token to predict it from
    assert batch.labels.tolist() == [[IGNORED] * 4 + [7], [IGNORED, IGNORED, 3, 4, IGNORED]]
    assert batch.examples.tolist() == [[4] * 5, [9] * 5]
    assert (batch.targets, batch.tokens) == (3, 8)


def test_logits_are_kept_from_the_first_that_predicts_a_supervised_token() -> None:
    assert collate([SHORT]).keep == 2
    assert collate([LONG]).keep == 4
    assert collate([SHORT, LONG]).keep == 4
    assert collate([Encoded((1, 2, 3), (True, True, True), 0, "")]).keep == 3


def test_where_a_model_pads_every_example_stands_once_with_those_of_its_length(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loss, "ways_of", lambda model: Ways(False, False, "on purpose"))
    examples = encoded(sums(23))
    groups = groups_of(None, examples, 4)
    assert sorted(e.number for group in groups for e in group) == list(range(23))
    assert [len(group) for group in groups] == [4] * 5 + [3]
    lengths = [len(e.ids) for group in groups for e in group]
    assert lengths == sorted(lengths)
    assert len(groups_of(None, examples[:4], 4, processes=3)) >= 2


def by_hand(model: torch.nn.Module, example: Encoded) -> float:
    """The summed loss of one example, alone, from all its logits."""
    ids = torch.tensor([example.ids])
    with torch.no_grad():
        logs = model(input_ids=ids).logits[0].double().log_softmax(-1)
    return -sum(
        float(logs[i - 1, example.ids[i]]) for i in range(1, len(example.ids)) if example.supervised[i]
    )


# fp64: only the order of sums differs. Eager attention takes its softmax in fp32, whose rounding remains, and
# of fp64 rows that are all padding it makes NaN.
@pytest.mark.parametrize(
    ("attention", "dtype", "near"), [("sdpa", torch.float64, 1e-10), ("eager", torch.float32, 1e-4)]
)
def test_side_by_side_is_each_alone(attention: str, dtype: torch.dtype, near: float) -> None:
    model = letters_model(dtype=dtype, attn_implementation=attention)
    examples = encoded(sums(7))
    assert len({len(e.ids) for e in examples}) > 3
    alone = [by_hand(model, example) for example in examples]
    with torch.no_grad():
        rows = token_losses(model, collate(examples)).sum(dim=1)
        total = float(loss_sum(model, collate(examples)))
    assert rows.tolist() == pytest.approx(alone, rel=near)
    assert total == pytest.approx(math.fsum(alone), rel=near)
    for size in (1, 3, 100):
        mean = mean_loss(model, examples, size, torch.device("cpu"))
        assert mean == pytest.approx(math.fsum(alone) / sum(e.targets for e in examples), rel=near)


def test_what_stands_in_the_padding_does_not_matter() -> None:
    model = letters_model(dtype=torch.float64)
    batch = collate(encoded(sums(4)))
    with torch.no_grad():
        before = float(loss_sum(model, batch))
        batch.ids[batch.mask == 0] = 77
        assert float(loss_sum(model, batch)) == pytest.approx(before, rel=1e-12)


def test_the_loss_of_a_half_precision_model_is_summed_in_fp32() -> None:
    model = letters_model(dtype=torch.bfloat16)
    with torch.no_grad():
        assert loss_sum(model, collate(encoded(sums(2)))).dtype == torch.float32
