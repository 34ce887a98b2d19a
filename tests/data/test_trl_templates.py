"""Our masks equal the marks of every chat template that TRL ships, token for token, after the two stated rules."""

from __future__ import annotations

import pytest

pytest.importorskip("trl")

from scumble.data.encoding import encode
from scumble.data.example import Example
from scumble.data.templates import without_marks
from scumble.errors import DataError
from tests.data.trl_templates import (
    CONVERSATIONS,
    DOCS,
    NAMES,
    all_held,
    hold,
    loaded,
    reason,
    renewed,
    shown,
)

REWRITES, NO_TOOLS, NO_SYSTEM = "rewrites earlier turns", "knows no tools", "knows no system prompt"
TOOL_TALK = ("call", "call, system, turns", "calls", "two rounds")
# templates that leave reasoning out of all turns but those after the user's last words, and write an empty one there
FORGETFUL = dict.fromkeys(set(CONVERSATIONS) - {"one turn", "call", "thought"}, REWRITES)
FORGETS_REASONING = (
    *("diffusion_gemma", "gemma4_v5", "gptoss", "lfm2_2_5", "lfm2_2_5_v2", "lfm2_2_5_vl"),
    *(f"nemotron_3_{kind}" for kind in ("nano", "super", "ultra")),
    "nemotron_3_5_lightning",
)
# What is refused without marks, by name, and why: nothing else may be.
REFUSED: dict[str, dict[str, str]] = {
    **dict.fromkeys(("cohere", "cohere2", "gemma3", "llava_next"), dict.fromkeys(TOOL_TALK, NO_TOOLS)),
    "gemma": dict.fromkeys(TOOL_TALK, NO_TOOLS)
    | dict.fromkeys(("system", "system, tools told", "call, system, turns"), NO_SYSTEM),
    # it writes the second round of calls without the token that begins an answer
    **{name: {"two rounds": REWRITES} for name in ("deepseek_r1_distill", "deepseekv3")},
    # a turn of the assistant ends where the next turn's own token stands, and the last one with nothing
    "glm4moe": dict.fromkeys(CONVERSATIONS, "ends turns without an end token") | {"thoughts": REWRITES},
    **{name: {"calls": "takes one tool call a turn"} for name in ("llama3_1", "llama3_2")},
    "qwen3": FORGETFUL | {"call": REWRITES},
    **dict.fromkeys(("qwen3_5_nothink", "qwen3_5_think", "qwen3_6"), FORGETFUL),
    # reasoning is taken out of earlier turns
    **{name: {"thoughts": REWRITES} for name in FORGETS_REASONING},
}
# the training version shares what is refused with the original, but for these
TRAINING: dict[str, dict[str, str]] = {
    "glm4moe": {"thoughts": REWRITES},
    **{name: {} for name in ("qwen3", "qwen3_5_nothink", "qwen3_5_think", "qwen3_6")},
}


def refused(name: str) -> dict[str, str]:
    original = name.removesuffix("_training")
    return TRAINING.get(original, REFUSED.get(original, {})) if original != name else REFUSED.get(name, {})


def test_there_are_templates_of_every_kind() -> None:
    assert len(NAMES) >= 72
    assert sum(loaded(name)[0].marked for name in NAMES) >= 32
    assert set(REFUSED) <= set(NAMES)
    assert all(not loaded(name)[1].marked for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_our_mask_is_that_of_the_marks(name: str) -> None:
    found = {c: reason(held.refused) for c, held in all_held(name).items() if held.refused}
    assert found == refused(name)
    for conversation, held in all_held(name).items():
        # each that is taken was held against something
        assert held.by or conversation in found


@pytest.mark.parametrize("name", NAMES)
def test_the_last_turn_alone(name: str) -> None:
    for conversation, (messages, tools) in CONVERSATIONS.items():
        example = Example(tuple(messages), "here", tools)
        for template in loaded(name):
            try:
                last = encode(example, template.tokenizer, template=template, train_on="last")
            except DataError:
                assert conversation in refused(name)
                continue
            joined = "".join(shown(last, template))
            assert joined.count("⟦") == 1
            assert str(messages[-1]["content"]).strip() in joined[joined.index("⟦") :]
            if conversation not in refused(name):
                every = "".join(shown(encode(example, template.tokenizer, template=template), template))
                assert joined[joined.index("⟦") :] == every[every.rindex("⟦") :]


@pytest.mark.parametrize(
    "name", ["qwen3", "qwen3_5_nothink", "qwen3_5_think", "qwen3_6", "nemotron_3_nano", "gptoss"]
)
def test_where_earlier_turns_are_rewritten_the_last_one_can_be_trained_on(name: str) -> None:
    template = loaded(name)[1]
    for conversation, why in refused(name).items():
        messages, tools = CONVERSATIONS[conversation]
        example = Example(tuple(messages), "here", tools)
        with pytest.raises(DataError, match="--train-on last"):
            encode(example, template.tokenizer, template=template)
        assert why == REWRITES
        assert encode(example, template.tokenizer, template=template, train_on="last").targets > 3


@pytest.mark.parametrize("rule", ["prompt", "after"])
def test_a_mask_without_a_rule_would_be_seen(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from scumble.data.masks import _Rendered

    if rule == "prompt":
        monkeypatch.setattr(_Rendered, "_supplied", lambda self, i, start: 0)
    else:
        monkeypatch.setattr(_Rendered, "_ended", lambda self, i, spans: spans)
    with pytest.raises(AssertionError):
        hold("qwen2_5_training", "turns")


def test_without_marks_the_text_is_the_same() -> None:
    for name in NAMES:
        marked, bare = loaded(name)
        for conversation, (messages, tools) in CONVERSATIONS.items():
            if conversation not in refused(name):
                texts = {t.render(messages, conversation, tools=tools) for t in (marked, bare)}
                assert len(texts) == 1, (name, conversation)
    assert without_marks("a{%- generation -%} b {%- endgeneration %}c") == "a{%- if true -%} b {%- endif %}c"


def test_the_table_in_the_docs_is_fresh() -> None:
    text = DOCS.read_text(encoding="utf-8")
    assert renewed(text) == text, "run: python -m tests.data.trl_templates"
