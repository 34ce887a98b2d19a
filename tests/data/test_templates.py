"""What is known of a chat template is tried on it, not read off it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from scumble.data import templates
from scumble.data.templates import Template, common, load_template
from scumble.errors import DataError, MissingFileError
from tests.bases import CHATML, END, START, letters_tokenizer
from tests.data.trl_templates import NAMES, loaded, said, system, user

USER = {"role": "user", "content": "hi"}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Paris"}}}
CALLED = {"role": "assistant", "content": "", "tool_calls": [CALL]}
# as OpenAI's API has it
CALLED_AS_TEXT = {
    **CALLED,
    "tool_calls": [{**CALL, "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}],
}
LOOP = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + ' ' }}BODY{{ '<|im_end|>' }}{% endfor %}"


def template(text: str) -> Template:
    return Template(text, "here", letters_tokenizer(text))


def test_contents_in_parts_where_text_would_be_left_out() -> None:
    parts = template(LOOP.replace("BODY", "{% for p in m['content'] %}{{ p['text'] }}{% endfor %}"))
    assert parts.parts
    assert parts.render([USER], "here") == f"{START}user hi{END}"
    text = template(CHATML)
    assert not text.parts
    # a template that takes both is given text
    both = (
        "{% if m['content'] is string %}{{ m['content'] }}{% else %}{{ m['content'][0]['text'] }}{% endif %}"
    )
    assert not template(LOOP.replace("BODY", both)).parts


@pytest.mark.parametrize("called", [CALLED, CALLED_AS_TEXT])
@pytest.mark.parametrize(
    ("body", "form"),
    [
        ("{{ c.function.name }}{{ c.function.arguments | tojson }}", (False, {"content": ""})),
        ("{{ c.function.name + c.function.arguments }}", (True, {"content": ""})),
    ],
)
def test_arguments_as_the_template_takes_them(body: str, form: Any, called: dict[str, Any]) -> None:
    found = template(LOOP.replace("BODY", "{% for c in m['tool_calls'] %}" + body + "{% endfor %}"))
    assert found.call_form == form
    assert found.render([USER, called], "here").endswith(f'weather{{"city": "Paris"}}{END}')


def test_a_call_is_not_lost_for_an_empty_content() -> None:
    body = "{% if m['content'] is none %}{{ m['tool_calls'][0]['function']['name'] }}{% else %}{{ m['content'] }}{% endif %}"
    found = template(LOOP.replace("BODY", body))
    assert found.call_form == (False, {"content": None})
    assert found.render([USER, CALLED], "here").endswith(f"assistant weather{END}")


def test_the_end_of_a_conversation() -> None:
    assert template(CHATML).trailer == ""
    assert template(CHATML + "{{ eos_token }}").trailer == END
    swaps = CHATML.replace("'<|im_end|>'", "('<s>' if loop.last else '<|im_end|>')")
    assert template(swaps).swapped_end == ("<s>", END)
    assert template(CHATML).swapped_end == ("", "")
    assert template(CHATML).ends_turns
    assert not template(CHATML.replace("<|im_end|>", "")).ends_turns


def test_the_generation_prompt_and_how_turns_open() -> None:
    assert template(CHATML).prompt == f"{START}assistant\n"
    assert template(CHATML).opening == len(START)


def test_two_texts_part_before_a_tag_and_not_within() -> None:
    found = template(CHATML)
    assert found.boundary("a\n<think>\n", "a\n<tool_call>") == 2
    assert found.boundary("a\n<think>\n", "a\n<think></think>") == 9
    assert found.boundary("a <b", "a <c") == 3
    assert common("abc", "abd") == 2
    assert common("", "a") == 0
    assert common("ab", "abc") == common("abc", "ab") == 2


def test_a_tokenizer_may_have_a_template_for_tools() -> None:
    tokenizer = letters_tokenizer()
    tokenizer.chat_template = {"default": CHATML, "tool_use": "tools " + CHATML}
    assert load_template(tokenizer).text == CHATML
    assert load_template(tokenizer, tools=[{}]).text == "tools " + CHATML


def test_a_file_that_is_none(tmp_path: Path) -> None:
    tokenizer = letters_tokenizer(None)
    with pytest.raises(MissingFileError, match="does not exist"):
        load_template(tokenizer, tmp_path / "none.jinja")
    (tmp_path / "bytes.jinja").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(DataError, match="cannot be read"):
        load_template(tokenizer, tmp_path / "bytes.jinja")
    with pytest.raises(DataError, match="no chat template"):
        load_template(tokenizer)


def test_a_template_that_refuses_says_why_and_where() -> None:
    with pytest.raises(DataError, match="line 7: the chat template refuses it: no system") as caught:
        template("{{ raise_exception('no system') }}").render([USER], "line 7")
    assert caught.value.kind == "template_refuses"


@pytest.mark.parametrize("generation", [False, True])
def test_the_compiled_program_writes_what_transformers_writes(
    generation: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    chats = [
        [user("<b>&amp;\n"), said("yes"), user(" "), said("")],
        [system(), user("é")],
        [said("I begin")],
        [],
    ]

    def texts() -> list[str]:
        found = []
        for name in NAMES:
            fresh = Template(loaded(name)[1].text, name, loaded(name)[1].tokenizer)
            for chat in chats:
                try:
                    found.append(fresh.render(chat, "here", generation=generation))
                except DataError as error:
                    found.append(str(error))
        return found

    assert templates._compiled is not None
    directly = texts()
    monkeypatch.setattr(templates, "_compiled", None)
    assert directly == texts()
    assert sum("refuses" not in text for text in directly) > 150


def test_what_is_no_plain_text_goes_the_guarded_way() -> None:
    class Odd(str):
        def evil(self) -> str:
            return "called"

    seen = template("{{ messages[0]['content'].evil() }}")
    with pytest.raises(DataError, match="no attribute 'evil'"):
        seen.render([{"role": "user", "content": Odd("words")}], "here")
    changing = template("{{ messages.append(1) }}")
    with pytest.raises(DataError, match=r"not safely callable|unsafe"):
        changing.render([USER], "here")
