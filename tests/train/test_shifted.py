"""Runs that begin otherwise or step otherwise: the base untouched, PEFT's logits over it, resumed to the same bytes."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from scumble.compare import loss as losses
from scumble.data.encoding import encode_all
from scumble.data.examples import read_examples, split_by_hash
from scumble.errors import ConfigError, NotSupportedError, TrainingError
from scumble.lora.adapter import Adapter
from scumble.lora.bank import Bank
from tests.bases import letters_tokenizer, make_letters_base, sums
from tests.train.test_loop import break_loss
from tests.train.test_run import facts, rows, train, weights

KINDS = ["gaussian", "orthogonal", "pissa", "olora", "eva"]
ROUNDED = {"rtol": 1e-4, "atol": 1e-4}  # PEFT sums three products of fp32 in another order


def held_out() -> Any:
    """The validation part of the runs here, encoded."""
    _, held = split_by_hash(read_examples(sums(16)), 0.25)
    return encode_all(held, letters_tokenizer(), max_length=2048).examples


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_saved_does_over_the_original_base_what_was_trained(tmp_path: Path, kind: str) -> None:
    base = make_letters_base()
    before = copy.deepcopy(base.model.state_dict())
    run = train(tmp_path, base=base, init=kind, dropout=0.1 if kind == "pissa" else 0.0)
    after = base.model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert after.keys() == before.keys()
    evals = [row["eval_loss"] for row in rows(run.out) if "eval_loss" in row]
    assert run.loss["best_eval"] < evals[0]
    adapter = Adapter.load(run.adapter)
    if kind != "eva":
        assert adapter.spec.rank == (16 if kind in ("pissa", "olora") else 8)
    assert adapter.base_hash == base.hash
    model = PeftModel.from_pretrained(copy.deepcopy(base.model), str(run.adapter)).eval()
    examples = held_out()
    found = losses.mean_loss(model, examples, 4, torch.device("cpu"))
    assert found == pytest.approx(run.loss["best_eval"], rel=1e-4)
    ids = torch.tensor([examples[0].ids])
    with torch.no_grad():
        wanted = model(input_ids=ids).logits
        bank = Bank(base)
        bank.add("a", adapter)
        with bank.using("a"):
            torch.testing.assert_close(bank.model(input_ids=ids).logits, wanted, **ROUNDED)
    assert facts(run)["options"]["init"] == kind


def test_training_starts_from_the_base_itself(tmp_path: Path) -> None:
    plain = rows(train(tmp_path / "plain").out)[0]["eval_loss"]
    for kind in KINDS:
        assert rows(train(tmp_path / kind, init=kind).out)[0]["eval_loss"] == pytest.approx(plain, rel=1e-4)


def test_a_compressed_adapter_has_the_rank_trained_and_its_error_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(tmp_path, init="pissa", init_compress=True, quiet=False)
    said = capsys.readouterr().err
    assert Adapter.load(run.adapter).spec.rank == 8
    assert "beginning as pissa has it" in said
    assert "saved in rank 8, which misses" in said
    assert facts(run)["adapter"]["saved_rank"] == 8


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("unforeseen")])
def test_the_base_is_as_it_was_after_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    base = make_letters_base()
    before = copy.deepcopy(base.model.state_dict())
    break_loss(monkeypatch, 5, error)
    with pytest.raises((TrainingError, ValueError)):
        train(tmp_path, base=base, init="olora")
    after = base.model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


@pytest.mark.parametrize(
    "options",
    [{"init": "pissa"}, {"init": "eva"}, {"lora_plus": 4.0, "weight_decay": 0.1, "rates": "q_proj=0.01"}],
)
@pytest.mark.parametrize("at", [2, 6])
def test_such_a_run_is_gone_on_with_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], at: int
) -> None:
    whole = train(tmp_path / "whole", **options)
    with monkeypatch.context() as patched:
        break_loss(patched, at, KeyboardInterrupt())
        with pytest.raises(TrainingError, match="stopped by Ctrl-C"):
            train(tmp_path / "cut", **options)
    assert weights(train(tmp_path / "cut", resume=True, **options)) == weights(whole)


def test_the_optimizers_options_change_the_run_and_are_written_down(tmp_path: Path) -> None:
    plain = train(tmp_path / "plain")
    run = train(tmp_path / "plus", lora_plus=4.0, rates={"q_proj": 0.005})
    training = facts(run)["training"]
    assert (training["lora_plus"], training["rates"]) == (4.0, {"q_proj": 0.005})
    assert weights(run) != weights(plain)
    assert json.loads((plain.out / "run.json").read_text())["training"]["rates"] == {}


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"rates": "q_proj"}, ConfigError, "rates by name"),
        ({"rates": "q_proj=0"}, ConfigError, "rate above 0"),
        ({"rates": {"nowhere": 1e-3}}, ConfigError, "nowhere matches nothing"),
        ({"lora_plus": 2.0, "method": "full"}, ConfigError, "has a B"),
        ({"init": "pissa", "method": "full"}, ConfigError, "init is given with --method full"),
        ({"init": "loftq"}, NotSupportedError, "quantised base"),
        ({"init": "gaussian", "init_compress": True}, ConfigError, "--init-compress is for"),
        ({"init": "pissa", "dora": True}, ConfigError, "DoRA"),
    ],
)
def test_what_cannot_be_had_is_refused_before_there_is_a_folder(
    tmp_path: Path, options: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        train(tmp_path, **options)
    assert not (tmp_path / "run").exists()


def test_a_run_that_began_otherwise_goes_on_from_an_adapter_only_by_default(tmp_path: Path) -> None:
    run = train(tmp_path / "first", init="pissa")
    with pytest.raises(ConfigError, match="--init olora and --from are both given"):
        train(tmp_path / "second", from_=str(run.adapter), init="olora")
    on = train(tmp_path / "third", from_=str(run.adapter))
    assert Adapter.load(on.adapter).spec.rank == 16
