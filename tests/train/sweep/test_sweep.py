"""Whole sweeps on a tiny base: what is written, what is best, halving, TPE, budgets, failures, and going on."""

import json
import os
import shutil

import peft
import pytest
import torch

import scumble.train.sweep.running as running
from scumble.compare.exact import exact_by_forward
from scumble.data.encoding import encode_each
from scumble.data.examples import read_examples
from scumble.errors import (
    ConfigError,
    MissingExtraError,
    MissingFileError,
    OutputError,
    OutputExistsError,
    ScumbleError,
    TrainingError,
)
from scumble.lora.bank import Bank
from scumble.train.loop import Trainer
from scumble.train.many import Trial, train_many
from scumble.train.record import held
from scumble.train.run import train
from scumble.train.sweep.sweep import sweep
from tests.bases import letters_tokenizer, make_letters_base, sums

HOW = {"max_steps": 6, "eval_every": 2, "batch": 4, "accumulate": 1, "learning_rate": 0.01, "eval": 0.25}


@pytest.fixture(scope="module")
def base():
    return make_letters_base()


@pytest.fixture
def swept(base, tmp_path):
    def run(**options):
        options = {"out": tmp_path / "sweep", "base": base, "quiet": True, **HOW, **options}
        return sweep(options.pop("data", sums(16)), **options)

    return run


def without_times(folder):
    """`sweep.json` but for what depends on the clock, and on the process."""
    found = json.loads((folder / "sweep.json").read_text())
    del found["times"]
    for each in (*found["trials"], *found["lines"]):
        del each["seconds"]
    return found


def test_what_is_written_and_what_is_best(swept, tmp_path):
    done = swept(rank=[2, 4], targets=["minimal", "comprehensive"], metric="exact_match", score=3)
    folder = tmp_path / "sweep"
    names = ["001-rank2-minimal", "002-rank2-comprehensive", "003-rank4-minimal", "004-rank4-comprehensive"]
    assert [trial.name for trial in done.trials] == names
    assert sorted(each.name for each in (folder / "trials").iterdir()) == names
    document = json.loads((folder / "sweep.json").read_text())
    assert document["complete"]
    for trial in document["trials"]:
        assert {"settings", "loss", "metric", "parameters", "bytes", "seconds"} <= set(trial)
        run = json.loads((folder / "trials" / trial["name"] / "run.json").read_text())
        assert trial["loss"] == run["result"]["loss"]["best_eval"]
        assert trial["parameters"] == run["adapter"]["parameters"]
        weights = folder / "trials" / trial["name"] / "adapter" / "adapter_model.safetensors"
        assert trial["bytes"] == weights.stat().st_size
        assert trial["settings"]["rank"] == run["options"]["rank"]
    lowest = min(document["trials"], key=lambda trial: trial["loss"])
    assert done.best["trial"] == lowest["name"]  # no answer is right, so that the loss decides among equals
    printed = done.to_dict()
    assert {"trials", "best", "out", "adapter", "report"} <= set(printed)
    assert json.loads(json.dumps(printed)) == printed
    assert (folder / "report.html").read_text().startswith("<!DOCTYPE html>")


def test_the_best_is_a_relative_link_that_peft_loads(swept, base, tmp_path):
    done = swept(rank=[2, 4])
    link = tmp_path / "sweep" / "best"
    assert os.readlink(link) == f"trials/{done.best['trial']}/adapter"
    shutil.move(tmp_path / "sweep", tmp_path / "elsewhere")
    ids = torch.tensor([letters_tokenizer()("3 and 9")["input_ids"]])
    bank = Bank(base)
    bank.add("best", tmp_path / "elsewhere" / "best")
    with bank.using("best"), torch.no_grad():
        ours = bank.model(input_ids=ids).logits
    bank.close()
    theirs = peft.PeftModel.from_pretrained(make_letters_base().model, tmp_path / "elsewhere" / "best")
    with torch.no_grad():
        torch.testing.assert_close(theirs(input_ids=ids).logits, ours, rtol=1e-5, atol=1e-5)  # fp32 rounding


def test_where_links_cannot_be_made_the_best_is_a_copy(swept, tmp_path, monkeypatch):
    def refuse(self, *args, **kwargs):
        raise OSError("no links here")

    monkeypatch.setattr("pathlib.Path.symlink_to", refuse)
    swept(rank=[2, 4])
    best = tmp_path / "sweep" / "best"
    assert not best.is_symlink()
    assert (best / "adapter_config.json").is_file()
    assert not list((tmp_path / "sweep").glob(".*"))


def test_a_trial_is_what_training_it_alone_gives(swept, base, tmp_path):
    swept(rank=[2, 4])
    train(sums(16), out=tmp_path / "alone", base=base, rank=4, quiet=True, **HOW)
    files = [
        folder / "adapter" / "adapter_model.safetensors"
        for folder in (tmp_path / "alone", tmp_path / "sweep" / "trials" / "002-rank4")
    ]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_seeds_are_one_line(swept):
    done = swept(rank=[2, 4], seed=[1, 2, 3], metric="exact_match")
    assert len(done.trials) == 6
    assert [line.trials for line in done.lines] == [
        tuple(f"00{n}-rank2-seed{s}" for n, s in ((1, 1), (2, 2), (3, 3))),
        tuple(f"00{n}-rank4-seed{s}" for n, s in ((4, 1), (5, 2), (6, 3))),
    ]
    losses = [trial.loss for trial in done.trials[:3]]
    assert done.lines[0].loss == pytest.approx(sum(losses) / 3)
    assert len(set(losses)) == 3
    best = min(done.lines, key=lambda line: line.loss)
    assert done.best["trial"] in best.trials


def test_the_metric_is_that_of_the_adapter(swept, base, tmp_path):
    done = swept(
        rank=[2, 4], max_steps=80, epochs=100, learning_rate=0.03, targets="all-linear", metric="exact_match"
    )
    kept = [trial for trial in done.trials if trial.metric is not None]
    assert len(kept) == 2
    held = {each.name: each for each in done.trials}
    bank = Bank(base)
    from scumble.data.examples import split_by_hash

    _, validation = split_by_hash(read_examples(sums(16)), 0.25)
    encoded = list(encode_each(validation, letters_tokenizer(), train_on="last"))
    for name, trial in held.items():
        bank.add("it", tmp_path / "sweep" / "trials" / name / "adapter")
        with bank.using("it"):
            marks = exact_by_forward(bank.model, encoded)
        bank.remove("it")
        assert trial.metric == pytest.approx(sum(marks) / len(marks))
    bank.close()


def test_another_metric_is_taken_of_generated_answers(swept):
    done = swept(rank=[2, 4], metric="json_valid", score=2)
    assert done.metric["name"] == "json_valid"
    assert all(trial.metric is not None for trial in done.trials)


def test_halving_ends_the_worst_and_says_why(swept, tmp_path):
    done = swept(learning_rate=[1e-5, 1e-3, 1e-2, 3e-2], halving=True, max_steps=8, eval_every=100)
    states = [trial.state for trial in done.trials]
    assert sorted(states) == ["ended", "ended", "ended", "finished"]
    assert [trial.steps for trial in done.trials if trial.state == "ended"].count(2) == 2
    for trial in done.trials:
        if trial.state == "ended":
            assert trial.reason.startswith("halving: the lowest loss up to step ")
            run = json.loads((tmp_path / "sweep" / "trials" / trial.name / "run.json").read_text())
            assert run["result"]["early"] == trial.reason
    winner = next(trial for trial in done.trials if trial.state == "finished")
    assert (winner.steps, done.best["trial"]) == (8, winner.name)
    rungs = json.loads((tmp_path / "sweep" / "sweep.json").read_text())["rungs"]
    assert [len(rung["losses"]) for rung in rungs] == [4, 2]
    # the first rung's losses are those that decided
    first = rungs[0]
    ranked = sorted(first["losses"], key=lambda line: first["losses"][line])
    assert first["kept"] == sorted(int(line) for line in ranked[:2])


def test_the_winner_of_halving_is_what_it_is_alone(swept, base, tmp_path):
    done = swept(learning_rate=[1e-4, 1e-2], halving=True, max_steps=6)
    winner = next(trial for trial in done.trials if trial.state == "finished")
    how = {**HOW, "learning_rate": winner.settings["learning_rate"], "eval_every": 2}
    train(sums(16), out=tmp_path / "alone", base=base, quiet=True, **how)
    ours = tmp_path / "sweep" / "trials" / winner.name / "adapter" / "adapter_model.safetensors"
    assert ours.read_bytes() == (tmp_path / "alone" / "adapter" / "adapter_model.safetensors").read_bytes()


def test_rungs_decide_nothing_within_a_trial(swept, base, tmp_path):
    how = {"max_steps": 12, "eval_every": 4, "patience": 1}
    done = swept(rank=[2, 4, 8, 16], learning_rate=[0.02, 0.08], halving=True, **how)
    assert {trial.state for trial in done.trials} == {"finished", "ended"}
    for trial in done.trials:
        if trial.state == "finished":
            alone = train(
                sums(16), out=tmp_path / trial.name, base=base, quiet=True, **{**HOW, **how, **trial.settings}
            )
            assert (trial.steps, trial.loss) == (alone.steps, alone.loss["best_eval"])


def test_one_that_diverges_does_not_end_the_others(swept, capsys):
    done = swept(learning_rate=[1e-3, 1e30], quiet=False)
    good, bad = done.trials
    assert (good.state, bad.state) == ("finished", "failed")
    assert "step" in bad.reason
    assert "\n" not in bad.reason
    assert done.best["trial"] == good.name
    assert done.complete
    assert f"{bad.name} failed after step" in capsys.readouterr().err
    assert any(line.startswith(f"{bad.name}: failed: ") for line in done.words())


def test_a_random_search_draws(swept):
    done = swept(search="random", trials=3, learning_rate="1e-4..1e-2", rank=[2, 4], max_steps=2)
    drawn = [(t.settings["rank"], t.settings["learning_rate"]) for t in done.trials]
    assert len(set(drawn)) == 3
    assert all(1e-4 <= rate <= 1e-2 for _, rate in drawn)


def test_tpe_learns_from_rounds_and_is_resumed(swept, tmp_path, monkeypatch):
    pytest.importorskip("optuna")
    how = {"search": "tpe", "trials": 10, "learning_rate": "1e-5..1e-1", "rank": [2, 4], "max_steps": 2}
    done = swept(**how)
    assert len(done.trials) == 10
    assert done.complete
    whole = without_times(tmp_path / "sweep")

    original, calls = running.Running._train, []

    def stopped(self, numbers, **others):
        calls.append(numbers)
        if len(calls) == 2:
            raise TrainingError("stopped by a test")
        return original(self, numbers, **others)

    monkeypatch.setattr(running.Running, "_train", stopped)
    with pytest.raises(TrainingError):
        swept(out=tmp_path / "second", **how)
    monkeypatch.setattr(running.Running, "_train", original)
    swept(out=tmp_path / "second", resume=True, **how)
    assert without_times(tmp_path / "second") == whole


def test_tpe_without_optuna_says_what_to_install(swept, monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    with pytest.raises(MissingExtraError, match="--search tpe needs optuna") as caught:
        swept(search="tpe", rank=[2, 4])
    assert caught.value.hint == 'pip install "scumble[sweep]"'
    assert not (tmp_path / "sweep").exists()


def test_a_budget_pauses_all_and_the_rest_is_made_later(swept, tmp_path):
    how = {"rank": [2, 4], "metric": "exact_match"}
    whole = swept(out=tmp_path / "whole", **how)
    cut = swept(budget=1e-9, **how)
    assert not cut.complete
    assert all(trial.state in ("paused", "waiting") for trial in cut.trials)
    assert cut.best is None
    assert any("go on with --resume" in line for line in cut.words())
    assert "not finished" in (tmp_path / "sweep" / "report.html").read_text()
    done = swept(resume=True)
    assert done.complete
    assert [trial.loss for trial in done.trials] == [trial.loss for trial in whole.trials]
    assert without_times(tmp_path / "sweep") == without_times(tmp_path / "whole")


@pytest.mark.parametrize("halving", [True, False])
@pytest.mark.parametrize("steps", [2, 3, 5])
def test_out_of_its_budget_in_the_middle_it_comes_to_the_same(swept, tmp_path, monkeypatch, steps, halving):
    how = {"rank": [2, 8], "learning_rate": [0.02, 0.08], "halving": halving}
    how |= {"max_steps": 12, "eval_every": 4, "patience": 1}
    swept(out=tmp_path / "whole", **how)
    with monkeypatch.context() as patch:
        late = lambda self: any(lane.outcome.steps >= steps for lane in self.live)  # noqa: E731
        patch.setattr(Trainer, "_late", property(late))
        assert not swept(**how).complete
    assert swept(resume=True, **how).complete
    assert without_times(tmp_path / "sweep") == without_times(tmp_path / "whole")


def test_a_finished_sweep_is_left_as_it_is(swept, tmp_path):
    first = swept(rank=[2, 4])
    text = (tmp_path / "sweep" / "sweep.json").read_text()
    again = swept(resume=True)
    assert (tmp_path / "sweep" / "sweep.json").read_text() == text
    assert again.best == first.best


def test_it_refuses_to_go_on_under_other_options(swept):
    swept(rank=[2, 4], budget=1e-9)
    with pytest.raises(ConfigError, match=r"--rank is 2, 8, and the sweep in .* was begun with 2, 4"):
        swept(rank=[2, 8], resume=True)
    with pytest.raises(ConfigError, match=r"--search is random, and the sweep in .* was begun with grid"):
        swept(rank=[2, 4], search="random", resume=True)
    with pytest.raises(ConfigError, match=r"--max-steps is 7, and the sweep in .* was begun with 6"):
        swept(max_steps=7, resume=True)
    with pytest.raises(ConfigError, match=r"the (training|validation) data is not what the sweep in"):
        swept(resume=True, data=sums(17))
    with pytest.raises(ConfigError, match="the base is not what the sweep in"):
        swept(resume=True, base=make_letters_base(seed=1))


def test_what_was_left_to_the_default_is_called_so(swept):
    swept(budget=1e-9)
    with pytest.raises(ConfigError, match=r"--rank is 16, and the sweep in .* was begun with the default"):
        swept(rank=16, resume=True)


def test_the_rest_of_the_options_is_what_was_written_down(swept):
    first = swept(rank=[2, 4], search="random", trials=2, max_steps=1)
    again = swept(search="random", max_steps=1, resume=True)
    assert again.best == first.best
    with pytest.raises(ConfigError, match=r"--search is tpe, and the sweep in .* was begun with random"):
        swept(search="tpe", max_steps=1, resume=True)


def test_where_all_trials_fail_it_fails(swept, tmp_path):
    said = r"no setting came to its end: 2 of 2 trials failed, 001-learning-rate1e\+29 with: step "
    with pytest.raises(TrainingError, match=said) as caught:
        swept(learning_rate=[1e29, 1e30])
    assert caught.value.hint.startswith("lower --learning-rate")
    assert "\n" not in str(caught.value)
    assert "failed: step " in (tmp_path / "sweep" / "report.html").read_text()
    with pytest.raises(TrainingError, match=said):
        sweep(sums(16), out=tmp_path / "sweep", resume=True, quiet=True)


def test_from_an_adapter_no_shape_of_a_fresh_one_is_recorded(swept, base, tmp_path):
    first = train(sums(16), out=tmp_path / "first", base=base, rank=4, quiet=True, **{**HOW, "max_steps": 1})
    done = swept(from_=str(first.adapter), learning_rate=[1e-3, 1e-2], max_steps=1)
    for trial in done.trials:
        assert set(trial.settings) == {"learning_rate", "seed"}
    assert done.table().row_count == 2
    assert (
        swept(out=tmp_path / "seeds", from_=str(first.adapter), seed=[0, 1], max_steps=1).table().row_count
        == 1
    )


def test_why_a_trial_broke_off_says_what_to_do(base, tmp_path):
    trial = Trial(tmp_path / "one", {**HOW, "learning_rate": 1e30})
    (found,) = train_many(sums(16), [trial], base=base)
    assert "lower --learning-rate" in found.failed


def test_halving_says_that_it_goes_by_loss_where_a_metric_decides(swept, capsys, tmp_path):
    how = {"learning_rate": [1e-3, 1e-2], "max_steps": 2, "quiet": False}
    swept(halving=True, metric="exact_match", **how)
    note = "halving ends trials by validation loss; exact_match decides among those that come to their end"
    assert capsys.readouterr().err.count(note) == 1
    swept(out=tmp_path / "other", halving=True, **how)
    assert "halving ends trials" not in capsys.readouterr().err


def test_tpe_out_of_its_budget_counts_all_that_was_asked_for(swept, capsys):
    pytest.importorskip("optuna")
    how = {"search": "tpe", "trials": 10, "learning_rate": "1e-5..1e-1", "budget": 1e-9, "quiet": False}
    done = swept(**how)
    assert done.words()[-2] == "not finished: 10 of 10 trials; go on with --resume"
    assert "the budget is spent: 0 of 10 trials are over" in capsys.readouterr().err
    assert "10 trials are not finished" in done.report.read_text()


def test_damaged_marks_are_made_anew(swept, tmp_path, capsys):
    swept(rank=[2, 4], metric="exact_match", max_steps=1)
    whole = without_times(tmp_path / "sweep")
    score = tmp_path / "sweep" / "trials" / "001-rank2" / "score.json"
    marks = score.read_text()
    score.write_text("[]")
    swept(max_steps=1, resume=True, quiet=False)
    assert (
        "score.json does not hold this sweep's marks: the answers are marked anew" in capsys.readouterr().err
    )
    assert score.read_text() == marks
    assert without_times(tmp_path / "sweep") == whole


def test_nothing_is_left_where_it_cannot_begin(swept, tmp_path):
    for wrong in (
        {"targets": ["minimal", "nope"]},
        {"rank": [2, 4], "rates": {"nope_proj": 1e-4}},
        {"rank": [2, 4], "halving": True, "max_steps": 1},
        {"metric": "exact_match", "data": [{"text": "a"}, {"text": "b"}]},
    ):
        with pytest.raises(ScumbleError) as caught:
            swept(**wrong)
        assert caught.value.hint, wrong
        assert not (tmp_path / "sweep").exists()


def test_what_exists_is_not_replaced_without_force(swept, tmp_path):
    (tmp_path / "sweep").mkdir()
    with pytest.raises(OutputExistsError):
        swept(rank=[2, 4])
    with pytest.raises(MissingFileError, match="is no sweep"):
        swept(rank=[2, 4], resume=True)
    with pytest.raises(ConfigError, match="--resume and --force"):
        swept(rank=[2, 4], resume=True, force=True)
    assert swept(rank=[2, 4], max_steps=1, force=True).complete


@pytest.mark.parametrize("how", [{"force": True, "rank": [2, 4]}, {"resume": True}])
def test_a_sweep_that_another_trains_is_left_alone(swept, tmp_path, how):
    swept(rank=[2, 4])
    before = (tmp_path / "sweep" / "sweep.json").read_bytes()
    with held(tmp_path / "sweep"), pytest.raises(OutputError, match="another process is training into"):
        swept(**how)
    assert (tmp_path / "sweep" / "sweep.json").read_bytes() == before


def test_a_damaged_journal_is_refused(swept, tmp_path):
    swept(rank=[2, 4], max_steps=1)
    (tmp_path / "sweep" / "sweep.json").write_text("{}")
    with pytest.raises(ConfigError, match="is damaged"):
        swept(resume=True)


def test_ranks_that_differ_under_one_alpha_are_noted(swept, capsys, tmp_path):
    swept(rank=[2, 4], max_steps=1, quiet=False)
    err = capsys.readouterr().err
    assert "alpha is 16 for every rank" in err
    assert "warmup = 0: 100 are usual" in err  # what was decided is said once for all
    assert err.count("warmup") == 1
    swept(rank=[2, 4], alpha="2r", max_steps=1, quiet=False, out=tmp_path / "other")
    assert "alpha is 16" not in capsys.readouterr().err


def test_ctrl_c_while_answers_are_marked_keeps_what_was_trained(swept, monkeypatch):
    from scumble.train.sweep.ground import SweepGround

    def interrupted(self, *args):
        raise KeyboardInterrupt

    whole = SweepGround.marks
    monkeypatch.setattr(SweepGround, "marks", interrupted)
    with pytest.raises(TrainingError, match="stopped by Ctrl-C while answers were marked"):
        swept(rank=[2, 4], metric="exact_match")
    monkeypatch.setattr(SweepGround, "marks", whole)
    done = swept(resume=True)
    assert done.complete
    assert all(trial.metric is not None for trial in done.trials)
