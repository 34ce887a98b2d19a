"""What TPE proposes: settings that differ, all of a small space, and those near good ones."""

from __future__ import annotations

import pytest

from scumble.train.sweep.space import Space, options_of
from scumble.train.sweep.tpe import Tpe

pytest.importorskip("optuna")


def test_settings_that_come_to_the_same_are_one() -> None:
    space = Space.of({"rank": [4, 8], "alpha": [16, "2r"]})
    tpe, found = Tpe(space, 10), []
    while combinations := tpe.ask():
        found += combinations
        tpe.tell({place: float(each["rank"]) for place, each in enumerate(combinations)}, combinations)
    shapes = [(options["rank"], options["alpha"]) for options in (options_of(each, {}) for each in found)]
    assert sorted(shapes) == [(4, 8), (4, 16), (8, 16)]
    assert tpe.left == 0


def test_it_draws_where_good_ones_were_found() -> None:
    space = Space.of({"learning_rate": "1e-5..1e-1"})
    tpe, rounds = Tpe(space, 40), []
    while combinations := tpe.ask():
        rounds.append([each["learning_rate"] for each in combinations])
        off = {place: abs(rate / 1e-3 - 1) for place, rate in enumerate(rounds[-1])}
        tpe.tell(off, combinations)
    near = [sum(3e-4 < rate < 3e-3 for rate in part) for part in rounds]
    assert sum(near[-5:]) > sum(near[:5])
