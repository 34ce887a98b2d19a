"""Answers: rows of one batch are each alone, sampling repeats, and only the model decides what is said."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from scumble.compare.generation import generate
from scumble.lora.bank import Bank
from tests.bases import LETTERS, letters_tokenizer, make_letters_base
from tests.compare.adapters import moved_bank

TOKENIZER = letters_tokenizer()
PROMPTS = [TOKENIZER(text)["input_ids"] for text in ("a long question, is it?", "hi", "more", "x")]
BOTH: list[Any] = [{}, {"adapter": 1.0}]


@pytest.fixture
def bank() -> Iterator[Bank]:
    bank = moved_bank(make_letters_base(dtype=torch.float64))
    yield bank
    bank.close()


def answer(bank: Bank, prompts: list[list[int]] = PROMPTS, mixtures: list[Any] = BOTH, **options: Any) -> Any:
    return generate(bank, TOKENIZER, prompts, mixtures, **{"max_new_tokens": 12, **options})


def by_hand(bank: Bank, prompt: list[int], mixture: Any, steps: int = 12) -> str:
    """Greedy decoding, one row, without a cache and without `generate`."""
    ids, said = list(prompt), []
    with bank.using(mixture), torch.no_grad():
        for _ in range(steps):
            said.append(int(bank.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
            ids.append(said[-1])
            if said[-1] == TOKENIZER.eos_token_id:
                break
    return TOKENIZER.decode(said, skip_special_tokens=True).strip()


def test_each_row_is_what_it_is_alone(bank: Bank) -> None:
    together = answer(bank)
    assert together == [[by_hand(bank, prompt, mixture) for mixture in BOTH] for prompt in PROMPTS]
    assert any(before != after for before, after in together)
    for index, prompt in enumerate(PROMPTS):
        for column, mixture in enumerate(BOTH):
            assert answer(bank, [prompt], [mixture]) == [[together[index][column]]]


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_the_batch_changes_no_answer(bank: Bank, batch: int) -> None:
    counts: list[int] = []
    assert answer(bank, batch=batch, done=counts.append) == answer(bank)
    assert sum(counts) == len(PROMPTS)


def test_a_blend_is_a_row_like_any_other(bank: Bank) -> None:
    mixtures = [{}, {"adapter": 1.0}, "adapter*0.5", "adapter*-1"]
    assert answer(bank, mixtures=mixtures) == [[by_hand(bank, p, m) for m in mixtures] for p in PROMPTS]


def test_what_the_bank_used_before_it_uses_after(bank: Bank) -> None:
    bank.use("adapter")
    before = bank.routing.state()
    answer(bank)
    assert bank.routing.state() == before


def test_sampling_repeats_with_its_seed(bank: Bank) -> None:
    torch.manual_seed(1)
    first = answer(bank, temperature=1.0, seed=3)
    untouched = torch.rand(1)
    torch.manual_seed(99)
    assert answer(bank, temperature=1.0, seed=3) == first
    assert answer(bank, temperature=1.0, seed=4) != first
    # the caller's own random numbers go on as if nothing had been sampled
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), untouched)


def test_the_bases_habits_of_generation_do_not_count(bank: Bank) -> None:
    plain = answer(bank)
    sampled = answer(bank, temperature=0.7, seed=1)
    habits = bank.model.generation_config
    habits.repetition_penalty, habits.no_repeat_ngram_size = 1.8, 1
    habits.do_sample, habits.temperature, habits.top_k, habits.top_p = True, 1.9, 2, 0.1
    assert answer(bank) == plain
    assert answer(bank, temperature=0.7, seed=1) == sampled


def test_the_tokenizers_end_token_ends_an_answer_too(bank: Bank) -> None:
    # fine-tuned bases often keep the end token that the base had before it could chat
    bank.model.generation_config.eos_token_id = LETTERS - 1
    said = iter([TOKENIZER.eos_token_id] + [TOKENIZER("x")["input_ids"][0]] * 12)

    def dictate(module: Any, args: Any, logits: torch.Tensor) -> torch.Tensor:
        return logits.index_fill(-1, torch.tensor([next(said)]), 1e6)

    handle = bank.model.get_output_embeddings().register_forward_hook(dictate)
    assert answer(bank, mixtures=[{}]) == [[""]] * len(PROMPTS)
    handle.remove()
