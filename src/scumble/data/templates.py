"""Chat templates: which one is used, and rendering with it.

A template is a program in Jinja, of the tokenizer or of a file (`--template FILE`), that turns a conversation
into the one text that the model sees. Knows a tokenizer, and nothing of masks or models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scumble.errors import DataError, MissingFileError


@dataclass(frozen=True)
class Template:
    """A chat template and the tokenizer that it writes for.

    Attributes:
        text: the program.
        source: `the tokenizer`, or the file.
        tokenizer: whose special tokens it may name.
    """

    text: str
    source: str
    tokenizer: Any = field(repr=False, compare=False)

    def render(
        self,
        messages: Sequence[dict[str, Any]],
        where: str,
        *,
        tools: Sequence[dict[str, Any]] | None = None,
        generation: bool = False,
    ) -> str:
        """The text of a conversation.

        Args:
            messages: the turns.
            where: the source and the line, for errors.
            tools: definitions of the tools that the model may call.
            generation: add what the template writes before an answer.

        Raises:
            DataError: the template refuses it.
        """
        try:
            text: str = self.tokenizer.apply_chat_template(
                list(messages),
                tools=list(tools) if tools else None,
                chat_template=self.text,
                tokenize=False,
                add_generation_prompt=generation,
            )
        except Exception as error:  # a template is a program, and may fail in any way
            raise DataError(
                f"{where}: the chat template refuses it: {error}", "check the order of the roles"
            ) from error
        return text


def load_template(
    tokenizer: Any, file: str | Path | None = None, *, tools: Sequence[Any] | None = None
) -> Template:
    """The chat template of a file, or where none is named, of the tokenizer.

    Args:
        tokenizer: of transformers.
        file: a Jinja file.
        tools: given where the conversation has tools: some tokenizers have a template of their own for them.

    Raises:
        MissingFileError: there is no such file.
        DataError: the file cannot be read, or the tokenizer has no template.
    """
    if file is not None:
        path = Path(file)
        if not path.is_file():
            raise MissingFileError(f"the chat template {path} does not exist", "name a Jinja file")
        try:
            return Template(path.read_text(encoding="utf-8"), str(path), tokenizer)
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(
                f"the chat template {path} cannot be read: {error}", "it is a text file in UTF-8"
            ) from error
    found = getattr(tokenizer, "chat_template", None)
    if isinstance(found, dict):
        found = found.get("tool_use" if tools and "tool_use" in found else "default")
    if not found:
        raise DataError(
            "the base's tokenizer has no chat template",
            "use an instruct model, or name a template with --template",
        )
    return Template(found, "the tokenizer", tokenizer)
