"""What carries a loss: the assistant's content and its end token, found by offsets and shown here as text."""

from __future__ import annotations

from typing import Any

import pytest

from scumble.data.encoding import Encoded, encode, encode_all, encode_prompt
from scumble.data.examples import Example, read_examples
from scumble.errors import DataError
from tests.bases import BEGIN, BEGUN, CHATML, END, chat, letters_tokenizer, sums

# Llama 3's way: contents are trimmed, and no line break follows the end token.
TRIMMED = (
    "{{ bos_token }}{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n\n' + m['content'] | trim + '<|im_end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n\n' }}{% endif %}"
)
# Qwen 3's way: what the model thought in earlier turns is taken out once the user speaks again.
FORGETS = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + (m['content'] if loop.last else m['content'][:1]) "
    "+ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
ENDLESS = (
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


def one(row: dict[str, Any]) -> Example:
    return read_examples([row])[0]


def shown(found: Encoded, tokenizer: Any) -> list[str]:
    """The text of each stretch of supervised tokens."""
    stretches: list[list[int]] = []
    previous = False
    for token, supervised in zip(found.ids, found.supervised, strict=True):
        if supervised:
            stretches = stretches if previous else [*stretches, []]
            stretches[-1].append(token)
        previous = supervised
    return [tokenizer.decode(stretch) for stretch in stretches]


@pytest.mark.parametrize("template", [CHATML, BEGUN, TRIMMED])
@pytest.mark.parametrize("adds_begin", [False, True])
@pytest.mark.parametrize(
    "row",
    [
        chat("hi", "yes 12"),
        chat("hi", "yes", "and now?", "no", "hm", "é 中 \U0001f600!"),
        chat("a\nb", "c\nd", system="You are brief."),
        chat("say assistant", "assistant"),
    ],
)
def test_the_loss_covers_contents_and_end_tokens_and_nothing_else(
    template: str, adds_begin: bool, row: dict[str, Any]
) -> None:
    tokenizer = letters_tokenizer(template, adds_begin=adds_begin)
    found = encode(one(row), tokenizer, 7)
    answers = [m["content"] for m in row["messages"] if m["role"] == "assistant"]
    assert shown(found, tokenizer) == [answer + END for answer in answers]
    assert found.number == 7
    assert found.targets == sum(len(answer.encode()) + 1 for answer in answers)
    # the whole is what the template renders, tokenized once
    text = tokenizer.apply_chat_template(row["messages"], tokenize=False)
    assert tokenizer.decode(found.ids) == text
    assert list(found.ids) == tokenizer(text, add_special_tokens=False)["input_ids"]
    assert found.ids.count(tokenizer.convert_tokens_to_ids(BEGIN)) == (template != CHATML)


def test_the_prompt_is_what_comes_before_the_answer() -> None:
    tokenizer = letters_tokenizer(BEGUN, adds_begin=True)
    example = one(chat("hi", "yes", "more", "ok"))
    found = encode(example, tokenizer)
    prompt = encode_prompt(example.prompt, tokenizer)
    assert tuple(prompt) == found.ids[: len(prompt)]
    assert tokenizer.decode(found.ids[len(prompt) :]) == f"ok{END}\n"
    assert prompt.count(tokenizer.convert_tokens_to_ids(BEGIN)) == 1


def test_an_empty_answer_is_its_end_token() -> None:
    tokenizer = letters_tokenizer()
    assert shown(encode(one(chat("hi", "")), tokenizer), tokenizer) == [END]


def test_a_template_that_rewrites_earlier_turns_is_refused() -> None:
    tokenizer = letters_tokenizer(FORGETS)
    assert shown(encode(one(chat("h", "yes")), tokenizer), tokenizer) == ["yes" + END]
    with pytest.raises(DataError, match=r"rewrites earlier turns.*message 2"):
        encode(one(chat("h", "yes", "m", "no")), tokenizer)


def test_the_whole_must_extend_the_prompt() -> None:
    other = CHATML.replace("{% if add_generation_prompt %}", "{% if add_generation_prompt %}{{ 'think\n' }}")
    with pytest.raises(DataError, match="rewrites earlier turns"):
        encode(one(chat("hi", "yes")), letters_tokenizer(other))


@pytest.mark.parametrize("answer", ["yes", "a <|im_end|> b", "<s> yes"])
def test_a_template_without_an_end_token_is_refused(answer: str) -> None:
    # a special token within the answer is no end of it
    with pytest.raises(DataError, match="without an end token") as caught:
        encode(one(chat("hi", answer)), letters_tokenizer(ENDLESS))
    assert "never learn to stop" in caught.value.hint


def test_a_tokenizer_without_a_template_is_refused() -> None:
    with pytest.raises(DataError, match="no chat template"):
        encode(one(chat("hi", "yes")), letters_tokenizer(None))
    with pytest.raises(DataError, match="no chat template"):
        encode_prompt([{"role": "user", "content": "hi"}], letters_tokenizer(None))


def test_two_begin_tokens_are_refused() -> None:
    with pytest.raises(DataError, match="two begin tokens"):
        encode(one(chat("hi", "yes")), letters_tokenizer("{{ bos_token }}" + BEGUN))


@pytest.mark.parametrize(
    "template", ["{{ raise_exception('no') }}", "{{ messages[9]['role'] }}", "{{ 1 // 0 }}", "{% if %}"]
)
def test_a_template_that_fails_is_named_with_the_line(template: str) -> None:
    with pytest.raises(DataError, match=r"the data, example 1: the chat template refuses it"):
        encode(one(chat("hi", "yes")), letters_tokenizer(template))


def test_an_assistant_who_begins_is_refused_by_line() -> None:
    with pytest.raises(DataError, match="example 1"):
        encode(one({"messages": [{"role": "assistant", "content": "hi"}]}), letters_tokenizer())


def test_too_long_examples_are_left_out_whole_and_named() -> None:
    tokenizer = letters_tokenizer()
    rows = [chat("hi", "yes"), chat("hi", "y" * 100), chat("hi", "no")]
    lengths = [len(e.ids) for e in encode_all(read_examples(rows), tokenizer, 4096).examples]
    found = encode_all(read_examples(rows), tokenizer, 50)
    assert [e.number for e in found.examples] == [0, 2]
    assert found.too_long == [("the data, example 2", lengths[1])]
    assert (found.tokens, found.targets) == (lengths[0] + lengths[2], 4 + 3)
    # at the very length nothing is cut, and one below, everything is left out
    whole = encode_all(read_examples(rows), tokenizer, max(lengths))
    assert [len(e.ids) for e in whole.examples] == lengths
    assert not whole.too_long
    with pytest.raises(DataError, match=f"shortest has {min(lengths)}") as caught:
        encode_all(read_examples(rows), tokenizer, min(lengths) - 1)
    assert str(max(lengths)) in caught.value.hint


@pytest.mark.real
class TestSmolLM2:
    @pytest.fixture(scope="class")
    @classmethod
    def tokenizer(cls, tiny_base_folder: Any) -> Any:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(tiny_base_folder)

    @pytest.mark.parametrize("system", [None, "Be brief."])
    def test_contents_and_end_tokens(self, tokenizer: Any, system: str | None) -> None:
        row = chat("every day at 12:30", "30 12 * * *", "and at\nnoon?", " 0 12 * * *\n", system=system)
        found = encode(one(row), tokenizer)
        assert shown(found, tokenizer) == ["30 12 * * *<|im_end|>", " 0 12 * * *\n<|im_end|>"]

    def test_no_token_reaches_from_the_prompt_into_the_answer(self, tokenizer: Any) -> None:
        # " 0" after a line break is the token of a break and a space, which the prompt would take with it
        assert any(a < 5 < b for a, b in tokenizer("hey:\n 0", return_offsets_mapping=True)["offset_mapping"])
        for answer in (" 0 12 * * *", "\n\nyes", "  yes"):
            example = one(chat("noon", answer))
            found, prompt = encode(example, tokenizer), encode_prompt(example.prompt, tokenizer)
            assert found.ids[: len(prompt)] == tuple(prompt)
            assert tokenizer.decode(found.ids).endswith(f"assistant\n{answer}<|im_end|>\n")

    def test_shipped_sets(self, tokenizer: Any) -> None:
        for name in ("cron", "tickets"):
            for example in read_examples(name, "validation")[:20]:
                found = encode(example, tokenizer)
                assert shown(found, tokenizer) == [example.expected + "<|im_end|>"]
                prompt = encode_prompt(example.prompt, tokenizer)
                assert found.ids[: len(prompt)] == tuple(prompt)

    def test_the_default_system_prompt_has_no_loss(self, tokenizer: Any) -> None:
        found = encode(one(sums(1)[0]), tokenizer)
        assert "SmolLM" in tokenizer.decode(found.ids)
        assert not any("SmolLM" in text for text in shown(found, tokenizer))
