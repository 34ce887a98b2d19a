"""`bench_train`: the lesson's script, TRL and Scumble train the same adapter, side by side on one machine.

Each system has a process of its own with its own best number of threads, and rounds are interleaved: in each of them
every system trains once from the same first adapter on the same examples, and before each one the roof is measured.
Knows which systems there are (`train_systems`), and only runs them.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import platform
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from scumble.errors import ConfigError
from scumble.lab.train_job import TrainJob
from scumble.lab.train_material import Material, Sample, Wanted, prepare
from scumble.lab.train_plot import draw
from scumble.lab.train_roof import Work
from scumble.lab.train_systems import NEEDS, SYSTEMS, TITLES, Layout
from scumble.lab.train_worker import Worker
from scumble.models.threads import available_cores, cpu_name
from scumble.progress import Reporter

MOST_THREADS = 3  # numbers of threads that are tried: all cores, half of them, a quarter


@dataclass(frozen=True)
class Spread:
    """A figure of every round: the median, and how far the rounds are apart."""

    median: float
    lowest: float
    highest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of the values of all rounds."""
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True)
class Contestant:
    """What one system came to.

    Attributes:
        name: as `--systems` takes it.
        title: for people.
        tokens_per_second: of real tokens, padding never counted; the median over rounds.
        rounds: the same for each round.
        peak_bytes: highest resident size of its process while training, over all rounds.
        above_bytes: the same less what the process had after loading.
        loss: of what it trained: mean over the supervised tokens, measured for all systems in one way.
        reported: the losses of the last round's steps as the system itself reports them.
        threads: what it ran with.
        layout: how it laid examples out.
        tried: by number of threads, and by layout, what was found in the search.
    """

    name: str
    title: str
    tokens_per_second: float
    rounds: tuple[float, ...]
    peak_bytes: int
    above_bytes: int
    loss: float
    reported: tuple[float, ...]
    threads: int
    layout: Layout
    tried: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainBench:
    """What `bench_train` found.

    Attributes:
        systems: those that ran.
        ratios: by the other system, how many times as fast Scumble is, round by round.
        memory: by the other system, Scumble's `above_bytes` over its own.
        matmul_share: by system, its share of the roof.
        roof: multiplications and additions a second of the fastest products, of each round.
        roof_tokens: tokens a second at the roof.
        work: what a token costs.
        sample: the examples.
        start_loss: of the adapter that all begin with, which is the base's.
        steps: optimizer steps in a round.
        dropout: of all systems.
        load: the machine's load before and after, one minute's mean.
        versions: of what was compared, and the processor.
        absent: by system, why it was not compared.
    """

    systems: tuple[Contestant, ...]
    ratios: dict[str, Spread]
    memory: dict[str, float]
    matmul_share: dict[str, Spread]
    roof: Spread
    roof_tokens: float
    work: Work
    sample: Sample
    start_loss: float
    steps: int
    dropout: float
    load: tuple[float, float]
    versions: dict[str, str]
    absent: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """What `--json` prints."""
        return asdict(self)


@dataclass
class _Entry:
    """One system while it runs."""

    worker: Worker
    threads: int
    layout: dict[str, Any]
    tried: dict[str, Any]
    resident: int = 0
    rounds: list[dict[str, Any]] = field(default_factory=list)


def bench_train(
    *,
    steps: int = 1,
    rounds: int = 3,
    data: str | Path | None = None,
    base: str | None = None,
    system_prompt: int = 0,
    dropout: float = 0.05,
    seed: int = 0,
    systems: Sequence[str] = tuple(SYSTEMS),
    examples: int = 16,
    batch: int = 4,
    plot: str | Path | None = None,
    quiet: bool = False,
) -> TrainBench:
    """Train the same adapter with every system, in turns, and compare speed, memory and loss.

    Args:
        steps: optimizer steps in a round, each over all examples.
        rounds: how often each system trains.
        data: chats to train on, the first `examples` of them; by default 'write a docstring' chats.
        base: what `load_base` takes.
        system_prompt: tokens of one system prompt that is put before every example; 0 for none.
        dropout: of all systems; with more than 0, Scumble shares no prefixes.
        seed: of the adapter, the order within a step, and dropout.
        systems: which of `script`, `trl`, `trl_best` and `scumble`.
        examples: in an optimizer step, a multiple of 8.
        batch: examples in a micro-batch of Scumble; the script has 4, TRL 8 or its best.
        plot: SVG file to write.
        quiet: say nothing on stderr.

    Raises:
        ConfigError: a number is out of its range, or a system is not known.
        DataError: the data have too few examples.
        TrainingError: a system's process failed; it says with what.
    """
    wanted = Wanted(
        steps=steps,
        rounds=rounds,
        data=data,
        base=base,
        system_prompt=system_prompt,
        dropout=dropout,
        seed=seed,
        examples=examples,
        batch=batch,
    )
    wanted.check()
    unknown = [name for name in systems if name not in SYSTEMS]
    if unknown or not systems:
        raise ConfigError(f"systems is {', '.join(systems) or 'empty'}", f"there are {', '.join(SYSTEMS)}")
    with tempfile.TemporaryDirectory() as place, contextlib.ExitStack() as stack:
        result = _measured(Path(place), wanted, systems, stack, Reporter(quiet=quiet))
    if plot is not None:
        draw(result, Path(plot))
    return result


def _measured(
    folder: Path, wanted: Wanted, systems: Sequence[str], stack: contextlib.ExitStack, reporter: Reporter
) -> TrainBench:
    absent = {
        name: f"{NEEDS[name]} is not installed"
        for name in systems
        if name in NEEDS and importlib.util.find_spec(NEEDS[name]) is None
    }
    load = _load()
    material = prepare(folder, wanted)
    reporter.note(str(material.sample))
    file = material.job.write(folder / "job.json")
    chosen = {name: _chosen(name, file, folder, reporter) for name in systems if name not in absent}
    entries = {name: _started(name, each, file, folder, stack) for name, each in chosen.items()}
    roof = stack.enter_context(_worker("roof", file, folder))
    speeds = _rounds(entries, roof, material, folder, wanted.rounds, reporter)
    judged = [material.job.start, *(entry.rounds[-1]["adapter"] for entry in entries.values())]
    with _worker("judge", file, folder) as judge:
        start, *losses = judge.ask("losses", adapters=judged)
    found = [
        _contestant(name, entry, material.job, loss)
        for (name, entry), loss in zip(entries.items(), losses, strict=True)
    ]
    return _result(found, speeds, material, start, (load, _load()), absent)


@contextlib.contextmanager
def _worker(name: str, file: Path, folder: Path) -> Iterator[Worker]:
    worker = Worker(name, file, folder / f"{name}.log")
    try:
        yield worker
    finally:
        worker.close()


def _chosen(name: str, file: Path, folder: Path, reporter: Reporter) -> dict[str, Any]:
    """A system's best number of threads and its best layout, found in a process that ends afterwards.

    What the search used stays with that process, and counts in no figure of memory.
    """
    with _worker(name, file, folder) as scout:
        scout.ask("load")
        threads = scout.ask("choose_threads", candidates=_thread_counts())
        layout = scout.ask("choose_layout", threads=threads["threads"])
    reporter.note(f"{TITLES[name]}: {_threads(threads['threads'])}, {Layout(**layout['layout'])}")
    tried = {"threads": threads["seconds"], "layouts": layout["tried"]}
    return {"threads": threads["threads"], "layout": layout["layout"], "tried": tried}


def _started(
    name: str, chosen: dict[str, Any], file: Path, folder: Path, stack: contextlib.ExitStack
) -> _Entry:
    worker = stack.enter_context(_worker(name, file, folder))
    resident = worker.ask("load")["resident"]
    worker.ask("warm", threads=chosen["threads"], layout=chosen["layout"])
    return _Entry(worker, **chosen, resident=resident)


def _rounds(
    entries: Mapping[str, _Entry],
    roof: Worker,
    material: Material,
    folder: Path,
    rounds: int,
    reporter: Reporter,
) -> list[float]:
    """All rounds; the best speed of products of each."""
    speeds = []
    with reporter.bar("rounds", rounds * len(entries)):
        for number in range(rounds):
            best = 0.0
            # who comes first changes, so that a machine that slows down does not always slow the same one
            names = list(entries)
            first = number % len(names)
            for name in names[first:] + names[:first]:
                products = roof.ask("roof", shapes=material.shapes, threads=_thread_counts())
                best = max(best, products["operations"])
                entry = entries[name]
                out = folder / f"{name}-{number}"
                entry.rounds.append(entry.worker.ask("round", layout=entry.layout, out=str(out)))
                reporter.advance(shown=f"{TITLES[name]}: {entry.rounds[-1]['seconds']:.1f} s")
            speeds.append(best)
    return speeds


def _contestant(name: str, entry: _Entry, job: TrainJob, loss: float) -> Contestant:
    speeds = tuple(job.steps * job.tokens / each["seconds"] for each in entry.rounds)
    peak = max(each["peak"] for each in entry.rounds)
    return Contestant(
        name=name,
        title=TITLES[name],
        tokens_per_second=statistics.median(speeds),
        rounds=speeds,
        peak_bytes=peak,
        above_bytes=peak - entry.resident,
        loss=loss,
        reported=tuple(entry.rounds[-1]["losses"]),
        threads=entry.threads,
        layout=Layout(**entry.layout),
        tried=entry.tried,
    )


def _result(
    found: Sequence[Contestant],
    speeds: Sequence[float],
    material: Material,
    start: float,
    load: tuple[float, float],
    absent: dict[str, str],
) -> TrainBench:
    work, job = material.work, material.job
    ours = next((each for each in found if each.name == "scumble"), None)
    others = [each for each in found if ours is not None and each is not ours]
    ratios, memory = {}, {}
    for other in others:
        assert ours is not None
        ratios[other.name] = Spread.of([a / b for a, b in zip(ours.rounds, other.rounds, strict=True)])
        memory[other.name] = ours.above_bytes / max(1, other.above_bytes)
    shares = {
        each.name: Spread.of([r * work.operations / s for r, s in zip(each.rounds, speeds, strict=True)])
        for each in found
    }
    names = ["torch", "transformers", "peft", "scumble"] + (["trl"] if not absent.get("trl") else [])
    versions = {name: _version(name) for name in names}
    versions |= {
        "python": platform.python_version(),
        "processor": cpu_name(),
        "cores": str(available_cores()),
    }
    best = Spread.of(speeds)
    return TrainBench(
        systems=tuple(found),
        ratios=ratios,
        memory=memory,
        matmul_share=shares,
        roof=best,
        roof_tokens=best.median / work.operations,
        work=work,
        sample=material.sample,
        start_loss=start,
        steps=job.steps,
        dropout=job.dropout,
        load=load,
        versions=versions,
        absent=absent,
    )


def _thread_counts() -> list[int]:
    """All cores, half of them, a quarter."""
    return list(dict.fromkeys(max(1, available_cores() // 2**k) for k in range(MOST_THREADS)))


def _threads(number: int) -> str:
    return f"{number} thread{'s' * (number > 1)}"


def _load() -> float:
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
