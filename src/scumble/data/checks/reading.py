"""What can be wrong before there is an example: found by whoever reads or encodes, and reported under a name here.

A `DataError` says by its `kind` which of these it is.
"""

from __future__ import annotations

from scumble.data.checks.check import CHECKS, Check, known
from scumble.errors import DataError

_BEFORE = len(CHECKS)

known(
    "unreadable",
    "error",
    "lines that cannot be read",
    "What cannot be read is not learned, and training stops before it begins.",
    "write each line as one JSON object, in UTF-8",
)
known(
    "malformed",
    "error",
    "examples that are no conversation",
    "Nobody can tell what the model should learn from them, and training stops before it begins.",
    "write each in one of the formats of the docs' page on data; `--format` says which it is",
)
known(
    "unsupported",
    "error",
    "examples of a sort that is not trained on here",
    "They are refused, and training stops before it begins.",
    "the message says what trains on them",
)
known(
    "unknown_role",
    "error",
    "messages of an unknown role",
    "A chat template drops or misprints a role that it does not know.",
    "use system, developer, user, assistant and tool",
)
known(
    "no_assistant_turn",
    "error",
    "conversations without an assistant's turn",
    "Without an answer there is nothing to learn.",
    "add the answer, or remove the example",
)
known(
    "null_content",
    "error",
    "messages without content",
    "A chat template writes `None` or fails; only an assistant's turn with tool calls may have no content.",
    "write the text of the turn, or remove the example",
)
known(
    "nothing_supervised",
    "error",
    "examples of which no token carries a loss",
    "They cost time and teach nothing.",
    "give an assistant's turn text and a `weight` that is not 0",
)
known(
    "double_begin_token",
    "error",
    "examples with two begin tokens",
    "The model is trained on a beginning that it never sees when it is used.",
    "remove the begin token from the text, or from the chat template",
)
known(
    "no_template",
    "error",
    "no chat template",
    "Nobody knows how the base is written to, and training stops before it begins.",
    "use an instruct model, or name a template with --template",
)
known(
    "template_refuses",
    "error",
    "examples that the chat template refuses",
    "They cannot be written as the model would see them, and training stops before it begins.",
    "read the template's reason; another template is given with `--template`",
)
known(
    "mask_refused",
    "error",
    "examples in which the model's own words cannot be told from the template's",
    "No token of theirs carries a loss that could be trusted, and training stops before it begins.",
    "split the conversation so that each example has one answer, or give a template with `{% generation %}` marks",
)
known(
    "end_not_supervised",
    "error",
    "answers whose end of turn is not learned",
    "The model would never learn to stop.",
    "use a chat template that ends a turn with a special token",
)


NAMES = tuple(CHECKS)[_BEFORE:]
# What an example is refused for that the order of its roles explains.
EXPLAINED = ("template_refuses", "mask_refused")


def check_of(error: DataError) -> Check:
    """The check that an error is reported under."""
    return CHECKS.get(error.kind, CHECKS["malformed"])
