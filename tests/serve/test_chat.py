"""A conversation: who answers, without loading anything again; the stream; errors in it."""

import threading
from itertools import islice

import pytest
import torch

from scumble.compare.generation import generate, stream
from scumble.data.encoding import encode_prompt
from scumble.errors import ConfigError, DataError, ScumbleError
from scumble.lora.bank import Bank
from scumble.serve.chat import Chat
from tests.bases import make_letters_base

LENGTH = 12


@pytest.fixture
def chat() -> Chat:
    """A chat with two adapters that each change what is answered."""
    base = make_letters_base()
    bank = Bank(base)
    for seed, name in enumerate(("legal", "medical")):
        from scumble.lora.spec import LoraSpec

        bank.trainable(name, LoraSpec(rank=4, alpha=8, targets="comprehensive"), seed=seed)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in bank.parameters(name).values():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
                parameter.requires_grad_(False)
    return Chat(bank, base.tokenizer, max_new_tokens=LENGTH)


def say(chat: Chat, line: str) -> str:
    return "".join(chat.say(line))


def alone(chat: Chat, mixture, messages) -> str:
    prompt = encode_prompt(messages, chat.tokenizer)
    [[text]] = generate(chat.bank, chat.tokenizer, [prompt], [mixture], max_new_tokens=LENGTH)
    return text


QUESTION = [{"role": "user", "content": "what is due?"}]


@pytest.mark.parametrize("mixture", ["base", "legal", "legal*0.7+medical*-0.3"])
def test_the_stream_says_what_greedy_generation_says(chat, mixture):
    say(chat, f"/use {mixture}")
    assert say(chat, "what is due?").strip() == alone(chat, mixture, QUESTION)


def test_the_adapters_answer_differently(chat):
    answers = {
        alone(chat, mixture, QUESTION) for mixture in ("base", "legal", "medical", "legal*0.7+medical*0.3")
    }
    assert len(answers) == 4


def test_use_loads_nothing(chat, monkeypatch):
    say(chat, "hello")
    before = {
        path: (id(module), *map(id, module.parameters())) for path, module in chat.bank.model.named_modules()
    }
    pointers = [parameter.data_ptr() for parameter in chat.bank.model.parameters()]
    monkeypatch.setattr("scumble.lora.adapter.Adapter.load", lambda *args: pytest.fail("loaded again"))
    for mixture in ("legal", "base", "medical*0.5+legal", "legal"):
        assert say(chat, f"/use {mixture}") == f"now answering: {mixture}"
        say(chat, "hello")
    after = {
        path: (id(module), *map(id, module.parameters())) for path, module in chat.bank.model.named_modules()
    }
    assert before == after
    assert pointers == [parameter.data_ptr() for parameter in chat.bank.model.parameters()]


def test_after_an_answer_the_bank_is_as_it_was(chat):
    chat.bank.use("medical")
    say(chat, "/use legal")
    say(chat, "hello")
    assert chat.bank.routing.uses(chat.bank._slots["medical"])


def test_compare_gives_both(chat):
    say(chat, "/use legal")
    say(chat, "what is due?")
    text = say(chat, "/compare")
    assert text == f"base: {alone(chat, 'base', QUESTION)}\nlegal: {alone(chat, 'legal', QUESTION)}"


def test_compare_with_the_base_in_use_asks_every_adapter(chat):
    say(chat, "hello")
    say(chat, "/use base")
    titles = [line.partition(":")[0] for line in say(chat, "/compare").splitlines() if ":" in line]
    assert titles[0] == "base"
    assert set(chat.bank.names) <= set(titles)


def test_compare_asks_the_last_question_again_with_what_was_said_before(chat):
    chat.system = "be short"
    say(chat, "one")
    said = chat.turns[-1]["content"]
    say(chat, "two")
    messages = [
        {"role": "system", "content": "be short"},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": said},
        {"role": "user", "content": "two"},
    ]
    assert say(chat, "/compare").splitlines()[0] == f"base: {alone(chat, 'base', messages)}".splitlines()[0]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/use nobody", "no adapter 'nobody'"),
        ("/use legal*", "cannot be read at position"),
        ("/use legal*0.5+nobody", "no adapter 'nobody'"),
        ("/compare", "no question yet"),
        ("/nope", "/nope is not known"),
        ("/USE legal", "/USE is not known"),
    ],
)
def test_what_is_not_known_is_refused_and_changes_nothing(chat, line, message):
    say(chat, "/use medical")
    with pytest.raises(ScumbleError, match=message):
        say(chat, line)
    assert (chat.mixture, chat.turns, chat.over) == ("medical", [], False)


def test_use_without_a_name_is_the_base(chat):
    say(chat, "/use legal")
    assert say(chat, "/use") == "now answering: base"


def test_reset_quit_and_help(chat):
    say(chat, "one")
    assert len(chat.turns) == 2
    say(chat, "/reset")
    assert chat.turns == []
    assert "legal, medical" in say(chat, "/help")
    assert say(chat, "  ") == ""
    say(chat, "/quit")
    assert chat.over


@pytest.mark.timeout(60)
def test_closing_the_stream_ends_the_generation(chat):
    threads = threading.active_count()
    prompt = encode_prompt(QUESTION, chat.tokenizer)
    # to its end it would take hours
    pieces = stream(chat.bank, chat.tokenizer, prompt, max_new_tokens=1_000_000)
    list(islice(pieces, 5))
    pieces.close()
    assert threading.active_count() == threads


def endless(*args, **kwargs):
    while True:
        yield "so "


@pytest.mark.parametrize(("taken", "turns"), [(0, []), (2, ["go on", "so so"])])
def test_a_stopped_answer_stays_as_far_as_it_went(chat, monkeypatch, taken, turns):
    monkeypatch.setattr("scumble.serve.chat.stream", endless)
    answer = chat.say("go on")
    list(islice(answer, taken))
    answer.close()
    assert [turn["content"] for turn in chat.turns] == turns


def test_an_answer_ends_where_the_base_reads_no_further(chat, monkeypatch):
    asked = {}

    def stub(*args, **kwargs):
        asked.update(kwargs)
        yield "yes"

    monkeypatch.setattr("scumble.serve.chat.stream", stub)
    chat.max_new_tokens = 5000
    say(chat, "x" * 900)
    assert 0 < asked["max_new_tokens"] < 1024 - 900


class BrokenError(RuntimeError):
    """What a test makes the model raise."""


def break_model(chat, monkeypatch, after: int) -> None:
    calls = []
    forward = chat.bank.model.forward

    def broken(*args, **kwargs):
        calls.append(1)
        if len(calls) > after:
            raise BrokenError("at call " + str(len(calls)))
        return forward(*args, **kwargs)

    monkeypatch.setattr(chat.bank.model, "forward", broken)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("after", [0, 3])
def test_an_error_in_the_generation_is_raised_and_never_waited_for(chat, monkeypatch, after):
    break_model(chat, monkeypatch, after)
    pieces = stream(chat.bank, chat.tokenizer, encode_prompt(QUESTION, chat.tokenizer), max_new_tokens=9)
    with pytest.raises(BrokenError):
        list(pieces)
    monkeypatch.undo()
    assert say(chat, "hello") == "" or chat.turns


def test_a_question_whose_answer_failed_is_forgotten(chat, monkeypatch):
    break_model(chat, monkeypatch, 0)
    with pytest.raises(BrokenError):
        say(chat, "hello")
    assert chat.turns == []


def test_a_conversation_longer_than_the_base_reads_is_refused(chat):
    with pytest.raises(DataError, match="the base reads 1024 at most") as refused:
        say(chat, "x" * 1100)
    assert "/reset" in refused.value.hint
    assert chat.turns == []
    say(chat, "short")


def test_sampling_differs_from_greedy(chat):
    greedy = say(chat, "hello")
    say(chat, "/reset")
    chat.temperature = 50.0
    assert say(chat, "hello") != greedy


def test_the_config_error_names_the_commands(chat):
    with pytest.raises(ConfigError) as refused:
        say(chat, "/halp")
    assert "/use" in refused.value.hint
