"""The report of a run as one HTML file: curves, before and after, sizes, and what decided the result.

It is made of what the run wrote down (`run.json`, `metrics.jsonl`) and of a comparison, so that it can be
made again at any time. Knows these documents, and nothing of how to train.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from scumble.compare.page import compared, size_bars
from scumble.pages.render import count, duration, number, render, setting, share, size
from scumble.train.curves import series, training_curves

Facts = list[tuple[str, str]]
LISTED = 5  # examples left out that are named; the others are counted


def render_report(
    run: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]], comparison: Mapping[str, Any] | None
) -> str:
    """The report of a run.

    Args:
        run: the content of `run.json`; parts that are not there (a run that has no result yet) are left out.
        metrics: the rows of `metrics.jsonl`.
        comparison: what `Comparison.to_dict()` gives, or None where nothing was compared.

    Returns:
        A self-contained HTML document that asks for nothing else, every text in it escaped; the same
        documents give the same text.
    """
    base, data, result = _part(run, "base"), _part(run, "data"), _part(run, "result")
    before_after = compared(comparison) if comparison else None
    sizes = before_after["sizes"] if before_after else None
    return render(
        "train/report.html.j2",
        scumble=setting(run.get("scumble")),
        started=_time(run.get("started")),
        base=_short(base.get("name")) or "a base",
        source=_short(data.get("source")) or "its data",
        lead=_lead(run),
        stopped=_sentence(result.get("stopped")),
        kept=_kept(run, metrics),
        headline=_headline(run, metrics, before_after),
        comparison=before_after,
        curves=_curves(metrics, result.get("best_step")),
        evaluations=[
            {key: row.get(key) for key in ("step", "epoch", "eval_loss")}
            for row in metrics
            if "eval_loss" in row
        ],
        sizes=sizes or size_bars(_part(run, "adapter").get("bytes"), base.get("bytes")),
        choices=list(run.get("choices") or []),
        cards=[{"title": title, "rows": rows} for title, rows in _cards(run) if rows],
        options=list(_part(run, "options").items()),
    )


def _lead(run: Mapping[str, Any]) -> str:
    """What was trained, in a sentence."""
    adapter, data, training = _part(run, "adapter"), _part(run, "data"), _part(run, "training")
    whole = _part(run, "model")
    words = ["All weights" if whole else "An adapter"]
    if whole.get("parameters"):
        words.append(f"({count(whole['parameters'])} parameters)")
    if "rank" in adapter:
        words.append(f"of rank {setting(adapter['rank'])}")
    if "targets" in adapter:
        words.append(f"on {setting(adapter['targets'])}")
    if adapter.get("parameters"):
        words.append(f"({count(adapter['parameters'])} parameters)")
    if data.get("examples"):
        words.append(f"for {count(data['examples'])} examples")
    if training.get("epochs"):
        epochs = setting(training["epochs"])
        words.append(f"and {epochs} epoch{'' if epochs == '1' else 's'}")
    if whole:
        return " ".join([*words[:2], "trained", *words[2:]]) + ". The result is a model of its own."
    return " ".join(words) + ". The base itself is unchanged."


def _kept(run: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]]) -> str:
    """Which checkpoint became the adapter, and why; empty where none did."""
    best = _part(run, "result").get("best_step")
    if best is None:
        return ""
    what = "model" if _part(run, "model") else "adapter"
    losses = {row["step"]: row["eval_loss"] for row in metrics if "eval_loss" in row}
    measured = any("eval_metric" in row for row in metrics)
    if best in losses:
        others = [loss for step, loss in losses.items() if step and step != best]
        by = "the metric was highest" if measured else "the loss on the validation data was lowest"
        return f"The {what} kept is that of step {count(best)}{f', where {by}' if others else ''}."
    return f"The {what} kept is that of step {count(best)}, the last one."


def _headline(
    run: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]], comparison: Mapping[str, Any] | None
) -> list[dict[str, str]]:
    """The few figures that a colleague asks for first."""
    items = []
    result, base, adapter, whole = (_part(run, name) for name in ("result", "base", "adapter", "model"))
    if comparison and (metric := comparison["metric"]):
        beside = f"{metric['name']}, {count(metric['n'])} examples"
        items.append(_item("right answers", share(metric["after"]), beside, was=share(metric["before"])))
    items += _loss_item(metrics, _part(result, "loss"))
    if adapter.get("bytes") and base.get("bytes"):
        beside = f"{share(adapter['bytes'] / base['bytes'])} of the base's {size(base['bytes'])}"
        items.append(_item("adapter", size(adapter["bytes"]), beside))
    if whole.get("bytes"):
        items.append(_item("model", size(whole["bytes"]), "all weights, as written"))
    if result.get("seconds"):
        beside = f"{count(result.get('tokens_per_second'))} tokens/s, peak {size(result.get('peak_bytes'))}"
        items.append(_item("training", duration(result["seconds"]), beside))
    return items


def _loss_item(metrics: Sequence[Mapping[str, Any]], loss: Mapping[str, Any]) -> list[dict[str, str]]:
    evals = series(metrics, "eval_loss")
    if len(evals) > 1 and evals.x[0] == 0:
        lowest = float(evals.y[1:].min())
        return [
            _item(
                "validation loss",
                number(lowest, 3),
                "before training, lowest since",
                was=number(float(evals.y[0]), 3),
            )
        ]
    if loss.get("last") is None:
        return []
    return [
        _item(
            "training loss",
            number(loss["last"], 3),
            "first step, last step",
            was=number(loss.get("first"), 3),
        )
    ]


def _cards(run: Mapping[str, Any]) -> list[tuple[str, Facts]]:
    """The facts that decided the result, by subject."""
    base, validation = _part(run, "base"), _part(run, "validation")
    return [
        (
            "Base",
            _facts(
                base, name=setting, dtype=setting, device=setting, parameters=count, bytes=size, hash=setting
            ),
        ),
        ("Data", _data(_part(run, "data"))),
        ("Adapter", _adapter(_part(run, "adapter"))),
        ("Model", _facts(_part(run, "model"), parameters=count, bytes=size)),
        ("Validation data", _facts(validation, source=setting, examples=count, hash=setting)),
        ("Training", _training(_part(run, "training"))),
        ("Speed and memory", _speed(_part(run, "result"))),
        ("Machine", _facts(_part(run, "machine"), platform=setting, cores=setting)),
        ("Versions", [(str(name), setting(value)) for name, value in _part(run, "versions").items()]),
    ]


def _data(data: Mapping[str, Any]) -> Facts:
    rows = _facts(data, source=setting, examples=count, tokens=count)
    if "targets" in data:
        rows.append(("tokens with a loss", count(data["targets"])))
    rows += _facts(data, hash=setting)
    too_long = list(data.get("too_long") or [])
    if too_long:
        named = "; ".join(f"{setting(where)} ({count(length)} tokens)" for where, length in too_long[:LISTED])
        more = f"; {count(len(too_long) - LISTED)} more" if len(too_long) > LISTED else ""
        rows.append(("left out, too long", f"{count(len(too_long))}: {named}{more}"))
    return rows


def _adapter(adapter: Mapping[str, Any]) -> Facts:
    rows = _facts(adapter, rank=setting, alpha=setting, targets=setting, modules=count)
    if "parameters" in adapter:
        beside = (
            f" ({number(adapter['percent'])}\u00a0% of all)" if adapter.get("percent") is not None else ""
        )
        rows.append(("parameters", count(adapter["parameters"]) + beside))
    return rows + _facts(adapter, bytes=size)


def _training(training: Mapping[str, Any]) -> Facts:
    rows = _facts(training, steps=count, epochs=setting)
    if "batch" in training and "accumulate" in training:
        batch, accumulate = training["batch"], training["accumulate"]
        rows.append(("examples in a step", f"{setting(batch)} × {setting(accumulate)} (batch × accumulate)"))
    rows += _facts(training, learning_rate=setting, schedule=setting)
    if "warmup" in training:
        rows.append(("warm-up", f"{setting(training['warmup'])} steps"))
    shown = {"steps", "epochs", "batch", "accumulate", "learning_rate", "schedule", "warmup"}
    rest = [name for name in training if name not in shown]
    return rows + [(name.replace("_", " "), setting(training[name])) for name in rest]


def _speed(result: Mapping[str, Any]) -> Facts:
    rows = _facts(result, steps=count, tokens=count, seconds=duration)
    names = {"tokens_per_second": "tokens per second", "peak_bytes": "peak memory"}
    for key, show in (("tokens_per_second", count), ("peak_bytes", size)):
        if result.get(key) is not None:
            rows.append((names[key], show(result[key])))
    loss = _part(result, "loss")
    for key, name in (("first", "training loss, first step"), ("last", "training loss, last step")):
        if loss.get(key) is not None:
            rows.append((name, number(loss[key])))
    if loss.get("best_eval") is not None:
        rows.append(("validation loss, lowest", number(loss["best_eval"])))
    return rows


def _facts(values: Mapping[str, Any], **shown: Any) -> Facts:
    """Rows of name and text for the keys of `shown` that have a value, each written by its function."""
    names = {"bytes": "size on disk", "seconds": "time"}
    return [
        (names.get(key, key.replace("_", " ")), show(values[key]))
        for key, show in shown.items()
        if values.get(key) is not None
    ]


def _curves(metrics: Sequence[Mapping[str, Any]], best_step: int | None) -> dict[str, Any]:
    """Both drawings; they hold numbers and our own words alone, so that they are not escaped."""
    drawn = {size: Markup(training_curves(metrics, size, best_step=best_step)) for size in ("wide", "narrow")}
    evaluated = best_step is not None and bool((series(metrics, "eval_loss").x == best_step).any())
    return {**drawn, "losses": len(series(metrics, "loss")) > 0, "best": evaluated}


def _item(label: str, figure: str, beside: str, was: str = "") -> dict[str, str]:
    return {"label": label, "figure": figure, "beside": beside, "was": was}


def _part(document: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = document.get(name)
    return found if isinstance(found, Mapping) else {}


def _short(name: Any) -> str:
    """The last part of a path or hub name, which is what a title has room for; the whole is among the facts."""
    return re.split(r"[/\\]", str(name or "").rstrip("/\\"))[-1]


def _time(value: Any) -> str:
    """2026-11-24T21:00:00Z as 2026-11-24 21:00 UTC."""
    text = str(value or "")
    return f"{text[:10]} {text[11:16]} UTC" if text.endswith("Z") and len(text) == 20 else text


def _sentence(reason: Any) -> str:
    return str(reason).strip().rstrip(".") if reason else ""
