"""The formats that examples come in, and how one row of each becomes a conversation.

    chat               messages: [{role, content}, ...]                 (OpenAI)
    prompt_completion  prompt, completion: texts, or lists of messages; system
    alpaca             instruction, input, output; system, history
    sharegpt           conversations: [{from, value}, ...]; system
    text               text

All but the last may carry `tools`. A row belongs to the first of them whose keys it has. Knows one row, and
nothing of files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from scumble.data.example import Example
from scumble.data.messages import (
    ProblemError,
    check_message,
    check_messages,
    check_text,
    check_tools,
    parse_json,
)
from scumble.errors import DataError, UnsupportedExampleError, clipped, shown

# what a row must have to be of a format; the first that fits is taken
KEYS: dict[str, tuple[str, ...]] = {
    "chat": ("messages",),
    "sharegpt": ("conversations",),
    "prompt_completion": ("prompt", "completion"),
    "alpaca": ("instruction", "output"),
    "text": ("text",),
}
FORMATS = tuple(KEYS)
LOOKED_AT = 100  # rows that a format is recognised by

SPEAKERS = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "system": "system",
    "developer": "developer",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
}

# what else a turn of ShareGPT may say
CARRIED = ("weight", "name", "tool_calls", "tool_call_id", "reasoning_content")

Message = dict[str, Any]


def format_of(value: Any) -> str | None:
    """The format of one row, or None where it has the keys of none."""
    if not isinstance(value, dict):
        return None
    if value.get("messages") is not None:  # most rows
        return "chat"
    # a table fills up with null what other rows have, so a key with a value tells more than a key
    for has in (lambda key: value.get(key) is not None, value.__contains__):
        for name, keys in KEYS.items():
            if all(map(has, keys)):
                return name
    return None


def recognise(values: Iterable[Any]) -> tuple[str, str]:
    """The format of the first rows, and why it is taken to be that.

    Args:
        values: rows, of which the first `LOOKED_AT` are looked at.

    Returns:
        The format that most of them have, and one line with the reason.

    Raises:
        DataError: none of them has the keys of any format.
    """
    counts: dict[str, int] = {}
    seen = 0
    last: Any = None
    for last in values:
        seen += 1
        if name := format_of(last):
            counts[name] = counts.get(name, 0) + 1
        if seen >= LOOKED_AT:
            break
    if not counts:
        raise DataError(
            f"no format is recognised{_keys(last)}", f"a row has the keys of one format: {_known()}"
        )
    best = max(counts, key=lambda name: counts[name])
    keys = " and ".join(f"`{key}`" for key in KEYS[best])
    rows = "the first row has" if seen == 1 else f"{counts[best]} of the first {seen} rows have"
    return best, f"{rows} {keys}"


def to_example(value: Any, format: str | None, where: str, number: int = 0) -> Example:
    """One row as an example.

    Args:
        value: the row: an object, or a text.
        format: one of `FORMATS`; None recognises it by the row's keys.
        where: the source and the line, for errors.
        number: the line.

    Raises:
        DataError: the row is malformed, with `where` in its message, its `kind` and `line`.
        UnsupportedExampleError: it is of a sort that is not trained on here.
    """
    if format is not None and format not in KEYS:
        raise DataError(f"no format {shown(format)}", f"there are {', '.join(FORMATS)}")
    name = format or format_of(value)
    try:
        if name is None:
            raise _unrecognised(value)
        missing = [key for key in KEYS[name] if not isinstance(value, dict) or key not in value]
        if missing and not (name == "text" and isinstance(value, str)):
            raise ProblemError(
                f"no `{missing[0]}`{_keys(value)}", f"the format {name} has {_described(name)}"
            )
        if name == "text":
            text = value if isinstance(value, str) else value["text"]
            if not isinstance(text, str):
                raise ProblemError(f"`text` is {shown(text)}, not text", "write the text to learn")
            check_text(text, "`text`")
            return Example((), where, None, text, number, name)
        if value.get("functions"):
            raise ProblemError("`functions` is the old form of `tools`", "write them as `tools`")
        messages = READERS[name](value)
        tools = check_tools(value["tools"]) if value.get("tools") is not None else None
        return Example(messages, where, tools, None, number, name)
    except ProblemError as problem:
        at = ", " if problem.message.startswith("message ") else ": "
        kind = UnsupportedExampleError if problem.kind == "unsupported" else DataError
        raise kind(
            f"{where}{at}{problem.message}", problem.hint, kind=problem.kind, line=number or None
        ) from problem


def _chat(row: dict[str, Any]) -> tuple[Message, ...]:
    return check_messages(row["messages"])


def _prompt_completion(row: dict[str, Any]) -> tuple[Message, ...]:
    if isinstance(row.get("label"), bool):  # KTO: a completion whose label is false is one to be unlearnt
        raise ProblemError(
            "a completion with a `label` of true or false is a preference, and not trained on here",
            "use TRL's KTOTrainer, or keep the good ones and leave out `label`",
            "unsupported",
        )
    prompt, completion = _turns(row["prompt"], "user"), _turns(row["completion"], "assistant")
    return check_messages([*_system(row), *prompt, *completion], "prompt")


def _alpaca(row: dict[str, Any]) -> tuple[Message, ...]:
    """The instruction and, below it, the input; `history` holds earlier pairs of question and answer."""
    history = row.get("history") or []
    if not isinstance(history, list | tuple):
        raise ProblemError("`history` is no list", "write [[question, answer], ...]")
    messages = _system(row)
    for pair in history:
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise ProblemError("`history` holds what is no pair", "write [[question, answer], ...]")
        messages += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    asked, given = row["instruction"], row.get("input")
    for key, text in (("instruction", asked), ("input", given), ("output", row["output"])):
        if not isinstance(text, str) and not (key == "input" and text is None):
            kind = "null_content" if text is None else "malformed"
            raise ProblemError(f"`{key}` is {shown(text)}, not text", "write it as a text", kind)
    asked = f"{asked}\n{given}" if given else asked
    messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": row["output"]}]
    return check_messages(messages)


def _sharegpt(row: dict[str, Any]) -> tuple[Message, ...]:
    turns = row["conversations"]
    if isinstance(turns, str) and turns.lstrip().startswith("["):
        turns = parse_json(turns, "`conversations`")
    if not isinstance(turns, list | tuple) or not turns:
        raise ProblemError("`conversations` is not a list with something in it", "one entry for each turn")
    messages = _system(row)
    for index, turn in enumerate(turns):
        try:
            messages.append(_spoken(turn))
        except ProblemError as problem:
            problem.message = f"message {index + 1}: {problem.message}"
            raise
    return check_messages(messages, "conversations")


def _spoken(turn: Any) -> Message:
    """One turn of ShareGPT; those that say `role` and `content` are taken too."""
    if not isinstance(turn, dict):
        raise ProblemError("not an object", 'write {"from": "human", "value": "..."}')
    speaker = turn.get("from") if turn.get("from") is not None else turn.get("role")
    value = turn["value"] if turn.get("value") is not None else turn.get("content")
    rest = {key: turn[key] for key in CARRIED if key in turn}  # not the HTML and ids that dumps are full of
    if speaker == "function_call":
        called = parse_json(value, "the call") if isinstance(value, str) else value
        calls = called if isinstance(called, list) else [called]
        made = [{"type": "function", "function": call} for call in calls]
        return check_message({**rest, "role": "assistant", "content": None, "tool_calls": made})
    if not isinstance(speaker, str) or speaker not in SPEAKERS:
        known = ", ".join([*SPEAKERS, "function_call"])
        raise ProblemError(f"unknown role {shown(speaker)}", f"`from` is one of {known}", "unknown_role")
    return check_message({**rest, "role": SPEAKERS[speaker], "content": value})


def _system(row: dict[str, Any]) -> list[Message]:
    """The system message that stands beside the turns, where there is one."""
    return [{"role": "system", "content": row["system"]}] if row.get("system") not in (None, "") else []


def _turns(value: Any, role: str) -> list[Any]:
    """The messages of a prompt or a completion, which may be one text."""
    return list(value) if isinstance(value, list | tuple) else [{"role": role, "content": value}]


READERS: dict[str, Callable[[dict[str, Any]], tuple[Message, ...]]] = {
    "chat": _chat,
    "prompt_completion": _prompt_completion,
    "alpaca": _alpaca,
    "sharegpt": _sharegpt,
}


def _unrecognised(value: Any) -> ProblemError:
    if isinstance(value, dict) and {"chosen", "rejected"} <= set(value):
        return ProblemError("preference pairs are not trained on here", "use TRL's DPOTrainer", "unsupported")
    if isinstance(value, str):
        # not taken for a text unasked: a list of texts may as well be one of file names
        return ProblemError("a bare text", 'give the format text to learn it, or write {"text": ...}')
    return ProblemError(f"no `messages`{_keys(value)}", f"a row has the keys of one format: {_known()}")


def _keys(value: Any) -> str:
    return (
        f"; it has {', '.join(clipped(key, 40) for key in list(value)[:5])}"
        if isinstance(value, dict)
        else ""
    )


def _described(name: str) -> str:
    return " and ".join(f"`{key}`" for key in KEYS[name])


def _known() -> str:
    return ", ".join(f"{name} ({' and '.join(keys)})" for name, keys in KEYS.items())
