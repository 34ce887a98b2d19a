"""Ollama's Modelfile: a template is translated where it is ChatML exactly, else left out with the reason."""

from __future__ import annotations

import pytest

from scumble.manage.export.ollama import (
    CHATML_IN_GO,
    ChatMl,
    chatml,
    write_adapter_modelfile,
    write_modelfile,
)
from tests.bases import BEGUN, CHATML, letters_tokenizer

WITH_SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nBe kind<|im_end|>\n' }}{% endif %}"
    + CHATML
)


def test_chatml_is_translated(tmp_path):
    notes = write_modelfile(tmp_path / "m.Modelfile", "m.gguf", letters_tokenizer())
    lines = (tmp_path / "m.Modelfile").read_text()
    assert notes == []
    assert "FROM ./m.gguf\n" in lines
    assert f'TEMPLATE """{CHATML_IN_GO}"""\n' in lines
    assert lines.count("PARAMETER stop") == 1
    assert 'PARAMETER stop "<|im_end|>"\n' in lines
    assert "SYSTEM" not in lines


def test_own_system_message_becomes_system(tmp_path):
    found = chatml(letters_tokenizer(WITH_SYSTEM))
    assert isinstance(found, ChatMl)
    assert found.system == "Be kind"
    write_modelfile(tmp_path / "m.Modelfile", "m.gguf", letters_tokenizer(WITH_SYSTEM))
    assert 'SYSTEM """Be kind"""\n' in (tmp_path / "m.Modelfile").read_text()


@pytest.mark.parametrize(
    ("template", "says"),
    [
        (None, "no chat template"),
        ("{% for m in messages %}[{{ m['content'] }}]{% endfor %}", "not ChatML"),
        (BEGUN, "not ChatML"),  # a begin token before it
        (CHATML.replace("message['content']", "message['content'] | trim"), "near ChatML"),
        ("{{ raise_exception('no') }}", "cannot be tried"),
    ],
)
def test_other_templates_are_left_out_with_the_reason(template, says, tmp_path):
    notes = write_modelfile(tmp_path / "m.Modelfile", "m.gguf", letters_tokenizer(template))
    text = (tmp_path / "m.Modelfile").read_text()
    assert says in notes[0]
    assert "# TEMPLATE is left out" in text
    assert '"""' not in text
    assert 'PARAMETER stop "<|im_end|>"' in text  # its end token


def test_go_template_renders_chatml():
    """Go's template by hand: the marks that trim white space, then each action as it is defined."""
    expected = "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\n"
    assert rendered([("system", "S"), ("user", "U")]) == expected
    begun = "<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\nA"
    assert rendered([("user", "U"), ("assistant", "A")]) == begun


def rendered(messages: list[tuple[str, str]]) -> str:
    """The template by Jinja, which has the same trimming marks; its actions are put into Jinja's words."""
    import re

    from jinja2 import Environment

    text = re.sub(
        r"\{\{(-?) range .*? (-?)\}\}", r"{%\1 for role, content in messages \2%}", CHATML_IN_GO, count=1
    )
    text = re.sub(r"\{\{(-?) range [^}]*\}\}", r"{%\1 for role, content in messages %}", text, count=1)
    text = re.sub(r"\{\{- \$last := [^}]*-\}\}", "{%- set last = loop.last -%}", text)
    text = text.replace(
        '{{ if not (and $last (eq .Role "assistant")) }}', "{% if not (last and role == 'assistant') %}"
    )
    text = text.replace('{{ if and $last (ne .Role "assistant") }}', "{% if last and role != 'assistant' %}")
    text = text.replace("{{ .Role }}", "{{ role }}").replace("{{ .Content }}", "{{ content }}")
    text = text.removesuffix("{{- end }}") + "{%- endfor %}"
    text = text.replace("{{ end }}", "{% endif %}")
    return Environment(keep_trailing_newline=True).from_string(text).render(messages=messages)


def test_adapter_names_its_base_and_no_path(tmp_path):
    notes = write_adapter_modelfile(tmp_path / "a.Modelfile", "a.gguf", "owner/Base-1B")
    text = (tmp_path / "a.Modelfile").read_text()
    assert "FROM ./Base-1B.gguf\nADAPTER ./a.gguf\n" in text
    assert "scumble export gguf owner/Base-1B --out Base-1B.gguf" in text
    assert "Base-1B.gguf" in notes[0]
    write_adapter_modelfile(tmp_path / "a.Modelfile", "a.gguf", str(tmp_path / "base"))
    assert str(tmp_path) not in (tmp_path / "a.Modelfile").read_text()
