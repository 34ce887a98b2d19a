"""Marks of one forward pass against what generation writes."""

import pytest

from scumble.compare.exact import exact_by_forward
from scumble.compare.generation import answer
from scumble.data.encoding import encode_each, encode_prompt
from scumble.data.examples import read_examples
from scumble.lora.bank import Bank
from scumble.models import packable
from scumble.train.run import train
from tests.bases import chat, letters_tokenizer, make_letters_base, sums


def _encoded(rows, tokenizer):
    return list(encode_each(read_examples(rows), tokenizer, train_on="last"))


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """A bank with an adapter that knows some of its examples by heart, and the examples."""
    rows = [chat(f"{'is ' * (i % 3)}{i}?", ("yes", "no!", "maybe 7")[i * i % 3]) for i in range(8)] + sums(
        4, 9
    )
    base, folder = make_letters_base(), tmp_path_factory.mktemp("exact") / "run"
    how = {"max_steps": 120, "epochs": 500, "batch": 8, "learning_rate": 0.02, "rank": 16, "alpha": 16}
    train(
        rows[:8], out=folder, base=base, targets="all-linear", eval=0, quiet=True, examples_in_report=0, **how
    )
    bank = Bank(base)
    bank.add("sums", folder)
    yield bank, rows
    bank.close()


def test_the_marks_are_those_of_generation(learned):
    bank, rows = learned
    tokenizer = letters_tokenizer()
    examples = read_examples(rows)
    prompts = [encode_prompt(example.prompt, tokenizer) for example in examples]
    with bank.using("sums"):
        texts = answer(bank.model, tokenizer, prompts, max_new_tokens=24)
        marks = exact_by_forward(bank.model, _encoded(rows, tokenizer))
    assert marks == [text == e.expected for text, e in zip(texts, examples, strict=True)]
    assert 2 <= sum(marks) < len(marks), "the adapter should know some of them, and not all"


def test_another_answer_and_another_end_are_wrong(learned):
    bank, rows = learned
    tokenizer = letters_tokenizer()
    with bank.using("sums"):
        known = [
            r for r, m in zip(rows, exact_by_forward(bank.model, _encoded(rows, tokenizer)), strict=True) if m
        ]
        question, expected = (turn["content"] for turn in known[0]["messages"])
        others = [
            chat(question, expected[:-1]),
            chat(question, expected + "!"),
            chat(question, "x" + expected[1:]),
        ]
        marks = exact_by_forward(bank.model, _encoded([chat(question, expected), *others], tokenizer))
    assert marks == [True, False, False, False]


@pytest.mark.parametrize("ways", ["padded", "own logits"])
def test_every_way_to_compute_gives_the_same_marks(learned, monkeypatch, ways):
    bank, rows = learned
    encoded = _encoded(rows, letters_tokenizer())
    with bank.using("sums"):
        marks = exact_by_forward(bank.model, encoded)
        found = packable.Ways(ways != "padded", False, "")
        monkeypatch.setitem(packable._known, bank.model, found)
        assert exact_by_forward(bank.model, encoded, batch=3) == marks


def test_few_logits_at_once_change_nothing(learned, monkeypatch):
    import scumble.compare.exact as exact

    bank, rows = learned
    encoded = _encoded(rows, letters_tokenizer())
    with bank.using("sums"):
        marks = exact_by_forward(bank.model, encoded)
        monkeypatch.setattr(exact, "_CHUNK_BYTES", 1)
        assert exact_by_forward(bank.model, encoded) == marks


def test_nothing_to_mark(learned):
    bank, _ = learned
    assert exact_by_forward(bank.model, []) == []
    seen: list[int] = []
    encoded = _encoded(sums(5), letters_tokenizer())
    exact_by_forward(bank.model, encoded, batch=2, done=seen.append)
    assert sum(seen) == 5
