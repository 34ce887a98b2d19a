"""Ollama's Modelfile beside a GGUF file.

A chat template is Jinja in the file and Go in Ollama. It is translated only where it is ChatML exactly, which
is found by rendering conversations with both; otherwise TEMPLATE is left out, with a comment that says why.
Knows texts, and nothing of weights.

Facts: https://docs.ollama.com/modelfile
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scumble.files import refuse_existing, write_text

# As Ollama renders it: an answer that was begun is not closed, so that it is gone on with.
CHATML_IN_GO = (
    "{{- range $i, $_ := .Messages }}\n"
    "{{- $last := eq (len (slice $.Messages $i)) 1 -}}\n"
    "<|im_start|>{{ .Role }}\n"
    '{{ .Content }}{{ if not (and $last (eq .Role "assistant")) }}<|im_end|>\n'
    '{{ end }}{{ if and $last (ne .Role "assistant") }}<|im_start|>assistant\n'
    "{{ end }}\n"
    "{{- end }}"
)
_TRIED: list[list[tuple[str, str]]] = [
    [("user", "one")],
    [("user", "one"), ("assistant", "two"), ("user", "three")],
    [("system", "be brief"), ("user", "one")],
    [("system", "be brief"), ("user", " a\n\nb "), ("assistant", " c\n"), ("user", "<d> {{ e }}")],
]
_PROBE = "Zq7 probe"


def modelfile_path(gguf: Path, *, force: bool) -> Path:
    """The Modelfile of a GGUF file: `model.Modelfile` for `model.gguf`, checked before any work is done.

    Raises:
        OutputExistsError, OutputError: it cannot be written there.
    """
    return refuse_existing(gguf.with_suffix(".Modelfile"), force=force, file=True)


def write_modelfile(path: Path, gguf: str, tokenizer: Any) -> list[str]:
    """Write the Modelfile of a model.

    Args:
        path: of the Modelfile.
        gguf: name of the model's file, in the same folder.
        tokenizer: of the model.

    Returns:
        What the user should know.
    """
    lines = [f"# ollama create NAME -f {path.name}", f"FROM ./{gguf}"]
    notes = []
    found = chatml(tokenizer)
    if isinstance(found, ChatMl):
        lines.append(f'TEMPLATE """{CHATML_IN_GO}"""')
        if found.system and '"""' not in found.system:
            lines.append(f'SYSTEM """{found.system}"""')
    else:
        lines.append(f"# TEMPLATE is left out: {found}")
        notes.append(f"the Modelfile has no TEMPLATE: {found}")
    lines += [f'PARAMETER stop "{token}"' for token in _stops(tokenizer, isinstance(found, ChatMl))]
    write_text(path, "\n".join(lines) + "\n")
    return notes


def write_adapter_modelfile(path: Path, gguf: str, base: str) -> list[str]:
    """Write the Modelfile of an adapter's GGUF file: FROM its base's file, which the user makes or has.

    Args:
        path: of the Modelfile.
        gguf: name of the adapter's file, in the same folder.
        base: name of the base.

    Returns:
        What the user should know.
    """
    file = f"{Path(base).name or 'base'}.gguf"
    shown = Path(base).name if Path(base).is_absolute() else base  # a hub name, and no path of this machine
    lines = [
        "# FROM names the GGUF file of the base, which is not written here:",
        f"# scumble export gguf {shown} --out {file}",
        "# Take TEMPLATE, SYSTEM and PARAMETER from the Modelfile that this writes beside it.",
        f"FROM ./{file}",
        f"ADAPTER ./{gguf}",
    ]
    write_text(path, "\n".join(lines) + "\n")
    return [f"the Modelfile's FROM expects the base as {file}, beside the adapter"]


class ChatMl:
    """A chat template is ChatML, with a system message of its own where a conversation has none, or without."""

    def __init__(self, system: str) -> None:
        self.system = system


def chatml(tokenizer: Any) -> ChatMl | str:
    """Whether a tokenizer's chat template is ChatML exactly; else why it is not taken for it, in words."""
    if tokenizer is None or not getattr(tokenizer, "chat_template", None):
        return "the model has no chat template"
    if isinstance(tokenizer.chat_template, dict):
        return "the model has several chat templates"
    try:
        first = _rendered(tokenizer, [("user", _PROBE)])
        system = _own_system(first)
        if system is None:
            return "the chat template is not ChatML, and no other is translated"
        for turns in _TRIED:
            given = turns if turns[0][0] == "system" or not system else [("system", system), *turns]
            if _rendered(tokenizer, turns) != _as_chatml(given):
                return "the chat template is near ChatML, and differs in some conversations"
    except Exception as error:  # a template can refuse a conversation in any way
        return f"the chat template cannot be tried ({type(error).__name__})"
    return ChatMl(system)


def _own_system(text: str) -> str | None:
    """The system message that a template adds by itself, empty where it adds none; None where it is not ChatML."""
    start, end = "<|im_start|>system\n", f"<|im_end|>\n{_as_chatml([('user', _PROBE)])}"
    if text == _as_chatml([("user", _PROBE)]):
        return ""
    return text[len(start) : -len(end)] if text.startswith(start) and text.endswith(end) else None


def _rendered(tokenizer: Any, turns: Sequence[tuple[str, str]]) -> str:
    messages = [{"role": role, "content": content} for role, content in turns]
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


def _as_chatml(turns: Sequence[tuple[str, str]]) -> str:
    text = "".join(f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in turns)
    return text + "<|im_start|>assistant\n"


def _stops(tokenizer: Any, is_chatml: bool) -> list[str]:
    found = ["<|im_end|>"] if is_chatml else []
    end = getattr(tokenizer, "eos_token", None)
    return [*found, str(end)] if end and end not in found and '"' not in end else found
