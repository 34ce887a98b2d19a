"""The page of a sweep: the best, the table, the drawings, and what did not come to its end.

It is made of the journal and of the figures that runs wrote down, so that it can be made again at any time. Knows these,
and nothing of how to train.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from scumble.pages.render import count, duration, number, render, setting, share, size
from scumble.train.sweep.drawing import (
    HUES,
    OTHERS,
    Curve,
    Point,
    evaluations_alone,
    heat_map,
    loss_curves,
    tradeoff,
)
from scumble.train.sweep.journal import Journal
from scumble.train.sweep.lines import Line, pareto, ranked
from scumble.train.sweep.table import columns_of, interval_of, said, titled

_SIZES: tuple[Any, ...] = ("wide", "narrow")


def render_sweep(journal: Journal) -> str:
    """The report of a sweep.

    Returns:
        A self-contained HTML document, every text in it escaped; the same sweep gives the same text but for its times.
    """
    document = journal.to_dict()
    metric, axes = journal.ground["metric"], list(journal.asked.space.axes)
    lines = ranked(journal.lines(), by_metric=journal.by_metric)
    best = journal.best()
    shown = columns_of(lines, axes)
    names = {line.number: _named(line, shown) for line in lines}
    curves = {line.number: Curve(_rows(journal, line), colour) for line, colour in _coloured(lines)}
    drawn = [curve for curve in curves.values() if any(curve.runs)]
    return render(
        "train/sweep/page.html.j2",
        scumble=document["scumble"],
        started=str(document["times"]["started"]).replace("T", " ").replace("Z", " UTC"),
        base=str(journal.ground["base"]["name"]).rstrip("/").rpartition("/")[2],
        source=str(journal.ground["data"]["source"]).rstrip("/").rpartition("/")[2],
        lead=_lead(journal, lines),
        left=journal.left,
        headline=_headline(journal, best[0] if best else None, names, document),
        columns=[titled(name) for name in shown],
        metric=metric,
        seeds=len(journal.asked.space.seeds) > 1,
        rows=[_row(line, shown, metric, best[0].number if best else None) for line in lines],
        notes=any(said(line) for line in lines),
        curves=_both(lambda each: loss_curves(drawn, each)) if drawn else None,
        alone=evaluations_alone(drawn),
        legend=[(names[number], curve.colour) for number, curve in curves.items() if curve.colour != OTHERS],
        others=sum(curve.colour == OTHERS for curve in curves.values()),
        tradeoff=_tradeoff(lines, names, metric, best[0].number if best else None),
        heat=_heat(lines, axes, metric),
        fixed=sorted(journal.asked.space.fixed.items()),
        rungs=journal.rungs,
    )


def _lead(journal: Journal, lines: Sequence[Line]) -> str:
    space, trials = journal.asked.space, len(journal.trials)
    seeds = f", each with {len(space.seeds)} seeds" if len(space.seeds) > 1 else ""
    how = {
        "grid": "all combinations of what was given",
        "random": "drawn at random",
        "tpe": "drawn where good ones were found (TPE)",
    }[journal.asked.options.search]
    halving = ", the worst ended early (successive halving)" if journal.asked.options.halving else ""
    settings = f"{len(lines)} setting{'' if len(lines) == 1 else 's'}"
    runs = f" {trials} adapters on one base." if trials > len(lines) else " All on one base."
    return f"{settings}, {how}{seeds}{halving}.{runs}"


def _headline(
    journal: Journal, best: Line | None, names: Mapping[int, str], document: Mapping[str, Any]
) -> list[dict[str, str]]:
    items = []
    if best is not None:
        items.append(
            {
                "label": "best setting",
                "figure": names[best.number] or "the only one",
                "beside": "adapter: best/",
            }
        )
        items.append(
            {"label": "its validation loss", "figure": number(best.loss), "beside": "lowest, mean over seeds"}
        )
        if best.metric is not None:
            name = str(journal.ground["metric"]["name"]).replace("_", " ")
            items.append(
                {"label": name, "figure": share(best.metric), "beside": f"95 % interval {interval_of(best)}"}
            )
        beside = f"{count(best.parameters)} parameters"
        items.append({"label": "its adapter", "figure": size(best.bytes), "beside": beside})
    total = sum(trial.seconds for trial in journal.trials)
    beside = f"in training; peak {size(document['times']['peak_bytes'])}"
    items.append({"label": "all trials", "figure": duration(total), "beside": beside})
    return items


def _row(
    line: Line, shown: Sequence[str], metric: Mapping[str, Any] | None, best: int | None
) -> dict[str, Any]:
    return {
        "best": line.number == best,
        "settings": [setting(line.settings[name]) for name in shown],
        "loss": number(line.loss),
        "seeds": len(line.trials),
        "metric": share(line.metric) if metric else "",
        "interval": interval_of(line),
        "parameters": count(line.parameters),
        "size": size(line.bytes),
        "memory": size(line.memory),
        "time": duration(line.seconds) if line.steps else duration(None),
        "note": said(line),
    }


def _named(line: Line, shown: Sequence[str]) -> str:
    """`rank 4, minimal`."""
    return ", ".join(
        setting(line.settings[name])
        if name == "targets"
        else f"{titled(name)} {setting(line.settings[name])}"
        for name in shown
    )


def _coloured(lines: Sequence[Line]) -> list[tuple[Line, str]]:
    """The best have colours of their own, the others share one."""
    return [(line, HUES[place] if place < len(HUES) else OTHERS) for place, line in enumerate(lines)]


def _rows(journal: Journal, line: Line) -> list[list[dict[str, Any]]]:
    """What each of a line's runs wrote down as it was trained."""
    found = []
    for name in line.trials:
        path = next(journal.place(trial) for trial in journal.trials if trial.name == name) / "metrics.jsonl"
        if path.is_file():
            found.append([json.loads(row) for row in path.read_text(encoding="utf-8").splitlines()])
    return [rows for rows in found if rows]


def _tradeoff(
    lines: Sequence[Line], names: Mapping[int, str], metric: Mapping[str, Any] | None, best: int | None
) -> dict[str, Any] | None:
    """The metric, or where there is none the loss, against parameters; of what came to its end."""
    shares = metric is not None
    done = [
        (line, line.metric if shares else line.loss)
        for line in lines
        if line.state == "finished" and line.parameters and (line.metric if shares else line.loss) is not None
    ]
    if len(done) < 2:
        return None
    costs = [(float(line.parameters or 0), float(value or 0) * (1 if shares else -1)) for line, value in done]
    front = {done[i][0].number for i in pareto(costs)}
    points = [
        Point(
            names[line.number],
            int(line.parameters or 0),
            float(value or 0),
            line.interval if shares else None,
            line.number in front,
            line.number == best,
        )
        for line, value in done
    ]
    what = str(metric["name"]).replace("_", " ") if metric else "validation loss"
    drawn = _both(lambda each: tradeoff(points, what, each, shares=shares))
    return {**drawn, "what": what, "front": [names[n] for n in sorted(front)], "intervals": shares}


def _heat(
    lines: Sequence[Line], axes: Sequence[str], metric: Mapping[str, Any] | None
) -> dict[str, Any] | None:
    """Rank by targets, where both vary: in each cell the best of what came to its end."""
    if not {"rank", "targets"} <= set(axes):
        return None
    shares = metric is not None
    values: dict[tuple[str, str], float] = {}
    for line in lines:
        value = line.metric if shares else line.loss
        if line.state != "finished" or value is None:
            continue
        key = (str(line.settings["targets"]), str(line.settings["rank"]))
        better = max if shares else min
        values[key] = better(value, values.get(key, value))
    if not values:
        return None
    columns = sorted({str(line.settings["rank"]) for line in lines}, key=float)
    targets = list(
        dict.fromkeys(str(line.settings["targets"]) for line in sorted(lines, key=lambda line: line.number))
    )
    what = str(metric["name"]).replace("_", " ") if metric else "validation loss"
    drawn = _both(lambda each: heat_map(values, columns, targets, each, shares=shares))
    return {**drawn, "what": what, "several": len(axes) > 2}


def _both(draw: Any) -> dict[str, Any]:
    """A drawing for wide windows and one for narrow ones."""
    return {each: Markup(draw(each)) for each in _SIZES}
