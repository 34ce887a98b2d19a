"""Which characters carry a loss, where marks, weights and templates make it hard; shown as text between ⟦ and ⟧."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from scumble.data.encoding import encode, encode_each
from scumble.data.example import Example
from scumble.data.masks import mask
from scumble.data.templates import Template, load_template
from scumble.errors import DataError, NotSupportedError
from tests.bases import CHATML, END, START, chat, letters_tokenizer

MARKED = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] + '<|im_end|>\n' }}{% endgeneration %}"
    "{% else %}{{ m['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# marks that lie around everything, so that a mask of all ones would come of them
TOO_WIDE = "{% generation %}" + CHATML + "{% endgeneration %}"
# marks that lie around nothing
EMPTY = CHATML + "{% generation %}{% endgeneration %}"
# thoughts are taken out of all turns but the last one, and the marks cover them
THINKS = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['role'] == 'assistant' %}"
    "{% if loop.last %}{% generation %}{{ '<think>so</think>' }}{% endgeneration %}{% endif %}"
    "{% generation %}{{ m['content'] + '<|im_end|>\n' }}{% endgeneration %}"
    "{% else %}{{ m['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>' }}{% endif %}"
)
CALLS = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Paris"}}}


def example(*turns: str, **weights: int) -> Example:
    messages = chat(*turns)["messages"]
    for at, weight in weights.items():
        messages[int(at.removeprefix("at"))]["weight"] = weight
    return Example(tuple(messages), "here", number=3)


def drawn(given: Example, template: str, train_on: Any = "all") -> str:
    """The text, each stretch of tokens with a loss in ⟦⟧."""
    tokenizer = letters_tokenizer(template)
    found = encode(given, tokenizer, train_on=train_on)
    text, inside = "", False
    for token, loss in zip(found.ids, found.supervised, strict=True):
        text += ("⟦" if loss and not inside else "⟧" if inside and not loss else "") + str(
            tokenizer.decode([token])
        )
        inside = loss
    return text + "⟧" * inside


@pytest.mark.parametrize("template", [CHATML, MARKED, TOO_WIDE])
def test_weights_and_the_last_turn(template: str) -> None:
    turns = ("hi", "a", "and", "b", "hm", "c")
    head = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    middle = "\n<|im_start|>user\nand<|im_end|>\n<|im_start|>assistant\n"
    tail = "\n<|im_start|>user\nhm<|im_end|>\n<|im_start|>assistant\n"
    all_three = f"{head}⟦a{END}⟧{middle}⟦b{END}⟧{tail}⟦c{END}⟧\n"
    assert drawn(example(*turns), template) == all_three
    assert drawn(example(*turns, at1=1, at3=1, at5=1), template) == all_three
    assert drawn(example(*turns, at3=0), template) == f"{head}⟦a{END}⟧{middle}b{END}{tail}⟦c{END}⟧\n"
    assert drawn(example(*turns, at1=0, at3=0), template) == f"{head}a{END}{middle}b{END}{tail}⟦c{END}⟧\n"
    assert drawn(example(*turns), template, "last") == f"{head}a{END}{middle}b{END}{tail}⟦c{END}⟧\n"


@pytest.mark.parametrize("template", [CHATML, MARKED])
@pytest.mark.parametrize("weights", [{"at1": 0}, {"at1": 0, "at3": 0}])
def test_nothing_with_a_loss_is_refused(template: str, weights: dict[str, int]) -> None:
    given = example(*("hi", "a", "and", "b")[: 2 * len(weights)], **weights)
    with pytest.raises(DataError, match="no token carries a loss") as caught:
        drawn(given, template)
    assert (caught.value.kind, caught.value.line) == ("nothing_supervised", 3)


def test_the_last_turn_without_weight_is_not_replaced_by_another() -> None:
    with pytest.raises(DataError, match="no token carries a loss"):
        drawn(example("hi", "a", "and", "b", at3=0), CHATML, "last")


def test_marks_around_nothing_are_no_mask_of_zeros() -> None:
    with pytest.raises(DataError, match="no token carries a loss"):
        drawn(example("hi", "a"), EMPTY)


def test_marks_where_earlier_turns_are_rewritten_belong_to_their_own_turns() -> None:
    given = example("hi", "a", "and", "b", "hm", "c")
    parts = drawn(given, THINKS).split("assistant\n")
    assert parts[1].startswith(f"⟦a{END}⟧\n")
    assert parts[2].startswith(f"⟦b{END}⟧\n")
    # what the generation prompt supplies has no loss
    assert parts[3] == f"<think>⟦so</think>c{END}⟧\n"
    weighted = drawn(example("hi", "a", "and", "b", "hm", "c", at3=0), THINKS)
    assert weighted == drawn(given, THINKS).replace(f"⟦b{END}⟧", f"b{END}")
    assert drawn(given, THINKS, "last").count("⟦") == 1


def test_an_answer_with_a_special_token_in_it_ends_at_its_own_end() -> None:
    text = drawn(example("hi", f"a {END} b"), CHATML)
    assert text.endswith(f"assistant\n⟦a {END} b{END}⟧\n")


def test_what_the_template_leaves_out_is_noted() -> None:
    template = Template(CHATML, "here", letters_tokenizer())
    messages = (
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "", "tool_calls": [CALLS]},
        {"role": "tool", "content": "sunny", "name": "weather"},
        {"role": "assistant", "content": "It is.", "reasoning_content": "sunny it is"},
    )
    notes = mask(Example(messages, "here"), template).notes
    assert notes == (
        "message 2: the chat template leaves out its tool calls",
        "message 4: the chat template leaves out its reasoning",
    )
    assert mask(example("hi", "yes"), template).notes == ()
    cut = CHATML.replace("message['content']", "message['content'][:2]")
    notes = mask(example("hi", "yes"), Template(cut, "here", letters_tokenizer())).notes
    assert notes == ("message 2: the chat template leaves out or changes its content",)
    other = CHATML.replace("'<|im_start|>assistant\n'", "'<|im_start|>assistant\n<think>\n'")
    notes = mask(example("hi", "yes"), Template(other, "here", letters_tokenizer())).notes
    assert notes == (
        "message 2: the generation prompt goes on with '<think>\\n' where the training text does not",
    )


def test_a_generation_prompt_with_other_words_is_refused() -> None:
    other = CHATML.replace("'<|im_start|>assistant\n'", "'<|im_start|>assistant\nWell: '")
    with pytest.raises(DataError, match="message 2 cannot be told") as caught:
        drawn(example("hi", "yes"), other)
    assert (caught.value.kind, caught.value.line) == ("mask_refused", 3)


def test_a_plain_text_is_learned_whole_and_ends() -> None:
    tokenizer = letters_tokenizer(None, adds_begin=True)
    found = encode(Example((), "here", text="once upon"), tokenizer)
    assert tokenizer.decode(list(found.ids)) == f"<s>once upon{END}"
    assert all(found.supervised)
    # an end token that is there already is not doubled
    again = encode(Example((), "here", text=f"once upon{END}"), tokenizer)
    assert again.ids == found.ids
    with pytest.raises(DataError, match="two begin tokens") as caught:
        encode(Example((), "here", text="<s>once", number=2), tokenizer)
    assert (caught.value.kind, caught.value.line) == ("double_begin_token", 2)
    tokenizer.eos_token = None
    with pytest.raises(DataError, match="no end token"):
        encode(Example((), "here", text="once"), tokenizer)


def test_texts_and_chats_in_one_stream_and_errors_in_order() -> None:
    tokenizer = letters_tokenizer()
    good = [example("hi", f"{i}") for i in range(300)]
    bad = Example(({"role": "assistant", "content": "I begin"},), "there")
    rows = [*good[:270], bad, Example((), "text", text="words"), *good[270:]]
    errors: list[DataError] = []
    found = list(encode_each(iter(rows), tokenizer, on_error=errors.append))
    assert [e.number for e in found] == [i for i in range(len(rows)) if i != 270]
    assert [str(e)[:5] for e in errors] == ["there"]
    assert found[0] == encode(good[0], tokenizer)
    assert tokenizer.decode(list(found[270].ids)) == f"words{END}"
    # without a place to put them, errors are raised after all that comes before
    seen = []
    with pytest.raises(DataError, match="there"):
        for each in encode_each(rows, tokenizer):
            seen.append(each.number)
    assert seen == list(range(270))


def words_tokenizer(template: str, *, trim: bool = False, rstrip: bool = False) -> PreTrainedTokenizerFast:
    """Byte-pair tokens that join line breaks and a space with what follows."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Ċ", "Ċ"), ("Ġ", "y"), ("Ċ", "Ġ")]
    tokens = [*alphabet, *(a + b for a, b in merges)]
    words = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    words.post_processor = processors.ByteLevel(trim_offsets=trim)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token=END, bos_token="<s>")
    tokenizer.add_tokens(
        [AddedToken(text, special=True, rstrip=rstrip, normalized=False) for text in (START, END)]
    )
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize("trim", [False, True])
@pytest.mark.parametrize("template", [CHATML, MARKED])
@pytest.mark.parametrize("answer", ["yes", " yes", "\nyes", "\n\n yes", "  yes", "\u00e9"])
def test_no_token_reaches_into_the_answer(trim: bool, template: str, answer: str) -> None:
    tokenizer = words_tokenizer(template, trim=trim)
    found = encode(example("hi", answer, "more", answer), tokenizer)
    stretches = "".join(
        "|" if not loss else chr(0x100 + token)
        for token, loss in zip(found.ids, found.supervised, strict=True)
    )
    wanted = [ord(c) - 0x100 for c in next(part for part in stretches.split("|") if part)]
    # as it is when the model is asked: the answer's own tokens, then the end token
    assert wanted == tokenizer(answer + END, add_special_tokens=False)["input_ids"]
    assert len([part for part in stretches.split("|") if part]) == 2


def test_an_end_token_that_takes_white_space_along_is_not_parted_from_it() -> None:
    tokenizer = words_tokenizer(CHATML, rstrip=True)
    given = example("hi", "yes", "more", "no")
    found = encode(given, tokenizer)
    text = tokenizer.apply_chat_template(list(given.messages), tokenize=False)
    assert list(found.ids) == tokenizer(text, add_special_tokens=False)["input_ids"]
    ends = [i for i, token in enumerate(found.ids) if token == tokenizer.eos_token_id]
    assert [found.supervised[i] for i in ends] == [False, True, False, True]
    assert [found.supervised[i + 1] for i in ends[:-1]] == [False] * 3


def test_a_tokenizer_that_cuts_off_or_pads_is_told_not_to() -> None:
    tokenizer = letters_tokenizer()
    whole = encode(example("hi", "yes"), tokenizer)
    tokenizer.backend_tokenizer.enable_truncation(5)
    tokenizer.backend_tokenizer.enable_padding(length=200)
    assert encode(example("hi", "yes"), tokenizer) == whole


def test_a_tokenizer_without_offsets_is_refused_by_name() -> None:
    class Slow:
        def __init__(self) -> None:
            self.chat_template, self.all_special_tokens, self.bos_token_id = CHATML, [START, END], None
            self.special_tokens_map: dict[str, str] = {}
            self.added_tokens_decoder: dict[int, str] = {}

    with pytest.raises(NotSupportedError, match="Slow does not tell"):
        encode(example("hi", "yes"), Slow())


def test_a_named_template_replaces_the_tokenizers(tmp_path: Any) -> None:
    file = tmp_path / "mine.jinja"
    file.write_text(CHATML.replace("assistant", "model"), encoding="utf-8")
    tokenizer = letters_tokenizer(None)
    template = load_template(tokenizer, file)
    assert template.source == str(file)
    messages = ({"role": "user", "content": "hi"}, {"role": "model", "content": "yes"})
    assert "<|im_start|>model\n" in template.render(messages[:1], "here", generation=True)
