"""Every chat template that the installed TRL ships, held against its own generation marks.

What transformers finds by the marks (`render_jinja_template`) is the oracle; the two stated rules are applied to
it here a second time, by other means: the end tokens are a table, not found by trying. A template without marks is
held against one with marks that renders the very same text, and where there is none, against the words themselves.

    python -m tests.data.trl_templates

writes the table of docs/data.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import trl
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import render_jinja_template

from scumble.data.encoding import Encoded, encode
from scumble.data.example import Example
from scumble.data.templates import Template, without_marks
from scumble.errors import DataError

FOLDER = Path(trl.__file__).parent / "chat_templates"
NAMES = sorted(path.stem for path in FOLDER.glob("*.jinja"))
DOCS = Path(__file__).parents[2] / "docs" / "data.md"
BEGIN, END = "<!-- templates -->\n", "<!-- end of templates -->\n"
Message = dict[str, Any]

# the texts of tokens that templates write: in angle brackets, also with a bar (of Latin width or full)
_TOKENS = re.compile(r"<[|｜][^<>\s'\"{}]{1,40}>|<[^<>\s'\"{}|=]{1,30}[|｜]?>")
# by the beginning of a template's name: the tokenizer's end token, and what ends an assistant's turn
ENDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "": ("<|im_end|>", ("<|im_end|>",)),
    "cohere": ("<|END_OF_TURN_TOKEN|>", ("<|END_OF_TURN_TOKEN|>",)),
    "deepseek": ("<｜end▁of▁sentence｜>", ("<｜end▁of▁sentence｜>", "<｜tool▁call▁end｜>")),
    "diffusion_gemma": ("<eos>", ("<turn|>", "<tool_call|>")),
    "gemma": ("<eos>", ("<end_of_turn>",)),
    "gemma4": ("<eos>", ("<turn|>", "<tool_call|>")),
    "glm4moe": ("<|endoftext|>", ("<|user|>", "<|observation|>")),
    "gptoss": ("<|return|>", ("<|end|>", "<|return|>", "<|call|>")),
    "idefics3": ("<end_of_utterance>", ("<end_of_utterance>",)),
    "llama3": ("<|eot_id|>", ("<|eot_id|>",)),
    "llava_next": ("</s>", ("</s>",)),
    "muse_glimmer": ("<|eot|>", ("<|eot|>",)),
    "phi3": ("<|endoftext|>", ("<|end|>",)),
    "smolvlm": ("<end_of_utterance>", ("<end_of_utterance>",)),
}

TOOLS: tuple[dict[str, Any], ...] = (
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather of a city",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "description": "which"}},
                "required": ["city"],
            },
        },
    },
)


def system(content: str = "Be brief.") -> Message:
    return {"role": "system", "content": content}


def user(content: str) -> Message:
    return {"role": "user", "content": content}


def said(content: str, **more: Any) -> Message:
    return {"role": "assistant", "content": content, **more}


def calls(*cities: str) -> Message:
    functions = [{"name": "weather", "arguments": {"city": city}} for city in cities]
    return said("", tool_calls=[{"type": "function", "id": "call12345", "function": f} for f in functions])


def result(content: str) -> Message:
    return {"role": "tool", "content": content, "name": "weather", "tool_call_id": "call12345"}


TURNS = [user("hello"), said("yes 12"), user("and now?"), said("no\nway"), user("hm"), said("well,  then")]
THOUGHT = said("yes it is", reasoning_content="so it seems")
CALL = [user("what weather?"), calls("Paris"), result("sunny"), said("It is sunny")]
MORE = [user("so what?"), said("go out")]
CONVERSATIONS: dict[str, tuple[Sequence[Message], tuple[dict[str, Any], ...] | None]] = {
    "one turn": (TURNS[:2], None),
    "turns": (TURNS, None),
    "system": ([system(), *TURNS], None),
    "tools told": (TURNS, TOOLS),
    "system, tools told": ([system(), *TURNS], TOOLS),
    "call": (CALL, TOOLS),
    "call, system, turns": ([system(), *CALL, *MORE], TOOLS),
    "calls": (
        [*TURNS[:2], user("weather?"), calls("Paris", "Rome"), result("sun"), result("rain"), *CALL[3:]],
        TOOLS,
    ),
    "two rounds": ([*CALL, *CALL], TOOLS),
    "thought": ([user("hello"), THOUGHT], None),
    "thoughts": ([user("hello"), THOUGHT, user("and now?"), THOUGHT], None),
}


@dataclass
class Held:
    """One conversation by one template, with its marks and without.

    Attributes:
        refused: why it is refused, without marks; empty where it is not.
        rules: which of the two rules changed what the marks say.
        by: the template whose marks it was held against; `words` where there is none.
    """

    refused: str = ""
    rules: set[str] = field(default_factory=set)
    by: str = ""


def of_family(name: str) -> tuple[str, tuple[str, ...]]:
    return ENDS[max((start for start in ENDS if name.startswith(start)), key=len)]


@cache
def _words() -> str:
    """A byte-pair encoding that joins letters and line breaks, so that tokens reach across edges if they are let."""
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    text = "\n\n hello yes no way well then it is sunny what weather in Paris assistant user system tool model\n\n"
    words.train_from_iterator([text] * 9, trainer)
    return str(words.to_str())


@cache
def loaded(name: str) -> tuple[Template, Template]:
    """The template with a tokenizer that has its special tokens, as it is and without its marks."""
    text = (FOLDER / f"{name}.jinja").read_text(encoding="utf-8")
    end, ends = of_family(name)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_words()), eos_token=end, bos_token="<bos>"
    )
    found = sorted({*_TOKENS.findall(re.sub(r"\{#.*?#\}", "", text, flags=re.S)), *ends})
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in found])
    tokenizer.chat_template = text
    return Template(text, name, tokenizer), Template(without_marks(text), name, tokenizer)


def hold(name: str, conversation: str) -> Held:
    """Hold our masks, with marks and without, against the marks'; an assertion fails where they differ."""
    messages, tools = CONVERSATIONS[conversation]
    example = Example(tuple(messages), f"{name}, {conversation}", tools)
    marked, bare = loaded(name)
    held = Held()
    try:
        ours = encode(example, bare.tokenizer, template=bare)
    except DataError as error:
        ours, held.refused = None, error.message
    if marked.marked:
        held.by = name
        try:
            with_marks = encode(example, marked.tokenizer, template=marked)
        except DataError as error:
            assert ours is None, "without marks, more is taken than with them"
            held.by, held.refused = "", error.message
            return held
        expected = by_marks(marked, marked, example, held.rules)
        assert shown(with_marks, marked) == expected, "with marks"
        assert ours is None or shown(ours, bare) == expected, "without marks"
    elif ours is not None:
        _hold_against_another(name, example, ours, held)
    return held


def _hold_against_another(name: str, example: Example, ours: Encoded, held: Held) -> None:
    bare = loaded(name)[1]
    text = rendered(bare, example)[0]
    for other in (f"{name}_training", *NAMES):
        if other not in NAMES or not loaded(other)[0].marked:
            continue
        # the other's marks, with this one's special tokens and form of tool calls
        try:
            spans = rendered(bare, example, by=loaded(other)[0].text)
        except Exception:
            continue
        if spans[0] == text:
            expected = by_marks(bare, loaded(other)[0], example, held.rules)
            assert shown(ours, bare) == expected, f"held against {other}"
            held.by = other
            return
    held.by = "words"
    hold_against_words(name, example, ours)


def hold_against_words(name: str, example: Example, ours: Encoded) -> None:
    """Each stretch with a loss is one answer: its words, or its call, and what ends it."""
    stretches = re.findall(r"⟦(.*?)⟧", "".join(shown(ours, loaded(name)[1])), flags=re.S)
    answers = [message for message in example.messages if message["role"] == "assistant"]
    assert len(stretches) == len(answers)
    for stretch, answer in zip(stretches, answers, strict=True):
        end = next(end for end in of_family(name)[1] if stretch.endswith(end))
        if "tool_calls" in answer:
            assert all(call["function"]["name"] in stretch for call in answer["tool_calls"])
            assert all(call["function"]["arguments"]["city"] in stretch for call in answer["tool_calls"])
        else:
            assert re.sub(r"<think>\s*|\s*</think>\s*", "", stretch) == answer["content"].strip() + end


def rendered(
    template: Template,
    example: Example,
    *,
    first: int | None = None,
    prompt: bool = False,
    by: str | None = None,
) -> tuple[str, list[tuple[int, int]]]:
    """What transformers renders of the first turns, and between which characters its marks are."""
    messages = template._fitted(example.messages[:first])
    found: Any = render_jinja_template(
        [messages],
        tools=list(example.tools) if example.tools else None,
        chat_template=by or template.text,
        return_assistant_tokens_mask=template.marked or by is not None,
        add_generation_prompt=prompt,
        **template.tokenizer.special_tokens_map,
    )
    texts, spans = found
    return texts[0], spans[0] if spans else []


def by_marks(template: Template, marks: Template, example: Example, rules: set[str]) -> list[str]:
    """The tokens that the marks and the two rules give, each run of those with a loss in ⟦⟧."""
    text, spans = rendered(template, example, by=marks.text)
    loss = [False] * len(text)
    for start, end in spans:
        loss[start:end] = [True] * (end - start)
    name = template.source
    for start, end in _runs(loss):
        begin, stop = (
            _after_the_prompt(marks, template, example, text, start, end),
            _end(name, text, start, end),
        )
        rules |= {"prompt"} if begin > start else set()
        rules |= {"after"} if stop < end else set()
        loss[start:begin], loss[stop:end] = [False] * (begin - start), [False] * (end - stop)
    # where the prompt ends within a token, it is cut there, as when the model is asked
    tokenizer = template.tokenizer
    edges = [0, *(i for i in range(1, len(text)) if loss[i] != loss[i - 1]), len(text)]
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    cuts = [edge for edge in edges if any(a < edge < b for a, b in offsets)]
    tokens = []
    for begin, stop in pairwise([0, *cuts, len(text)]):
        part = tokenizer(text[begin:stop], add_special_tokens=False, return_offsets_mapping=True)
        pairs = zip(part["input_ids"], part["offset_mapping"], strict=True)
        tokens += [(number, loss[a + begin]) for number, (a, _) in pairs]
    return _shown(tokens, tokenizer)


def _runs(loss: Sequence[bool]) -> list[tuple[int, int]]:
    edges = [i for i in range(len(loss) + 1) if (i < len(loss) and loss[i]) != (i > 0 and loss[i - 1])]
    return list(zip(edges[::2], edges[1::2], strict=True))


def _after_the_prompt(
    marks: Template, template: Template, example: Example, text: str, start: int, end: int
) -> int:
    """Where in a run the text leaves the turns before some answer with the generation prompt."""
    for i, message in enumerate(example.messages):
        if message["role"] == "assistant" and i:
            before = rendered(template, example, first=i, prompt=True, by=marks.text)[0]
            alike = 0
            while alike < min(len(before), len(text)) and before[alike] == text[alike]:
                alike += 1
            if alike < len(before):  # not within a tag
                opened = text.rfind("<", 0, alike)
                alike = opened if opened > max(text.rfind(">", 0, alike), start) else alike
            if start < alike < end:
                start = alike
    return start


def _end(name: str, text: str, start: int, end: int) -> int:
    found = [at + len(token) for token in of_family(name)[1] if (at := text.rfind(token, start, end)) >= 0]
    return max(found, default=end)


def shown(encoded: Encoded, template: Template) -> list[str]:
    """The tokens as texts, each run of those with a loss in ⟦⟧."""
    return _shown(list(zip(encoded.ids, encoded.supervised, strict=True)), template.tokenizer)


def _shown(tokens: Sequence[tuple[int, bool]], tokenizer: Any) -> list[str]:
    found = []
    for i, (number, loss) in enumerate(tokens):
        opens = loss and not (i and tokens[i - 1][1])
        closes = loss and not (i + 1 < len(tokens) and tokens[i + 1][1])
        found.append(("⟦" if opens else "") + tokenizer.decode([number]) + ("⟧" if closes else ""))
    return found


def reason(refused: str) -> str:
    """Why a conversation is refused, in a few words."""
    if "rewrites earlier turns" in refused:
        return "rewrites earlier turns"
    if "without an end token" in refused:
        return "ends turns without an end token"
    if "System role" in refused:
        return "knows no system prompt"
    if "single tool-call" in refused:
        return "takes one tool call a turn"
    return "knows no tools"


@cache
def all_held(name: str) -> dict[str, Held]:
    return {conversation: hold(name, conversation) for conversation in CONVERSATIONS}


def lines() -> Iterator[str]:
    """The table of the docs: each template, and which rule touched it."""
    whole = [name for name in NAMES if all(held.refused for held in all_held(name).values())]
    kinds = [
        held.by and ("words" if held.by == "words" else "marks")
        for n in NAMES
        for held in all_held(n).values()
    ]
    yield (
        f"{len(NAMES) - len(whole)} of {len(NAMES)} templates pass, on {kinds.count('marks')} conversations held against "
        f"marks and {kinds.count('words')} against the words; {kinds.count('')} conversations are refused, among them every "
        f"one of {', '.join(f'`{name}`' for name in whole) or 'no template'}."
    )
    yield ""
    yield "| template | held against | dropped: the prompt's | dropped: after the end | refused without marks, and why |"
    yield "|---|---|---|---|---|"
    for name in NAMES:
        held = all_held(name)
        reasons: dict[str, list[str]] = {}
        for conversation, found in held.items():
            if found.refused:
                reasons.setdefault(reason(found.refused), []).append(conversation)
        every = len(CONVERSATIONS)
        refused = "; ".join(
            f"{why}: {'all' if len(which) == every else ', '.join(f'*{c}*' for c in which)}"
            for why, which in reasons.items()
        )
        by = sorted({found.by for found in held.values() if found.by})
        against = ", ".join(
            "its marks" if b == name else "the words" if b == "words" else f"`{b}`" for b in by
        )
        rules = set().union(*(found.rules for found in held.values()))
        yes = ["yes" if rule in rules else "" for rule in ("prompt", "after")]
        yield f"| `{name}` | {against} | {yes[0]} | {yes[1]} | {refused} |"


def renewed(text: str) -> str:
    """The page with the table as it is now."""
    before, _, rest = text.partition(BEGIN)
    return before + BEGIN + "".join(f"{line}\n" for line in lines()) + END + rest.partition(END)[2]


if __name__ == "__main__":
    DOCS.write_text(renewed(DOCS.read_text(encoding="utf-8")), encoding="utf-8")
