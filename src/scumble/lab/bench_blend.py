"""`bench_blend`: six blends by Scumble, PEFT and mergekit side by side, and the cost of compressing one.

Errors are against dense matrices in fp64 and do not depend on the machine; seconds do. Knows which blends
(`blend_cases`) and which systems (`blend_systems`) there are, and only runs them.
"""

from __future__ import annotations

import importlib.metadata
import platform
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scumble.errors import ConfigError
from scumble.lab.blend_cases import CASES, SPREAD, Case, Shape, write_adapters
from scumble.lab.blend_systems import (
    Entry,
    mergekit_entries,
    peft_entries,
    prepare,
    scumble_entries,
    why_no_mergekit,
)
from scumble.lora.adapter import Factors
from scumble.lora.lowrank import LowRank, decompose
from scumble.models.threads import with_threads
from scumble.models.weights import quiet as quiet_libraries
from scumble.progress import Reporter

SINGLE = 5  # times that Scumble compresses while PEFT does once, whose time is hundreds of times as long


@dataclass(frozen=True)
class BlendResult:
    """One blend by all systems.

    Attributes:
        title: of the blend.
        weights: of its adapters.
        entries: what each method made of it.
    """

    title: str
    weights: tuple[float, ...]
    entries: tuple[Entry, ...]


@dataclass(frozen=True)
class Compression:
    """Two adapters compressed into one at one module.

    Attributes:
        width: the module is width x width.
        rank: R, the sum of the ranks; half of it is kept.
        rounds: how often PEFT was timed, with Scumble in between.
        seconds: by system, medians.
        errors: by system, against the exact sum.
        best: the error of the best approximation, from the dense matrix.
    """

    width: int
    rank: int
    rounds: int
    seconds: dict[str, float]
    errors: dict[str, float]
    best: float

    @property
    def ratio(self) -> float:
        """How many times as long PEFT takes."""
        return self.seconds["PEFT"] / self.seconds["Scumble"]


@dataclass(frozen=True)
class BlendBench:
    """What `bench_blend` found.

    Attributes:
        blends: the six of them.
        compression: see there.
        threads: that each system had.
        versions: of what was compared, and the processor.
        absent: by system, why it was not compared.
    """

    blends: tuple[BlendResult, ...]
    compression: Compression
    threads: int
    versions: dict[str, str]
    absent: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """What `--json` prints."""
        found = asdict(self)
        found["compression"]["ratio"] = self.compression.ratio
        return found


def bench_blend(
    *,
    threads: int = 1,
    seed: int = 0,
    layers: int = 2,
    hidden: int = 576,
    width: int = 2048,
    rounds: int = 5,
    quiet: bool = False,
) -> BlendBench:
    """Blend random adapters in six ways with every system, and compare errors and times.

    Args:
        threads: for every system.
        seed: of the model and the adapters.
        layers: of the model.
        hidden: width of the model, a multiple of 192; that of SmolLM2-135M by default.
        width: of the module at which compression is timed, 64 at least.
        rounds: how often PEFT's compression is timed.
        quiet: say nothing on stderr.

    Raises:
        ConfigError: a number is out of its range.
    """
    if min(threads, layers, rounds, hidden) < 1 or hidden % 192 or width < 64:
        raise ConfigError(
            "threads, layers and rounds are 1 at least, width 64, and hidden a multiple of 192",
            f"they were {threads}, {layers}, {rounds}, {width} and {hidden}",
        )
    reporter = Reporter(quiet=quiet)
    reason = why_no_mergekit()
    absent = {"mergekit": reason} if reason else {}
    with with_threads(threads), quiet_libraries(), reporter.bar("blending", len(CASES) + 1):
        blends = []
        for case in CASES:
            blends.append(_blended(case, Shape(layers, hidden, seed), bool(absent)))
            reporter.advance(shown=case.title)
        compression = compare_compression(width, rounds=rounds, seed=seed)
        reporter.advance(shown="compression")
    names = ["torch", "peft"] + ([] if absent else ["mergekit"])
    versions = {name: _version(name) for name in names} | {"processor": platform.machine()}
    return BlendBench(tuple(blends), compression, threads, versions, absent)


def compare_compression(width: int, *, rank: int = 32, rounds: int = 5, seed: int = 0) -> Compression:
    """Compress two adapters of a rank into one of that rank at one module, by QR and by a dense SVD, interleaved.

    PEFT's time is that of `add_weighted_adapter(combination_type="svd")` with its defaults on a model of one linear
    layer; Scumble's begins with the factors in fp32 as they are loaded and ends with factors in fp32.
    """
    peft = _one_layer(width, rank, seed)
    layer = peft.base_model.model.layer
    factors = [
        Factors(layer.lora_A[name].weight.detach(), layer.lora_B[name].weight.detach()) for name in "ab"
    ]
    scale, weights = layer.scaling["a"], (0.7, 0.3)
    seconds: dict[str, list[float]] = {"PEFT": [], "Scumble": []}
    kept = _compressed(factors, scale, weights, rank)  # and once before it counts
    for number in range(rounds):
        for _ in range(SINGLE):
            started = time.perf_counter()
            kept = _compressed(factors, scale, weights, rank)
            seconds["Scumble"].append(time.perf_counter() - started)
        started = time.perf_counter()
        peft.add_weighted_adapter(
            ["a", "b"], list(weights), f"blend{number}", combination_type="svd", svd_rank=rank
        )
        seconds["PEFT"].append(time.perf_counter() - started)
    exact = LowRank.total([(LowRank.of(each, scale), w) for each, w in zip(factors, weights, strict=True)])
    dense, found = exact.rows(0, width), layer.get_delta_weight("blend0").detach().double()
    norm = float(dense.norm())
    return Compression(
        width=width,
        rank=2 * rank,
        rounds=rounds,
        seconds={name: statistics.median(times) for name, times in seconds.items()},
        errors={
            "PEFT": float((found - dense).norm()) / norm,
            "Scumble": float((kept[0].double() @ kept[1].double() - dense).norm()) / norm,
        },
        best=float(torch.linalg.svdvals(dense)[rank:].norm()) / norm,
    )


def _compressed(
    factors: Sequence[Factors], scale: float, weights: Sequence[float], rank: int
) -> tuple[Tensor, Tensor]:
    """Both factors in fp32, (out, rank) and (rank, in)."""
    parts = [(LowRank.of(each, scale), weight) for each, weight in zip(factors, weights, strict=True)]
    kept = decompose(LowRank.total(parts)).truncated(rank)
    return kept.left.float(), kept.right.float()


def _one_layer(width: int, rank: int, seed: int) -> Any:
    """PEFT's model of one square linear layer, with two random adapters `a` and `b`."""
    from peft import LoraConfig, get_peft_model

    class OneLayer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(width, width, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.layer(x)
            return found

    torch.manual_seed(seed)
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=["layer"])
    peft = get_peft_model(OneLayer(), config, adapter_name="a")
    peft.add_adapter("b", config)
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, SPREAD)
    return peft


def _blended(case: Case, shape: Shape, without_mergekit: bool) -> BlendResult:
    with tempfile.TemporaryDirectory() as place:
        job = prepare(case, write_adapters(case, shape, Path(place)), shape)
        best = job.best()
        entries = scumble_entries(job, best) + peft_entries(job, best)
        if not without_mergekit:
            entries += mergekit_entries(job)
    return BlendResult(case.title, case.weights, tuple(entries))


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
