"""`convert`: any format, from anywhere, as OpenAI chat in JSON lines."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scumble.data.example import Example
from scumble.data.examples import Part, iter_examples
from scumble.errors import ConfigError, DataError
from scumble.files import new_file, refuse_existing

# files of these names are read as something else than JSON lines
OTHER = (".csv", ".tsv", ".parquet")


@dataclass(frozen=True)
class Converted:
    """A data set written as OpenAI chat.

    Attributes:
        out: the file of JSON lines.
        examples: how many it holds.
        formats: how many were read from each format.
    """

    out: Path
    examples: int
    formats: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        """What `--json` prints."""
        return {"out": str(self.out), "examples": self.examples, "formats": self.formats}


def convert(
    source: Any, out: str | Path, *, part: Part = "train", format: str | None = None, force: bool = False
) -> Converted:
    """Write the examples of a source as OpenAI chat, one JSON object a line, in their order.

    Read again, the file gives the same examples. What belongs to no conversation (other columns) is left out.

    Args:
        source: as in `read_examples`.
        out: the file to write.
        part: which part of what has parts.
        format: of the source; each example's own is recognised where it is not told.
        force: replace the file where it exists.

    Raises:
        ConfigError: `out` has the name of a table.
        DataError: an example is malformed, or a plain text, which has no turns.
        OutputExistsError: `out` exists, and `force` is not given.
        OutputError: it cannot be written.
    """
    out = refuse_existing(out, force=force, file=True, inputs=[source])
    if out.suffix.lower() in OTHER:
        raise ConfigError(
            f"{out} would hold JSON lines under the name of a table", "end its name with .jsonl"
        )
    formats: Counter[str] = Counter()
    with new_file(out) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        for example in iter_examples(source, part, format=format):
            file.write(as_line(example) + "\n")
            formats[example.format] += 1
    return Converted(out, formats.total(), dict(formats))


def as_line(example: Example) -> str:
    """An example as one line of an OpenAI chat file.

    Raises:
        DataError: it is a plain text.
    """
    return json.dumps(as_chat(example), ensure_ascii=False, default=str)


def as_chat(example: Example) -> dict[str, Any]:
    """An example as OpenAI has it: the arguments of calls are JSON texts there.

    Raises:
        DataError: it is a plain text.
    """
    if example.text is not None:
        raise DataError(
            f"{example.where}: a plain text has no turns, so it cannot be written as a chat",
            "write it as prompt and completion first",
            line=example.number or None,
        )
    row: dict[str, Any] = {"messages": [_as_openai(message) for message in example.messages]}
    if example.tools is not None:
        row["tools"] = list(example.tools)
    return row


def _as_openai(message: dict[str, Any]) -> dict[str, Any]:
    calls = message.get("tool_calls")
    if not calls:
        return message
    written = []
    for call in calls:
        arguments = json.dumps(call["function"]["arguments"], ensure_ascii=False, default=str)
        written.append({**call, "function": {**call["function"], "arguments": arguments}})
    return {**message, "content": message["content"] or None, "tool_calls": written}
