"""One plain sentence on what to expect of the blend of two adapters, and the thresholds that it rests on.

The cosine decides, all modules together, or on real prompts where there were some: independent updates of
d parameters have a cosine of about 1 / sqrt(d), so that 0.1 is far from chance and 0.5 is a common task or a
common ancestor. What is said is arithmetic on weights; whether two tasks bear each other is for a comparison: orthogonal
adapters trained on `cron` and `tickets`, added up, answered neither (docs/lab.md).
"""

from __future__ import annotations

from scumble.lora.activity import Activity
from scumble.lora.pairs import PairFigures

SAME = 0.95  # of the cosine, from here on nearly the same adapter
ALIKE = 0.3  # they push in a common direction
ORTHOGONAL = 0.1  # below it, in size, they leave each other alone
UNEQUAL = 4.0  # ratio of the norms from which one drowns the other in a blend of equal weights
SHARED_INPUTS = (
    0.5  # overlap of inputs from which both read the same directions, where chance gives half of it
)

DISTURBS = 0.3  # share of the stronger one's outputs from which the other is no mere detail


def expectation(
    first: str,
    second: str,
    pair: PairFigures,
    on_prompts: float | None = None,
    strengths: tuple[float, float] | None = None,
) -> str:
    """What to expect of the blend of two adapters.

    Args:
        first, second: what they are called.
        pair: their figures.
        on_prompts: the cosine of their outputs on real prompts, where it was measured; then it decides.
        strengths: how strongly each acts on those prompts (see `strengths_on_data`).

    Returns:
        One sentence, or two.
    """
    if not pair.modules:
        if pair.differing:
            return (
                f"{first} and {second} share no module of one shape: they belong to bases of different sizes, "
                "and cannot be blended"
            )
        return (
            f"{first} and {second} change different modules: the exact blend keeps both updates whole, "
            "and they meet only in what flows from layer to layer"
        )
    empty = [name for name, norm in zip((first, second), pair.norms, strict=True) if norm == 0]
    if empty or pair.cosine is None:
        return f"{' and '.join(empty)} changes nothing: a blend is the other one, weighted"
    return _by_cosine(first, second, pair, on_prompts, strengths) + _by_norms(first, second, pair)


def cosine_on_data(activity: Activity, first: int, second: int) -> float | None:
    """The cosine of two adapters' outputs over all modules, each weighed by how large its own output is.

    Each module's inner products are divided by |W x|^2, so that layers with large activations do not decide.
    """
    both = (_on_data(activity, first, first) * _on_data(activity, second, second)) ** 0.5
    return max(-1.0, min(1.0, _on_data(activity, first, second) / both)) if both else None


def strengths_on_data(activity: Activity, first: int, second: int) -> tuple[float, float]:
    """How strongly each of two adapters acts on real prompts: the norm of its outputs, weighted likewise."""
    return _on_data(activity, first, first) ** 0.5, _on_data(activity, second, second) ** 0.5


def _on_data(activity: Activity, first: int, second: int) -> float:
    """The inner product of two adapters' outputs over all modules, 0 or more of an adapter with itself."""
    total = sum(
        float(gram[first, second]) / activity.outputs[path] ** 2
        for path, gram in activity.grams.items()
        if activity.outputs[path]
    )
    return max(0.0, total) if first == second else total


def _by_cosine(
    first: str,
    second: str,
    pair: PairFigures,
    on_prompts: float | None,
    strengths: tuple[float, float] | None,
) -> str:
    assert pair.cosine is not None
    value, where = (pair.cosine, "") if on_prompts is None else (on_prompts, " on these prompts")
    shown = f"cosine {value:.2f}{where}"
    half = pair.blends.get("0.5, 0.5", 0.0)
    if value >= SAME:
        return f"nearly the same adapter ({shown}): a blend of equal weights is either of them, and their sum is one at twice its strength"
    if value >= ALIKE:
        return (
            f"they push in a common direction ({shown}): their sum overshoots along it, so let the weights add "
            f"up to about 1; at 0.5 and 0.5 the blend has a norm of {half:.3g}"
        )
    if value > ORTHOGONAL:
        return f"a little in common ({shown}): the exact blend keeps most of both updates whole"
    if value >= -ORTHOGONAL:
        text = f"nearly orthogonal ({shown}): the exact blend keeps both updates whole"
        # orthogonal is not apart: an answer to either task is computed with both updates
        if strengths is not None and max(strengths) > 0:
            (weak, less), (strong, more) = sorted(zip(strengths, (first, second), strict=True))
            text += f"; on these prompts {less} acts {weak / strong:.2f} times as strongly as {more}"
            if weak / strong > DISTURBS:
                text += ", and a sum of both may answer as neither would"
        elif _reads_alike(pair):
            text += (
                ", but they read the same directions of their inputs, so that each also acts on what is meant for "
                "the other: measure the blend before you trust it"
            )
        return text
    conflict = pair.signs.weighted
    share = f", {conflict:.0%} of the weight by sign" if conflict is not None else ""
    return (
        f"they push the same weights in opposite directions ({shown}{share}): each undoes a part of the other, "
        "and a blend is weaker than both"
    )


def _reads_alike(pair: PairFigures) -> bool:
    inputs = pair.inputs
    return inputs is not None and inputs.value > max(SHARED_INPUTS, 2 * inputs.random)


def _by_norms(first: str, second: str, pair: PairFigures) -> str:
    """A word on updates of very different size."""
    small, large = sorted(zip(pair.norms, (first, second), strict=True))
    if small[0] * UNEQUAL >= large[0]:
        return ""
    return (
        f"; {large[1]}'s update is {large[0] / small[0]:.1f} times as large as {small[1]}'s, and outweighs it "
        "in a blend of equal weights"
    )
