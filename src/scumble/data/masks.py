"""Which characters of a rendered conversation carry a loss: what the model itself would have to write.

That is the assistant's content and its end of turn. It is told by the template's `{% generation %}` marks
where it has them; else by rendering prefixes: the turns before an answer with the generation prompt, and the
turns with the answer, each of which the whole must extend, or the example is refused. To both, two rules are
applied. What the generation prompt supplies is dropped (it is there before the model begins), and so is what
the template writes after the end-of-turn token. Knows templates and nothing of tokens or models.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from scumble.data.example import Example
from scumble.data.templates import Spans, Template, common
from scumble.errors import DataError

TrainOn: TypeAlias = Literal["all", "last"]
# what a generation prompt may write that the answer's rendering does not have: tags, and white space
_TAGS = re.compile(r"(?:\s|<[^<>\s]{1,60}>)*")
_TEST = re.compile(r"</?think>|<\|channel>|<channel\|>")


@dataclass(frozen=True)
class Masked:
    """A rendered conversation and what of it carries a loss.

    Attributes:
        text: what the template renders.
        turns: for each message with a loss, its number (from 0) and its characters (start, end).
        notes: what a reader should know: a generation prompt that the rendering does not agree with, tool calls
            or contents that the template leaves out.
    """

    text: str
    turns: tuple[tuple[int, tuple[tuple[int, int], ...]], ...]
    notes: tuple[str, ...] = ()

    @property
    def spans(self) -> Spans:
        """All characters with a loss, in order."""
        return [span for _, spans in self.turns for span in spans]


def mask(example: Example, template: Template, train_on: TrainOn = "all") -> Masked:
    """Render a conversation and find what carries a loss.

    Args:
        example: the conversation; turns with `weight` 0 carry none.
        template: the chat template.
        train_on: every assistant's turn, or the last one only.

    Raises:
        DataError: the template refuses the conversation, rewrites earlier turns without marks, or ends turns
            without an end token.
    """
    return _Rendered(example, template).mask(_asked(example, train_on))


def _asked(example: Example, train_on: TrainOn) -> list[int]:
    answers = [i for i, message in enumerate(example.messages) if message["role"] == "assistant"]
    answers = answers[-1:] if train_on == "last" else answers
    return [i for i in answers if example.messages[i].get("weight") != 0]


class _Rendered:
    """One conversation while its mask is found."""

    def __init__(self, example: Example, template: Template) -> None:
        self.messages, self.where, self.template = example.messages, example.where, template
        self.line = example.number or None
        self.tools: Sequence[dict[str, Any]] | None = example.tools
        self.notes: list[str] = []
        self.marks: Spans | None = None
        if template.marked:
            self.text, self.marks = template.render_marked(self.messages, self.where, tools=self.tools)
        else:
            self.text = template.render(self.messages, self.where, tools=self.tools)
        # what the template writes after the last turn belongs to no turn
        self.end = len(self.text)
        if template.trailer and self.text.endswith(template.trailer):
            self.end -= len(template.trailer)

    def mask(self, asked: Sequence[int]) -> Masked:
        found = []
        for i in asked:
            spans = self._by_prefixes(i) if self.marks is None else self._by_marks(i)
            spans = self._ended(i, spans)
            self._look_for_what_is_missing(i, spans)
            found.append((i, tuple(spans)))
        return Masked(self.text, tuple(found), tuple(self.notes))

    def _prefix(self, n: int, *, generation: bool = False) -> str:
        """The rendering of the first `n` turns, without what follows a last turn only."""
        if n == len(self.messages) and not generation:
            return self.text[: self.end]
        if n == 0:
            raise DataError(
                f"{self.where}: the assistant begins",
                "an answer needs a turn before it",
                kind="mask_refused",
                line=self.line,
            )
        text = self.template.render(self.messages[:n], self.where, tools=self.tools, generation=generation)
        return text if generation else text.removesuffix(self.template.trailer)

    def _by_prefixes(self, i: int) -> Spans:
        before = self._prefix(i, generation=True)
        start = len(before) if self.text.startswith(before) else self._parting(i, before)
        if start is None:
            raise self._rewritten(i)
        after = self._prefix(i + 1)
        last, other = self.template.swapped_end
        if last and after.endswith(last) and not self.text.startswith(after):
            after = after.removesuffix(last) + other
        if not self.text.startswith(after) or len(after) < start:
            raise self._rewritten(i)
        # where the generation prompt adds nothing (after a tool's answer), its words may still begin the turn
        if self.template.prompt and self.text.startswith(self.template.prompt, start):
            start += len(self.template.prompt)
        return [(start, len(self._without_opening(i, after)))]

    def _without_opening(self, i: int, after: str) -> str:
        calls = self.messages[i].get("tool_calls")
        opening = self.template.tool_opening if calls and not self.template.marked else ""
        if opening and after.endswith(opening):
            return after.removesuffix(opening)
        return after

    def _parting(self, i: int, before: str) -> int | None:
        """Where the whole leaves the turns before an answer with their generation prompt; None where too early."""
        plain = self._prefix(i)
        at = self.template.boundary(before, self.text)
        if not self.text.startswith(plain) or not before.startswith(plain):
            return None
        # both must have got beyond what every turn begins with, and only tags may be what differs
        if at <= len(plain) + self.template.opening or not _TAGS.fullmatch(before[at:]):
            return None
        self.notes.append(
            f"message {i + 1}: the generation prompt goes on with {before[at:]!r} where the training text does not"
        )
        return at

    def _by_marks(self, i: int) -> Spans:
        """The marks of one turn, less what the generation prompt supplies."""
        assert self.marks is not None
        first, last = self._edge(i), self._edge(i + 1)
        spans = [(max(a, first), min(b, last)) for a, b in self.marks if max(a, first) < min(b, last)]
        if not spans:
            return []
        start = spans[0][0] + self._supplied(i, spans[0][0])
        return [(max(a, start), b) for a, b in spans if b > start]

    def _edge(self, n: int) -> int:
        """A place between what the assistant says before turn `n` and what it says from there on."""
        if n == len(self.messages):
            return self.end
        if n == 0 or not any(message["role"] == "assistant" for message in self.messages[:n]):
            return 0
        prefix = self._prefix(n)
        if self.text.startswith(prefix):
            return len(prefix)
        # where earlier turns are rewritten, a turn that is not the assistant's is found by changing its words
        for i in (n, n - 1):
            if self.messages[i]["role"] != "assistant":
                changed = [*self.messages]
                changed[i] = {**changed[i], "content": "qzwkchanged"}
                at = common(self.text, self.template.render(changed, self.where, tools=self.tools))
                if at < len(self.text):
                    return at
        last, other = self.template.swapped_end
        if last and self.text.startswith(prefix.removesuffix(last) + other):
            return len(prefix) - len(last) + len(other)
        raise self._rewritten(n - 1)

    def _supplied(self, i: int, start: int) -> int:
        """How many characters from `start`, where a mark begins, the generation prompt has written already."""
        if i == 0:
            return 0
        before = self._prefix(i, generation=True)
        if self.text.startswith(before):
            return max(len(before) - start, 0)
        # where earlier turns are rewritten, only what the prompt adds to them can be compared
        added = before[common(before, self._prefix(i)) :]
        for header in range(len(added), -1, -1):
            if self.text.endswith(added[:header], 0, start):
                at = self.template.boundary(added[header:], self.text[start : start + len(added) - header])
                if added[header + at :]:
                    self.notes.append(
                        f"message {i + 1}: the generation prompt goes on with {added[header + at :]!r} where the "
                        "training text does not"
                    )
                return at
        return 0

    def _ended(self, i: int, spans: Spans) -> Spans:
        """The spans up to the end-of-turn token; what comes after it is not the model's to write."""
        if not spans:
            return []
        start, stop = spans[-1]
        written = self.text[start:stop].rstrip()
        if not written.endswith(self.template.specials) or not self.template.ends_turns:
            raise DataError(
                f"{self.where}: the chat template ends the assistant's turn (message {i + 1}) without an end token",
                "the model would never learn to stop; use a tokenizer whose template has one",
                kind="end_not_supervised",
                line=self.line,
            )
        return [*spans[:-1], (start, start + len(written))]

    def _look_for_what_is_missing(self, i: int, spans: Spans) -> None:
        message = self.messages[i]
        text = "".join(self.text[a:b] for a, b in spans)
        content = _TEST.split(str(message.get("content") or ""))[-1].strip()
        if content and content not in text:
            self.notes.append(f"message {i + 1}: the chat template leaves out or changes its content")
        calls = [
            call.get("function", call) for call in message.get("tool_calls") or () if isinstance(call, dict)
        ]
        if any(isinstance(call, dict) and str(call.get("name")) not in text for call in calls):
            self.notes.append(f"message {i + 1}: the chat template leaves out its tool calls")
        if message.get("reasoning_content") and str(message["reasoning_content"]).strip() not in text:
            self.notes.append(f"message {i + 1}: the chat template leaves out its reasoning")

    def _rewritten(self, i: int) -> DataError:
        return DataError(
            f"{self.where}: the chat template rewrites earlier turns, so that what the model would have "
            f"written in message {i + 1} cannot be told",
            "train on the last answer only (--train-on last), or split the conversation so that each example has "
            "one answer",
            kind="mask_refused",
            line=self.line,
        )
