"""A baseline that learns nothing: answer with the answer of the most similar training example.

What it scores is how much of a data set can be had by remembering. Similarity is either

    jaccard: |a & b| / |a | b| over the sets of words of two prompts, or
    char3:   the cosine of their counts of three neighbouring characters.

Knows nothing of models or of any one data set.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Literal

from scumble.data.parts import Example
from scumble.errors import DataError

Similarity = Literal["jaccard", "char3"]


class NearestAnswers:
    """Training examples made ready to be looked up by prompt.

    Args:
        train: chats whose last two messages are the prompt and its answer.
        similarity: "jaccard" or "char3".

    Raises:
        DataError: there are no examples, or the similarity is unknown.
    """

    def __init__(self, train: Sequence[Example], similarity: Similarity = "jaccard") -> None:
        if not train:
            raise DataError("there is no training example to be near to", "give at least one")
        if similarity not in ("jaccard", "char3"):
            raise DataError(f"there is no similarity {similarity!r}", "use jaccard or char3")
        self._answers = [example["messages"][-1]["content"] for example in train]
        self._similarity = similarity
        prompts = [example["messages"][-2]["content"] for example in train]
        self._words = [_words(prompt) for prompt in prompts] if similarity == "jaccard" else []
        self._grams = [_grams(prompt) for prompt in prompts] if similarity == "char3" else []

    def answer(self, prompt: str) -> str:
        """The answer of the most similar training example, of the first one where several are."""
        if self._similarity == "jaccard":
            words = _words(prompt)
            scores = [len(words & known) / max(len(words | known), 1) for known in self._words]
        else:
            grams = _grams(prompt)
            scores = [sum(x * known.get(gram, 0.0) for gram, x in grams.items()) for known in self._grams]
        return self._answers[scores.index(max(scores))]


def nearest_answer(train: Sequence[Example], prompt: str, similarity: Similarity = "jaccard") -> str:
    """The answer of the training example whose prompt is most similar to `prompt`.

    For many prompts against one training set, `NearestAnswers` prepares the set once.
    """
    return NearestAnswers(train, similarity).answer(prompt)


def nearest_score(
    train: Sequence[Example], test: Sequence[Example], similarity: Similarity = "jaccard"
) -> float:
    """The share of `test` (0 to 1) whose answer equals that of the nearest training example."""
    if not test:
        raise DataError("there is no test example to score", "give at least one")
    nearest = NearestAnswers(train, similarity)
    hits = sum(nearest.answer(e["messages"][-2]["content"]) == e["messages"][-1]["content"] for e in test)
    return hits / len(test)


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+|[^\w\s]", text.lower()))


def _grams(text: str) -> dict[str, float]:
    """Counts of three neighbouring characters, scaled to length 1."""
    padded = f"  {text.lower()} "
    counts = Counter(padded[i : i + 3] for i in range(len(padded) - 2))
    norm = math.sqrt(sum(count * count for count in counts.values()))
    return {gram: count / norm for gram, count in counts.items()}
