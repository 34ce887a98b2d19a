"""A conversation with a base and its adapters, swapped in mid-sentence without loading anything again.

    /use NAME, /use a*0.7+b*0.3, /use base    who answers from now on
    /compare                                  the last question again, answered by the base and by who is in use
    /reset, /help, /quit

Knows a bank and a tokenizer; reads no keyboard and prints nothing, so that a terminal, a test and a page can
each drive it.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from scumble.compare.generation import generate, stream
from scumble.data.encoding import encode_prompt
from scumble.errors import ConfigError, DataError
from scumble.lora.bank import Bank
from scumble.lora.mixture import format_mixture, parse_mixture

HELP = "/use NAME or a*0.7+b*0.3 or base · /compare · /reset · /quit"


@dataclass
class Chat:
    """One conversation.

    Attributes:
        bank: the base and its adapters.
        tokenizer: of the base.
        system: the system message, or empty.
        max_new_tokens: of an answer, at most.
        temperature: 0 is greedy.
        mixture: who answers, as a blend.
        turns: what was said so far.
        over: the user asked to leave.
    """

    bank: Bank
    tokenizer: Any
    system: str = ""
    max_new_tokens: int = 256
    temperature: float = 0.0
    mixture: str = "base"
    turns: list[dict[str, str]] = field(default_factory=list)
    over: bool = False

    def say(self, line: str) -> Generator[str, None, None]:
        """Take one line, a message or a command, and give the answer piece by piece.

        Raises:
            ScumbleError: the command or the adapter it names is not known, or the conversation has grown longer
                than the base can read; the conversation goes on.

        Closing the iterator ends the answer; what was said of it stays in the conversation.
        """
        text = line.strip()
        if not text:
            return
        if text.startswith("/"):
            yield self._command(text)
            return
        asked = [*self.turns, {"role": "user", "content": text}]
        prompt, room = self._encode(asked)
        answer = stream(self.bank, self.tokenizer, prompt, max_new_tokens=room, temperature=self.temperature)
        pieces: list[str] = []
        finished = False
        try:
            with self.bank.using(self.mixture), closing(answer):
                for piece in answer:
                    pieces.append(piece)
                    yield piece
            finished = True
        finally:
            # a question that was stopped before its answer began is forgotten, as if never asked
            said = "".join(pieces).strip()
            if finished or said:
                self.turns = [*asked, {"role": "assistant", "content": said}]

    def use(self, mixture: str) -> str:
        """Let another adapter, a blend, or the base answer from now on; says who it is."""
        weights = parse_mixture(mixture)
        with self.bank.using(weights):
            pass  # names that the bank lacks are refused here, before anything changes
        self.mixture = format_mixture(weights)
        return f"now answering: {self.mixture}"

    def _encode(self, turns: list[dict[str, str]]) -> tuple[list[int], int]:
        """The tokens after which the model answers the last of the turns, and of how many its answer may be."""
        head = [{"role": "system", "content": self.system}] if self.system else []
        prompt = encode_prompt(head + turns, self.tokenizer)
        most = getattr(self.bank.model.config, "max_position_embeddings", None)
        if most and len(prompt) >= most:
            raise DataError(
                f"the conversation has {len(prompt)} tokens, and the base reads {most} at most",
                "/reset starts anew",
            )
        return prompt, min(self.max_new_tokens, most - len(prompt)) if most else self.max_new_tokens

    def _command(self, text: str) -> str:
        name, _, rest = text.partition(" ")
        if name == "/use":
            return self.use(rest.strip())
        if name == "/compare":
            return self._compare()
        if name == "/reset":
            self.turns.clear()
            return "the conversation starts anew"
        if name in ("/quit", "/exit"):
            self.over = True
            return ""
        if name == "/help":
            return f"{HELP}\nadapters: {', '.join(self.bank.names) or 'none'}; now answering: {self.mixture}"
        raise ConfigError(f"the command {name} is not known", HELP)

    def _compare(self) -> str:
        """The last question answered by the base and by who is in use, or by every adapter where the base is."""
        asked = [i for i, turn in enumerate(self.turns) if turn["role"] == "user"]
        if not asked:
            raise ConfigError("there is no question yet to compare answers to", "ask something first")
        prompt, room = self._encode(self.turns[: asked[-1] + 1])
        compared = ["base", *(self.bank.names if self.mixture == "base" else [self.mixture])]
        [answers] = generate(
            self.bank, self.tokenizer, [prompt], compared, max_new_tokens=room, temperature=self.temperature
        )
        return "\n".join(f"{name}: {answer}" for name, answer in zip(compared, answers, strict=True))
