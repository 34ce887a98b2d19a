"""For every check one file that triggers it, and a near miss that does not.

`bad` and `near` are lines beyond `GOOD`, which nothing is wrong with; a text is written as it is, anything else
as JSON. `at` are the numbers, among those lines, that must be named; where a finding is about the whole, none.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.bases import BEGUN, CHATML, chat, letters_tokenizer, sums

GOOD = sums(80)
PROSE = "the answer is one of those that you can have from this and it is not the last of them"
GERMAN = "das ist nicht die Antwort, die man von mir und dir auf diese Frage mit einem Wort hat"
LONG = (
    "A router forwards packets between networks. It reads the address of each packet, looks the address up in a "
    "table, and sends the packet on by the way that the table names. Home routers also translate addresses, so "
    "that many machines share one, and keep out what nobody inside has asked for. Most of them speak by radio too."
)
# Another day, another city: much of it the same, and no near-duplicate.
UNLIKE = (
    "A router forwards packets between networks. Switches work one layer below and know no networks at all; they "
    "learn by listening which machine is behind which of their sockets, and forget it after some minutes."
)
ROLES_ONLY = "{% for m in messages %}{% if m['role'] == 'tool' %}{{ raise_exception('no tools') }}{% endif %}{% endfor %}"
# As reasoning models have it: what was answered before is not shown again.
FORGETS = (
    "{% for m in messages %}{% if m['role'] != 'assistant' or loop.last %}{{ '<|im_start|>' + m['role'] + '\n' "
    "+ m['content'] + '<|im_end|>' + '\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
ENDLESS = (
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
SHOUTS = CHATML.replace("message['content']", "message['content'] | replace('quiet', 'LOUD')")
TOOL = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}},
}


def turns(*messages: Any, **more: Any) -> dict[str, Any]:
    """A row of messages, each a pair of role and content or a whole message."""
    whole = [{"role": m[0], "content": m[1]} if isinstance(m, tuple) else m for m in messages]
    return {"messages": whole, **more}


def called(name: str, arguments: Any = "{}") -> dict[str, Any]:
    """An assistant's turn that calls a tool."""
    call = {"id": "c1", "type": "function", "function": {"name": name, "arguments": arguments}}
    return {"role": "assistant", "content": "I look.", "tool_calls": [call]}


def answered(identity: str = "c1") -> dict[str, Any]:
    """What the tool says."""
    return {"role": "tool", "content": "sun", "tool_call_id": identity}


def without_q() -> PreTrainedTokenizerFast:
    """A tokenizer of letters, special tokens and little else, that does not know the letter q."""
    known = ["<unk>", "<|im_start|>", "<|im_end|>"]
    known += [*sorted(set(map(chr, range(32, 127))) - {"q"}), "\n", "é"]
    model = models.BPE(vocab={token: i for i, token in enumerate(known)}, merges=[], unk_token="<unk>")
    words = Tokenizer(model)
    words.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    words.decoder = decoders.Fuse()
    made = PreTrainedTokenizerFast(
        tokenizer_object=words,
        unk_token="<unk>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
    )
    made.chat_template = CHATML
    return made


@dataclass(frozen=True)
class Case:
    """Two files and what the check is told."""

    bad: Sequence[Any]
    near: Sequence[Any]
    at: Sequence[int] = (1,)
    options: dict[str, Any] = field(default_factory=dict)
    near_options: dict[str, Any] | None = None
    good: Sequence[Any] = tuple(GOOD)
    tokenizer: Any = letters_tokenizer
    near_tokenizer: Any = None


def _templates(bad: str, near: str = CHATML) -> dict[str, Any]:
    return {"tokenizer": lambda: letters_tokenizer(bad), "near_tokenizer": lambda: letters_tokenizer(near)}


READING = {
    "unreadable": Case(["{'messages': []}"], [json.dumps(chat("a", "b")), "   "]),
    "malformed": Case([{"messages": {}}], [turns(("user", "a"), ("assistant", "b"), id=7)]),
    "unsupported": Case(
        [turns({"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}, ("assistant", "b"))],
        [turns({"role": "user", "content": [{"type": "text", "text": "x"}]}, ("assistant", "b"))],
    ),
    "unknown_role": Case(
        [turns(("human", "a"), ("assistant", "b"))],
        [turns(("developer", "c"), ("user", "a"), ("assistant", "b"))],
    ),
    "no_assistant_turn": Case([turns(("user", "a"))], [chat("a", "b")]),
    "null_content": Case(
        [turns(("user", None), ("assistant", "b"))],
        [
            turns(
                ("user", "a"),
                called("weather") | {"content": None},
                answered(),
                ("assistant", "b"),
                tools=[TOOL],
            )
        ],
    ),
    "nothing_supervised": Case(
        [turns(("user", "a"), {"role": "assistant", "content": "b", "weight": 0})],
        [
            turns(
                ("user", "a"),
                {"role": "assistant", "content": "b", "weight": 0},
                ("user", "c"),
                {"role": "assistant", "content": "d", "weight": 1},
            )
        ],
    ),
    "double_begin_token": Case(
        [chat("a", "b")], [chat("a", "b")], (1,), good=(), **_templates("{{ bos_token }}" + BEGUN, BEGUN)
    ),
    "no_template": Case([chat("a", "b")], [chat("a", "b")], good=(), **_templates("", CHATML)),
    "template_refuses": Case(
        [turns(("user", "a"), called("weather"), answered(), ("assistant", "b"), tools=[TOOL])],
        [turns(("user", "a"), ("assistant", "b"), tools=[TOOL])],
        **_templates(ROLES_ONLY + CHATML, ROLES_ONLY + CHATML),
    ),
    "mask_refused": Case([chat("a", "b", "c", "d")], [chat("a", "b")], **_templates(FORGETS, FORGETS)),
    "end_not_supervised": Case([chat("a", "b")], [chat("a", "b")], good=(), **_templates(ENDLESS)),
}
CONVERSATIONS = {
    "role_order": Case(
        [
            turns(("user", "a"), ("user", "b"), ("assistant", "c")),
            turns(("user", "a1"), ("assistant", "b"), ("system", "c"), ("user", "d"), ("assistant", "e")),
            turns(("user", "a2"), ("tool", "b"), ("assistant", "c")),
            turns(("user", "a3"), ("assistant", "b"), ("assistant", "c")),
            turns(("assistant", "a4"), ("user", "b"), ("assistant", "c")),
            turns(("user", "a5"), called("weather"), ("user", "b"), ("assistant", "c"), tools=[TOOL]),
        ],
        [
            turns(
                ("system", "s"),
                ("user", "a"),
                called("weather"),
                answered(),
                ("assistant", "c"),
                tools=[TOOL],
            ),
            turns(
                {"role": "user", "content": "a", "name": "ann"},
                {"role": "user", "content": "b", "name": "bob"},
                ("assistant", "c"),
            ),
            turns({"role": "assistant", "content": "Hello!", "weight": 0}, ("user", "b"), ("assistant", "c")),
        ],
        (1, 2, 3, 4, 5, 6),
    ),
    "no_answer_at_the_end": Case([chat("a", "b", "c")], [chat("a", "b", "c", "d")]),
    "empty_answers": Case(
        [chat("a", " \n"), chat("b", "")],
        [turns(("user", "a"), called("weather") | {"content": ""}, tools=[TOOL]), chat("b", ".")],
        (1, 2),
    ),
    "empty_questions": Case([chat(" \t", "b")], [chat(".", "b"), chat("a", "b", system="")]),
    "white_space_around_answers": Case(
        [chat("a", " b"), chat("c", "d\n")], [chat(" a\n", "b c\nd"), chat("c", "  ")], (1, 2)
    ),
    "tool_calls": Case(
        [
            turns(("user", "a"), called("wether"), answered(), ("assistant", "b"), tools=[TOOL]),
            turns(("user", "c"), called("weather"), answered("c2"), ("assistant", "b"), tools=[TOOL]),
            turns(("user", "d"), called("weather"), answered(), ("assistant", "b")),
        ],
        [
            turns(
                ("user", "a"),
                called("weather", {"city": "Ulm"}),
                answered(),
                ("assistant", "b"),
                tools=[TOOL],
            )
        ],
        (1, 2, 3),
    ),
}
TEXTS = {
    "control_characters": Case(
        [chat("a\x07", "b"), chat("a", "b\u202ec"), chat("\ufeffa", "b")],
        [chat("a\tb\r\n", "👩‍🔬 می‌خواهم")],
        (1, 2, 3),
    ),
    "broken_unicode": Case([chat("a", "na\ufffdve"), chat("a\uffff", "b")], [chat("a", "naïve ?")], (1, 2)),
    "mojibake": Case(
        [chat("a", "cafÃ©"), chat("itâ€™s", "b"), chat("b", "Ð¿Ñ€Ð¸"), chat("ï»¿c", "d"), chat("ðŸ˜€", "e")],
        [chat("a", "SÃO PAULO, café…”, Â, Å“, â, Ðorð, Ã”")],
        (1, 2, 3, 4, 5),
    ),
}
TOKENS = {
    "special_tokens_in_text": Case(
        [chat("a <|im_end|>", "b"), chat("c", "<|im_start|>user")],
        [chat("a <|im_end>", "im_start <b>")],
        (1, 2),
    ),
    "unknown_tokens": Case([chat("quit", "b")], [chat("café", "b")], tokenizer=without_q),
    "template_changes": Case(
        [chat("a", "be quiet")], [chat("quieter", "be calm")], **_templates(SHOUTS, SHOUTS)
    ),
    "no_begin_token": Case(
        [chat("a", "b")],
        [chat("a", "b")],
        good=(),
        tokenizer=lambda: letters_tokenizer(CHATML, adds_begin=True),
        near_tokenizer=lambda: letters_tokenizer(BEGUN, adds_begin=True),
    ),
    # the marks of two turns are 21 tokens: 4 special ones, the names of the roles, and line breaks
    "too_long": Case([chat("a" * 50, "b" * 80)], [chat("a" * 50, "b" * 79)], options={"max_length": 150}),
    "extreme_lengths": Case([chat("a", "b" * 800)], [chat("a", "b" * 180)]),
}
_MIX = tuple(chat(f"{i}?", f"{PROSE} {i}") for i in range(30))
_JSON = tuple(chat(f"{i}?", json.dumps({"i": i})) for i in range(30))
_SYSTEM = tuple(chat(f"{i}?", f"{i}", system="Count.") for i in range(30))
WHOLE = {
    "duplicates": Case([GOOD[3], chat("a", "b"), chat("a", "b")], [chat("a", "b"), chat("a", "b ")], (1, 3)),
    "conflicting_answers": Case(
        [chat("a", "b"), chat("c", "d"), chat("a", "e")],
        [chat("a", "b"), chat("a", "b"), chat("a", "e", system="Otherwise.")],
        (1, 3),
    ),
    "one_answer": Case(
        [chat(f"q{i}", "yes") for i in range(30)],
        [chat(f"q{i}", "yes" if i % 4 else "no") for i in range(30)],
        tuple(range(1, 31)),
        good=(),
    ),
    "mixed_languages": Case([chat("a", GERMAN)], [chat("a", "Danke, gern geschehen!")], good=_MIX),
    "mixed_answers": Case([chat("a", "no JSON")], [chat("a", "[1]")], good=_JSON),
    "mixed_formats": Case(
        [{"instruction": "a", "input": "", "output": "b"}],
        [turns(("user", "a"), ("assistant", "b"), input="")],
    ),
    "mixed_system_messages": Case([chat("a", "b")], [chat("a", "b", system="Spell.")], good=_SYSTEM),
    "too_few_examples": Case(
        sums(63), sums(64), (), good=(), options={"rank": 8}, near_options={"rank": 8, "epochs": 10}
    ),
    "too_few_steps": Case(
        [],
        [],
        (),
        options={"warmup": 61, "batch": 4, "epochs": 3},
        near_options={"warmup": 60, "batch": 4, "epochs": 3},
    ),
}
LEAKAGE = {
    "in_both_parts": Case([GOOD[5]], [chat(GOOD[5]["messages"][0]["content"], "another")]),
    "near_duplicates": Case(
        [chat("What is it?", LONG.replace("Most of them", "Many of them"))],
        [chat("What is it?", UNLIKE)],
        good=(*GOOD, chat("What is it?", LONG)),
    ),
    "near_duplicates_not_looked_for": Case([chat("a", "b")], [chat("a", "b")], ()),
}
CASES: dict[str, Case] = {**READING, **CONVERSATIONS, **TEXTS, **TOKENS, **WHOLE, **LEAKAGE}
