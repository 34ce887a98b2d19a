"""What a ticket is, and reading one out of a customer's message by its words.

A ticket is one line of JSON with four fields and no spaces: product, issue, priority, and the order number
or null. Knows nothing of how the messages are made: the wordings here are looked for one by one, and a message
that would fit two issues is refused.
"""

from __future__ import annotations

import json
import re

from scumble.errors import DataError

FIELDS = ("product", "issue", "priority", "order")
PRODUCTS = [
    "router",
    "headset",
    "keyboard",
    "monitor",
    "printer",
    "webcam",
    "laptop",
    "tablet",
    "speaker",
    "charger",
    "camera",
    "phone",
]
PRIORITIES = ("high", "normal", "low")
# Each issue with the words that only a message about it has.
ISSUE_WORDS = {
    "refund": r"money back|refund|repaid",
    "repair": r"repair|fix|mend",
    "delivery": r"not arrived|late|delivery|waiting for",
    "exchange": r"exchange|swap|different version",
    "billing": r"charged|invoice|billed|my account",
    "setup": r"install|setting it up|setup|get it started",
    "cancel": r"cancel|do not send",
}
_HIGH = re.compile(r"\b(urgent|today|as soon as possible|cannot wait)\b")
_LOW = re.compile(r"\b(no hurry|take your time|whenever|can wait)\b")
_ORDER = re.compile(r"\b[A-Z]-[0-9]{4}\b")


def as_json(product: str, issue: str, priority: str, order: str | None) -> str:
    """The ticket as compact JSON, its fields in the order of `FIELDS`."""
    fields = dict(zip(FIELDS, (product, issue, priority, order), strict=True))
    return json.dumps(fields, separators=(",", ":"))


def is_valid(ticket: str) -> bool:
    """Whether the text is a JSON object with a ticket's four fields, each with a value it can have.

    Spaces and the order of fields do not matter.
    """
    try:
        fields = json.loads(ticket)
    except (ValueError, RecursionError):
        return False
    if not isinstance(fields, dict) or set(fields) != set(FIELDS):
        return False
    order = fields["order"]
    return (
        fields["product"] in PRODUCTS
        and fields["issue"] in list(ISSUE_WORDS)
        and fields["priority"] in PRIORITIES
        and (order is None or (isinstance(order, str) and _ORDER.fullmatch(order) is not None))
    )


def parse(message: str) -> str:
    """The ticket that a message of this data set means, found by reading its words.

    Raises:
        DataError: the message names no product or several, or no issue or several.
    """
    text = message.lower()
    product = _only([name for name in PRODUCTS if re.search(rf"\b{name}\b", text)], "product", message)
    about = [issue for issue, words in ISSUE_WORDS.items() if re.search(rf"\b({words})\b", text)]
    issue = _only(about, "issue", message)
    high, low = _HIGH.search(text), _LOW.search(text)
    if high and low:
        raise DataError(f"two priorities are named in {message!r}", "a message has one priority")
    order = _ORDER.search(message)
    return as_json(product, issue, "high" if high else "low" if low else "normal", order and order[0])


def _only(found: list[str], what: str, message: str) -> str:
    """The one element of `found`; a message that names none or several is refused."""
    if len(found) != 1:
        named = f"{what}s {' and '.join(found)} are" if found else f"no {what} is"
        raise DataError(f"{named} named in {message!r}", f"a message is about one {what}")
    return found[0]
