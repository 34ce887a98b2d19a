"""The loss against PEFT's and transformers' own, which pad on the right and take a mean."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from peft import PeftModel
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from scumble.compare import loss
from scumble.compare.loss import loss_sum, mean_loss
from scumble.data.batches import IGNORED
from scumble.data.encoding import Encoded
from scumble.data.packing import pack
from scumble.errors import AdapterError
from scumble.lora.dropout import TokenMarks
from scumble.models.packable import ways_of
from tests import tiny
from tests.bases import encoded, make_letters_base, sums
from tests.compare.adapters import moved_bank
from tests.engine import Pair, off, one_thread, trees
from tests.trees import example, forest

__all__ = ["one_thread"]


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


# -- gradients through the output layer, whatever is there -----------------------------------------

VOCABULARY = 211  # no other size is as large

HEADS: dict[str, dict[str, Any]] = {
    "frozen": {"target_modules": ["q_proj", "v_proj"]},
    "an adapter on it": {"target_modules": ["q_proj", "lm_head"]},
    "an adapter on all": {"target_modules": "all-linear", "exclude_modules": []},
    "trained whole": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "trained rows of the embedding": {"target_modules": ["v_proj"], "trainable_token_indices": [5, 9, 40]},
    "an adapter on the embedding": {"target_modules": ["v_proj", "embed_tokens"]},
}


@contextmanager
def in_chunks_of(rows: int, vocabulary: int = VOCABULARY) -> Iterator[None]:
    before = loss._CHUNK_BYTES
    loss._CHUNK_BYTES = 4 * vocabulary * rows
    try:
        yield
    finally:
        loss._CHUNK_BYTES = before


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("head", HEADS)
def test_the_gradient_through_the_output_layer_is_pefts(head: str, tied: bool) -> None:
    if tied and head in ("trained whole", "an adapter on it"):
        # PEFT breaks the tie there, and says so
        pytest.skip("not an adapter of a tied base")
    base = tiny.tiny_llama(dtype=torch.float64, vocab_size=VOCABULARY, tie_word_embeddings=tied)
    made = Pair(base, spread=0.1, **HEADS[head])
    for seed in range(3):
        examples = forest(seed, 6, 40, VOCABULARY)
        _, wanted = made.wanted(examples)
        for laid in (pack(examples), trees(examples)):
            for rows in (1, 7, 10_000):
                with in_chunks_of(rows):
                    _, found = made.found([laid], lean_too=rows == 7)
                assert off(found, wanted) <= 1e-10


SCALED: dict[str, Any] = {
    "cohere": tiny._builder(hf.CohereConfig, hf.CohereForCausalLM, logit_scale=0.25),
    "granite": tiny._builder(hf.GraniteConfig, hf.GraniteForCausalLM, logits_scaling=8.0),
}


@pytest.mark.parametrize("family", SCALED)
def test_scaled_logits_have_the_loss_and_the_gradient_of_peft(family: str) -> None:
    made = Pair(SCALED[family](dtype=torch.float64), target_modules=["q_proj", "v_proj"], spread=0.1)
    # Cohere's norm computes in fp32 whatever its input
    near = 1e-5 if family == "cohere" else 1e-10
    for seed in range(3):
        examples = forest(seed, 6, 40)
        wanted_loss, wanted = made.wanted(examples)
        for laid in (pack(examples), trees(examples)):
            found_loss, found = made.found([laid])
            assert found_loss == pytest.approx(wanted_loss, rel=near)
            assert off(found, wanted) <= near


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_token_that_is_nearly_certain_has_its_gradient_still(dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(0)
    weight = (torch.randn((512, 64), generator=draw) * 0.1).to(dtype)
    labels = torch.randint(0, 512, (50,), generator=draw)
    hidden = (torch.randn((50, 64), generator=draw) + 40 * weight[labels].float()).to(dtype)
    true = hidden.detach().double().clone().requires_grad_()
    scores = true @ weight.double().T
    losses = functional.cross_entropy(scores, labels, reduction="none")
    assert losses.median() < 1e-4  # so certain are they
    losses.sum().backward()
    mine, plain = (hidden.detach().clone().requires_grad_() for _ in range(2))
    loss._FrozenHead.apply(mine, weight, labels, 16, [len(labels)]).sum().backward()
    wide = torch.promote_types(dtype, torch.float32)
    functional.cross_entropy((plain @ weight.T).to(wide), labels, reduction="sum").backward()

    def row(gradient: Tensor) -> float:
        return float(((gradient.double() - true.grad).norm(dim=1) / true.grad.norm(dim=1)).median())

    # logits themselves are rounded, which nobody can undo: in bf16 those of 40 to 1/4
    assert row(mine.grad) <= {torch.float32: 1e-4, torch.bfloat16: 0.5}[dtype]
    assert row(mine.grad) <= 1.2 * row(plain.grad)


# -- memory ----------------------------------------------------------------------------------------


class Largest(TorchDispatchMode):
    """Notes the most rows of any tensor that has the vocabulary as one of its sizes."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.vocabulary, self.rows = vocabulary, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for each in tree_leaves(out):
            if isinstance(each, Tensor) and self.vocabulary in each.shape:
                self.rows = max(self.rows, each.numel() // self.vocabulary)
        return out


@pytest.mark.parametrize("cap", [None, 3.0], ids=["plain", "capped"])
@pytest.mark.parametrize("head", ["frozen", "an adapter on it", "trained whole"])
def test_no_tensor_of_tokens_times_vocabulary_is_ever_made(head: str, cap: float | None) -> None:
    if cap is None:
        base = tiny.tiny_llama(vocab_size=VOCABULARY)
    else:
        base = tiny.tiny_gemma2(
            vocab_size=VOCABULARY,
            final_logit_softcapping=cap,
            tie_word_embeddings=False,
            attn_implementation="eager",
        )
    made = Pair(base, spread=0.1, **HEADS[head])
    examples = forest(1, 20, 40, VOCABULARY)
    laid = pack(examples, share=True)
    width = 16  # rows of the output layer's own transpose
    assert laid.targets > 3 * width
    made.found([laid])  # what the model allows is tried once, on 18 tokens
    with in_chunks_of(5), Largest(VOCABULARY) as seen:
        made.found([laid])
    assert 5 <= seen.rows <= width
    with in_chunks_of(5), Largest(VOCABULARY) as seen, torch.no_grad():
        loss_sum(made.bank.model, laid)
    assert 5 <= seen.rows <= width
    with in_chunks_of(10_000), Largest(VOCABULARY) as seen:  # the measure sees what is there
        made.found([laid])
    assert seen.rows >= laid.targets


def test_a_chunk_of_a_usual_vocabulary_is_a_few_hundred_rows() -> None:
    assert loss._CHUNK_BYTES // (4 * 128_256) == 130
    assert loss._CHUNK_BYTES // (4 * 2**30) == 0  # and one row at least, whatever the vocabulary


def test_nothing_predicted_is_no_loss() -> None:
    made = Pair(tiny.tiny_llama(dtype=torch.float64), spread=0.1)
    laid = pack([example([5], [True]), example([5, 6], [True, False])])
    assert float(loss_sum(made.bank.model, laid).detach()) == 0.0
    loss_sum(made.bank.model, laid).backward()


def test_dropout_on_the_output_layer_is_refused_and_not_left_out() -> None:
    config = {"lora_dropout": 0.1, "target_modules": ["lm_head", "q_proj"]}
    made = Pair(tiny.tiny_llama(dtype=torch.float64), spread=0.1, **config)
    laid = pack(forest(1, 6, 40))
    assert ways_of(made.bank.model).head
    made.bank.routing.marks = TokenMarks(laid.examples, laid.positions, 1)
    with pytest.raises(AdapterError, match="dropout cannot be computed at lm_head"):
        loss_sum(made.bank.model, laid)


def test_the_sums_of_runs_and_their_gradients_are_those_of_each_alone() -> None:
    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn(9, 16, generator=draw, dtype=torch.float64)
    weight = torch.randn(50, 16, generator=draw, dtype=torch.float64)
    labels, counts, weights = torch.randint(0, 50, (9,), generator=draw), [4, 0, 5], [0.25, 7.0, 3.0]
    together = hidden.clone().requires_grad_()
    sums = loss._FrozenHead.apply(together, weight, labels, 2, counts)
    (sums * torch.tensor(weights, dtype=torch.float64)).sum().backward()
    start = 0
    for count, factor, found in zip(counts, weights, sums, strict=True):
        part = slice(start, start + count)
        alone = hidden[part].clone().requires_grad_()
        wanted = functional.cross_entropy(alone @ weight.T, labels[part], reduction="sum")
        (factor * wanted).backward()
        # fp64: only the order of sums differs
        assert float(found) == pytest.approx(float(wanted), rel=1e-12)
        assert torch.allclose(together.grad[part], alone.grad, rtol=0, atol=1e-12)  # type: ignore[index]
        start += count
