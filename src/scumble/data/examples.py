"""Examples: conversations as the OpenAI chat format has them, read from wherever they are.

A source is a JSON-lines file of objects with `messages`, a list of such objects, a `datasets.Dataset`, or
the name of a shipped set. Every example is checked when read, so that an error names the file and the line.
Knows nothing of tokens.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import xxhash

from scumble.data.shipped import SHIPPED, load_shipped
from scumble.errors import DataError, MissingFileError, NotSupportedError

ROLES = ("system", "developer", "user", "assistant", "tool")
Part: TypeAlias = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class Example:
    """One conversation.

    Attributes:
        messages: `{"role": ..., "content": ...}` in order, the last assistant's turn being the answer.
        where: the source and the line number, for errors.
    """

    messages: tuple[dict[str, Any], ...]
    where: str

    @property
    def hash(self) -> int:
        """A 64-bit number that depends on the messages alone."""
        # what JSON does not know (a date in a column of a `datasets.Dataset`) counts as its text
        text = json.dumps(self.messages, sort_keys=True, ensure_ascii=False, default=str)
        return xxhash.xxh3_64_intdigest(text.encode("utf-8", "surrogatepass"))

    @property
    def prompt(self) -> tuple[dict[str, Any], ...]:
        """What comes before the last assistant's turn."""
        return self.messages[: self._answer]

    @property
    def question(self) -> str:
        """The last thing the user says before the answer, to show."""
        said = [str(message["content"]) for message in self.prompt if message["role"] == "user"]
        return said[-1] if said else ""

    @property
    def expected(self) -> str:
        """The text of the last assistant's turn."""
        return str(self.messages[self._answer]["content"])

    @property
    def _answer(self) -> int:
        return max(i for i, message in enumerate(self.messages) if message["role"] == "assistant")


def read_examples(source: Any, part: Part = "train") -> list[Example]:
    """Read and check the examples of a source.

    Args:
        source: a path, the name of a shipped set, a list of examples, or a `datasets.Dataset`.
        part: which part of a shipped set; other sources have one part only.

    Raises:
        MissingFileError: the file does not exist.
        DataError: it is empty or not UTF-8, a line is not JSON, or an example is no conversation with an
            assistant's turn; with the line number.
    """
    if isinstance(source, str) and source in SHIPPED:
        return _examples(load_shipped(source, part), f"{source} {part}", "example")
    if isinstance(source, str) and not source.strip():
        raise DataError(
            "no data was named", f"name a JSON-lines file, or a shipped set: {', '.join(SHIPPED)}"
        )
    if isinstance(source, str | Path):
        rows, numbers = _read_lines(Path(source))
        return _examples(rows, str(source), "line", numbers)
    if isinstance(source, Iterable) and not isinstance(source, bytes | dict):
        rows = [row.messages if isinstance(row, Example) else row for row in source]
        rows = [{"messages": row} if isinstance(row, tuple) else row for row in rows]
        return _examples(rows, "the data", "example")
    raise DataError(
        f"a {type(source).__name__} is no data", "give a path, a list of examples, or a datasets.Dataset"
    )


def hash_examples(examples: Sequence[Example]) -> str:
    """The hash of a data set, order included, as 32 hexadecimal digits."""
    digest = xxhash.xxh3_128()
    for example in examples:
        digest.update(example.hash.to_bytes(8, "little"))
    return digest.hexdigest()


def split_by_hash(examples: Sequence[Example], share: float) -> tuple[list[Example], list[Example]]:
    """Split off a share for validation, by content: adding examples moves no others, equal ones stay together.

    Only where one part would be empty does a single example move to it, that with the lowest or highest hash.

    Args:
        examples: all of them.
        share: of the validation part, above 0 and below 1.

    Returns:
        The training part and the validation part, both in order and, where there are two different examples
        or more, neither of them empty.
    """
    hashes = [example.hash for example in examples]
    distinct = set(hashes)
    held = {number for number in distinct if number < share * 2**64}
    if len(distinct) > 1:
        held = held or {min(distinct)}
        held = held - {max(distinct)}
    paired = list(zip(examples, hashes, strict=True))
    return [e for e, number in paired if number not in held], [e for e, number in paired if number in held]


def _read_lines(path: Path) -> tuple[list[Any], list[int]]:
    try:
        path = path.expanduser()
        there = path.exists()
    except (OSError, RuntimeError) as error:  # a name too long, a folder closed to us, a `~name` of nobody
        raise DataError(
            f"{str(path)[:100]} cannot be looked up: {error}", "name a JSON-lines file"
        ) from error
    if not there:
        known = ", ".join(SHIPPED)
        raise MissingFileError(
            f"the data file {path} does not exist", f"name a JSON-lines file, or a shipped set: {known}"
        )
    if path.is_dir():
        raise DataError(f"{path} is a folder, not a data file", "name a JSON-lines file")
    rows, numbers = [], []
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        at = path.read_bytes()[: error.start].count(b"\n") + 1
        raise DataError(f"{path}, line {at}: not UTF-8 ({error.reason})", "save the file as UTF-8") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}", "check its permissions") from error
    # JSON lines end at \n only: other line separators may stand inside a string
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except (ValueError, RecursionError) as error:
                reason = getattr(error, "msg", None) or str(error)
                raise DataError(
                    f"{path}, line {number}: not JSON ({reason})", "each line is one JSON object"
                ) from error
            numbers.append(number)
    if not rows:
        raise DataError(f"{path} is empty", "each line is one JSON object with a list `messages`")
    return rows, numbers


def _examples(
    rows: Sequence[Any], source: str, unit: str, numbers: Sequence[int] | None = None
) -> list[Example]:
    if not rows:
        raise DataError(f"{source} holds no examples", "each example is an object with a list `messages`")
    found = []
    for index, row in enumerate(rows):
        where = f"{source}, {unit} {numbers[index] if numbers else index + 1}"
        found.append(Example(tuple(_messages(row, where)), where))
    return found


def _messages(row: Any, where: str) -> list[dict[str, Any]]:
    if not isinstance(row, dict) or "messages" not in row:
        keys = f"; it has {', '.join(map(str, list(row)[:5]))}" if isinstance(row, dict) else ""
        if isinstance(row, dict) and {"chosen", "rejected"} <= set(row):
            raise NotSupportedError(
                f"{where}: preference pairs are not trained on here", "use TRL's DPOTrainer"
            )
        raise DataError(
            f"{where}: no `messages`{keys}", 'write {"messages": [{"role": "user", "content": ...}, ...]}'
        )
    messages = row["messages"]
    if not isinstance(messages, list | tuple) or not messages:
        raise DataError(f"{where}: `messages` is not a list with something in it", "one entry for each turn")
    checked = [_message(message, f"{where}, message {i + 1}") for i, message in enumerate(messages)]
    if not any(message["role"] == "assistant" for message in checked):
        raise DataError(f"{where}: no assistant's turn", "without an answer there is nothing to learn")
    return checked


def _message(message: Any, where: str) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise DataError(f"{where}: not an object", 'write {"role": "user", "content": "..."}')
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise DataError(f"{where}: unknown role {role!r}", f"roles are {', '.join(ROLES)}")
    if isinstance(content, list):
        content = _joined_parts(content, where)
    if content is None and role == "assistant" and message.get("tool_calls"):
        content = ""
    if not all(isinstance(key, str) for key in message):
        raise DataError(f"{where}: a key that is no text", "keys are `role`, `content` and the like")
    if not isinstance(content, str):
        raise DataError(
            f"{where}: `content` is {type(content).__name__}, not text", "write the text of the turn"
        )
    try:
        content.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where}: `content` has half a surrogate pair at character {error.start + 1}",
            "write the character whole, or as UTF-8",
        ) from error
    # a `datasets.Dataset` fills up what other rows have with None; the same data from a file has the same hash
    return {key: value for key, value in message.items() if value is not None} | {"content": content}


def _joined_parts(parts: list[Any], where: str) -> str:
    texts = []
    for part in parts:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in ("image", "image_url", "input_image", "audio", "input_audio", "video"):
            raise NotSupportedError(
                f"{where}: a content part of type {kind!r}; only text is trained on here",
                "use TRL with a vision model",
            )
        if kind != "text" or not isinstance(part.get("text"), str):
            raise DataError(
                f"{where}: a content part that is no text", 'write {"type": "text", "text": "..."}'
            )
        texts.append(part["text"])
    return "".join(texts)
