"""The language of a text, guessed: by its script, and where that is Latin, by the small words it is full of.

A guess for finding what stands out in a set, no more; short texts have none. Knows no single data set.
"""

from __future__ import annotations

import re
from collections import Counter

_SCRIPTS = (
    ("Japanese", "\u3040-\u30ff"),
    ("Korean", "\uac00-\ud7af"),
    ("Chinese", "\u4e00-\u9fff"),
    ("Cyrillic", "\u0400-\u04ff"),
    ("Arabic", "\u0600-\u06ff"),
    ("Hebrew", "\u0590-\u05ff"),
    ("Greek", "\u0370-\u03ff"),
    ("Devanagari", "\u0900-\u097f"),
    ("Thai", "\u0e00-\u0e7f"),
)
_OTHER = [(name, re.compile(f"[{span}]")) for name, span in _SCRIPTS]
_WORDS = {
    "English": "the and is of to that it for with are this was not you have be or can which from",
    "German": "der die das und ist nicht ein eine zu mit den von auf für sich dem auch wird sie sind",
    "French": "le la les et est des une que dans pour pas qui sur avec vous sont ce il au cette",
    "Spanish": "el los las que es una por con para del se como más pero su sus está son hay esta",
    "Italian": "il che è di una per con del della sono non gli anche come più questo nel alla ha si",
    "Portuguese": "o os as que é uma por com para do da não se como mais mas são em no na",
    "Dutch": "de het een en van is dat niet op zijn met voor aan er ook worden bij naar maar wordt",
}
# Each small word with the languages that it is of.
_SMALL: dict[str, list[str]] = {}
for _name, _words in _WORDS.items():
    for _word in _words.split():
        _SMALL.setdefault(_word, []).append(_name)
LOOKED_AT = 600  # characters
ENOUGH = 8  # words below which nothing is guessed


def language_of(text: str) -> str | None:
    """The language or script of a text; None where it is too short or too like several to tell."""
    text = text[:LOOKED_AT]
    if not text.isascii():
        letters = max(1, sum(map(str.isalpha, text)))
        for name, pattern in _OTHER:
            share = len(pattern.findall(text)) / letters
            if share > (0.1 if name == "Japanese" else 0.4):
                return name
    words = re.findall(r"[^\W\d_]+", text.lower())
    if len(words) < ENOUGH:
        return None
    scores = Counter(name for word in words if word in _SMALL for name in _SMALL[word])
    if not scores:
        return None
    (best, count), (_, second) = [*scores.most_common(2), ("", 0)][:2]
    # prose has one small word in three to five; code and lists have hardly any
    return best if count >= max(3, 0.2 * len(words)) and count >= 1.5 * second else None
