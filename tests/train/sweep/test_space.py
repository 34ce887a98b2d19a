"""What a sweep chooses from: values, ranges, grids, draws; and what is refused."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scumble.config import SweepOptions, make
from scumble.errors import ConfigError, MissingFileError
from scumble.train.sweep.asked import Asked
from scumble.train.sweep.space import Range, Space, options_of, values_of


def test_a_grid_is_every_combination_in_order():
    space = Space.of({"targets": ["minimal", "standard"], "rank": ["4", 8], "epochs": 2})
    assert list(space.grid()) == [
        {"rank": 4, "targets": "minimal"},
        {"rank": 4, "targets": "standard"},
        {"rank": 8, "targets": "minimal"},
        {"rank": 8, "targets": "standard"},
    ]
    assert (space.size, space.seeds, space.fixed) == (4, (0,), {"epochs": 2.0})


def test_seeds_are_no_axis():
    space = Space.of({"seed": ["1", "2"], "rank": 4})
    assert (space.axes, space.seeds, space.fixed) == ({}, (1, 2), {"rank": 4})


def test_alpha_may_be_a_multiple_of_the_rank():
    space = Space.of({"alpha": ["2r", 16], "rank": [4, 32]})
    assert space.size == 4
    alphas = [options_of(each, space.fixed)["alpha"] for each in space.grid()]
    assert alphas == [8.0, 16.0, 64.0, 16.0]
    assert options_of({}, {"alpha": "0.5r"})["alpha"] == 4.0  # of the default rank


def test_combinations_that_come_to_the_same_options_are_one():
    space = Space.of(
        {"rank": [4, 8], "alpha": [16, "2r"], "targets": ["minimal", "standard", "comprehensive"]}
    )
    whole = list(space.grid())
    options = [options_of(each, space.fixed) for each in whole]
    assert len(whole) == space.size == 9  # of rank 8 both alphas are 16
    assert all(each not in options[:number] for number, each in enumerate(options))
    assert space.random(9) == space.random(12) == whole
    drawn = [options_of(each, space.fixed) for each in space.random(8)]
    assert all(each not in drawn[:number] for number, each in enumerate(drawn))


def test_an_alpha_that_is_that_of_the_default_rank_is_one():
    assert Space.of({"alpha": ["2r", "2.0r", 16]}).size == 1
    assert list(Space.of({"alpha": ["2r", 16], "rank": 4}).grid()) == [{"alpha": "2r"}, {"alpha": 16.0}]


def test_a_draw_from_a_range_keeps_no_two_of_the_same_options():
    space = Space.of({"rank": "1..4", "alpha": ["2r", 4]})
    drawn = [repr(options_of(each, space.fixed)) for each in space.random(8)]
    assert len(drawn) == len(set(drawn)) == 7  # of rank 2 both are 4


def test_trials_that_are_left_are_those_of_different_settings():
    asked = Asked.of({"search": "tpe", "rank": [4, 8], "alpha": [16, "2r"], "seed": [0, 1]}, None)
    assert asked.drawn == 3
    assert Asked.of({"rank": [4, 8], "alpha": [16, "2r"], "trials": 3}, None).space.size == 3


def test_a_large_space_is_counted_and_not_gone_through():
    many = list(range(1, 101))
    space = Space.of(
        {
            "rank": [4, 8],
            "alpha": [16, "2r"],
            "epochs": many,
            "max_steps": many,
            "warmup": many,
            "batch": many,
        }
    )
    assert space.size == 3 * 100**4


def test_names_in_a_list_are_one_value():
    space = Space.of({"targets": [["q_proj", "v_proj"], "minimal"]})
    assert space.axes["targets"] == ("q_proj,v_proj", "minimal")


@given(low=st.floats(1e-6, 1e3), factor=st.floats(1.01, 1e4), seed=st.integers(0, 1000), whole=st.booleans())
def test_what_is_drawn_from_a_range_lies_in_it(low, factor, seed, whole):
    found = (
        Range(math.ceil(low), math.ceil(low * factor) + 1, True) if whole else Range(low, low * factor, False)
    )
    drawn = found.draw(random.Random(seed))
    # four digits are kept
    assert found.low * 0.9994 <= drawn <= found.high * 1.0006
    assert not whole or isinstance(drawn, int)


def test_a_range_is_drawn_evenly_by_its_logarithm():
    rng = random.Random(0)
    drawn = [Range(1e-4, 1e-2, False).draw(rng) for _ in range(2000)]
    # the median of a log-uniform is the geometric mean, 1e-3; of 2,000 draws it is off by 6 % (one deviation: 1 / sqrt(n) / 2
    # of the quantile times ln 100), so four of them are 22 %
    assert 0.78e-3 < sorted(drawn)[1000] < 1.22e-3
    whole = [Range(1, 4, True).draw(rng) for _ in range(500)]
    assert set(whole) == {1, 2, 3, 4}


def test_draws_are_different_and_the_first_stay_when_more_are_drawn():
    space = Space.of({"rank": [2, 4, 8, 16], "learning_rate": "1e-4..1e-2"})
    many = space.random(20)
    assert len({repr(each) for each in many}) == 20
    assert space.random(7) == many[:7]
    three = Space.of({"rank": [2, 4, 8]})
    assert three.random(3) == three.random(10) == list(three.grid())


def test_a_space_is_the_same_from_what_is_written_down():
    given_ = {
        "rank": [4, 8],
        "learning_rate": "1e-4..1e-2",
        "alpha": "2r",
        "seed": [1, 2],
        "rates": {"mlp": 1e-4},
    }
    asked = Asked.of({**given_, "search": "random"}, None)
    again = Asked.recorded(asked.to_dict())
    assert again.space == asked.space
    assert again.options == asked.options


REFUSED = [
    ({"rank": []}, "--rank has no value"),
    ({"rank": [4, "x"]}, "--rank is 'x', and must be a whole number"),
    ({"rank": [4, 4]}, "--rank is 4 twice"),
    ({"rank": [4, 0]}, "--rank is 0, and must be 1 or more"),
    ({"rank": [True, 4]}, "--rank is True, and must not be true or false"),
    ({"alpha": ["0r"]}, "--alpha is '0r', and must be a number"),
    ({"base": ["a", "b"]}, "--base has several values (a, b), and all trials share one base"),
    ({"dtype": ["fp32", "bf16"]}, "--dtype has several values (fp32, bf16), and all trials share one base"),
    (
        {"eval": [0.1, 0.2]},
        "--eval has several values (0.1, 0.2), and trials are judged by the same examples",
    ),
    (
        {"track": ["wandb", "mlflow"]},
        "--track has several values (wandb, mlflow), and it is one for all trials",
    ),
    ({"seed": "1..4"}, "--seed is 1..4, and seeds are not drawn"),
    ({"rank": "8..4"}, "--rank is 8..4, and a range goes from a number to a larger one"),
    ({"learning_rate": "1e-4..1e-2"}, "--learning-rate is 0.0001..0.01, and a grid takes values"),
    (
        {"learning_rate": "1e-4...1e-2", "search": "random"},
        "--learning-rate is 1e-4...1e-2, and a range has two dots",
    ),
    ({"rank": "4,16"}, "--rank is '4,16', and several values are not joined by commas"),
    ({"alpha": ["2r,4r"]}, "--alpha is '2r,4r', and several values are not joined by commas"),
    (
        {"schedule": "linear, cosine"},
        "--schedule is 'linear, cosine', and several values are not joined by commas",
    ),
    (
        {"targets": "minimal,comprehensive"},
        "--targets is 'minimal,comprehensive', and several values are not",
    ),
    ({"method": "full"}, "--method full cannot be swept"),
    ({"eval": 0}, "--eval 0 leaves nothing to compare trials by"),
    ({"rnak": [4]}, "--rnak is not a known option"),
    ({"search": "bayes"}, "--search is 'bayes', and must be 'grid', 'random' or 'tpe'"),
    ({"trials": 0}, "--trials is 0, and must be 1 or more"),
    ({"budget": "soon"}, "--budget is 'soon', and must be a time such as 90s"),
    ({"budget": "0m"}, "--budget is 0.0, and must be above 0"),
    ({"eta": [2, 3]}, "--eta has several values"),
    ({"metric": "nope"}, "the metric 'nope' is not known"),
    ({"metric": "exact_match", "score": 0}, "--metric is given with --score 0"),
    ({"search": "random"}, "--search random has nothing to draw"),
    ({"search": "tpe", "halving": True, "rank": [1, 2]}, "--halving and --search tpe are both given"),
    ({"rank": list(range(1, 514))}, "the grid has 513 trials, and more than 512 have to be meant"),
    ({"rank": [1, 2], "seed": [1, 2], "trials": 3}, "the grid has 4 trials, and --trials is 3"),
]


@pytest.mark.parametrize(("values", "message"), REFUSED, ids=lambda value: str(value)[:50])
def test_what_cannot_be_swept_is_refused(values, message):
    with pytest.raises(ConfigError) as caught:
        Asked.of(values, None)
    assert caught.value.message.startswith(message)
    assert caught.value.hint
    assert "\n" not in str(caught.value)


def test_values_that_are_joined_by_commas_are_shown_as_they_should_be_given():
    with pytest.raises(ConfigError) as caught:
        Asked.of({"rank": "4,16"}, None)
    assert caught.value.hint == "give each: --rank 4 --rank 16; in a file [4, 16]"
    assert values_of("targets", "q_proj,v_proj") == ("q_proj,v_proj",)
    assert values_of("rates", "q_proj=1e-4,mlp=5e-5") == ({"q_proj": 1e-4, "mlp": 5e-5},)


def test_no_more_trials_are_proposed_than_can_be_asked_for():
    for ranks, said in ((100, True), (101, False)):
        given_ = {"rank": list(range(1, ranks + 1)), "epochs": list(range(1, 101))}
        with pytest.raises(ConfigError) as caught:
            Asked.of(given_, None)
        assert ("say --trials" in caught.value.hint) == said
        assert "--search random --trials 100" in caught.value.hint
    assert make(SweepOptions, trials=10_000).trials == 10_000


def test_a_wrong_value_in_a_file_has_a_hint(tmp_path):
    path = tmp_path / "sweep.yaml"
    for text, hint in (
        ("rank: [4, x]\n", "rank of the update; the default is 8"),
        ("schedule: [linear, cosin]\n", "how the rate falls after the warm-up; the default is linear"),
    ):
        path.write_text(text)
        with pytest.raises(ConfigError) as caught:
            Asked.of({}, path)
        assert caught.value.hint == hint


def test_a_budget_is_read():
    for text, seconds in (("90s", 90), ("30m", 1800), ("1h30m", 5400), ("1.5h", 5400), (12, 12)):
        assert Asked.of({"budget": text}, None).options.budget == seconds


def test_a_file_has_lists_and_the_command_line_wins(tmp_path):
    path = tmp_path / "sweep.yaml"
    path.write_text(
        "rank: [4, 8]\ntargets: [minimal, comprehensive]\nlearning-rate: 1e-3\nhalving: true\nrslora: [true, false]\n"
    )
    asked = Asked.of({"rank": [2]}, path)
    assert asked.space.axes == {"targets": ("minimal", "comprehensive"), "rslora": (True, False)}
    assert asked.space.fixed == {"rank": 2, "learning_rate": 1e-3}
    assert asked.options.halving


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rank: [4, x]\n", "line 1: rank is [4, 'x'], and must be a whole number"),
        ("epochs: 2\nrnak: [4]\n", "line 2: rnak is not a known option"),
        ("search: [grid, tpe]\n", "line 1: search is"),
        ("out: here\n", "line 1: out cannot be given here"),
    ],
)
def test_a_wrong_file_is_refused_with_its_line(tmp_path, text, message):
    path = tmp_path / "sweep.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        Asked.of({}, path)
    assert message in caught.value.message


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(MissingFileError):
        Asked.of({}, tmp_path / "none.yaml")


def test_a_value_stands_for_itself():
    assert values_of("learning_rate", ["1e-3", 2e-3]) == (1e-3, 2e-3)
    assert values_of("targets", r".*q_proj..v") == (r".*q_proj..v",)
