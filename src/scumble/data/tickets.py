"""The `tickets` data set: a customer's message to a shop, and the JSON ticket that it becomes.

    "I bought a router from you, order number A-4821. I would like my money back. My request is urgent."
    ->  {"product":"router","issue":"refund","priority":"high","order":"A-4821"}

A product with an issue that the test part shows is never shown in training, order numbers are kept apart in
the same way, and some wordings are used by the test part only. Knows nothing of models; `tickets_reading`
holds what a ticket is and reads the messages independently, to check the labels.
"""

from __future__ import annotations

import random

from scumble.data.parts import Draw, Example, Part, as_chat, draw_distinct, part_of
from scumble.data.tickets_reading import ISSUE_WORDS, PRIORITIES, PRODUCTS, as_json, is_valid, parse

__all__ = ["NAME", "SIZES", "SYSTEM", "draws", "generate", "is_valid", "parse"]

NAME = "tickets"
SYSTEM = "Write the ticket as JSON."
SIZES: dict[Part, int] = {"train": 400, "validation": 60, "test": 200}

# One message in so many has no order number, and its ticket says null.
NO_ORDER_EVERY = 6

OPENINGS = (
    "I bought a {product} from you, order number {order}.",
    "Hello, I am writing about the {product} of order {order}.",
    "This is about the {product} in my order {order} of last month.",
    "Order {order} at your shop was for a {product} that I chose online.",
)
HELD_OUT_OPENINGS = (
    "Good morning, could someone look at order {order} for the {product}?",
    "My {product} is the reason for this message, under order {order}.",
)
OPENINGS_WITHOUT_ORDER = (
    "I bought a {product} in your shop and lost the order number.",
    "Hello, I am writing about a {product} that you sold me.",
    "This is about the {product} that I found on your website.",
)
HELD_OUT_OPENINGS_WITHOUT_ORDER = (
    "Good morning, could someone look at what happened with my {product}?",
    "The reason for this message is a {product} of yours.",
)
ISSUES = {
    "refund": (
        "I would like my money back.",
        "Please refund what I paid for it.",
        "It is not what I expected, so I want a refund.",
    ),
    "repair": (
        "It stopped working and needs a repair.",
        "It broke after two days, please repair it.",
        "It no longer turns on, can you fix it?",
    ),
    "delivery": (
        "It has not arrived at my house.",
        "The parcel is two weeks late by now.",
        "The delivery was promised for Monday and never came.",
    ),
    "exchange": (
        "I got the wrong colour and want to exchange it.",
        "Please exchange it for a bigger one.",
        "Can I swap it for another model?",
    ),
    "billing": (
        "I was charged twice for it.",
        "The invoice shows the wrong amount for it.",
        "My card was billed too much.",
    ),
    "setup": (
        "I cannot work out how to install it.",
        "I need help with setting it up.",
        "The setup stops at the second step.",
    ),
    "cancel": (
        "I want to cancel it before it ships.",
        "Please cancel this purchase for me.",
        "I changed my mind, so cancel it.",
    ),
}
HELD_OUT_ISSUES = {
    "refund": ("I am sending it back and want to be repaid in full.",),
    "repair": ("It is broken, can a technician mend it?",),
    "delivery": ("I am still waiting for the package.",),
    "exchange": ("I would like a different version in its place.",),
    "billing": ("You took more from my account than the price.",),
    "setup": ("How do I get it started for the first time?",),
    "cancel": ("Do not send it, I no longer want it.",),
}
CLOSINGS = {
    "high": (
        "My request is urgent.",
        "I need an answer today.",
        "Please reply as soon as possible, I depend on it every day.",
    ),
    "normal": (
        "Thank you for your help.",
        "Thanks in advance and have a nice day.",
        "I look forward to your reply.",
    ),
    "low": (
        "There is no hurry.",
        "Please take your time with this.",
        "Answer whenever you can, other customers may need you more.",
    ),
}
HELD_OUT_CLOSINGS = {
    "high": ("It really cannot wait.",),
    "normal": ("With best wishes to the team.",),
    "low": ("All of this can wait for a while.",),
}


def generate(part: Part, n: int | None = None, seed: int = 0) -> list[Example]:
    """Examples of one part, as chats of a system, a user and an assistant message.

    Args:
        part: "train", "validation" or "test"; parts share no example, whatever the seeds.
        n: how many; by default `SIZES[part]`.
        seed: the same seed gives the same examples.

    Raises:
        DataError: no such part, a negative `n`, or more examples than the part has.
    """
    return [as_chat(SYSTEM, draw) for draw in draws(part, n, seed)]


def draws(part: Part, n: int | None = None, seed: int = 0) -> list[Draw]:
    """The same examples with the values and the phrasings each was made of."""
    return draw_distinct(part, SIZES.get(part, 0) if n is None else n, seed, _draw, NAME)


def _draw(rng: random.Random, held_out: bool) -> Draw:
    product, issue = rng.choice(PRODUCTS), rng.choice(list(ISSUE_WORDS))
    priority = rng.choice(PRIORITIES)
    part = _part_of_pair(product, issue)
    order = None if rng.randrange(NO_ORDER_EVERY) == 0 else _draw_order(rng, part)
    openings, held_out_openings = (
        (OPENINGS, HELD_OUT_OPENINGS) if order else (OPENINGS_WITHOUT_ORDER, HELD_OUT_OPENINGS_WITHOUT_ORDER)
    )
    phrasings = (
        rng.choice(held_out_openings if held_out else openings),
        rng.choice((HELD_OUT_ISSUES if held_out else ISSUES)[issue]),
        rng.choice((HELD_OUT_CLOSINGS if held_out else CLOSINGS)[priority]),
    )
    prompt = " ".join(phrasings).format(product=product, order=order)
    answer = as_json(product, issue, priority, order)
    return Draw(prompt, answer, part, (NAME, product, issue), phrasings)


def _part_of_pair(product: str, issue: str) -> Part:
    """The part of a product with an issue: of each eight, two are for the test and one for validation.

    The pairs are few, so a hash would leave some issue out of the test part. On this lattice every issue is
    in every part, and every product in training and test.
    """
    place = (PRODUCTS.index(product) + 5 * list(ISSUE_WORDS).index(issue)) % 8
    return "test" if place < 2 else "validation" if place == 2 else "train"


def _draw_order(rng: random.Random, part: Part) -> str:
    """An order number that only this part of the data set has."""
    while True:
        order = f"{rng.choice('ABCDEFGH')}-{rng.randrange(1000, 10000)}"
        if part_of((NAME, "order", order)) == part:
            return order
