"""Advice of sweeps whose effects are known."""

from __future__ import annotations

import itertools
import json
import math
import shutil

import numpy as np
import pytest

from scumble.errors import ConfigError
from scumble.train.advice.advise import advise
from scumble.train.advice.sweep import Member, effects_of, noise_of
from tests.train.advice.made import an_adapter, write_run, write_sweep


def grid(loss, ranks=(4, 8, 16), rates=(0.001, 0.01), seeds=(0, 1)):
    found = []
    for rank, rate, seed in itertools.product(ranks, rates, seeds):
        settings = {"rank": rank, "alpha": 2.0 * rank, "learning_rate": rate, "seed": seed}
        found.append((settings, loss(rank, rate, seed)))
    return found


def members(trials, tmp_path):
    return [Member(tmp_path, settings, loss) for settings, loss in trials]


def test_noise_is_the_pooled_deviation_between_seeds(tmp_path):
    drawn = np.random.default_rng(0)
    trials = grid(lambda rank, rate, seed: rank + 0.1 * float(drawn.normal()), seeds=range(50))
    noise, freedom = noise_of(members(trials, tmp_path))
    assert freedom == 6 * 49
    groups = np.array([loss for _, loss in trials]).reshape(6, 50)
    assert noise == pytest.approx(math.sqrt(groups.var(axis=1, ddof=1).mean()), rel=1e-9)


def test_one_seed_twice_says_nothing_of_noise(tmp_path):
    # as `--alpha 16 --alpha 2r` once trained rank 8 twice
    twice = [
        ({"rank": rank, "alpha": 16.0, "seed": 0}, loss) for rank, loss in ((4, 1.0), (8, 0.9), (8, 0.9))
    ]
    assert noise_of(members(twice, tmp_path)) == (None, 0)
    found = advise(write_sweep(tmp_path / "sweep", twice))
    assert {each.confidence for each in found.findings if each.topic in ("option", "rank")} == {"low"}
    assert any(each.startswith("two seeds of one setting") for each in found.missing)


def test_seeds_that_come_to_the_same_loss_show_no_noise(tmp_path):
    trials = grid(lambda rank, rate, seed: 1 / rank + rate)
    assert noise_of(members(trials, tmp_path)) == (None, 6)
    found = advise(write_sweep(tmp_path / "sweep", trials))
    assert {each.confidence for each in found.findings if each.topic in ("option", "rank")} == {"low"}
    assert any(each.startswith("seeds that differ in their loss") for each in found.missing)


def test_effects_are_those_that_were_put_in(tmp_path):
    def loss(rank, rate, seed):
        return 1 + {4: 0.3, 8: 0.1, 16: 0.0}[rank] + {0.001: 0.5, 0.01: 0.0}[rate] + 0.01 * seed

    found = {each.option: each for each in effects_of(members(grid(loss), tmp_path), 0.007)}
    assert found["learning_rate"].size == pytest.approx(0.5)
    assert found["rank"].size == pytest.approx(0.3)
    assert (found["rank"].blocks, found["learning_rate"].blocks) == (4, 6)
    assert (found["rank"].best, found["learning_rate"].best) == (16, 0.01)
    assert "alpha" not in found  # follows from the rank


def test_a_block_that_lacks_a_value_is_not_compared(tmp_path):
    trials = grid(lambda rank, rate, seed: rank / 10)
    # the runs of one rate lack the lowest rank: taken in, they would pull the other ranks' means
    kept = [each for each in trials if not (each[0]["rank"] == 4 and each[0]["learning_rate"] == 0.01)]
    found = {each.option: each for each in effects_of(members(kept, tmp_path), None)}
    assert found["rank"].blocks == 2
    assert found["rank"].size == pytest.approx(1.2)


def test_what_moved_most_comes_first_and_the_edge_is_passed(tmp_path):
    def loss(rank, rate, seed):
        return 1 + {4: 0.3, 8: 0.1, 16: 0.0}[rank] + {0.001: 0.5, 0.01: 0.0}[rate] + 0.01 * seed

    found = advise(write_sweep(tmp_path / "sweep", grid(loss)))
    first, second = found.findings[:2]
    assert (found.kind, first.topic, first.confidence) == ("sweep", "option", "high")
    assert "learning_rate moved the loss most: by 0.5" in first.finding
    assert "--learning-rate 0.03" in first.command
    assert (second.topic, second.confidence) == ("rank", "high")
    assert "--rank 32 --alpha 64" in second.command


def test_ranks_are_wasted_where_even_two_errors_more_are_next_to_nothing(tmp_path):
    losses = iter([1.002, 0.998, 1.0, 1.001, 0.999, 1.0])
    trials = grid(lambda rank, rate, seed: next(losses), rates=(0.01,))
    found = advise(write_sweep(tmp_path / "sweep", trials))
    rank = next(each for each in found.findings if each.topic.startswith("rank"))
    assert (rank.topic, rank.confidence) == ("rank wasted", "medium")
    assert "--rank 4 --alpha 8" in rank.command
    assert not any("not decided" in each for each in found.missing)


@pytest.mark.parametrize(
    "losses",
    [
        [1.02, 0.98, 1.0, 1.01, 0.99, 1.0],
        [1.0, 0.4, 0.8, 0.5, 0.2, 0.9],  # seeds that differ by more than any rank could bring
        [0.99, 1.0, 1.02, 0.98, 1.0, 1.01],  # the lowest is best, as it happens
    ],
)
def test_what_noise_hides_is_not_decided_and_asks_for_more_seeds(tmp_path, losses):
    each_loss = iter(losses)
    trials = grid(lambda rank, rate, seed: next(each_loss), rates=(0.01,))
    found = advise(write_sweep(tmp_path / "sweep", trials))
    assert not any(each.topic.startswith("rank") for each in found.findings)
    said = next(each for each in found.missing if each.startswith("whether more rank helps is not decided"))
    assert said.endswith("--seed 0 --seed 1 --seed 2 --seed 3")


def test_what_noise_hides_leaves_the_word_to_the_adapter_s_spectrum(tmp_path):
    losses = iter([1.02, 0.98, 1.0, 1.01, 0.99, 1.0])
    folder = write_sweep(
        tmp_path / "sweep", grid(lambda rank, rate, seed: next(losses), rates=(0.01,)), best="004"
    )
    best = folder / "trials" / "004"
    shutil.rmtree(best)
    curve, evals = [4.0 * 0.9**step for step in range(100)], {0: 4.0, 25: 0.3, 50: 0.02, 75: 0.02, 100: 0.02}
    write_run(best, curve, evals, rank=16, alpha=32, adapter=an_adapter(16))
    assert [each.topic for each in advise(folder).findings] == ["option", "fine", "rank wasted"]


def test_a_rank_that_was_measured_goes_before_one_adapter_s_spectrum(tmp_path):
    folder = write_sweep(tmp_path / "sweep", grid(lambda rank, rate, seed: 1 / rank, rates=(0.01,)))
    best = folder / "trials" / "004"
    shutil.rmtree(best)
    losses, evals = [4.0 * 0.9**step for step in range(100)], {0: 4.0, 25: 0.3, 50: 0.02, 75: 0.02, 100: 0.02}
    write_run(best, losses, evals, rank=16, alpha=32, adapter=an_adapter(16))
    assert [each.topic for each in advise(best).findings] == ["fine", "rank wasted"]
    found = advise(folder)
    assert "looked at 004" in found.about
    assert [each.topic for each in found.findings] == ["option", "rank", "fine"]


def test_without_seeds_confidence_is_low_and_that_is_said(tmp_path):
    found = advise(write_sweep(tmp_path / "sweep", grid(lambda rank, rate, seed: rank / 10, seeds=(0,))))
    assert found.findings[0].confidence == "low"
    assert any("two seeds" in each for each in found.missing)


def test_trials_that_ended_early_or_broke_are_not_compared(tmp_path):
    trials = grid(lambda rank, rate, seed: rank / 10, seeds=(0,))
    found = advise(write_sweep(tmp_path / "ended", trials, state="ended"))
    assert found.findings == ()
    broken = [(settings, None) for settings, _ in trials]
    assert advise(write_sweep(tmp_path / "broken", broken)).findings == ()


def test_a_damaged_sweep_is_named(tmp_path):
    folder = write_sweep(tmp_path / "sweep", grid(lambda rank, rate, seed: 1.0, seeds=(0,)))
    for text in ("{", '{"trials": 3}'):
        (folder / "sweep.json").write_text(text)
        with pytest.raises(ConfigError, match=r"sweep\.json is damaged") as caught:
            advise(folder)
        assert caught.value.hint == "sweep again with --force"


def test_the_best_is_the_sweeps_own_and_not_the_lowest_loss(tmp_path):
    # rank 8 is best by the mean over seeds; rank 4 had one lucky seed
    losses = {(4, 0): 0.5, (4, 1): 1.5, (8, 0): 0.7, (8, 1): 0.8}
    trials = [({"rank": rank, "seed": seed}, loss) for (rank, seed), loss in losses.items()]
    found = advise(write_sweep(tmp_path / "sweep", trials, best="002"))
    assert "looked at 002, the best by sweep.json" in found.about
    assert found.findings[-1].command.split("--out ")[1].startswith(str(tmp_path / "sweep-002-"))


@pytest.mark.parametrize("best", [None, 0, {}, {"trial": "099"}, {"trial": ["001"]}, "001"])
def test_where_no_best_can_be_read_the_lowest_loss_is_looked_at_and_that_is_said(tmp_path, best):
    folder = write_sweep(tmp_path / "sweep", grid(lambda rank, rate, seed: rank / 10 + rate + seed))
    document = json.loads((folder / "sweep.json").read_text())
    (folder / "sweep.json").write_text(json.dumps({**document, "best": best}))
    assert "looked at 000, the one of the lowest loss: sweep.json names no best" in advise(folder).about


def test_settings_that_were_drawn_are_not_compared_and_that_is_said(tmp_path):
    trials = [
        ({"rank": rank, "alpha": 16.0, "learning_rate": rate, "seed": 0}, rate)
        for rank, rate in ((4, 0.001), (8, 0.003), (16, 0.002))
    ]
    found = advise(write_sweep(tmp_path / "sweep", trials, best="000"))
    assert not {"option", "rank"} & {each.topic for each in found.findings}
    assert any(
        each.startswith("no trials differ in one option alone, for learning_rate, rank")
        for each in found.missing
    )


def test_options_that_were_compared_are_not_missing(tmp_path):
    trials = grid(lambda rank, rate, seed: rank / 10 + 0.01 * seed)
    found = advise(write_sweep(tmp_path / "sweep", trials))
    assert not any("differ" in each for each in found.missing)


def test_trials_that_differ_in_their_seed_alone_are_one_setting(tmp_path):
    trials = [({"rank": 8, "seed": seed}, 1.0 + seed) for seed in (0, 1)]
    assert any("two settings" in each for each in advise(write_sweep(tmp_path / "sweep", trials)).missing)


def test_the_only_one_that_came_to_its_end_is_looked_at(tmp_path):
    trials = grid(lambda rank, rate, seed: rank / 10, seeds=(0,))
    folder = write_sweep(tmp_path / "sweep", trials, best="003")
    document = json.loads((folder / "sweep.json").read_text())
    for number, trial in enumerate(document["trials"]):
        trial["state"] = "finished" if number == 3 else "ended"
    (folder / "sweep.json").write_text(json.dumps(document))
    found = advise(folder)
    assert found.verdict == "still improving"
    assert "1 of them came to their end" in found.about
    assert any("two trials" in each for each in found.missing)
    assert any(each.startswith("of 003: 2 evaluations after the start") for each in found.missing)


def test_an_alpha_that_the_sweep_held_stays(tmp_path):
    trials = [({"rank": r, "alpha": 16.0, "seed": s}, 1 / r + 0.001 * s) for r in (4, 8) for s in (0, 1)]
    found = advise(write_sweep(tmp_path / "sweep", trials))
    assert found.findings[0].next.options["rank"] == 16
    assert "alpha" not in found.findings[0].next.changed
