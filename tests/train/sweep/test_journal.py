"""`sweep.json` and `score.json` read back: damaged in every place, in one line or as if nothing were amiss; and what is left."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from scumble.errors import ConfigError, ScumbleError, TrainingError
from scumble.train.sweep.asked import Asked
from scumble.train.sweep.journal import Journal
from scumble.train.sweep.page import render_sweep
from scumble.train.sweep.running import Running
from scumble.train.sweep.space import Space
from scumble.train.sweep.table import result_table
from scumble.train.sweep.trials import SweepTrial, trials_of

GROUND = {
    "base": {"name": "letters", "hash": "b"},
    "data": {"source": "some.jsonl", "hash": "d"},
    "validation": {"source": "10% of some.jsonl", "hash": "v"},
    "metric": {"name": "exact_match", "decides": True, "part": "test", "examples": 2, "hash": "t"},
}


def a_trial(number, rank, targets):
    settings = {"rank": rank, "targets": targets, "alpha": 16.0, "learning_rate": 0.01, "seed": 0}
    return SweepTrial(
        name=f"{number + 1:03d}-rank{rank}-{targets}",
        line=number,
        settings=settings,
        options={"rank": rank, "targets": targets, "seed": 0},
        of=4,
        state="finished" if number else "ended",
        steps=4,
        loss=1.0 + number,
        metric=0.5,
        parameters=100 * rank,
        bytes=400 * rank,
        memory=1600 * rank,
        seconds=1.0,
    )


@pytest.fixture
def journal(tmp_path):
    """The journal of a sweep that was never trained, complete, with its marks."""
    asked = Asked.of({"rank": [2, 4], "targets": ["minimal", "standard"], "halving": True}, None)
    pairs = [(2, "minimal"), (2, "standard"), (4, "minimal"), (4, "standard")]
    trials = [a_trial(number, *pair) for number, pair in enumerate(pairs)]
    made = Journal.begun(tmp_path / "sweep", asked, GROUND, trials, force=False)
    for trial in trials:
        made.place(trial).mkdir()
        made.keep_marks(trial, [1.0, 0.0])
    made.rungs = [{"share": 0.5, "losses": {"0": 1.0, "1": 2.0, "2": 3.0, "3": None}, "kept": [1, 2, 3]}]
    made.complete = True
    made.write()
    return made


def refusal(folder):
    """Why it is refused; None where it is not."""
    try:
        used(folder)
    except ScumbleError as error:
        return error
    return None


def used(folder):
    """All that is read of a sweep but for its page, which takes a quarter of a second to draw."""
    found = Journal.opened(folder)
    found.check_ground(GROUND)
    document = found.to_dict()
    lines = found.lines()
    result_table(lines, list(document["space"]["axes"]), found.ground["metric"], best=None)
    assert found.left == 0 or not found.complete
    for trial in found.trials:
        assert trial.seed >= 0
    return found


def places(value, path=()):
    """The path of everything in a document."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in inner:
        yield (*path, key)
        yield from places(each, (*path, key))


GONE = object()
DAMAGES = [GONE, None, "x", -1, 2.5, True, [], {}, [[]], {"a": None}]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda each: "gone" if each is GONE else json.dumps(each))
def test_a_document_that_is_damaged_anywhere_is_refused_in_one_line(journal, damage):
    path = journal.folder / "sweep.json"
    whole = json.loads(path.read_text())
    refused = set()
    for place in list(places(whole)):
        document = json.loads(json.dumps(whole))
        *way, last = place
        holder = document
        for key in way:
            holder = holder[key]
        if damage is GONE:
            del holder[last]
        else:
            holder[last] = damage
        path.write_text(json.dumps(document))
        if error := refusal(journal.folder):
            assert "\n" not in str(error)
            assert error.hint, place
            refused.add(place)
    # what is made again from the rest does no harm; what is needed is missed
    assert not {place for place in refused if place[0] in ("scumble", "lines", "best")}
    needed = {("ground",), ("ground", "base"), ("trials", 0, "settings"), ("times",), ("rungs", 0, "kept")}
    assert not {each for each in needed if damage in (GONE, "x", -1)} - refused
    assert damage != -1 or ("trials", 0, "parameters") in refused


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", "null", "3", "[" * 100_000, '{"trials": []}', "\x00", '{"ground": 1e999}']
)
def test_what_is_no_document_is_refused(journal, text):
    (journal.folder / "sweep.json").write_text(text)
    with pytest.raises(ConfigError, match="is damaged") as caught:
        Journal.opened(journal.folder)
    assert caught.value.hint == "start over with --force"


def test_a_document_as_it_was_written_is_read_back(journal):
    found = used(journal.folder)
    assert render_sweep(found) == render_sweep(found)
    assert found.trials == journal.trials
    assert (found.ground, found.rungs, found.complete) == (journal.ground, journal.rungs, True)
    assert not found.unmarked()


METRIC = json.dumps(GROUND["metric"])


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "null", "3", '"marks"', "[" * 100_000, "{}", '{"marks": [1, 0]}', f'{{"metric": {METRIC}}}',
        *(
            f'{{"metric": {METRIC}, "marks": {marks}}}'
            for marks in ("null", "3", '"ab"', "{}", "[]", "[1]", "[1, 0, 1]", '[1, "x"]', "[1, null]", "[[1], [0]]",
                          "[1, 2]", "[NaN, 0]", "[-1, 0]", f"[1{'0' * 400}, 0]")
        ),
    ],
)  # fmt: skip
def test_marks_that_are_damaged_count_as_none(journal, text):
    (journal.place(journal.trials[1]) / "score.json").write_text(text)
    found = used(journal.folder)
    assert found.unmarked() == [journal.trials[1]]
    assert found.lines()[1].metric is None


def test_a_changed_test_part_is_noticed(journal):
    now = {**GROUND, "metric": {**GROUND["metric"], "hash": "other"}}
    with pytest.raises(
        ConfigError, match=r"the test data is not what the sweep in .*hash is other, and was t"
    ):
        journal.check_ground(now)
    with pytest.raises(ConfigError, match=r"the test data is not what .*hash is none, and was t"):
        journal.check_ground({**GROUND, "metric": None})


def test_a_document_without_the_hash_of_the_test_part_is_gone_on_with(journal):
    path = journal.folder / "sweep.json"
    document = json.loads(path.read_text())
    del document["ground"]["metric"]["hash"]
    path.write_text(json.dumps(document))
    Journal.opened(journal.folder).check_ground(GROUND)


def test_what_is_left_of_tpe_counts_what_is_not_drawn_yet(tmp_path):
    how = {"search": "tpe", "trials": 20, "learning_rate": "1e-4..1e-2", "seed": [0, 1]}
    trials = [replace(a_trial(n, 2, "minimal"), state="finished" if n < 3 else "waiting") for n in range(4)]
    journal = Journal(tmp_path, Asked.of(how, None), GROUND, trials)
    assert journal.left == 37
    few = Journal(tmp_path, Asked.of({"search": "tpe", "rank": [2, 4, 8]}, None), GROUND, [])
    assert few.left == 3  # there are no more settings
    journal.complete = True
    assert journal.left == 0


def test_who_stops_a_sweep_is_told_of_all_trials(journal, monkeypatch):
    def stopped(*args, **kwargs):
        raise TrainingError("stopped by Ctrl-C; 0 of 1 trials are finished, and more", "go on")

    monkeypatch.setattr("scumble.train.sweep.running.train_many", stopped)
    journal.complete = False
    journal.trials[3] = replace(journal.trials[3], state="waiting")
    running = Running("some.jsonl", journal, SimpleNamespace(base=None), None, deadline=None, tpe=None)
    with pytest.raises(
        TrainingError, match=r"^stopped by Ctrl-C; 3 of 4 trials are over, and what the others"
    ) as caught:
        running._train([3])
    assert caught.value.hint == f"go on with: scumble sweep some.jsonl --out {journal.folder} --resume"


def test_what_goes_on_can_be_copied(journal):
    def command(data):
        return Running(data, journal, None, None, deadline=None, tpe=None)._command()

    journal.folder = Path("my sweep")
    assert command("my data.jsonl") == "go on with: scumble sweep 'my data.jsonl' --out 'my sweep' --resume"
    assert command([{"text": "a"}]) == "go on with: sweep(..., out='my sweep', resume=True)"


def test_a_trial_that_goes_on_from_an_adapter_has_no_shape_of_a_fresh_one():
    settled = [SimpleNamespace(learning_rate=0.01, steps=4)] * 2

    def settings(**values):
        space = Space.of({"learning_rate": [0.01, 0.02], **values})
        return trials_of(list(space.grid()), space, settled)[0].settings

    assert settings(from_="adapter") == {"learning_rate": 0.01, "seed": 0}
    assert settings(from_="adapter", rank=4) == {"rank": 4, "learning_rate": 0.01, "seed": 0}
    assert settings()["rank"] == 8
