"""The page of the lesson: every claim with its verdict, figures and pictures, in one HTML file.

It is made of `lab.json`, so that it can be made again at any time. Knows that document, and nothing of how to train.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from scumble.lab.lesson import drawing
from scumble.lab.lesson.drawing import Drawing
from scumble.lab.lesson.memory import SAID
from scumble.pages.render import DASH, duration, render, setting

Document = Mapping[str, Any]
WHOLE = "\N{NO-BREAK SPACE}"  # within a figure, which stays in one line where a table is narrow


def drawings(document: Document) -> list[tuple[str, str, Drawing]]:
    """The pictures that there are figures for, each with its name and a title."""
    ways = document["ways"]
    scored = [each for each in ways if each["mean"] is not None]
    plain = [each for each in scored if each["method"] == "lora" and each["targets"] == "minimal"]
    ratio = sorted((each for each in plain if each["alpha"] == 2 * each["rank"]), key=_rank)
    alpha = sorted((each for each in plain if each["alpha"] == 16), key=_rank)
    few = sorted((each for each in ways if each["data"] == "few" and each["validation"]), key=_rank)
    spectra = [document["spectra"][name] for name in sorted(document["spectra"])]
    found = [
        ("evidence", "Evidence for each claim", drawing.evidence(document["claims"])),
        ("ways", "Every way to train", drawing.ways(scored)),
        ("rank", "Rank, alpha and learning rate", drawing.rank(ratio, alpha)),
    ]
    if few:
        found.append(("overfitting", "Overfitting against rank", drawing.overfitting(few)))
    if spectra:
        found.append(
            ("spectrum", "What a full fine-tuning changed", drawing.spectrum(_chosen(document, spectra[0])))
        )
    if "memory" in document["parts"]:
        tables = {name: rows for name, rows in document["parts"]["memory"].items() if name != "setup"}
        found.append(("memory", "Memory of a further module", drawing.memory(tables, SAID)))
    return found


def render_page(document: Document) -> str:
    """The page.

    Args:
        document: the content of `lab.json`, finished.

    Returns:
        A self-contained HTML document that asks for nothing else, every text in it escaped.
    """
    asked, claims = document["asked"], document["claims"]
    return render(
        "lab/lesson/page.html.j2",
        lead=_lead(asked),
        short=_short(document),
        headline=_headline(document),
        claims=[{**each, "rows": _rows(each)} for each in claims],
        pictures=[
            {"name": name, "title": title, "svg": Markup(each.svg()), "note": _NOTES[name]}
            for name, title, each in drawings(document)
        ],
        ways=[_way(each) for each in document["ways"]],
        how=_how(document),
        sizes=document["parts"].get("sizes"),
        agreement=document["parts"].get("agreement"),
        spectra=_spectra(document),
        base=setting(document["base"]["name"] or "a base of the caller"),
        scumble=setting(document["scumble"]),
        took=duration(document["seconds"]),
    )


def write_pictures(document: Document, folder: Path) -> list[Path]:
    """The same pictures as PNG files."""
    return [each.png(folder / f"{name}.png") for name, _, each in drawings(document)]


_NOTES = {
    "evidence": "So turned that what lies right of zero speaks for the claim; intervals are those that the verdict is by.",
    "ways": "Each with the learning rate that was best for it by validation loss on the first seed.",
    "rank": "Left: alpha grows with the rank, or stays. Right: which of the rates tried was best.",
    "overfitting": "A few examples seen often. Bars are seeds.",
    "spectrum": "Weights after a full fine-tuning less those before, by kind of module.",
    "memory": "Peak of a training step with one more target module than before.",
}


def _rank(each: Mapping[str, Any]) -> int:
    return int(each["rank"])


def _chosen(document: Document, other: Mapping[str, Any]) -> Mapping[str, Any]:
    """The spectrum of the first seed at the rate that was chosen."""
    rate = document["chosen"].get("full")
    seed = document["asked"]["seeds"][0]
    found: Mapping[str, Any] = document["spectra"].get(f"full-{rate:g}-s{seed}", other) if rate else other
    return found


def _lead(asked: Mapping[str, Any]) -> str:
    seeds = len(asked["seeds"])
    return (
        f"Every way to train had {asked['steps']} steps of {asked['batch']} examples of cron, a learning rate chosen "
        f"by validation loss, and {seeds} seed{'' if seeds == 1 else 's'}; it was asked "
        f"{asked['scored']} unseen examples."
    )


def _short(document: Document) -> list[str]:
    """What a reader must know before believing a figure."""
    asked, found = document["asked"], []
    if len(asked["seeds"]) == 1:
        found.append(
            "This is the quick form: one seed and fewer ways to train. Of what was trained nothing is said to hold, since "
            "nothing is known of other seeds; memory and sizes are counted."
        )
    if asked.get("shortened"):
        found.append(
            f"It was shortened further by hand ({', '.join(asked['shortened'])}): the figures show that it runs, no more."
        )
    broken = sum(run["validation"] is None for run in document["runs"].values())
    if broken:
        found.append(
            f"{broken} of {len(document['runs'])} runs broke off, or came to no loss. On the first seed such a rate is "
            "not chosen; a claim is not decided where a way to train that it needs broke off at every rate, or on a "
            "later seed."
        )
    edge = [each["title"] for each in document["ways"] if each["at_edge"]]
    if edge:
        found.append(
            f"For {len(edge)} of {len(document['ways'])} ways to train the best learning rate was the lowest or highest "
            "of those tried: a better one may lie beyond."
        )
    return found


def _headline(document: Document) -> list[dict[str, Any]]:
    verdicts = [each["verdict"] for each in document["claims"]]
    return [
        {"label": label, "figure": verdicts.count(label), "kind": label.replace(" ", "-")}
        for label in ("holds", "does not hold", "depends")
    ]


def _rows(claim: Mapping[str, Any]) -> list[dict[str, str]]:
    """A claim's comparisons as text."""
    found = []
    for each in claim.get("comparisons", ()):
        unit = {"right": 100.0, "held": 100.0}.get(each["measure"], 1.0)
        name = {"right": "points", "held": "points"}.get(each["measure"], "nats a token")
        found.append(
            {
                "title": each["title"],
                "difference": _interval(each["difference"], unit, name),
                "evidence": _interval(each["evidence"], unit, ""),
                "level": f"{100 * each['difference']['level']:.3g}{WHOLE}%",
                "p": ", ".join(f"{test} p{WHOLE}={WHOLE}{p:.2g}" for test, p in each["p"].items()) or DASH,
            }
        )
    return found


def _interval(point: Mapping[str, Any], unit: float, name: str) -> str:
    digits = 1 if unit > 1 else 3
    ends = [point["low"], point["high"]]
    told = f"{unit * point['mean']:+.{digits}f} {name}".strip()
    if None in ends:
        return f"{told} (no interval from one run)"
    return f"{told} [{unit * ends[0]:+.{digits}f},{WHOLE}{unit * ends[1]:+.{digits}f}]"


def _way(each: Mapping[str, Any]) -> dict[str, Any]:
    interval = DASH
    if each["mean"] is not None:
        interval = f"{each['mean']:.1%} [{each['low']:.1%}, {each['high']:.1%}]"
    by_rate = ", ".join(
        f"{rate}:{WHOLE}{DASH if loss is None else format(loss, '.3f')}"
        for rate, loss in each["by_rate"].items()
    )
    return {
        **each,
        "title": each["title"] + (" (few examples)" if each["data"] == "few" else ""),
        "right": interval,
        "losses": by_rate,
        "chosen": DASH if each["rate"] is None else f"{each['rate']:g}",
    }


def _how(document: Document) -> list[str]:
    """How the figures came about, in sentences."""
    asked = document["asked"]
    return [
        f"Data: {asked['examples']} training examples of cron, each seen once; for overfitting the first {asked['few']} "
        f"of them, seen {asked['examples'] / max(1, min(asked['few'], asked['examples'])):.1f} times on average. Rates are chosen by "
        f"{asked['validated']} validation examples, answers scored on {asked['scored']} examples of the test part, whose "
        "times of day and phrasings no training example has.",
        f"Each run: {asked['steps']} optimizer steps of {asked['batch']} examples, AdamW, linear fall after a tenth of "
        "warm-up, dropout 0, the weights after the last step. Ways to train that several claims need are trained once.",
        "Learning rates: three for each way to train on the first seed, and but for the quick form the next one beyond "
        "where the best is the lowest or highest; the best by validation loss is kept, and its run counts as the first seed's. Choosing favours whoever has more luck by a little, the same for all.",
        "Scoring: an answer is right where each of its tokens, the end included, is the likeliest after those before it; "
        "that is what greedy decoding writes, other spellings of the same text aside.",
        "Intervals: differences are paired over seeds and examples; the variance takes both as drawn at random (analysis "
        "of variance by two crossed factors, degrees of freedom after Satterthwaite), so that few seeds make wide "
        "intervals. Beside them stand tests that hold the seeds as they are: changes of signs by example, and "
        "McNemar's exact test where there is one seed.",
        "Many comparisons: the intervals of one claim hold together at 95 % (each at 1 - 5 % / comparisons, Bonferroni). "
        "Claims are not corrected for one another. Each needs one side of its intervals: of the claims on this page "
        "that are false, at most one in forty would be said to hold by chance, and fewer where several comparisons "
        "must agree.",
    ]


def _spectra(document: Document) -> list[dict[str, Any]]:
    ranks: Sequence[str] = []
    found = []
    for name, each in sorted(document["spectra"].items()):
        ranks = list(each["held"])
        found.append(
            {
                "name": name,
                "held": [f"{each['held'][rank]:.1%}" for rank in ranks],
                "outside": f"{each['outside']:.1%}",
                "relative": f"{each['relative']:.2%}",
                "ranks": ranks,
            }
        )
    return found
