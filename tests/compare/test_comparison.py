"""A comparison: what is shown, what is counted, and over what."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from scumble.compare.comparison import Comparison, compare_in_bank
from scumble.compare.loss import mean_loss
from scumble.config import CompareOptions
from scumble.data.encoding import encode_all
from scumble.data.examples import hash_examples, read_examples
from scumble.errors import ConfigError
from tests.bases import make_letters_base, sums
from tests.compare.adapters import moved_bank


def compared(metric: Any = "exact_match", rows: int = 7, **options: Any) -> Comparison:
    base = make_letters_base()
    bank = moved_bank(base)
    try:
        settings = CompareOptions(**{"max_new_tokens": 6, "n": 3, **options})
        return compare_in_bank(
            bank, "adapter", base.tokenizer, read_examples(sums(rows)), metric=metric, options=settings, sizes=(1, 2, 3)
        )  # fmt: skip
    finally:
        bank.close()


def test_the_first_examples_are_shown_in_the_order_of_the_file() -> None:
    examples = read_examples(sums(7))
    assert [len(e.question) for e in examples] != sorted(len(e.question) for e in examples)
    for batch in (1, 2, 16):
        found = compared(batch=batch)
        assert [(s.prompt, s.expected) for s in found.examples] == [
            (e.question, e.expected) for e in examples[:3]
        ]
        assert [(s.before, s.after) for s in found.examples] == found.answers[:3]
    assert len(compared(n=0).examples) == 0
    assert len(compared(n=50).examples) == 7


def test_the_metric_is_the_mean_over_what_was_scored() -> None:
    found = compared(metric=lambda answer, expected: len(answer) % 3 / 2, limit=5)
    assert found.metric.n == 5
    assert len(found.answers) == 5
    assert found.metric.before == pytest.approx(sum(len(b) % 3 / 2 for b, _ in found.answers) / 5)
    assert found.metric.after == pytest.approx(sum(len(a) % 3 / 2 for _, a in found.answers) / 5)
    low, high = found.metric.after_interval
    assert low <= found.metric.after <= high
    assert found.data["hash"] == hash_examples(read_examples(sums(5)))


def test_what_is_right_is_marked() -> None:
    found = (
        compared(metric=lambda answer, expected: answer == first.before, n=7)
        if (first := compared().examples[0])
        else None
    )
    assert found is not None
    assert [s.right_before for s in found.examples] == [s.before == first.before for s in found.examples]
    assert [s.right_after for s in found.examples] == [s.after == first.before for s in found.examples]


def test_losses_are_those_of_base_and_adapter() -> None:
    found = compared(limit=4)
    base = make_letters_base()
    bank = moved_bank(base)
    encoded = encode_all(read_examples(sums(4)), base.tokenizer, 4096).examples
    for when, mixture in (("before", {}), ("after", {"adapter": 1.0})):
        with bank.using(mixture):
            # another batch: fp32 rounding
            assert found.loss[when] == pytest.approx(
                mean_loss(bank.model, encoded, 1, bank.model.device), rel=1e-5
            )
        assert found.perplexity[when] == pytest.approx(math.exp(found.loss[when]))
    bank.close()
    assert found.loss["before"] != found.loss["after"]


def test_the_document_has_the_keys_of_the_contract() -> None:
    document = json.loads(json.dumps(compared().to_dict()))
    assert {"metric", "loss", "examples", "adapter_bytes", "base_bytes"} <= set(document)
    assert {"name", "n", "before", "after"} <= set(document["metric"])
    assert {"prompt", "expected", "before", "after"} <= set(document["examples"][0])
    assert (document["adapter_bytes"], document["base_bytes"], document["source_bytes"]) == (1, 2, 3)
    assert "answers" not in document


def test_a_metric_that_gives_no_share_is_refused() -> None:
    with pytest.raises(ConfigError, match="from 0 to 1"):
        compared(metric=lambda answer, expected: 3)
