"""Checks of one conversation by its messages: roles in order, answers that say something, tool calls that fit.

Each is shown an example and says what is wrong with it. Knows nothing of tokens.
"""

from __future__ import annotations

from typing import Any

from scumble.data.checks.check import Seen, each


@each(
    "role_order",
    "error",
    "roles out of order",
    "A chat template refuses the conversation or writes it as the model never sees one.",
    "begin with the system message if any, let user and assistant take turns, put a tool's message after its call",
)
def role_order(seen: Seen) -> str | None:
    """Turns alternate and do not begin with an answer; a system message comes first, a tool's after its call."""
    before: dict[str, Any] = {}
    for i, message in enumerate(seen.example.messages, start=1):
        wrong = _out_of_order(before, message)
        if wrong:
            return f"message {i}: {wrong}"
        before = message
    return None


def _out_of_order(before: dict[str, Any], message: dict[str, Any]) -> str | None:
    role, last = message["role"], before.get("role")
    if role == "assistant" and last is None and _learned(message):
        return "the assistant begins"
    if role in ("system", "developer") and last not in (None, "system", "developer"):
        return f"{role} after {last}"
    if role == "tool" and last != "tool" and not before.get("tool_calls"):
        return f"tool after {last or 'nothing'}, which called no tool"
    if role == last == "user" and message.get("name") == before.get("name"):
        return "user after user"
    if role == last == "assistant":
        return "assistant after assistant"
    if role == "user" and before.get("tool_calls"):
        return "user after a tool call that was not answered"
    return None


@each(
    "no_answer_at_the_end",
    "warning",
    "conversations that end without an answer",
    "What comes after the last answer is read and never learned from.",
    "add the answer, or remove the last turn",
)
def no_answer_at_the_end(seen: Seen) -> str | None:
    """The last message is not the assistant's."""
    messages = seen.example.messages
    last = messages[-1]["role"] if messages else "assistant"
    return None if last == "assistant" else f"the last message is from {last}"


@each(
    "empty_answers",
    "warning",
    "answers that are empty or only white space",
    "The model learns to answer with nothing.",
    "write the answer, or remove the example",
)
def empty_answers(seen: Seen) -> str | None:
    """An assistant's turn that is learned has no text and calls no tool."""
    for i, message in enumerate(seen.example.messages, start=1):
        if message["role"] == "assistant" and _learned(message) and not message.get("tool_calls"):
            said = f"{message.get('content') or ''}{message.get('reasoning_content') or ''}"
            if not said.strip():
                return f"message {i}"
    if seen.example.text is not None and not seen.example.text.strip():
        return "the text"
    return None


@each(
    "empty_questions",
    "warning",
    "questions that are empty or only white space",
    "The model learns to answer something to nothing, as if it had been asked.",
    "write the question, or remove the example",
)
def empty_questions(seen: Seen) -> str | None:
    """A user's turn has no text."""
    for i, message in enumerate(seen.example.messages, start=1):
        if message["role"] == "user" and not str(message.get("content") or "").strip():
            return f"message {i}"
    return None


@each(
    "white_space_around_answers",
    "warning",
    "answers that begin or end with white space",
    "The model learns to write it, and it stands between the answer and its end token.",
    "strip the answers",
)
def white_space_around_answers(seen: Seen) -> str | None:
    """An answer that is not empty has white space at either end."""
    for i, message in enumerate(seen.example.messages, start=1):
        text = message.get("content")
        if message["role"] == "assistant" and _learned(message) and isinstance(text, str):
            stripped = text.strip()
            if stripped and stripped != text:
                return f"message {i} {'begins' if text[0].isspace() else 'ends'} with it"
    return None


@each(
    "tool_calls",
    "warning",
    "tool calls that do not fit",
    "The model learns to call what it was not told of, or to take one answer for another.",
    "list the tools in `tools`, and give a tool's message the id of its call",
)
def tool_calls(seen: Seen) -> str | None:
    """A call of a tool that is not listed, or an answer to a call that was not made."""
    listed = {_name(tool) for tool in seen.example.tools or ()}
    ids: set[str] = set()
    for i, message in enumerate(seen.example.messages, start=1):
        calls = message.get("tool_calls") or ()
        if any(_name(call) not in listed for call in calls):
            return f"message {i}: a tool is called that is not in `tools`"
        ids.update(str(call["id"]) for call in calls if isinstance(call, dict) and call.get("id"))
        answered = message.get("tool_call_id")
        if answered is not None and ids and str(answered) not in ids:
            return f"message {i} answers a call that was not made"
    return None


def _name(described: Any) -> str:
    """The name of a tool's definition, or of a call, with or without `function` around it."""
    inner = described.get("function", described) if isinstance(described, dict) else {}
    return str(inner.get("name")) if isinstance(inner, dict) else ""


def _learned(message: dict[str, Any]) -> bool:
    return message.get("weight") != 0
