"""One message and one tool checked: what may stand in them, and what is wrong with what may not.

A problem is raised as `ProblemError`, which knows only its place within the example; who knows the file adds it.
"""

from __future__ import annotations

from typing import Any

from scumble.data.json_values import loads
from scumble.errors import clipped, shown

ROLES = ("system", "developer", "user", "assistant", "tool")
MAX_DEPTH = 64  # of lists and objects within one message: templates and hashes recurse
NO_TEXT = ("image", "image_url", "input_image", "audio", "input_audio", "video", "file")


class ProblemError(Exception):
    """What is wrong with an example, before its file and line are known; never leaves `scumble.data`.

    Attributes:
        message: what is wrong, and where within the example.
        hint: what to do.
        kind: as `DataError.kind`.
    """

    def __init__(self, message: str, hint: str, kind: str = "malformed") -> None:
        super().__init__(message)
        self.message, self.hint, self.kind = message, hint, kind


def check_messages(messages: Any, key: str = "messages") -> tuple[dict[str, Any], ...]:
    """The messages of a conversation, each checked and brought to one form.

    Raises:
        ProblemError: they are no list, one is malformed, or none is an assistant's.
    """
    if isinstance(messages, str) and messages.lstrip().startswith("["):
        messages = parse_json(messages, f"`{key}`")  # a cell of a table can hold nothing else
    if not isinstance(messages, list | tuple) or not messages:
        raise ProblemError(f"`{key}` is not a list with something in it", "one entry for each turn")
    checked = []
    for index, message in enumerate(messages):
        try:
            checked.append(check_message(message))
        except ProblemError as problem:
            problem.message = f"message {index + 1}: {problem.message}"
            raise
    if not any(message["role"] == "assistant" for message in checked):
        raise ProblemError(
            "no assistant's turn", "without an answer there is nothing to learn", "no_assistant_turn"
        )
    return tuple(checked)


def check_message(message: Any) -> dict[str, Any]:
    """One message: its content as one text, its calls with their arguments as objects, no key with None.

    Raises:
        ProblemError: with the reason.
    """
    if not isinstance(message, dict):
        raise ProblemError("not an object", 'write {"role": "user", "content": "..."}')
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise ProblemError(f"unknown role {shown(role)}", f"roles are {', '.join(ROLES)}", "unknown_role")
    if isinstance(content, list | tuple):
        content = _joined_parts(content)
    if content is None and role == "assistant" and message.get("tool_calls"):
        content = ""
    if not isinstance(content, str):
        kind = "null_content" if content is None else "malformed"
        raise ProblemError(
            f"`content` is {type(content).__name__}, not text", "write the text of the turn", kind
        )
    check_text(content, "`content`")
    if len(message) == 2 and "content" in message:
        return {"role": role, "content": content}
    # a `datasets.Dataset` fills up what other rows have with None; the same data from a file has the same hash
    found = {key: value for key, value in message.items() if value is not None} | {"content": content}
    for key, value in found.items():
        if not isinstance(key, str):
            raise ProblemError("a key that is no text", "keys are `role`, `content` and the like")
        if key not in ("role", "content"):
            found[key] = _checked_extra(key, value)
    return found


def check_tools(tools: Any) -> tuple[dict[str, Any], ...] | None:
    """The definitions of tools, each wrapped as OpenAI has it; None where there are none.

    They may be a JSON text, and a definition may be the function alone.

    Raises:
        ProblemError: with the reason.
    """
    if isinstance(tools, str):
        tools = parse_json(tools, "`tools`") if tools.strip() else None
    if tools is None:
        return None
    if not isinstance(tools, list | tuple):
        raise ProblemError("`tools` is not a list", "one definition for each tool")
    found = []
    for index, tool in enumerate(tools):
        if isinstance(tool, dict) and "function" not in tool and "name" in tool:
            tool = {"type": "function", "function": {k: v for k, v in tool.items() if k != "type"}}
        function = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise ProblemError(
                f"tool {index + 1} is no definition of a function",
                'write {"type": "function", "function": {"name": ..., "parameters": {...}}}',
            )
        check_tree(tool, f"tool {index + 1}")
        found.append(tool)
    return tuple(found) or None


def check_text(text: str, what: str) -> None:
    """Refuse half a surrogate pair, which a JSON escape can name and no tokenizer can read.

    Raises:
        ProblemError: with the character's number.
    """
    if text.isascii():
        return
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ProblemError(
            f"{what} has half a surrogate pair at character {error.start + 1}",
            "write the character whole, or as UTF-8",
        ) from error


def check_tree(value: Any, what: str, depth: int = 0) -> None:
    """Refuse what is nested too deep (or holds itself), keys that are no text, and half surrogates.

    Raises:
        ProblemError: with the reason.
    """
    if depth > MAX_DEPTH:
        raise ProblemError(
            f"{what} is nested deeper than {MAX_DEPTH} levels", "write it flatter, or as a text"
        )
    if isinstance(value, str):
        check_text(value, what)
    elif isinstance(value, dict):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise ProblemError(f"{what} has a key that is no text", "keys of a JSON object are texts")
            check_text(key, what)
            check_tree(inner, what, depth + 1)
    elif isinstance(value, list | tuple):
        for inner in value:
            check_tree(inner, what, depth + 1)


def parse_json(text: str, what: str) -> Any:
    """The value of a JSON text that stands within an example.

    Raises:
        ProblemError: it is not JSON.
    """
    try:
        return loads(text)
    except ValueError as error:
        raise ProblemError(f"{what} is not JSON ({clipped(error)})", "write it as JSON") from error


def _checked_extra(key: str, value: Any) -> Any:
    """What a message carries beside its role and content."""
    if key == "weight":
        if isinstance(value, int | float) and value in (0, 1):
            return int(value)
        raise ProblemError(f"`weight` is {shown(value)}", "it is 0, for a turn not learnt from, or 1")
    if key == "function_call":  # templates pass over it, so the call would not be learnt
        raise ProblemError("`function_call` is the old form of `tool_calls`", "write it as `tool_calls`")
    if key in ("name", "tool_call_id", "reasoning_content") and not isinstance(value, str):
        raise ProblemError(f"`{key}` is {shown(value)}, not text", "write it as a text")
    if key == "tool_calls":
        if not isinstance(value, list | tuple):
            raise ProblemError(f"`tool_calls` is {shown(value)}, not a list", "one entry for each call")
        return [_checked_call(call, f"call {i + 1}") for i, call in enumerate(value)]
    check_tree(value, f"`{clipped(key, 40)}`")
    return value


def _checked_call(call: Any, what: str) -> dict[str, Any]:
    """A call with its arguments as an object, which is what templates write as JSON themselves."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise ProblemError(f"{what} of `tool_calls` names no function", 'write {"function": {"name": ...}}')
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        arguments = parse_json(arguments, f"`arguments` of {what}") if arguments.strip() else {}
    if not isinstance(arguments, dict | None):
        raise ProblemError(f"`arguments` of {what} is no object", 'write {"name of the argument": its value}')
    check_tree(call, what)
    check_tree(arguments, f"`arguments` of {what}")
    return {**call, "function": {**function, "arguments": arguments or {}}}


def _joined_parts(parts: list[Any] | tuple[Any, ...]) -> str:
    texts = []
    for part in parts:
        kind = part.get("type") if isinstance(part, dict) else None
        if isinstance(kind, str) and kind in NO_TEXT:
            raise ProblemError(
                f"a content part of type {kind!r}; only text is trained on here",
                "use TRL with a vision model",
                "unsupported",
            )
        if kind != "text" or not isinstance(part.get("text"), str):
            raise ProblemError("a content part that is no text", 'write {"type": "text", "text": "..."}')
        texts.append(part["text"])
    return "".join(texts)
