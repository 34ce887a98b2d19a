"""`bench train` on a tiny base: the systems compute the same thing, and the figures are of what they claim to be."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from scumble.errors import ConfigError, DataError, TrainingError
from scumble.lab import bench_train as bench
from scumble.lab import train_worker
from scumble.lab.bench_train import bench_train
from scumble.lab.docstrings import chats, shuffled
from scumble.lab.train_job import TrainJob
from scumble.lab.train_material import Wanted, prepare
from scumble.lab.train_roof import Work, roof
from scumble.lab.train_systems import SYSTEMS, Layout, Trained, load_system
from scumble.lab.train_worker import Served, Worker, _commands
from tests.bases import make_letters_base, sums

EIGHT = 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny base as a folder, and eight chats of different lengths."""
    place = tmp_path_factory.mktemp("bench")
    base = make_letters_base()
    base.model.save_pretrained(place / "base")
    base.tokenizer.save_pretrained(place / "base")
    (place / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in sums(EIGHT)))
    return place


def job_of(folder: Path, tmp_path: Path, *, steps: int = 2, system_prompt: int = 0) -> TrainJob:
    wanted = Wanted(
        steps=steps,
        rounds=1,
        data=folder / "chats.jsonl",
        base=str(folder / "base"),
        system_prompt=system_prompt,
        dropout=0.0,
        seed=0,
        examples=EIGHT,
        batch=4,
    )
    return prepare(tmp_path, wanted).job


def trained(name: str, job: TrainJob, out: Path, layout: Layout | None = None) -> Trained:
    system = load_system(name, job)
    return system.train(job, layout or system.layouts[0], out)


def by_hand(job: TrainJob, adapter: Path | str) -> float:
    """The mean loss over the supervised tokens, one example at a time."""
    model = PeftModel.from_pretrained(make_letters_base().model, str(adapter))
    total, count = 0.0, 0
    for ids, labels in zip(job.ids, job.labels, strict=True):
        scores = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        for place, label in enumerate(labels):
            if place and label != -100:
                total -= float(scores[place - 1, label])
                count += 1
    return total / count


def test_the_systems_train_the_same_thing(folder: Path, tmp_path: Path) -> None:
    job = job_of(folder, tmp_path)
    job = replace(job, learning_rate=1e-3)
    found = {
        "script": trained("script", job, tmp_path / "script"),
        "padded": trained("trl_best", job, tmp_path / "padded", Layout(4)),
        "end to end": trained("trl_best", job, tmp_path / "packed", Layout(8, padded=False)),
        "scumble": trained("scumble", job, tmp_path / "scumble"),
    }
    first = by_hand(job, job.start)
    for name, each in found.items():
        assert each.seconds > 0, name
        assert len(each.losses) == job.steps, name
        # transformers rounds what it logs to four digits; a mean over micro-batches would be off by a tenth
        assert each.losses[0] == pytest.approx(first, abs=1e-3), name
    last = {name: by_hand(job, each.adapter) for name, each in found.items()}
    for name, loss in last.items():
        # AdamW's first steps are all of one size, whatever the gradient: rounding shows in single numbers only
        assert loss == pytest.approx(last["script"], abs=1e-3), name
        assert loss < first - 5e-3, name


def test_trl_with_its_defaults_learns_the_whole_conversation_in_bf16(folder: Path, tmp_path: Path) -> None:
    job = job_of(folder, tmp_path, steps=1)
    found = trained("trl", job, tmp_path / "trl")
    whole = replace(job, labels=job.ids)
    # bf16 has 8 bits; the answers alone have another loss by far
    assert found.losses[0] == pytest.approx(by_hand(whole, job.start), rel=0.02)
    assert found.losses[0] != pytest.approx(by_hand(job, job.start), rel=0.02)


def test_every_round_begins_with_the_same_adapter(folder: Path, tmp_path: Path) -> None:
    job = job_of(folder, tmp_path, steps=1)
    for name in ("script", "scumble"):
        system = load_system(name, job)
        one, two = (system.train(job, system.layouts[0], tmp_path / f"{name}{i}") for i in range(2))
        assert one.losses == two.losses, name
        assert by_hand(job, one.adapter) == by_hand(job, two.adapter), name


def test_tokens_are_those_of_the_examples(folder: Path, tmp_path: Path) -> None:
    job = job_of(folder, tmp_path)
    plain = make_letters_base().tokenizer
    texts = [plain.apply_chat_template(row["messages"], tokenize=False) for row in job.chats]
    assert job.tokens == sum(len(plain(text, add_special_tokens=False)["input_ids"]) for text in texts)
    assert 0 < job.targets < job.tokens
    assert job.distinct < job.tokens  # all begin with <|im_start|>user and a line break
    assert sorted(job.order(0)) == sorted(job.order(1)) == list(range(EIGHT))
    assert job.order(0) != job.order(1)
    lengths = [len(job.ids[number]) for number in job.order(0, by_length=True)]
    assert lengths == sorted(lengths)
    half = job.halved()
    assert len(half.ids) == EIGHT // 2
    assert max(map(len, half.ids)) == max(map(len, job.ids))
    assert TrainJob.read(job.write(tmp_path / "job.json")) == job


def test_a_system_prompt_stands_before_every_example(folder: Path, tmp_path: Path) -> None:
    without, job = job_of(folder, tmp_path / "a"), job_of(folder, tmp_path / "b", system_prompt=100)
    assert all(row["messages"][0]["role"] == "system" for row in job.chats)
    texts = {row["messages"][0]["content"] for row in job.chats}
    assert len(texts) == 1
    assert 80 < len(texts.pop().encode()) <= 100  # a token of this base is a byte
    more = job.tokens - without.tokens
    assert EIGHT * 80 < more < EIGHT * 130
    assert job.distinct - without.distinct < more / 4  # counted once


def test_too_few_chats_and_numbers_out_of_range_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has 8 chats of at most 2048 tokens, and 16 are needed"):
        bench_train(base=str(folder / "base"), data=folder / "chats.jsonl", quiet=True)
    for wrong in (
        {"steps": 0},
        {"rounds": 0},
        {"examples": 12},
        {"batch": 3},
        {"dropout": 1.0},
        {"systems": []},
    ):
        with pytest.raises(ConfigError):
            bench_train(**wrong, quiet=True)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="systems is unsloth"):
        bench_train(systems=["unsloth"], quiet=True)


def test_a_layout_in_which_examples_see_each_other_is_not_taken(folder: Path, tmp_path: Path) -> None:
    job = job_of(folder, tmp_path, steps=1)
    served = Served("trl_best", job)

    def train(job: TrainJob, layout: Layout, out: Path) -> Trained:
        return Trained(
            0.1 if not layout.padded else 1 / layout.batch, (2.0 + 0.01 * (not layout.padded),), out
        )

    served.system.train = train  # type: ignore[method-assign]
    found = served.choose_layout(torch.get_num_threads())
    assert found["layout"] == {"batch": 8, "padded": True}
    assert {each["same_loss"] for each in found["tried"] if not each["layout"]["padded"]} == {False}


def test_trl_end_to_end_sees_its_own_example_only(folder: Path, tmp_path: Path) -> None:
    job = job_of(folder, tmp_path, steps=1)
    found = Served("trl_best", job).choose_layout(torch.get_num_threads())
    assert all(each["same_loss"] for each in found["tried"])
    assert len(found["tried"]) == 7  # 1, 2, 4, 8 padded; 2, 4, 8 end to end


class Here:
    """A worker without a process."""

    closed = 0

    def __init__(self, name: str, job: Path, log: Path) -> None:
        self.name, self.job, self.commands = name, job, None

    def ask(self, what: str, **given: Any) -> Any:
        self.commands = self.commands or _commands(self.name, TrainJob.read(self.job))
        return json.loads(json.dumps(self.commands[what](**given)))

    def close(self) -> None:
        Here.closed += 1


def test_all_of_it(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "Worker", Here)
    monkeypatch.setattr(train_worker, "resident_bytes", lambda: 1)
    monkeypatch.setattr(bench, "_thread_counts", lambda: [1])
    first = lambda self, threads: {"layout": asdict(self.system.layouts[0]), "tried": []}  # noqa: E731
    monkeypatch.setattr(Served, "choose_layout", first)  # the search has a test of its own
    monkeypatch.setattr("scumble.lab.train_roof.ROWS", (16,))
    threads = torch.get_num_threads()
    try:
        found = bench_train(
            steps=1, rounds=2, base=str(folder / "base"), data=folder / "chats.jsonl", examples=EIGHT, dropout=0.0,
            plot=tmp_path / "plot.svg", quiet=True,
        )  # fmt: skip
    finally:
        torch.set_num_threads(threads)
    document = json.loads(json.dumps(found.to_dict()))
    assert [each["name"] for each in document["systems"]] == list(SYSTEMS)
    assert set(document["ratios"]) == {"script", "trl", "trl_best"}
    by_name = {each["name"]: each for each in document["systems"]}
    for each in document["systems"]:
        assert min(each["tokens_per_second"], each["peak_bytes"], each["loss"]) > 0
        assert len(each["rounds"]) == 2
        share = document["matmul_share"][each["name"]]
        assert 0 < share["lowest"] <= share["median"] <= share["highest"]
    ours, script = by_name["scumble"]["rounds"], by_name["script"]["rounds"]
    assert document["ratios"]["script"]["highest"] == max(a / b for a, b in zip(ours, script, strict=True))
    # what is trained is the same, rounding aside
    assert by_name["scumble"]["loss"] == pytest.approx(by_name["script"]["loss"], abs=1e-3)
    assert by_name["scumble"]["loss"] < document["start_loss"]
    plot = (tmp_path / "plot.svg").read_text()
    assert "<svg" in plot
    assert "Scumble" in plot


def test_a_library_that_is_missing_is_left_out(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "Worker", Here)
    monkeypatch.setattr("scumble.lab.train_roof.ROWS", (16,))
    found_spec = bench.importlib.util.find_spec
    monkeypatch.setattr(
        bench.importlib.util, "find_spec", lambda name: None if name == "trl" else found_spec(name)
    )
    found = bench_train(
        steps=1, rounds=1, base=str(folder / "base"), data=folder / "chats.jsonl", examples=EIGHT,
        systems=["trl", "scumble"], quiet=True,
    )  # fmt: skip
    assert found.absent == {"trl": "trl is not installed"}
    assert [each.name for each in found.systems] == ["scumble"]
    assert found.ratios == {}


def test_a_process_answers_and_says_why_it_failed(folder: Path, tmp_path: Path) -> None:
    file = job_of(folder, tmp_path).write(tmp_path / "job.json")
    worker = Worker("roof", file, tmp_path / "log")
    try:
        found = worker.ask("roof", shapes=[[8, 16]], threads=[1])
        assert found["operations"] > 0
        with pytest.raises(TrainingError, match="roof: KeyError: 'nonsense'"):
            worker.ask("nonsense")
        worker.process.kill()
        worker.process.wait()
        with pytest.raises(TrainingError, match="the process of roof ended"):
            worker.ask("roof", shapes=[[8, 16]], threads=[1])
    finally:
        worker.close()
    assert worker.process.returncode is not None


def test_the_work_of_a_token() -> None:
    # 4 operations a weight: forward and backward, a multiplication and an addition each
    assert Work(weights=100, head=40, supervised=0.25, distinct=1.0).operations == 440
    assert Work(weights=100, head=40, supervised=0.25, distinct=0.5).operations == 240
    found = roof([(8, 16), (8, 16), (16, 8)], [1], [4, 8])
    assert found.operations > 0
    assert found.rows in (4, 8)


def test_chats_of_docstrings(tmp_path: Path) -> None:
    (tmp_path / "module.py").write_text(
        'def add(a, b):\n    """Add two numbers."""\n    return a + b\n\n'
        'def only():\n    """Nothing else."""\n\ndef none(a):\n    return a\n'
        'def less(a, b):\n    """Take one from the other."""\n    return a - b\n'
    )
    (tmp_path / "broken.py").write_text("def (")
    found = list(chats(tmp_path))
    assert [row["messages"][1]["content"] for row in found] == [
        "Add two numbers.",
        "Take one from the other.",
    ]
    assert "return a + b" in found[0]["messages"][0]["content"]
    assert "Add two" not in found[0]["messages"][0]["content"]
    assert (found[0]["module"], found[0]["line"]) == ("module", 1)
    # neither the order of reading nor another chat moves one
    assert shuffled(iter(found), 5) == shuffled(iter(found[::-1]), 5)
