"""All weights of a base in training: against plain PyTorch, what is written, resumed, compared and given back."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import scumble
from scumble.errors import ConfigError, NotSupportedError, TrainingError
from scumble.models.base import Base
from scumble.serve.session import open_chat
from scumble.train import engine
from scumble.train.result import Run
from scumble.train.whole import WholeModel
from tests.bases import encoded, letters_model, letters_tokenizer, make_letters_base, sums
from tests.compare.test_loss import padded
from tests.train.test_run import facts, train
from tests.train.trainers import Memory, settings

FULL: dict[str, Any] = {"method": "full", "learning_rate": 1e-3}


def weights(run: Run) -> bytes:
    return (run.result / "model.safetensors").read_bytes()


def test_a_step_is_that_of_plain_pytorch() -> None:
    from scumble.progress import Reporter
    from tests.train.trainers import Alone

    base = make_letters_base(dtype=torch.float64, tie_word_embeddings=True)
    plain = copy.deepcopy(base.model).requires_grad_(True)
    examples = encoded(sums(4))
    subject = WholeModel(base, base.tokenizer, keep=False)
    record: Any = Memory(None)  # type: ignore[arg-type]
    record.keep = lambda step, *, best: None
    given = settings(steps=1, steps_per_epoch=1, batch=2, accumulate=2, weight_decay=0.0)
    Alone(subject, examples, [], given, record, Reporter(quiet=True)).run()
    optimizer = torch.optim.AdamW(plain.parameters(), lr=given.learning_rate, weight_decay=0.0)
    plain(**padded(examples)).loss.backward()
    optimizer.step()
    found = dict(base.model.named_parameters())
    assert any(
        not torch.equal(a, b)
        for a, b in zip(
            found.values(),
            letters_model(dtype=torch.float64, tie_word_embeddings=True).parameters(),
            strict=True,
        )
    )
    for name, wanted in plain.named_parameters():
        # the first step of AdamW is the sign of the gradient, except where that is all but zero: so the mean over a tensor
        assert float((found[name] - wanted).abs().mean()) < 1e-6, name


def test_the_run_holds_a_model_that_transformers_loads(tmp_path: Path) -> None:
    base = make_letters_base(tie_word_embeddings=True)
    run = train(tmp_path, base=base, **FULL)
    assert run.model == run.out / "model"
    assert run.to_dict()["adapter"] is None
    assert run.to_dict()["model"] == str(run.model)
    with pytest.raises(NotSupportedError, match="trained all weights and has no adapter"):
        _ = run.adapter
    model = AutoModelForCausalLM.from_pretrained(run.model)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert AutoTokenizer.from_pretrained(run.model).chat_template == base.tokenizer.chat_template
    found = facts(run)
    assert "adapter" not in found
    assert found["model"]["parameters"] == sum(p.numel() for p in base.model.parameters())
    assert found["training"]["learning_rate"] == 1e-3
    assert run.loss["last"] is not None
    assert run.loss["first"] is not None
    assert run.loss["last"] < run.loss["first"]
    text = run.report.read_text()
    assert "All weights" in text
    assert "The base itself is unchanged" not in text


def test_the_caller_gets_the_base_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = make_letters_base()
    before = {k: v.clone() for k, v in base.model.state_dict().items()}
    train(tmp_path, base=base, **FULL)
    assert all(torch.equal(before[k], v) for k, v in base.model.state_dict().items())
    assert not any(p.requires_grad or p.grad is not None for p in base.model.parameters())

    def broken(*args: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(engine, "loss_sum", broken)
    with pytest.raises(MemoryError):
        train(tmp_path / "broken", base=base, eval=0, **FULL)
    assert all(torch.equal(before[k], v) for k, v in base.model.state_dict().items())


def test_interrupted_it_ends_in_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {**FULL, "epochs": 3, "save_every": 2}
    whole = train(tmp_path / "whole", **options)
    true, count = engine.loss_sum, 0

    def broken(*args: Any) -> Any:
        nonlocal count
        count += 1
        if count == 8:
            raise KeyboardInterrupt
        return true(*args)

    with monkeypatch.context() as patched:
        patched.setattr(engine, "loss_sum", broken)
        with pytest.raises(TrainingError, match="stopped by Ctrl-C after step"):
            train(tmp_path, **options)
    run = train(tmp_path, resume=True, **options)
    assert weights(run) == weights(whole)
    assert (run.out / "model" / "model.safetensors").stat().st_nlink > 1  # no room of its own


def test_it_is_compared_with_its_base_and_talked_to(tmp_path: Path) -> None:
    letters_model().save_pretrained(tmp_path / "base")
    letters_tokenizer().save_pretrained(tmp_path / "base")
    run = train(tmp_path, base=str(tmp_path / "base"), epochs=6, **FULL)
    for given in (run, run.out, run.model):
        found = scumble.compare(given, data=sums(6), n=2, max_new_tokens=4, quiet=True)
        assert found.kind == "model"
        assert found.loss["after"] < found.loss["before"]
        assert len(found.examples) == 2
    chat = open_chat(run.out, {}, max_new_tokens=2)
    assert isinstance("".join(chat.say("1 + 1")), str)
    loaded = scumble.load_base(str(run.model))
    assert loaded.hash != Base(letters_model(), None).hash


def test_what_belongs_to_an_adapter_is_refused(tmp_path: Path) -> None:
    for wrong in ({"rank": 4}, {"dropout": 0.1}, {"targets": "standard"}, {"from_": "somewhere"}):
        with pytest.raises(ConfigError, match=f"{next(iter(wrong)).rstrip('_')} is given with --method full"):
            train(tmp_path, **{**FULL, **wrong})
    with pytest.raises(ConfigError, match="float16 are not trained"):
        train(tmp_path, base=make_letters_base(dtype=torch.float16), **FULL)
    assert not (tmp_path / "run").exists()


def test_the_default_rate_is_a_tenth_and_its_room_is_said(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    lora = facts(train(tmp_path / "1", learning_rate=None, epochs=1))
    full = facts(train(tmp_path / "2", method="full", learning_rate=None, epochs=1, quiet=False))
    assert full["training"]["learning_rate"] == pytest.approx(lora["training"]["learning_rate"] / 10)
    assert "a tenth of LoRA's" in json.dumps(full["choices"])
    said = capfd.readouterr().err
    assert "of memory for weights, gradients and AdamW's moments" in said
    assert "of disk while training" in said
