"""The page of an inspection: figures, heat maps and sentences in one file that asks for nothing else.

Knows findings, and nothing of how they were measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from markupsafe import Markup

from scumble.manage.inspection.findings import AdapterFindings, Inspection, PairFindings
from scumble.manage.inspection.heatmap import Cell, columns_of, heat_map
from scumble.pages.render import count, duration, number, render, share, size


def render_inspection(found: Inspection) -> str:
    """The page of an inspection.

    Returns:
        A self-contained HTML document; the same findings give the same text.
    """
    return render(
        "manage/inspection/inspection.html.j2",
        names=[adapter.name for adapter in found.adapters],
        adapters=[_adapter(adapter, found) for adapter in found.adapters],
        pairs=[_pair(pair) for pair in found.pairs],
        blend=_blend(found),
        data=found.data,
    )


def percent(value: float) -> str:
    """A share in percent without its sign, for a cell: 35, 3.5, 0.12; tiny ones as a power of ten."""
    value = 100 * value
    if 0 < value < 0.005:
        return f"{value:.0e}"
    return f"{value:.0f}" if value >= 9.95 else f"{value:.1f}" if value >= 0.995 else f"{value:.2f}"


def signed(value: float) -> str:
    """A figure from -1 to 1 to two places, zero without a sign."""
    return f"{value:.2f}".replace("-0.00", "0.00")


def maps_of(adapter: AdapterFindings, top: float | None = None) -> list[dict[str, Any]]:
    """The heat maps of an adapter, each with its title.

    Args:
        adapter: what was found.
        top: where the colours of the (relative) norm end, so that several adapters can be held side by side.
    """
    relative = any(module.relative_norm is not None for module in adapter.modules)
    columns = columns_of([module.path for module in adapter.modules])
    rank = max((module.rank for module in adapter.modules), default=1)
    ranks = {m.path: m.spectrum.effective_rank if m.spectrum else None for m in adapter.modules}
    if relative:
        norms = {module.path: module.relative_norm for module in adapter.modules}
        first = ("Update over weight, in %", norms, percent, None, top)
    else:
        norms = {module.path: module.norm for module in adapter.modules}
        first = ("Norm of the update", norms, lambda value: f"{value:.2g}", None, top)
    wanted: list[tuple[str, Mapping[str, float | None], Callable[[float], str], float | None, float | None]]
    wanted = [first, (f"Effective rank, of {rank}", ranks, lambda value: f"{value:.1f}", 1.0, float(rank))]
    if adapter.on_data is not None:
        wanted.append(
            ("Output of the update over the module's own, in %", adapter.on_data, percent, None, None)
        )
    return [
        {
            "title": title,
            "svg": Markup(
                heat_map(
                    f"{adapter.name}: {title}, by layer and module",
                    [Cell(m.layer, columns[m.path], values.get(m.path), m.path) for m in adapter.modules],
                    shown=shown,
                    low=low,
                    high=high,
                )
            ),
        }
        for title, values, shown, low, high in wanted
    ]


def pair_maps(pair: PairFindings) -> list[dict[str, Any]]:
    """The heat maps of a pair: the cosine of each module, how far what they write to overlaps, and the signs."""
    modules = pair.figures.modules
    if not modules:
        return []
    columns = columns_of([module.path for module in modules])
    overlaps = {m.path: m.outputs.value if m.outputs else None for m in modules}
    wanted: list[tuple[str, Mapping[str, float | None]]] = [
        ("Cosine of the updates", {module.path: module.cosine for module in modules}),
        ("Overlap of outputs", overlaps),
        ("Overlap of inputs", {m.path: m.inputs.value if m.inputs else None for m in modules}),
    ]
    if pair.on_data is not None:
        wanted.insert(1, ("Cosine of the outputs", pair.on_data.modules))
    return [
        {
            "title": title,
            "svg": Markup(
                heat_map(
                    f"{pair.first} and {pair.second}: {title}, by layer and module",
                    [Cell(m.layer, columns[m.path], values.get(m.path), m.path) for m in modules],
                    shown=signed,
                    high=_end(values),
                )
            ),
        }
        for title, values in wanted
    ]


def _end(values: Mapping[str, float | None]) -> float:
    """Where the colours of figures from -1 to 1 end: the next tenth, so that small ones are seen too."""
    largest = max((abs(value) for value in values.values() if value is not None), default=0.0)
    return min(1.0, max(0.1, math.ceil(10 * largest) / 10))


def _adapter(adapter: AdapterFindings, found: Inspection) -> dict[str, Any]:
    relative = [m.relative_norm for a in found.adapters for m in a.modules]
    sizes = [m.norm for a in found.adapters for m in a.modules]
    known = all(value is not None for value in relative)
    top = max((value for value in (relative if known else sizes) if value is not None), default=None)
    return {
        "name": adapter.name,
        "path": adapter.path,
        "headline": _headline(adapter),
        "settings": [*adapter.settings, *_beside(adapter)],
        "origin": _origin(adapter),
        "maps": maps_of(adapter, top),
        "kinds": adapter.kinds(),
        "modules": adapter.modules,
        "on_data": adapter.on_data,
        "flags": [(m.path, flag, why) for m in adapter.modules for flag, why in m.flags.items()],
        "notes": [*adapter.notes, *_manifest(adapter)],
    }


def _headline(adapter: AdapterFindings) -> list[dict[str, str]]:
    beside = f"{100 * adapter.relative_norm:.2f} % of the weights" if adapter.relative_norm else ""
    return [
        {"label": "rank", "figure": str(adapter.spec.rank), "beside": f"alpha {adapter.spec.alpha:g}"},
        {"label": "parameters", "figure": count(adapter.parameters), "beside": size(adapter.bytes)},
        {"label": "modules", "figure": count(len(adapter.modules)), "beside": _flagged(adapter)},
        {"label": "norm of the update", "figure": number(adapter.norm, 3), "beside": beside},
    ]


def _flagged(adapter: AdapterFindings) -> str:
    counts = {flag: len(adapter.flagged(flag)) for flag in ("not finite", "dead", "saturated")}
    return ", ".join(f"{many} {flag}" for flag, many in counts.items() if many) or "nothing odd"


def _beside(adapter: AdapterFindings) -> list[tuple[str, str]]:
    return [(f"numbers in {name}", count(many)) for name, many in adapter.beside.items()] + [
        ("base", adapter.base_name or "not named"),
        ("base's hash", adapter.base_hash or "not known"),
        ("sha256", adapter.sha256),
    ]


def _manifest(adapter: AdapterFindings) -> list[str]:
    return [] if adapter.manifest.state in ("absent", "right") else [adapter.manifest.note]


def _origin(adapter: AdapterFindings) -> list[tuple[str, str]]:
    """What it was trained on, as (name, words)."""
    run = adapter.origin.run
    if run is None:
        return [("made" if adapter.origin.made_from else "run", adapter.origin.note)]
    data, loss = run["data"], run["loss"]
    rows = [
        ("data", data["source"]),
        ("hash", data["hash"]),
        ("examples", count(data["examples"])),
        ("validation", run["validation"]),
        ("steps", f"{count(run['steps'])}, the best at {count(run['best_step'])}"),
        ("loss", f"{number(loss['first'], 3)} at first, {number(loss['last'], 3)} at last"),
        ("best on validation", number(loss["best_eval"], 3)),
        ("learning rate, seed", f"{number(run['learning_rate'], 2)}, {count(run['seed'])}"),
        ("time", duration(run["seconds"])),
        ("started", run["started"]),
        (
            "versions",
            ", ".join(f"{k} {v}" for k, v in {"scumble": run["scumble"], **run["versions"]}.items()),
        ),
    ]
    rows = rows if run["finished"] else [*rows[:4], ("state", "the run did not end, or still runs"), rows[9]]
    return [(name, value) for name, value in rows if value]


def _pair(pair: PairFindings) -> dict[str, Any]:
    return {
        "first": pair.first,
        "second": pair.second,
        "expectation": pair.expectation,
        "figures": pair_rows(pair),
        "maps": pair_maps(pair),
    }


def pair_rows(pair: PairFindings) -> list[tuple[str, str, str]]:
    """The figures of a pair, as (name, figure, what to read it by)."""
    figures, signs = pair.figures, pair.figures.signs
    rows = [("cosine of the updates", number(figures.cosine, 2), "0 is independent, 1 the same, -1 opposite")]
    if pair.on_data is not None:
        rows.append(("cosine of the outputs", number(pair.on_data.cosine, 2), "on the texts given"))
    rows.append(
        (
            "interference",
            number(figures.interference, 2),
            "what the cross term adds to the sum's squared norm",
        )
    )
    for name, overlap in (("outputs", figures.outputs), ("inputs", figures.inputs)):
        if overlap is not None:
            random = f"two random subspaces give {overlap.random:.3f}"
            rows.append((f"overlap of {name}", f"{overlap.value:.3f}", random))
    if signs.plain is not None and signs.weighted is not None:
        rows_of = f"{signs.rows:,} of {signs.of:,} rows"
        rows.append(("sign conflict, by entries", share(signs.plain), f"50 % is chance; on {rows_of}"))
        rows.append(("sign conflict, by weight", share(signs.weighted), "each entry by the size of both"))
    norms = f"alone {number(figures.norms[0], 3)} and {number(figures.norms[1], 3)}"
    rows += [(f"norm of the blend {w}", number(norm, 3), norms) for w, norm in figures.blends.items()]
    only = [
        f"{name} {many}" for name, many in zip((pair.first, pair.second), figures.only, strict=True) if many
    ]
    rows.append(("modules of both", count(len(figures.modules)), "alone: " + ", ".join(only) if only else ""))
    return rows


def _blend(found: Inspection) -> str | None:
    if found.weights is None or found.blend_norm is None or len(found.adapters) < 3:
        return None
    terms = " + ".join(f"{w:g} × {a.name}" for w, a in zip(found.weights, found.adapters, strict=True))
    return f"{terms} has a norm of {number(found.blend_norm, 3)}"
