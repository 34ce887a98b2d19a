"""Answers to prompts, several adapters side by side in one batch.

Each prompt stands in the batch once for every mixture, and each row has its own: the base is a row of
weight 0. Greedy by default; with a temperature, sampled from a seed.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any, cast

import torch

from scumble.lora.bank import Bank
from scumble.lora.mixture import Mixture


def generate(
    bank: Bank,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    mixtures: Sequence[Mixture],
    *,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    seed: int = 0,
    batch: int = 16,
    done: Callable[[int], None] = lambda count: None,
) -> list[list[str]]:
    """Answer each prompt once with each mixture.

    Args:
        bank: holds the adapters.
        tokenizer: of the base.
        prompts: token ids of each.
        mixtures: what each prompt is answered with.
        max_new_tokens: of each answer, at most.
        temperature: 0 is greedy.
        seed: of sampling.
        batch: prompts at once; rows are `batch` times mixtures.
        done: called with the number of prompts answered since the last call.

    Returns:
        For each prompt the texts, one for each mixture, without special tokens.
    """
    answers: list[list[str]] = [[] for _ in prompts]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for start in range(0, len(order), batch):
        chunk = order[start : start + batch]
        rows = [(i, mixture) for mixture in mixtures for i in chunk]
        with bank.using([mixture for _, mixture in rows], rows=True):
            texts = _answer(
                bank.model,
                tokenizer,
                [prompts[i] for i, _ in rows],
                max_new_tokens,
                temperature,
                seed + start,
            )
        for (i, _), text in zip(rows, texts, strict=True):
            answers[i].append(text)
        done(len(chunk))
    return answers


def answer(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    seed: int = 0,
    batch: int = 16,
    done: Callable[[int], None] = lambda count: None,
) -> list[str]:
    """Answer each prompt once with a model as it is; the arguments and the texts are those of `generate`."""
    answers = [""] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for start in range(0, len(order), batch):
        chunk = order[start : start + batch]
        texts = _answer(
            model, tokenizer, [prompts[i] for i in chunk], max_new_tokens, temperature, seed + start
        )
        for i, text in zip(chunk, texts, strict=True):
            answers[i] = text
        done(len(chunk))
    return answers


def stream(
    bank: Bank, tokenizer: Any, prompt: Sequence[int], *, max_new_tokens: int, temperature: float = 0.0
) -> Generator[str, None, None]:
    """The answer to one prompt, piece by piece, under the mixture that the bank uses now.

    Closing the iterator ends the generation at its next token; what fails in it is raised here.
    """
    from threading import Event, Thread

    from transformers import StoppingCriteriaList, TextIteratorStreamer

    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    inputs = _inputs(bank.model, [prompt])
    settings = _settings(bank.model, tokenizer, max_new_tokens, temperature)
    stop = Event()
    failed: list[BaseException] = []

    def stopped(ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        return torch.full((len(ids),), stop.is_set(), device=ids.device)

    def work() -> None:
        try:
            cast(Any, bank.model).generate(
                **inputs, **settings, streamer=streamer, stopping_criteria=StoppingCriteriaList([stopped])
            )
        except BaseException as error:
            failed.append(error)
            streamer.on_finalized_text("", stream_end=True)  # or the reader would wait for ever

    worker = Thread(target=work, daemon=True)
    worker.start()
    try:
        yield from streamer
    finally:
        stop.set()
        worker.join()
    if failed:
        raise failed[0]


@torch.no_grad()
def _answer(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    temperature: float,
    seed: int,
) -> list[str]:
    inputs = _inputs(model, prompts)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = model.generate(**inputs, **_settings(model, tokenizer, max_new_tokens, temperature))
    texts: list[str] = tokenizer.batch_decode(
        made[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
    )
    return [text.strip() for text in texts]


def _inputs(model: Any, prompts: Sequence[Sequence[int]]) -> dict[str, torch.Tensor]:
    """The prompts padded on the left; the padding is never attended to, so its token does not matter."""
    longest = max(len(prompt) for prompt in prompts)
    ids = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return {"input_ids": ids.to(model.device), "attention_mask": mask.to(model.device)}


def _settings(model: Any, tokenizer: Any, max_new_tokens: int, temperature: float) -> dict[str, Any]:
    ends = getattr(model.generation_config, "eos_token_id", None)
    # the end of a turn may be the tokenizer's end token and not the model's
    stops = {*(ends if isinstance(ends, list) else [ends]), tokenizer.eos_token_id} - {None}
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    settings: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "pad_token_id": pad,
        "eos_token_id": sorted(stops) or None,
        # a base's own habits of generation would make greedy something else, and let padding count as text
        "num_beams": 1,
        "repetition_penalty": 1.0,
        "no_repeat_ngram_size": 0,
    }
    if temperature > 0:
        # no cut of the distribution but the temperature: what is sampled is what the model says
        return {**settings, "do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    return {**settings, "do_sample": False, "temperature": None, "top_k": None, "top_p": None}
