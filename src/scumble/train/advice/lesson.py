"""What the lesson says beside each piece of advice, and what is known of that elsewhere. Knows words alone."""

from __future__ import annotations

_COMES_FIRST = "learning rate, targets and passes over the data come first"

LESSON: dict[str, str] = {
    "rank": f"the lesson: start at rank 8; raise it if validation loss plateaus. Incomplete: {_COMES_FIRST}",
    "plateau": f"the lesson: raise the rank if validation loss plateaus. Incomplete: {_COMES_FIRST}",
    "overfit": "the lesson: lower the rank if overfitting shows. The evidence for that is weak: data, epochs and "
    "regularisation matter more",
    "rank wasted": "the lesson: rank 4 is minimal, 8 the default, 64 and above rarely needed",
    "still improving": "the lesson: 3 epochs",
    "rate too low": "the lesson: 2e-4, for a base of 8B; the best rate of LoRA is about ten times full fine-tuning's",
}
