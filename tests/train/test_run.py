"""`train` end to end on tiny bases: what a run writes down, that it repeats, and what is left when it stops."""

from __future__ import annotations

import copy
import importlib
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel

import scumble
from scumble.compare import loss as losses
from scumble.compare.comparison import compare_in_bank
from scumble.data.encoding import encode_all
from scumble.data.examples import hash_examples, read_examples, split_by_hash
from scumble.errors import (
    ConfigError,
    DataError,
    MissingFileError,
    OutputExistsError,
    TrainingError,
)
from scumble.lora.adapter import WEIGHTS_NAME, Adapter
from scumble.models.base import Base
from scumble.train.company import Company
from scumble.train.result import Run
from tests.bases import chat, letters_model, letters_tokenizer, make_letters_base, sums
from tests.train.test_loop import break_loss

SMALL: dict[str, Any] = {"batch": 4, "accumulate": 1, "learning_rate": 0.02, "epochs": 2, "quiet": True}


def train(folder: Path, data: Any = None, **options: Any) -> Run:
    given = {"base": make_letters_base(), "eval": 0.25, **SMALL, **options}
    return scumble.train(sums(16) if data is None else data, out=folder / "run", **given)


def facts(run: Run | Path) -> dict[str, Any]:
    folder = run if isinstance(run, Path) else run.out
    return json.loads((folder / "run.json").read_text())


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def weights(run: Run) -> bytes:
    return (run.adapter / WEIGHTS_NAME).read_bytes()


def test_the_run_folder_holds_what_decided_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCUMBLE_THREADS", "1")  # on some machines two are faster even for so small a model
    base = make_letters_base()
    run = train(tmp_path, base=base, seed=3)
    assert {p.name for p in run.out.iterdir()} == {
        "adapter",
        "run.json",
        "metrics.jsonl",
        "report.html",
        "checkpoints",
    }
    found = facts(run)
    kept, held = split_by_hash(read_examples(sums(16)), 0.25)
    assert (found["data"]["examples"], found["validation"]["examples"]) == (len(kept), len(held))
    assert found["base"]["hash"] == base.hash
    assert found["base"]["dtype"] == "float32"
    assert found["data"]["hash"] == hash_examples(kept)
    assert found["validation"]["hash"] == hash_examples(held)
    assert found["options"]["seed"] == found["training"]["seed"] == 3
    assert found["training"]["threads"] == {"train": 1, "decode": 1}
    assert {"python", "torch", "transformers", "peft"} <= set(found["versions"])
    assert torch.__version__.startswith(found["versions"]["torch"])
    assert found["machine"]["cores"] >= 1
    assert found["adapter"]["parameters"] == sum(t.numel() for t in Adapter.load(run.out).tensors().values())
    assert found["base"]["parameters"] == sum(p.numel() for p in letters_model().parameters())
    assert found["result"]["stopped"] is None
    assert (
        run.to_dict().items() >= {"steps": found["result"]["steps"], "loss": found["result"]["loss"]}.items()
    )
    assert {row["step"] for row in rows(run.out) if "eval_loss" in row} >= {0, run.steps}
    assert run.loss["best_eval"] == min(
        row["eval_loss"] for row in rows(run.out) if row.get("eval_loss") and row["step"]
    )
    assert "letters" in run.report.read_text()


def test_the_same_command_gives_the_same_bytes(tmp_path: Path) -> None:
    first = train(tmp_path / "1", dropout=0.1)
    torch.manual_seed(99)
    assert weights(train(tmp_path / "2", dropout=0.1)) == weights(first)
    # how a step is cut into micro-steps changes rounding and nothing else
    other = Adapter.load(train(tmp_path / "3", dropout=0.1, batch=1, accumulate=4).out).tensors()
    for key, tensor in Adapter.load(first.out).tensors().items():
        assert torch.allclose(other[key], tensor, atol=1e-3)
    for changed in ({"seed": 1}, {"dropout": 0.2}, {"learning_rate": 0.021}):
        assert weights(train(tmp_path / str(changed), **{"dropout": 0.1, **changed})) != weights(first)


def test_what_was_trained_loads_in_peft(tmp_path: Path) -> None:
    run = train(tmp_path, targets="all-linear")
    base = make_letters_base()
    ids = torch.tensor([base.tokenizer("a question")["input_ids"]])
    peft = PeftModel.from_pretrained(copy.deepcopy(base.model), str(run.adapter)).eval()
    bank = scumble.Bank(base)
    bank.add("trained", run.out)
    with torch.no_grad():
        plain = bank.model(input_ids=ids).logits
        bank.use("trained")
        # fp32; the update moves the logits far more than that
        assert torch.allclose(bank.model(input_ids=ids).logits, peft(input_ids=ids).logits, atol=1e-4)
        assert (bank.model(input_ids=ids).logits - plain).abs().max() > 0.1
    bank.close()


def test_the_base_is_given_back_untouched(tmp_path: Path) -> None:
    base = make_letters_base()
    before = {k: v.clone() for k, v in base.model.state_dict().items()}
    train(tmp_path, base=base)
    after = base.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[k], after[k]) for k in before)


@pytest.mark.parametrize("validated", [True, False])
def test_the_adapter_is_the_best_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, validated: bool
) -> None:
    """The validation losses are dictated: the second epoch of four is the best."""
    said = iter([5.0, 4.0, 2.0, 3.0, 3.5])
    monkeypatch.setattr(Company, "losses", lambda self, asks: [next(said) for _ in asks])
    module = importlib.import_module("scumble.train.judging")
    compared: list[Any] = []

    def note(bank: scumble.Bank, *args: Any, **options: Any) -> Any:
        compared.append(bank.snapshot("trained").tensors())
        return compare_in_bank(bank, *args, **options)

    monkeypatch.setattr(module, "compare_in_bank", note)
    run = train(tmp_path, epochs=4, eval=0.25 if validated else 0)
    per_epoch = run.steps // 4
    best = per_epoch * (2 if validated else 4)
    kept = sorted(p.name for p in (run.out / "checkpoints").iterdir())
    assert kept == sorted({f"step-{best:06d}", f"step-{run.steps:06d}"})
    assert weights(run) == (run.out / "checkpoints" / f"step-{best:06d}" / WEIGHTS_NAME).read_bytes()
    if validated:
        # and it is what the report's answers are made with
        kept_tensors = Adapter.load(run.out).tensors()
        assert all(torch.equal(compared[0][key], tensor) for key, tensor in kept_tensors.items())
        assert weights(run) != (run.out / "checkpoints" / f"step-{run.steps:06d}" / WEIGHTS_NAME).read_bytes()
    assert facts(run)["result"]["best_step"] == best
    assert run.loss["best_eval"] == (2.0 if validated else None)


def test_it_learns_and_the_last_need_not_be_the_best(tmp_path: Path) -> None:
    # the answers cannot be told from the questions: what fits the training data is wrong for the rest
    data = [chat(f"{i}", f"{(i * 7919) % 97} {(i * 104729) % 89}") for i in range(12)]
    run = train(
        tmp_path, data, epochs=30, learning_rate=0.02, rank=16, targets="all-linear", schedule="constant"
    )
    evals = {row["step"]: row["eval_loss"] for row in rows(run.out) if "eval_loss" in row}
    best = min((step for step in evals if step), key=lambda step: evals[step])
    assert best < run.steps
    assert facts(run)["result"]["best_step"] == best
    bank = scumble.Bank(make_letters_base())
    bank.add("best", run.out)
    held = encode_all(split_by_hash(read_examples(data), 0.25)[1], letters_tokenizer(), 2048).examples
    with bank.using("best"):
        found = losses.mean_loss(bank.model, held, 4, torch.device("cpu"))
    bank.close()
    assert found == pytest.approx(evals[best], rel=1e-4)


@pytest.mark.parametrize("validated", [True, False])
def test_a_loss_that_is_not_finite_leaves_the_last_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, validated: bool
) -> None:
    good = train(
        tmp_path / "good", data=sums(16), epochs=1, eval=0.25 if validated else 0, schedule="constant"
    )
    break_loss(monkeypatch, good.steps + 2, float("nan"))
    with pytest.raises(TrainingError) as caught:
        train(tmp_path, epochs=3, eval=0.25 if validated else 0, schedule="constant")
    step = good.steps
    assert f"step {step + 2}: the loss is nan" in caught.value.message
    assert f"the checkpoint of step {step} is kept as {tmp_path / 'run' / 'adapter'}" in caught.value.message
    assert "learning-rate" in caught.value.hint
    folder = tmp_path / "run"
    assert (folder / "adapter" / WEIGHTS_NAME).read_bytes() == weights(good)
    assert facts(folder)["result"]["stopped"].startswith(f"step {step + 2}")
    assert facts(folder)["result"]["steps"] == step + 1
    assert f"step {step + 2}: the loss is nan" in (folder / "report.html").read_text()
    assert len([row for row in rows(folder) if "loss" in row]) == step + 1


def test_a_run_that_never_had_a_finite_loss_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    break_loss(monkeypatch, 1, float("nan"))
    with pytest.raises(TrainingError, match=r"step 1: the loss is nan; there was no checkpoint yet"):
        train(tmp_path)
    assert not (tmp_path / "run" / "adapter").exists()
    assert (tmp_path / "run" / "report.html").exists()
    assert facts(tmp_path / "run")["result"]["best_step"] is None


def test_an_absurd_rate_ends_in_one_line(tmp_path: Path) -> None:
    for rate, share in ((1e37, 0), (1e37, 0.25), (1e20, 0.25), (1e3, 0.25)):
        folder = tmp_path / f"{rate} {share}"
        with suppress(TrainingError):  # a loss may stay finite even so, but nothing else may be raised
            train(folder, learning_rate=rate, eval=share)
        assert (folder / "run" / "report.html").exists()
        if (folder / "run" / "adapter").exists():
            Adapter.load(folder / "run")


def test_ctrl_c_keeps_the_checkpoint_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    per_epoch = train(tmp_path / "whole").steps // 2
    break_loss(monkeypatch, per_epoch + 2, KeyboardInterrupt())
    base = make_letters_base()
    with pytest.raises(TrainingError) as caught:
        train(tmp_path, base=base)
    folder = tmp_path / "run"
    said = f"stopped by Ctrl-C after step {per_epoch + 1}; the checkpoint of step {per_epoch} is kept as {folder / 'adapter'}"
    assert caught.value.message == said
    assert {p.name for p in (folder / "checkpoints").glob("step-*")} == {
        f"step-{n:06d}" for n in (per_epoch, per_epoch + 1)
    }
    assert Adapter.load(folder).parameters
    assert "Ctrl-C" in (folder / "report.html").read_text()
    # the base is free again
    train(tmp_path / "again", base=base)


def test_an_output_that_exists_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    run = train(tmp_path)
    with pytest.raises(OutputExistsError, match="exists already"):
        train(tmp_path, base="nowhere/at-all")
    before = weights(run)
    with pytest.raises(DataError):
        train(tmp_path, [{"text": "x"}], force=True)
    assert weights(run) == before  # what was there stays until the new run begins
    assert weights(train(tmp_path, force=True, seed=1)) != before


def test_options_from_a_file_and_from_the_call(tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text("rank: 2\nlearning-rate: 0.5\nseed: 7\n")
    run = train(tmp_path, config=config, seed=None)
    found = facts(run)
    assert (found["options"]["rank"], found["options"]["seed"]) == (2, 7)
    assert found["options"]["learning_rate"] == SMALL["learning_rate"]  # the call's wins
    assert found["options"]["base"] == found["base"]["name"] == "letters"


def test_a_lora_config_of_peft_is_taken(tmp_path: Path) -> None:
    config = LoraConfig(r=3, lora_alpha=5, target_modules=["k_proj"], task_type="CAUSAL_LM")
    spec = Adapter.load(train(tmp_path, lora=config).out).spec
    assert (spec.rank, spec.alpha, tuple(spec.targets)) == (3, 5, ("k_proj",))
    with pytest.raises(ConfigError, match="rank and lora are both given"):
        train(tmp_path / "twice", lora=config, rank=8)


def test_a_file_for_validation_is_all_of_it(tmp_path: Path) -> None:
    file = tmp_path / "validation.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in sums(5, start=100)))
    found = facts(train(tmp_path, eval=str(file)))
    assert (found["data"]["examples"], found["validation"]["examples"]) == (16, 5)
    assert found["validation"]["source"] == str(file)
    assert found["data"]["hash"] == hash_examples(read_examples(sums(16)))


def test_a_file_of_the_name_of_a_shipped_set_is_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("cron").write_text("".join(json.dumps(row) + "\n" for row in sums(12)))
    found = facts(train(tmp_path, Path("cron"), eval=None))
    assert found["data"]["examples"] + found["validation"]["examples"] == 12


def test_where_no_folder_is_named_the_next_number_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for number in (1, 2):
        run = scumble.train(sums(6), base=make_letters_base(), max_steps=1, eval=0, **SMALL)
        assert run.out == Path(f"runs/run-00{number}")


def test_what_is_wrong_is_refused_before_the_folder_is_made(tmp_path: Path) -> None:
    for wrong, error, said in (
        ({"data": "nowhere.jsonl"}, MissingFileError, "nowhere.jsonl"),
        ({"data": [chat("1", "2")] * 4}, DataError, "no two different examples"),
        ({"max_length": 5}, DataError, "longer than 5 tokens"),
        ({"targets": "no_such_module"}, scumble.ScumbleError, "no_such_module"),
        ({"base": Base(letters_model(), None, "letters")}, DataError, "no tokenizer"),
        ({"rank": 0}, ConfigError, "rank"),
    ):
        with pytest.raises(error, match=said):
            train(tmp_path, **wrong)  # type: ignore[arg-type]
        assert not (tmp_path / "run").exists()


@pytest.mark.real
def test_the_tiny_base_learns_cron_and_compares(tmp_path: Path, tiny_base_folder: Path) -> None:
    data = [{"messages": list(e.messages)} for e in read_examples("cron")[:40]]
    run = scumble.train(
        data, out=tmp_path / "run", base=str(tiny_base_folder), epochs=4, learning_rate=0.02, quiet=True,
        device="cpu", targets="all-linear",
    )  # fmt: skip
    first, best = run.loss["first"], run.loss["best_eval"]
    assert first is not None
    assert best is not None
    assert best < 0.95 * first
    found = scumble.compare(run, data="cron", limit=3, n=2, device="cpu", max_new_tokens=4)
    assert found.loss["after"] < found.loss["before"]
    assert [s.expected for s in found.examples] == [e.expected for e in read_examples("cron", "test")[:2]]
