"""Training checks its data first: errors stop it before anything is written, warnings come once and together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import scumble
from scumble.config import TrainOptions
from scumble.data.checks import leakage
from scumble.data.encoding import encode_all
from scumble.errors import DataError
from scumble.progress import Reporter
from scumble.train import judging
from scumble.train.material import encode_material, read_material
from tests.bases import chat, letters_tokenizer, make_letters_base, sums


@pytest.fixture(autouse=True)
def _can_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """Warnings do not depend on what is installed."""
    if not leakage.can_look():
        monkeypatch.setattr(leakage.Leakage, "found", lambda self, source: iter(()))


def written(path: Path, rows: list[Any]) -> str:
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return str(path)


def material(rows: Any, **options: Any) -> Any:
    settled = TrainOptions(**options)
    return encode_material(read_material(rows, settled), make_letters_base(), settled, Reporter(quiet=True))


def test_the_tokens_are_those_of_encoding_each_part_alone() -> None:
    read = read_material(sums(100), TrainOptions(eval=0.2))
    train, validation = material(sums(100), eval=0.2)
    assert train.examples == encode_all(read.train, letters_tokenizer(), 2048).examples
    assert validation.examples == encode_all(read.validation, letters_tokenizer(), 2048).examples
    assert [each.number for each in validation.examples] == list(range(len(read.validation)))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (chat("a", "b", "c")["messages"] + [{"role": "user", "content": "d"}], "message 4: user after user"),
        (
            [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0}],
            "no token carries a loss",
        ),
    ],
)
def test_an_error_stops_it_before_anything_is_written(tmp_path: Path, row: Any, message: str) -> None:
    data = written(tmp_path / "data.jsonl", [*sums(10), {"messages": row}])
    with pytest.raises(DataError) as caught:
        scumble.train(data, base=make_letters_base(), out=tmp_path / "run", eval=0, quiet=True)
    assert caught.value.message.startswith(f"{data}, line 11: ")
    assert message in caught.value.message
    assert caught.value.hint
    assert not (tmp_path / "run").exists()


def test_an_error_of_validation_stops_it_too(tmp_path: Path) -> None:
    wrong = [{"role": "user", "content": "a"}, *chat("b", "c")["messages"]]
    held = written(tmp_path / "held.jsonl", [*sums(3, start=50), {"messages": wrong}])
    with pytest.raises(DataError, match=r"held\.jsonl, line 4: message 2: user after user"):
        material(sums(80), eval=held)


def test_of_several_errors_the_first_is_named_and_the_rest_are_counted(tmp_path: Path) -> None:
    data = written(tmp_path / "data.jsonl", [*sums(10), "{", {"messages": 3}, "x"])
    with pytest.raises(DataError) as caught:
        read_material(data, TrainOptions())
    assert "line 11: not JSON" in caught.value.message
    assert caught.value.message.endswith("2 more are wrong")
    assert "scumble data check" in caught.value.hint
    assert (caught.value.kind, caught.value.line) == ("unreadable", 11)


def test_warnings_are_shown_once_and_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = written(tmp_path / "data.jsonl", [*sums(20), chat("x", ""), chat("y", "z"), chat("y", "z")])
    base = make_letters_base()
    scumble.train(data, base=base, out=tmp_path / "run", eval=0, epochs=1, max_steps=1)
    said = capsys.readouterr().err
    assert said.count("warning:") == 1
    assert "warning: 3 things about the data may go wrong" in said
    for title in ("answers that are empty", "examples that are there already", "few examples for this rank"):
        assert said.count(title) <= 1
    assert "line 21" in said
    assert "line 23: as in line 22" in said
    assert said.index("may go wrong") < said.index("adapter of rank")


def test_good_data_has_no_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scumble.train(sums(80), base=make_letters_base(), out=tmp_path / "run", epochs=1, max_steps=1)
    assert "warning" not in capsys.readouterr().err


def test_the_options_of_data_hold_for_training(tmp_path: Path) -> None:
    conversations = [chat("a", "bbb", "c", f"{i}") for i in range(70)]
    everything, _ = material(conversations, eval=0)
    last, _ = material(conversations, eval=0, train_on="last")
    assert everything.targets - last.targets == 70 * 4  # three letters and the end
    alpaca = [{"instruction": f"{i}", "input": "", "output": "b", "text": "Below."} for i in range(70)]
    assert material(alpaca, eval=0, format="text")[0].tokens < material(alpaca, eval=0)[0].tokens
    template = tmp_path / "template.jinja"
    template.write_text(letters_tokenizer().chat_template.replace("<|im_start|>", "<|im_start|>:"))
    longer, _ = material(conversations, eval=0, template=str(template))
    assert longer.tokens == everything.tokens + 70 * 4
    assert longer.targets == everything.targets


def test_plain_texts_are_trained_on_and_validated_without_answers(tmp_path: Path) -> None:
    texts = [{"text": f"Once there were {i} of them, and then {i * i}."} for i in range(80)]
    run = scumble.train(
        texts, base=make_letters_base(), out=tmp_path / "run", epochs=1, max_steps=2, quiet=True
    )
    facts = json.loads((run.out / "run.json").read_text())
    assert facts["data"]["targets"] == facts["data"]["tokens"]
    assert run.loss["best_eval"] is not None


def test_before_and_after_are_asked_in_the_template_that_was_trained_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    compare = judging.compare_in_bank

    def spy(bank: Any, name: str, tokenizer: Any, *args: Any, **options: Any) -> Any:
        asked.append(tokenizer.chat_template)
        return compare(bank, name, tokenizer, *args, **options)

    monkeypatch.setattr(judging, "compare_in_bank", spy)
    template = tmp_path / "template.jinja"
    template.write_text(letters_tokenizer().chat_template.replace("<|im_start|>", "<|im_start|>:"))
    base = make_letters_base()
    options: dict[str, Any] = {"template": str(template), "epochs": 1, "max_steps": 1, "quiet": True}
    scumble.train(sums(80), base=base, out=tmp_path / "run", examples_in_report=1, **options)
    assert asked == [template.read_text()]
    assert base.tokenizer.chat_template == letters_tokenizer().chat_template
