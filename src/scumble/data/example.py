"""One example: a conversation as the OpenAI chat format has it, or a plain text. Knows nothing of tokens or files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import xxhash

from scumble.errors import DataError


@dataclass(frozen=True)
class Example:
    """One conversation, or one plain text.

    Attributes:
        messages: `{"role": ..., "content": ...}` in order, the last assistant's turn being the answer; a message
            may carry `weight` (0 or 1), `name`, `tool_calls` (their arguments objects, not strings),
            `tool_call_id` and `reasoning_content`. Empty where the example is a plain text.
        where: the source and the line number, for errors.
        tools: the tools that the template is told of, each `{"type": "function", "function": {...}}`, or None.
        text: the text of the `text` format, else None.
        number: the line (or row, or example) in its source, from 1; 0 where it is not known.
        format: the name of the format that it was read from.
    """

    messages: tuple[dict[str, Any], ...]
    where: str
    tools: tuple[dict[str, Any], ...] | None = None
    text: str | None = None
    number: int = 0
    format: str = "chat"

    @property
    def hash(self) -> int:
        """A 64-bit number that depends on the contents alone: messages, tools, text."""
        content: Any = self.messages
        if self.tools is not None or self.text is not None:
            content = {"messages": self.messages, "tools": self.tools, "text": self.text}
        # what JSON does not know (a date in a column of a `datasets.Dataset`) counts as its text
        text = json.dumps(content, sort_keys=True, ensure_ascii=False, default=str)
        return xxhash.xxh3_64_intdigest(text.encode("utf-8", "surrogatepass"))

    @property
    def prompt(self) -> tuple[dict[str, Any], ...]:
        """What comes before the last assistant's turn.

        Raises:
            DataError: the example is a plain text.
        """
        return self.messages[: self._answer]

    @property
    def question(self) -> str:
        """The last thing the user says before the answer, to show; empty for a plain text."""
        if self.text is not None:
            return ""
        said = [str(message["content"]) for message in self.prompt if message["role"] == "user"]
        return said[-1] if said else ""

    @property
    def expected(self) -> str:
        """The text of the last assistant's turn.

        Raises:
            DataError: the example is a plain text.
        """
        return str(self.messages[self._answer]["content"])

    @property
    def _answer(self) -> int:
        if self.text is not None:
            raise DataError(
                f"{self.where}: a plain text has no question and no answer", "give conversations, not texts"
            )
        return max(i for i, message in enumerate(self.messages) if message["role"] == "assistant")
