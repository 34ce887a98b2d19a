"""Each diagnosis on figures made to a measure, and what keeps it from being made."""

from __future__ import annotations

import json

import numpy as np
import pytest

from scumble.lora.spec import LoraSpec
from scumble.train.advice.advise import advise
from tests.train.advice.made import an_adapter, write_run

DRAWN = np.random.default_rng(0)
STUCK = 2.0 * np.exp(-np.arange(1, 201) / 12) + 2
FALLING = 3.8 * np.exp(-np.arange(1, 201) / 12) + 0.2  # over soon
SLOW = 4.0 / (1 + np.arange(1, 201) / 50)  # and not over


def run(folder, losses, evals=None, **more):
    noisy = np.asarray(losses) * (1 + 0.02 * DRAWN.normal(size=len(losses)))
    every = {0: 4.0} | {step: float(losses[step - 1]) for step in range(20, len(losses) + 1, 20)}
    return advise(write_run(folder, noisy.tolist(), every if evals is None else evals, **more))


def test_over_and_low_is_fine(tmp_path):
    found = run(tmp_path / "run", FALLING, adapter=an_adapter())
    assert (found.verdict, found.findings[0].confidence) == ("fine", "high")
    assert found.findings[0].command is None


def test_not_over_goes_on(tmp_path):
    found = run(tmp_path / "run", SLOW, epochs=2, adapter=an_adapter())
    assert found.verdict == "still improving"
    assert "--epochs 4" in found.findings[0].command


def test_above_its_start_is_diverged(tmp_path):
    assert run(tmp_path / "run", np.linspace(4, 6, 200)).verdict == "diverged"


def test_without_evaluations_noise_is_not_diverged(tmp_path):
    drawn = np.random.default_rng(0)
    for seed in range(20):
        losses = (3 * np.exp(0.2 * drawn.normal(size=12))).tolist()
        assert advise(write_run(tmp_path / str(seed), losses, None, eval=0)).verdict != "diverged"


def test_without_evaluations_what_rises_beyond_noise_is_diverged(tmp_path):
    found = run(tmp_path / "run", np.linspace(4, 6, 40), {}, eval=0)
    assert (found.verdict, found.findings[0].confidence) == ("diverged", "high")
    assert "four standard errors" in found.findings[0].rule


def test_one_that_somebody_stopped_is_not_diverged(tmp_path):
    found = run(tmp_path / "run", FALLING, stopped="stopped by Ctrl-C")
    assert found.verdict == "fine"
    assert any("--resume" in each for each in found.missing)


def test_rising_validation_is_overfitting_only_where_training_goes_on_falling(tmp_path):
    evals = {0: 4.0, 40: 1.0, 80: 1.2, 120: 1.4, 160: 1.6, 200: 1.7}
    training = np.r_[np.linspace(4, 1, 40), np.linspace(1, 0.01, 160)]
    found = run(tmp_path / "overfit", training, evals, adapter=an_adapter())
    assert found.verdict == "overfit"
    assert found.findings[0].evidence["best_step"] == 40
    assert "lower the rank" in found.findings[0].lesson
    both = np.r_[np.linspace(4, 1, 40), np.linspace(1, 1.7, 160)]
    assert run(tmp_path / "both", both, evals).verdict != "overfit"


def test_one_evaluation_above_the_lowest_is_no_overfitting(tmp_path):
    evals = {0: 4.0, 40: 1.0, 80: 0.5, 120: 0.3, 160: 0.2, 200: 0.3}
    assert run(tmp_path / "run", FALLING, evals).verdict != "overfit"


@pytest.mark.parametrize(
    ("alike", "passes", "verdict"), [(True, 10, "rank"), (False, 10, "plateau"), (True, 1, "plateau")]
)
def test_rank_is_asked_for_where_it_is_used_and_the_data_were_seen_often(tmp_path, alike, passes, verdict):
    found = run(
        tmp_path / "run", STUCK, examples=3200 // passes, epochs=passes, adapter=an_adapter(flat=alike)
    )
    assert found.verdict == verdict
    if alike:
        assert "--rank 16" in found.findings[0].command


def test_a_plateau_never_asks_for_more_rank_and_for_less(tmp_path):
    # of a spectrum that halves, 4 of 8 directions hold 99 %
    found = run(tmp_path / "run", STUCK, adapter=an_adapter())
    assert [each.topic for each in found.findings] == ["plateau", "rank wasted"]
    assert found.findings[0].command is None
    assert "--rank 4 " in found.findings[1].command


@pytest.mark.parametrize(
    ("topic", "losses", "flat", "passes"),
    [("rank", STUCK, True, 10), ("plateau", STUCK, True, 1), ("rank wasted", FALLING, False, 1)],
)
def test_another_shape_than_that_of_the_adapter_gone_on_from_begins_anew(
    tmp_path, topic, losses, flat, passes
):
    more = {"examples": 3200 // passes, "epochs": passes, "from_": "earlier/adapter"}
    found = run(tmp_path / "run", losses, adapter=an_adapter(flat=flat), **more)
    said = next(each for each in found.findings if each.topic == topic)
    assert "--rank" in said.command
    assert "--from" not in said.command
    assert "begins anew, without --from" in said.finding


def test_a_run_that_goes_on_again_does_not_say_that_it_begins_anew(tmp_path):
    found = run(tmp_path / "run", SLOW, epochs=2, adapter=an_adapter(), from_="earlier/adapter")
    assert "--from earlier/adapter" in found.findings[0].command
    assert "anew" not in found.findings[0].finding


@pytest.mark.parametrize("init", ["pissa", "olora"])
@pytest.mark.parametrize(("flat", "losses"), [(True, STUCK), (False, FALLING)])
def test_of_a_difference_of_two_adapters_the_rank_is_not_judged(tmp_path, init, flat, losses):
    # rank 8 was trained, and 16 is saved
    adapter = an_adapter(rank=16, flat=flat)
    found = run(tmp_path / "run", losses, examples=320, epochs=10, init=init, adapter=adapter)
    assert [each.topic for each in found.findings] == ["plateau" if flat else "fine"]
    assert "stable_rank_share" not in found.findings[0].evidence
    assert any(each.startswith(f"{init} saves a difference") for each in found.missing)
    if flat:
        assert "--rank 16 " in found.findings[0].command


def test_alpha_over_rank_is_that_of_the_shape_that_python_gave(tmp_path):
    folder = write_run(
        tmp_path / "run", STUCK.tolist(), {0: 4.0, 100: 2.0, 200: 2.0}, adapter=an_adapter(flat=True)
    )
    facts = json.loads((folder / "run.json").read_text())
    facts["lora"] = LoraSpec(rank=4, alpha=32, targets=("down_proj",)).to_peft()
    (folder / "run.json").write_text(json.dumps(facts))
    found = advise(folder)
    assert found.verdict == "plateau"
    assert found.findings[0].next.changed == {"rank": 8, "alpha": 64.0}
    assert "--targets down_proj" in found.findings[0].command


def test_the_rule_says_what_more_confidence_would_need(tmp_path):
    found = run(tmp_path / "run", SLOW, {0: 4.0, 200: 0.8}, adapter=an_adapter())
    assert (found.verdict, found.findings[0].confidence) == ("still improving", "medium")
    assert found.findings[0].rule.startswith("only the training loss falls")
    assert "high would need the evaluations to" in found.findings[0].rule


def test_a_plateau_of_attention_alone_takes_the_mlp_in_first(tmp_path):
    adapter = an_adapter()
    adapter.factors = {"model.layers.0.self_attn.q_proj": next(iter(adapter.factors.values()))}
    adapter.spec = type(adapter.spec)(rank=8, alpha=16, targets=("q_proj",))
    found = run(tmp_path / "run", STUCK, adapter=adapter)
    assert "--targets all-linear" in found.findings[0].command


def test_a_rank_of_which_little_is_used_is_said_beside(tmp_path):
    found = run(tmp_path / "run", FALLING, rank=16, alpha=32, adapter=an_adapter(rank=16))
    assert [each.topic for each in found.findings] == ["fine", "rank wasted"]
    assert "--alpha 8 " in found.findings[1].command + " "


def test_numbers_that_moved_one_way_ask_for_a_higher_rate_while_the_loss_falls(tmp_path):
    # B of 0.5 after rates that sum to 1: P = 0.25 / (200 * 1e-4 / 3) = 37
    still = np.linspace(4, 3, 200)
    found = run(tmp_path / "cold", still, adapter=an_adapter(size=1.0, flat=False))
    assert found.findings[0].evidence["persistence"] > 10
    assert found.verdict == "rate too low"
    assert run(tmp_path / "flat", np.full(200, 3.0), adapter=an_adapter(size=1.0)).verdict == "plateau"


def test_a_that_outgrew_its_start_asks_for_a_lower_rate(tmp_path):
    adapter = an_adapter()
    for factors in adapter.factors.values():
        factors.A.mul_(8)
    assert run(tmp_path / "hot", FALLING + 1.5, adapter=adapter).verdict == "rate too high"
    # where hardly anything is left it did no harm
    assert run(tmp_path / "well", FALLING, adapter=adapter).verdict == "fine"


def test_every_finding_has_all_its_parts(tmp_path):
    document = run(tmp_path / "run", SLOW, adapter=an_adapter()).to_dict()
    assert document["verdict"] == document["findings"][0]["topic"]
    for finding in document["findings"]:
        assert finding["confidence"] in ("high", "medium", "low")
        assert finding["rule"]
        assert finding["evidence"]
        assert finding["command"].startswith("scumble train cron --out ")


def test_a_run_of_all_weights_is_not_told_to_shape_an_adapter(tmp_path):
    for name, losses, evals in (
        ("plateau", STUCK, None),
        ("overfit", FALLING, {0: 4.0, 40: 1.0, 80: 1.2, 120: 1.4, 160: 1.6, 200: 1.7}),
    ):
        folder = write_run(
            tmp_path / name, losses.tolist(), evals or {0: 4.0, 100: 2.0, 200: 2.0}, method="full"
        )
        facts = json.loads((folder / "run.json").read_text())
        del facts["adapter"]
        (folder / "run.json").write_text(json.dumps(facts))
        found = advise(folder)
        assert found.verdict == name
        assert not {"rank", "targets", "dropout"} & set(
            found.findings[0].next.changed if found.findings[0].next else ()
        )
