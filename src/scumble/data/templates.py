"""Chat templates: which one is used, rendering with it, and what is known of it.

A template is a program in Jinja, of the tokenizer or of a file (`--template FILE`), that turns a conversation
into the one text that the model sees. What it does is not read off the program but tried on conversations of
a few words: whether it wants contents as text or as parts, the arguments of a tool call as an object or as
text, what it writes after the last turn and nowhere else. Knows a tokenizer, and nothing of masks or models.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers.utils import chat_template_utils
from transformers.utils.chat_template_utils import render_jinja_template

from scumble.data.json_values import loads
from scumble.errors import DataError, MissingFileError

Message = dict[str, Any]
Spans = list[tuple[int, int]]

_MARK = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
_ENDMARK = re.compile(r"\{%[-+]?\s*endgeneration\s*[-+]?%\}")
# the compiled program in its sandbox, kept by transformers; where a later version has it not, nothing changes but time
_compiled: Any = getattr(chat_template_utils, "_compile_jinja_template", None)
# words that no template writes by itself
_ASKED = {"role": "user", "content": "qzwkone"}
_SAID = {"role": "assistant", "content": "qzwktwo"}
_MORE = {"role": "user", "content": "qzwkthree"}
_WORDS = re.compile("qzwkone|qzwktwo|qzwkthree")
_CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [
        {"type": "function", "id": "abcdef123", "function": {"name": "qzwkcall", "arguments": {"qzwkarg": 7}}}
    ],
}


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
        messages: Sequence[Message],
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
        return self._render(self._fitted(messages), where, tools, generation)[0]

    def render_marked(
        self, messages: Sequence[Message], where: str, *, tools: Sequence[dict[str, Any]] | None = None
    ) -> tuple[str, Spans]:
        """The text of a conversation, and the characters (start, end) between each two generation marks.

        Raises:
            DataError: the template refuses it.
        """
        return self._render(self._fitted(messages), where, tools, marked=True)

    @cached_property
    def marked(self) -> bool:
        """Whether the template says with `{% generation %}` what the model writes."""
        return bool(_MARK.search(self.text))

    @cached_property
    def parts(self) -> bool:
        """Whether contents are wanted as a list of parts: some templates for images leave out plain text."""
        text = self._tried([_ASKED, _SAID])
        return (text is None or "qzwktwo" not in text) and "qzwktwo" in (
            self._tried([_in_parts(_ASKED), _in_parts(_SAID)]) or ""
        )

    @cached_property
    def call_form(self) -> tuple[bool, dict[str, Any]]:
        """How a turn that calls tools is wanted: whether the arguments as JSON text, and what stands for no content.

        Some templates fail on arguments that are an object; some leave the calls out of a turn whose content is
        an empty text, and want none, or nothing at all.
        """
        bare = {key: value for key, value in _CALL.items() if key != "content"}
        contents: tuple[dict[str, Any], ...] = ({"content": ""}, {"content": None}, {})
        for as_text in (False, True):
            for content in contents:
                call = _with_arguments(bare | content, as_text=as_text)
                if "qzwkcall" in (self._tried([self._two[0], call]) or ""):
                    return as_text, content
        return False, {"content": ""}

    @cached_property
    def specials(self) -> tuple[str, ...]:
        """The texts of the tokenizer's special and added tokens, the longest first."""
        known = {*self.tokenizer.all_special_tokens}
        known |= {str(token) for token in self.tokenizer.added_tokens_decoder.values()}
        return tuple(sorted((text for text in known if text.strip()), key=len, reverse=True))

    @cached_property
    def _ends(self) -> tuple[str, str, str]:
        """(trailer, last end, other end): how the end of a conversation differs from that of a turn within it."""
        last, longer = self._tried(self._two), self._tried([*self._two, self._more])
        if last is None or longer is None or longer.startswith(last):
            return "", "", ""
        at = self.boundary(last, longer)
        tail = last[at:]
        if last[:at].rstrip().endswith(self.specials):
            return tail, "", ""
        ending = next((s for s in self.specials if longer[at:].startswith(s)), "")
        return ("", tail.rstrip(), ending) if ending and tail.rstrip() in self.specials else ("", "", "")

    @property
    def trailer(self) -> str:
        """What the template writes after the end of the last turn, and nowhere else (Phi 3's `<|endoftext|>`)."""
        return self._ends[0]

    @property
    def swapped_end(self) -> tuple[str, str]:
        """The end token of the last turn, and that of others, where they differ (gpt-oss); else empty."""
        return self._ends[1:]

    @cached_property
    def opening(self) -> int:
        """How many characters the beginnings of a user's and of an assistant's turn have in common."""
        asked, text = self._tried(self._two[:1]), self._tried([*self._two, self._more])
        if (
            asked is None
            or text is None
            or not {"qzwkone", "qzwktwo", "qzwkthree"} <= set(_WORDS.findall(text))
        ):
            return 0
        end = len(asked.removesuffix(self.trailer).rpartition("qzwkone")[2])
        return max(common(*_WORDS.split(text)[1:3]) - end, 0)

    @cached_property
    def prompt(self) -> str:
        """The generation prompt: what is added after a user's turn for the model to go on."""
        plain, asked = self._tried(self._two[:1]), self._tried(self._two[:1], generation=True)
        if plain is None or asked is None:
            return ""
        return asked[common(plain.removesuffix(self.trailer), asked) :]

    @cached_property
    def tool_opening(self) -> str:
        """A special token that opens what a tool says, and is written already where a call ends a conversation.

        Gemma 4's `<|tool_response>`: whether the model writes it cannot be told from the rendering, and the marks
        that there are for it say no.
        """
        turns = [self._two[0], _CALL, _tool("qzwkone"), _tool("qzwktwo")]
        texts = [self._tried(self._fitted(turns[:n])) for n in (2, 3, 4)]
        if any(text is None for text in texts):
            return ""
        call, one, two = (str(text) for text in texts)
        ending = next((special for special in self.specials if call.endswith(special)), "")
        return (
            ending if ending and one.startswith(call) and two[common(one, two) :].startswith(ending) else ""
        )

    @cached_property
    def ends_turns(self) -> bool:
        """Whether an assistant's turn ends with a special token, so that the model can learn to stop."""
        text = self._tried(self._two)
        if text is None:  # it refuses even this; each example will be held against its own rendering
            return True
        rest = text.removesuffix(self.trailer).rpartition("qzwktwo")[2]
        return rest.rstrip().endswith(self.specials)

    def boundary(self, one: str, other: str) -> int:
        """Where two texts part, moved back to before a special token or tag that only begins alike."""
        at = common(one, other)
        for text in (one, other):
            for match in re.finditer(r"<[^<>\s]{1,60}>", text[max(at - 62, 0) : at + 62]):
                start, end = (max(at - 62, 0) + edge for edge in match.span())
                if start < at < end:
                    at = start
        return at

    @property
    def _two(self) -> list[Message]:
        return [_in_parts(_ASKED), _in_parts(_SAID)] if self.parts else [_ASKED, _SAID]

    @property
    def _more(self) -> Message:
        return _in_parts(_MORE) if self.parts else _MORE

    def _fitted(self, messages: Sequence[Message]) -> list[Message]:
        """The turns as this template wants them; OpenAI's arguments of a tool call are JSON text."""
        fitted = [self._call_fitted(m) if m.get("tool_calls") else m for m in messages]
        return [_in_parts(message) for message in fitted] if self.parts else fitted

    def _call_fitted(self, message: Message) -> Message:
        as_text, content = self.call_form
        fitted = _with_arguments(message, as_text=as_text)
        if message.get("content"):
            return fitted
        return {key: value for key, value in fitted.items() if key != "content"} | content

    def _tried(self, messages: list[Message], *, generation: bool = False) -> str | None:
        try:
            return self._render(messages, "a test", generation=generation)[0]
        except DataError:
            return None

    def _render(
        self,
        messages: list[Message],
        where: str,
        tools: Sequence[dict[str, Any]] | None = None,
        generation: bool = False,
        marked: bool = False,
    ) -> tuple[str, Spans]:
        try:
            if self._directly and not tools and not marked and _plain(messages):
                # half of the time that the function below takes goes into copies that make objects harmless
                return _compiled(self.text).render(
                    messages=messages,
                    tools=None,
                    documents=None,
                    add_generation_prompt=generation,
                    **self.names,
                ), []
            found: Any = render_jinja_template(
                conversations=[messages],
                tools=list(tools) if tools else None,
                chat_template=self.text,
                return_assistant_tokens_mask=marked,
                add_generation_prompt=generation,
                **self.names,
            )
        except Exception as error:  # a template is a program, and may fail in any way
            raise DataError(
                f"{where}: the chat template refuses it: {error}",
                "check the order of the roles",
                kind="template_refuses",
            ) from error
        texts, spans = found
        return texts[0], spans[0] if marked else []

    @cached_property
    def _directly(self) -> bool:
        """Whether the compiled program can be called: what it is given beside messages is text only."""
        return _compiled is not None and all(type(token) is str for token in self.names.values())

    @cached_property
    def names(self) -> dict[str, Any]:
        """The special tokens that the template names; each costs time at every rendering."""
        return {name: token for name, token in self.tokenizer.special_tokens_map.items() if name in self.text}


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
            kind="no_template",
        )
    return Template(found, "the tokenizer", tokenizer)


def without_marks(text: str) -> str:
    """A template without its generation marks; the white space that they took away stays away."""
    # `{% if true %}` takes the same white space away as the mark does, whatever the dashes
    return _ENDMARK.sub(lambda m: m[0].replace("endgeneration", "endif"), _MARK.sub(_as_if, text))


def _as_if(match: re.Match[str]) -> str:
    return match[0].replace("generation", "if true")


def common(one: str, other: str) -> int:
    """How many characters two texts have in common at their beginning."""
    if other.startswith(one):
        return len(one)
    if one.startswith(other):
        return len(other)
    low, high = 0, min(len(one), len(other))
    while low < high:  # slices are compared in C; the first difference lies above `low`
        middle = (low + high + 1) // 2
        low, high = (middle, high) if one[low:middle] == other[low:middle] else (low, middle - 1)
    return low


def _plain(messages: list[Message]) -> bool:
    """Whether they hold texts only, a role and a content each, and so nothing that a template could misuse."""
    for message in messages:
        if type(message) is not dict or len(message) != 2:
            return False
        if type(message.get("role")) is not str or type(message.get("content")) is not str:
            return False
    return True


def _tool(content: str) -> Message:
    return {"role": "tool", "content": content, "name": "qzwkcall", "tool_call_id": "abcdef123"}


def _in_parts(message: Message) -> Message:
    content = message.get("content")
    return (
        {**message, "content": [{"type": "text", "text": content}]} if isinstance(content, str) else message
    )


def _with_arguments(message: Message, *, as_text: bool) -> Message:
    return {**message, "tool_calls": [_call(call, as_text=as_text) for call in message["tool_calls"]]}


def _call(call: Any, *, as_text: bool) -> Any:
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or "arguments" not in function:
        return call
    arguments = function["arguments"]
    if as_text and not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    elif not as_text and isinstance(arguments, str):
        try:
            found = loads(arguments)
        except ValueError:
            found = None
        arguments = found if isinstance(found, dict) else arguments
    changed = {**function, "arguments": arguments}
    return {**call, "function": changed} if "function" in call else changed
