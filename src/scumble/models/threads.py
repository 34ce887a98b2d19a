"""How many threads a CPU should use, measured on real layer shapes, apart for training and decoding.

Training multiplies hundreds of rows by each weight, where more threads mostly help. Decoding multiplies
1 to 8 rows, where starting the threads can cost more than the product, and two can be many times slower
than one. A measurement takes about half a second per phase and is remembered in the cache, for a run is
repeatable bit for bit only with the same number of threads; one taken on a busy machine is marked as such.

    train:  Y = X W^T and dX = dY W, X of shape (512, in), W of shape (out, in)
    decode: Y = X W^T, X of shape (1, in) and (8, in)

Knows nothing of training loops and generation.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import xxhash

from scumble.errors import ConfigError
from scumble.files import write_text
from scumble.models.cache import cache_dir

Phase = Literal["train", "decode"]
Shape = tuple[int, int]  # (out, in), as torch stores a linear layer's weight

_TRAIN_ROWS = 512
_DECODE_ROWS = (1, 8)
_SECONDS = 0.5  # for the rounds of one phase; setting up and warming come on top
_ROUNDS = 15
_TRAIN_FLOPS = 5e9  # of one pass, about 0.1 s on one core; large layers get fewer rows, 64 at least
_COPIES_BYTES = (
    32 * 2**20
)  # distinct weights per shape, so that decoding reads from memory as it does in a model
_HOPELESS = 3.0  # times the best in the first round: not timed again
_GAIN = 0.9  # more threads are taken only where they need less than this share of the time
_MAX_SHAPES = 6
_BUSY = " | busy"  # ends the key of what was measured while other work ran


@dataclass(frozen=True)
class ThreadChoice:
    """How many threads each phase should use.

    Attributes:
        train: threads for steps of hundreds of rows.
        decode: threads for steps of 1 to 8 rows.
        measured: by phase, seconds of one pass by number of threads; empty where nothing was measured.
        reason: "measured", "SCUMBLE_THREADS" or "not on a CPU".
    """

    train: int
    decode: int
    measured: dict[str, dict[int, float]] = field(default_factory=dict)
    reason: str = "measured"

    def to_dict(self) -> dict[str, Any]:
        """Give the choice as JSON can hold it."""
        measured = {phase: {str(n): s for n, s in times.items()} for phase, times in self.measured.items()}
        return {"train": self.train, "decode": self.decode, "measured": measured, "reason": self.reason}


def choose_threads(shapes: Sequence[Shape], phase: Phase, *, dtype: torch.dtype = torch.float32) -> int:
    """Choose the number of threads for one phase, by measuring or from the cache.

    Args:
        shapes: (out, in) of the linear layers; a shape that stands in the model n times stands here n times.
        phase: "train" or "decode".
        dtype: data type of the weights.

    Returns:
        Threads, at least 1. `SCUMBLE_THREADS` ("2", or "2,1" for training and decoding) overrides it.

    Raises:
        ConfigError: `SCUMBLE_THREADS` is neither.
    """
    forced = _forced()
    if forced is not None:
        return forced[0] if phase == "train" else forced[1]
    return _best(_measured(shapes, phase, dtype)[0])


def threads_for(model: Any) -> ThreadChoice:
    """Choose the threads for both phases from the linear layers of `model`.

    On a GPU nothing is measured and torch's own number is kept.

    Raises:
        ConfigError: `SCUMBLE_THREADS` cannot be read.
    """
    first = next((p for p in model.parameters() if p.is_floating_point()), None)
    if first is not None and first.device.type != "cpu" and _forced() is None:
        now = torch.get_num_threads()
        return ThreadChoice(now, now, reason="not on a CPU")
    dtype = torch.float32 if first is None else first.dtype
    return threads_for_shapes(layer_shapes(model, "train"), layer_shapes(model, "decode"), dtype=dtype)


def threads_for_shapes(
    train: Sequence[Shape], decode: Sequence[Shape], *, dtype: torch.dtype = torch.float32
) -> ThreadChoice:
    """Choose the threads for both phases, each from its own (out, in) shapes.

    Raises:
        ConfigError: `SCUMBLE_THREADS` cannot be read.
    """
    forced = _forced()
    if forced is not None:
        return ThreadChoice(*forced, reason="SCUMBLE_THREADS")
    found = {"train": _measured(train, "train", dtype), "decode": _measured(decode, "decode", dtype)}
    times = {phase: seconds for phase, (seconds, _) in found.items()}
    busy = any(busy for _, busy in found.values())
    reason = "measured on a busy machine; `scumble doctor --measure` measures anew" if busy else "measured"
    return ThreadChoice(_best(times["train"]), _best(times["decode"]), times, reason)


def forget() -> None:
    """Forget what was measured, so that the next choice measures anew."""
    (cache_dir() / "threads.json").unlink(missing_ok=True)


def layer_shapes(model: Any, phase: Phase) -> list[Shape]:
    """List (out, in) of the linear layers of `model`, each as often as it occurs, sorted.

    The output head counts in decoding only: in training it meets only the rows that have a loss.
    """
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    shapes = []
    for module in model.modules():
        if phase == "train" and module is head:
            continue
        if isinstance(module, torch.nn.Linear):
            shapes.append((module.out_features, module.in_features))
        elif type(module).__name__ == "Conv1D":  # GPT-2's layer, whose weight is (in, out)
            shapes.append((int(module.weight.shape[1]), int(module.weight.shape[0])))
    return sorted(shapes)


@contextlib.contextmanager
def with_threads(n: int) -> Iterator[None]:
    """Run the body with `n` of torch's threads, and put the former number back.

    Raises:
        ConfigError: `n` is below 1.
    """
    if n < 1:
        raise ConfigError(f"{n} threads are not possible", "use at least 1")
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def available_cores() -> int:
    """Count the cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _forced() -> tuple[int, int] | None:
    """Read `SCUMBLE_THREADS`: (train, decode), or None where it is not set."""
    text = os.environ.get("SCUMBLE_THREADS", "").strip()
    if not text:
        return None
    parts = [part.strip() for part in text.split(",")]
    if len(parts) > 2 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ConfigError(f"SCUMBLE_THREADS is {text!r}", "write 2, or 2,1 for training and decoding")
    return int(parts[0]), int(parts[-1])


def _best(seconds: dict[int, float]) -> int:
    """Take the fewest threads that no larger number beats by more than a tenth."""
    best = min(seconds)
    for threads in sorted(seconds):
        if seconds[threads] < _GAIN * seconds[best]:
            best = threads
    return best


def _measured(shapes: Sequence[Shape], phase: Phase, dtype: torch.dtype) -> tuple[dict[int, float], bool]:
    """Give seconds by number of threads, and whether other work ran; from the cache where it is known."""
    cores = available_cores()
    if cores == 1 or not shapes:
        return {1: 0.0}, False
    path, key = cache_dir() / "threads.json", _key(shapes, phase, dtype, cores)
    known = _recall(path)
    for name in (key, key + _BUSY):
        if name in known:
            return known[name], name != key
    busy = _busy(cores)
    seconds = _measure(shapes, phase, dtype, cores)
    # A cache that cannot be written costs a measurement each time, and nothing else.
    with contextlib.suppress(OSError):
        write_text(path, json.dumps(_recall(path) | {key + _BUSY * busy: seconds}, indent=1) + "\n")
    return seconds, busy


def _busy(cores: int) -> bool:
    """Say whether the machine has had so much to do in the last minute that a measurement would mislead."""
    return hasattr(os, "getloadavg") and os.getloadavg()[0] > 0.75 * cores


def _key(shapes: Sequence[Shape], phase: Phase, dtype: torch.dtype, cores: int) -> str:
    digest = xxhash.xxh3_64(repr(sorted(Counter(shapes).items())).encode()).hexdigest()
    return f"{cpu_name()} | {cores} cores | torch {torch.__version__} | {dtype} | {phase} | {digest}"


def cpu_name() -> str:
    """Name the processor, as the system reports it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _recall(path: Path) -> dict[str, dict[int, float]]:
    """Read what was measured before; a file that is missing or broken counts as empty."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {
            str(key): {int(n): float(s) for n, s in times.items()} for key, times in found.items() if times
        }
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _measure(shapes: Sequence[Shape], phase: Phase, dtype: torch.dtype, cores: int) -> dict[int, float]:
    """Time one pass with each number of threads, in turns, so that a busy moment hits all; medians."""
    candidates = sorted({2**k for k in range(cores.bit_length()) if 2**k <= cores} | {cores})
    one_pass = _make_pass(shapes, phase, dtype)
    times: dict[int, list[float]] = {n: [] for n in candidates}
    with torch.inference_mode():
        for n in candidates:
            with with_threads(n):
                one_pass()  # wakes the threads, and lets the library choose its kernels
        end = time.perf_counter() + _SECONDS
        for done in range(_ROUNDS):
            if done and time.perf_counter() > end:
                break
            for n in candidates:
                with with_threads(n):
                    times[n].append(one_pass())
            if not done:
                fastest = min(taken[0] for taken in times.values())
                candidates = [n for n in candidates if times[n][0] < _HOPELESS * fastest]
    return {n: statistics.median(taken) for n, taken in times.items()}


def _make_pass(shapes: Sequence[Shape], phase: Phase, dtype: torch.dtype) -> Callable[[], float]:
    """Build the weights and inputs of one pass: seconds of the products, weighted by how often a shape occurs."""
    counts = Counter(shapes)
    # The shapes that cost most tell enough; a few models have dozens.
    kept = sorted(counts, key=lambda s: (-counts[s] * s[0] * s[1], s))[:_MAX_SHAPES]
    cost = sum(4 * out * inner for out, inner in kept)  # multiply and add, forward and backward, per row
    rows = [max(64, min(_TRAIN_ROWS, int(_TRAIN_FLOPS / cost)))] if phase == "train" else list(_DECODE_ROWS)
    size = torch.empty((), dtype=dtype).element_size()
    work = []
    for out, inner in kept:
        copies = (
            1
            if phase == "train"
            else max(1, min(counts[out, inner], 4, _COPIES_BYTES // (out * inner * size)))
        )
        weights = [torch.full((out, inner), 0.01, dtype=dtype) for _ in range(copies)]
        inputs = [torch.full((n, inner), 0.01, dtype=dtype) for n in rows]
        work.append((counts[out, inner], weights, inputs))

    def one_pass() -> float:
        total = 0.0
        for count, weights, inputs in work:
            begin = time.perf_counter()
            for weight in weights:
                for x in inputs:
                    y = x @ weight.T
                    if phase == "train":
                        y @ weight
            total += (time.perf_counter() - begin) * count / len(weights)
        return total

    return one_pass
