"""When a claim holds: only where every interval leaves out zero, and never by one seed."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scumble.lab.lesson.claims import MARGIN, Claim, Comparison, claims, few, ranked, versus
from scumble.lab.lesson.plan import WHOLE, Configuration
from scumble.lab.lesson.statistics import Estimate
from scumble.lab.lesson.verdicts import decide, judge, turned

ends = st.floats(-1, 1)


def interval(low: float, high: float, seeds: int = 3) -> Estimate:
    return Estimate((low + high) / 2, low, high, 0.95, seeds)


@st.composite
def intervals(draw: st.DrawFn, seeds: int = 3) -> Estimate:
    low, high = sorted((draw(ends), draw(ends)))
    return interval(low, high, seeds)


@given(st.lists(intervals(), min_size=1, max_size=4))
def test_holds_only_where_every_interval_leaves_out_zero(evidence: list[Estimate]) -> None:
    verdict, why = decide(evidence)
    assert (verdict == "holds") == all(each.low > 0 for each in evidence)
    if all(each.low <= 0 <= each.high for each in evidence):
        assert verdict == "depends"
    if verdict == "does not hold":
        assert any(each.high < 0 for each in evidence)
        assert not any(each.low > 0 for each in evidence)
    assert why


@given(st.lists(intervals(seeds=1), min_size=1, max_size=4))
def test_one_seed_decides_nothing(evidence: list[Estimate]) -> None:
    assert decide(evidence)[0] == "depends"


@given(intervals(), st.sampled_from(["more", "not less", "alike", "differs"]))
def test_evidence_holds_what_the_difference_may_be(raw: Estimate, kind: str) -> None:
    """Whatever the difference is within its interval, its evidence is within the evidence's interval."""
    found = turned(raw, kind, MARGIN if kind in ("not less", "alike") else 0.0)
    speaks = {
        "more": lambda x: x,
        "not less": lambda x: x + MARGIN,
        "alike": lambda x: MARGIN - abs(x),
        "differs": abs,
    }[kind]
    for value in np.linspace(raw.low, raw.high, 7):
        assert found.low - 1e-12 <= speaks(float(value)) <= found.high + 1e-12
    if kind == "differs" and raw.low <= 0 <= raw.high:
        assert decide([found])[0] == "depends"


def claim(**changed: object) -> Claim:
    given: dict[str, object] = {"title": "r = 16 less r = 8", "weights": versus(ranked(16), ranked(8))}
    return Claim("a", "More is more.", (Comparison(**{**given, **changed}),))  # type: ignore[arg-type]


def results(**tables: np.ndarray):
    return lambda way, measure: tables.get(way.name.replace("-", "_"))


def answers(share: float, seeds: int = 3, shift: int = 0) -> np.ndarray:
    return np.array(
        [[float((i * 7 + s + shift) % 100 < 100 * share) for i in range(200)] for s in range(seeds)]
    )


def test_a_clear_difference_holds_and_its_opposite_does_not() -> None:
    high, low = answers(0.9), answers(0.5)
    found = judge(claim(), results(r16_a32_minimal=high, r8_a16_minimal=low))
    assert found.verdict == "holds"
    assert found.found[0].raw.mean == pytest.approx(0.4)
    assert found.found[0].tests["sign flip"] < 0.001
    assert judge(claim(), results(r16_a32_minimal=low, r8_a16_minimal=high)).verdict == "does not hold"
    assert judge(claim(), results(r16_a32_minimal=low, r8_a16_minimal=low)).verdict == "depends"


def test_the_same_of_one_seed_is_left_open() -> None:
    found = judge(claim(), results(r16_a32_minimal=answers(0.9, 1), r8_a16_minimal=answers(0.5, 1)))
    assert found.verdict == "depends"
    assert "one seed" in found.why
    assert found.found[0].tests["McNemar"] < 1e-6


@pytest.mark.parametrize(
    ("means", "said"),
    [
        ((1.0, 1.0), "for it"),
        ((-1.0, -1.0), "against it"),
        ((0.0, 0.0), "neither way"),
        ((1.0, -1.0), "1 of 2 for it and 1 against it"),
        ((1.0, 0.0), "1 of 2 for it and 0 against it"),
    ],
)
def test_of_one_seed_it_is_said_which_way_the_figures_speak(means: tuple[float, float], said: str) -> None:
    verdict, why = decide([Estimate(mean, mean - 0.5, mean + 0.5, 0.975, 1) for mean in means])
    assert verdict == "depends"
    assert f"speak {said};" in why


def test_what_is_missing_is_said() -> None:
    found = judge(claim(), results(r16_a32_minimal=answers(0.9)))
    assert found.verdict == "depends"
    assert "broke off at every rate, or on a later seed" in found.why
    assert found.found == ()


def test_more_comparisons_make_wider_intervals() -> None:
    one = claim()
    two = Claim("b", "", one.comparisons * 2)
    tables = results(r16_a32_minimal=answers(0.6), r8_a16_minimal=answers(0.5, shift=3))
    assert judge(two, tables).found[0].raw.level == pytest.approx(0.975)
    assert judge(two, tables).found[0].raw.low < judge(one, tables).found[0].raw.low


def test_a_gap_of_one_seed_has_no_interval_and_is_no_error() -> None:
    each = Comparison("gap", versus(few(64), few(4)), measure="gap")
    found = judge(
        Claim("c", "", (each,)),
        lambda way, measure: np.array([[float(way.rank)]]) if isinstance(way, Configuration) else None,
    )
    assert found.verdict == "depends"
    assert found.found[0].evidence.low == -math.inf


@pytest.mark.parametrize(
    ("share", "reason"), [(0, "was learned"), (0.03, "was learned"), (0.97, "is left"), (1, "is left")]
)
@pytest.mark.parametrize("seeds", [1, 3])
def test_where_all_is_wrong_or_right_nothing_is_decided(share: float, reason: str, seeds: int) -> None:
    """Where no way to train learned anything, none loses 5 points to another: that says nothing of a claim."""
    asked = [each for each in claims(WHOLE) if all(one.measure == "right" for one in each.comparisons)]
    found = {each.name: judge(each, lambda way, measure: answers(share, seeds)) for each in asked}
    assert {each.verdict for each in found.values()} == {"depends"}
    for name in ("start at 8", "64 rarely needed", "the ratio matters", "start with q and v", "32 near full"):
        assert f"where so little {reason}" in found[name].why
    # what is no question of a margin is left open by its interval
    assert "so little" not in found["r = 8 everywhere before 32"].why


def losing(names: str) -> Claim:
    """That r = 8 loses at most 5 points to others."""
    others = [ranked(int(name)) for name in names.split()]
    return Claim(
        "d",
        "",
        tuple(
            Comparison(other.name, versus(ranked(8), other), "not less", margin=MARGIN) for other in others
        ),
    )


def test_alike_half_way_up_it_holds_where_the_examples_suffice() -> None:
    many, little = np.tile([0.0, 1.0], (3, 200)), np.tile([0.0, 1.0], (3, 3))
    assert judge(losing("16"), lambda way, measure: many).verdict == "holds"
    # of six examples none differs, as it would where up to every second one did
    assert judge(losing("16"), lambda way, measure: little).verdict == "depends"


def test_a_comparison_at_the_floor_hides_none_that_speaks_against_the_claim() -> None:
    zero, high = np.zeros((3, 200)), answers(0.9)
    found = judge(losing("16 32"), results(r8_a16_minimal=zero, r16_a32_minimal=zero, r32_a64_minimal=high))
    assert found.verdict == "does not hold"
    assert "speak against it" in found.why
