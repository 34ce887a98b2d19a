"""The traps of the lesson's script: for each row of its table one test, which fails where the trap comes back.

The table is the lesson's 'On today's libraries that script fails or goes wrong in silence'.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState

import scumble
from scumble.config import TrainOptions, make
from scumble.data.batches import IGNORED, collate
from scumble.data.encoding import encode_all
from scumble.data.examples import read_examples
from scumble.data.packing import micro_batches, pack
from scumble.errors import ConfigError
from scumble.lora.adapter import WEIGHTS_NAME, Adapter
from scumble.models.base import Base
from scumble.models.packable import ways_of
from scumble.train import engine
from scumble.train.material import read_material
from scumble.train.result import Run
from tests.bases import (
    BEGIN,
    BEGUN,
    END,
    chat,
    encoded,
    letters_model,
    letters_tokenizer,
    make_letters_base,
    sums,
)
from tests.train.test_loop import far
from tests.train.trainers import make_trainer, only_gradients

SMALL: dict[str, Any] = {"batch": 4, "accumulate": 1, "learning_rate": 0.02, "epochs": 2, "quiet": True}


def train(folder: Path, data: Any, **options: Any) -> Run:
    return scumble.train(data, out=folder / "run", **{"base": make_letters_base(), **SMALL, **options})


def facts(run: Run) -> dict[str, Any]:
    return json.loads((run.out / "run.json").read_text())


def steps(run: Run) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (run.out / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "loss" in row]


@contextmanager
def seen_by(model: torch.nn.Module) -> Iterator[list[list[int]]]:
    """The examples that the model is handed, as token ids; without those it is tried on before training."""
    ways_of(model)
    found: list[list[int]] = []

    def generating(module: Any, args: Any, kwargs: Any) -> None:
        ids, mask = kwargs["input_ids"], kwargs.get("attention_mask")
        for row, kept in zip(ids, torch.ones_like(ids) if mask is None else mask, strict=True):
            # while answering the mask covers the whole conversation, and the ids are the newest
            found.append(row[kept[-len(row) :].bool()].tolist())

    def training(module: Any, args: Any, kwargs: Any) -> None:
        if kwargs.get("attention_mask") is not None or kwargs.get("use_cache") is not False:
            return
        # end to end: where a token's place is not one further, an example has ended, and what follows goes on after
        # the beginning that it shares with it
        row: list[int] = []
        for token, place in zip(
            kwargs["input_ids"][0].tolist(), kwargs["position_ids"][0].tolist(), strict=True
        ):
            if place < len(row):
                found.append(row)
            row = [*row[:place], token]
        found.append(row)

    hooks = [
        model.register_forward_pre_hook(generating, with_kwargs=True),
        model.base_model.register_forward_pre_hook(training, with_kwargs=True),
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "measure_need", lambda *args: None)
        yield found
    for hook in hooks:
        hook.remove()


def test_no_collator_for_sequences_of_different_length(tmp_path: Path) -> None:
    data = [chat("?" * (i * i), "yes" * (1 + i % 5)) for i in range(8)]
    assert len({len(e.ids) for e in encoded(data)}) == 8
    found = {}
    for batch, accumulate in ((8, 1), (1, 8)):
        run = train(tmp_path / str(batch), data, batch=batch, accumulate=accumulate, epochs=3, eval=0)
        assert run.steps == 3
        found[batch] = [row["loss"] for row in steps(run)]
    # fp32: padding changes rounding and nothing else
    assert found[8] == pytest.approx(found[1], rel=1e-4)


def test_no_labels_in_the_examples(tmp_path: Path) -> None:
    run = train(tmp_path, sums(12), epochs=8, eval=0)
    rows = steps(run)
    # a random model is far from certain, so the first loss is that of real targets, and then it falls
    assert rows[0]["loss"] > 1
    assert rows[0]["grad_norm"] > 0
    assert sum(row["loss"] for row in rows[-3:]) < 0.8 * sum(row["loss"] for row in rows[:3])
    assert facts(run)["data"]["targets"] == sum(len(m["messages"][-1]["content"]) + 1 for m in sums(12))


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
def test_half_precision_asked_for_in_two_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    # One option decides. What else may ask for a scaler is Accelerate's environment: it is not listened to.
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    letters_model(dtype=torch.bfloat16, pad_token_id=2).save_pretrained(tmp_path / "base")
    letters_tokenizer().save_pretrained(tmp_path / "base")
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    try:
        run = train(
            tmp_path, sums(12), base=str(tmp_path / "base"), device="cpu", dtype=dtype, epochs=6, eval=0.25
        )
        named = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[dtype]
        assert facts(run)["base"]["dtype"] == str(named).removeprefix("torch.")
        # the adapter is fp32 beside whatever base, so that small steps are not rounded away
        assert {t.dtype for t in Adapter.load(run.out).tensors().values()} == {torch.float32}
        assert run.loss["last"] < run.loss["first"]  # type: ignore[operator]
        assert AcceleratorState().mixed_precision == "no"
        # Accelerate would have divided each gradient by 4
        trainer = make_trainer(make_letters_base(dtype=torch.float64), spread=0.3, steps=1, batch=4)
        caught = only_gradients(trainer)
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
    monkeypatch.undo()
    plain = only_gradients(make_trainer(make_letters_base(dtype=torch.float64), spread=0.3, steps=1, batch=4))
    assert far(caught, plain) < 1e-10
    # and a base that is there already is not said to be what it is not
    other = "fp16" if dtype == "bf16" else "bf16"
    with pytest.raises(ConfigError, match=f"dtype is {other}"):
        train(tmp_path / "other", sums(4), base=make_letters_base(dtype=named), dtype=other)


@pytest.mark.real
def test_a_model_folder_without_tokenizer_or_template() -> None:
    # Merging comes later; the one whole model that is written today is the embedded base's copy.
    from transformers import AutoTokenizer

    from scumble.models.embedded import ensure

    folder = ensure().folder
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    assert (folder / "config.json").is_file()
    assert (folder / "generation_config.json").is_file()
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True
    )
    assert text.endswith("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n")
    assert tokenizer.eos_token == "<|im_end|>"


def test_the_pad_token_is_the_end_token_and_is_masked(tmp_path: Path) -> None:
    tokenizer = letters_tokenizer()
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    batch = collate(encoded([chat("a", "yes"), chat("a longer question", "n")]))
    assert (batch.labels == tokenizer.eos_token_id).sum(dim=1).tolist() == [1, 1]
    # so that a model that has learnt its answers also stops after them
    data = [chat("a", "yes!"), chat("b", "no")] * 2
    run = train(tmp_path, data, epochs=60, eval=0, rank=16, targets="all-linear")
    found = scumble.compare(run, data=data[:2], base=make_letters_base(), max_new_tokens=40)
    assert [shown.after for shown in found.examples] == ["yes!", "no"]


def test_the_text_is_tokenized_again_with_special_tokens(tmp_path: Path) -> None:
    tokenizer = letters_tokenizer(BEGUN, adds_begin=True)
    begin = tokenizer.convert_tokens_to_ids(BEGIN)
    text = tokenizer.apply_chat_template(sums(1)[0]["messages"], tokenize=False)
    assert tokenizer(text)["input_ids"][:2] == [begin, begin]  # the trap is there
    base = Base(letters_model(), tokenizer, "letters")
    with seen_by(base.model) as rows:
        run = train(tmp_path, sums(8), base=base)
        trained = len(rows)
        scumble.compare(run, data=sums(3), base=base, max_new_tokens=2)
    whole = [len(row) > 1 for row in rows]  # rows of one token are answers under way
    assert 16 <= sum(whole[:trained]) < sum(whole)
    for row in rows:
        assert len(row) == 1 or (row[0] == begin and row.count(begin) == 1)


def test_the_loss_covers_the_whole_conversation() -> None:
    tokenizer = letters_tokenizer()
    data = [chat("question", "answer", "again", "more", system="rules"), chat("hm", "ok")]
    batch = collate(encoded(data))
    learnt = [tokenizer.decode(row[row != IGNORED]) for row in batch.labels]
    assert learnt == [f"answer{END}more{END}", f"ok{END}"]
    # in training, what logits are made of gets a gradient exactly where the next token is the model's to write
    examples = encoded(data)
    trainer = make_trainer(None, examples, [])
    ways_of(trainer.subject.model)
    seen: list[torch.Tensor] = []
    hook = trainer.subject.model.base_model.register_forward_hook(
        lambda module, args, out: (
            seen.append(out.last_hidden_state) or out.last_hidden_state.retain_grad()
            if out.last_hidden_state.requires_grad
            else None
        )
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "measure_need", lambda *args: None)
        only_gradients(trainer)
    hook.remove()
    laid = pack(micro_batches(examples, 4, share=True)[0], share=True)
    assert sorted(laid.labels.tolist()) == sorted(batch.labels[batch.labels != IGNORED].tolist())
    gradient = seen[0].grad
    assert gradient is not None
    moved = gradient[0].abs().sum(dim=-1) > 0
    assert moved.nonzero().flatten().tolist() == sorted(set(laid.rows.tolist()))


def test_the_validation_split_of_a_single_file(tmp_path: Path) -> None:
    file = tmp_path / "data.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in sums(30) * 2))  # each twice: no leak
    run = train(tmp_path, str(file), epochs=1)
    found = facts(run)
    assert found["data"]["examples"] + found["validation"]["examples"] == 60
    assert found["validation"]["examples"] >= 2
    assert run.loss["best_eval"] is not None
    material = read_material(str(file), TrainOptions())
    assert {e.question for e in material.train}.isdisjoint({e.question for e in material.validation})
    assert len(material.validation) == found["validation"]["examples"]


@pytest.mark.parametrize("asked", [None, 100])
def test_warm_up_is_longer_than_the_run(tmp_path: Path, asked: int | None) -> None:
    run = train(tmp_path, sums(40), epochs=3, eval=0, warmup=asked, learning_rate=0.01)
    rates = [row["learning_rate"] for row in steps(run)]
    assert len(rates) == 30
    assert max(rates) == 0.01
    assert rates[:3] == pytest.approx([0.01 / 3, 0.02 / 3, 0.01])
    assert rates[3:] == sorted(rates[3:], reverse=True)
    said = {choice["option"]: choice for choice in facts(run)["choices"]}
    assert said["warmup"]["value"] == 3
    assert "100" in said["warmup"]["reason"]


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("learningrate", "learning-rate"),
        ("learning_rates", "learning-rate"),
        ("epoch", "epochs"),
        ("max_seq_length", "max-length"),
        ("warmup_step", "warmup"),
        ("evaluation", "eval"),
        ("lora_alpha", "alpha"),
        ("evaluation_strategy", ""),
    ],
)
def test_arguments_that_were_renamed_or_removed(tmp_path: Path, wrong: str, right: str) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(f"{wrong}: 1\n")
    for ask in (
        lambda: make(TrainOptions, **{wrong: 1}),
        lambda: train(tmp_path, sums(4), base="nowhere/at-all", **{wrong: 1}),
        lambda: train(tmp_path, sums(4), base="nowhere/at-all", config=config),
    ):
        with pytest.raises(ConfigError) as caught:
            ask()
        assert wrong.replace("_", "-") in caught.value.message.replace("_", "-")
        assert right in caught.value.hint.replace("_", "-")
    assert not (tmp_path / "run").exists()


def test_truncation_cuts_answers_off(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = [*sums(8), chat("long", "y" * 300), chat("b", "no")]
    lengths = [len(e.ids) for e in encode_all(read_examples(data), letters_tokenizer(), 4096).examples]
    base = make_letters_base()
    end = base.tokenizer.eos_token_id
    with seen_by(base.model) as rows:
        run = train(tmp_path, data, base=base, max_length=100, eval=0, epochs=1, quiet=False)
    assert rows
    assert sorted(map(len, rows)) == sorted(n for n in lengths if n <= 100)
    for row in rows:
        assert row[-2] == end  # and a line break: every conversation is there to its end
    said = capsys.readouterr().err
    assert "the data, example 9" in said
    assert f"--max-length {max(lengths)} keeps all" in said
    found = facts(run)["data"]
    assert found["too_long"] == [["the data, example 9", max(lengths)]]
    assert found["examples"] == 9
    # answers are made whole too: a comparison leaves out nothing for its length
    whole = scumble.compare(run, data=data, base=make_letters_base(), max_new_tokens=1, n=0)
    assert whole.metric.n == len(data)
    assert (run.adapter / WEIGHTS_NAME).exists()
