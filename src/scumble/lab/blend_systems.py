"""How each system blends the adapters of one case: Scumble, PEFT and mergekit, each as its user would call it.

Scumble and PEFT blend adapters that are loaded, and give one; mergekit blends the folders of whole models that have
each adapter merged, and writes another whole model. What a system refuses is told by its exception. Knows nothing of
which blends there are.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scumble.lab.blend_cases import (
    DENSITY,
    Case,
    Shape,
    Updates,
    best_of_rank,
    elected,
    error,
    scatter_of_dare,
    ties_of_peft,
    updates_in,
    weighted_sum,
)
from scumble.lora.adapter import Adapter
from scumble.lora.blend import Recipe, blend
from scumble.lora.part import Part

ENOUGH = 0.5  # seconds of timed repeats
REPEATS = 3


@dataclass(frozen=True)
class Entry:
    """What one method of one system made of a blend.

    Attributes:
        system: Scumble, PEFT or mergekit.
        method: as that system calls it.
        against: what the error is relative to: "sum", the weighted sum of the updates, or "ties", that system's own
            TIES applied to the updates.
        error: relative Frobenius error, all modules together; None where it was refused.
        reference: the error that the method has by its definition: the best of that rank for `svd` and for a
            truncated TIES, the expected scatter for DARE, else 0.
        seconds: median; None where it was refused.
        refused: the exception's name and message.
    """

    system: str
    method: str
    against: str
    error: float | None
    reference: float
    seconds: float | None
    refused: str | None = None


@dataclass(frozen=True)
class Job:
    """A blend to be done.

    Attributes:
        case: its adapters and weights.
        folders: the adapters as PEFT wrote them.
        updates: what each adapter does, dense in fp64.
        wanted: their weighted sum.
        ranks: of each module, the sum over the adapters that reach it.
        shape: of the model; its seed is also that of DARE's masks.
    """

    case: Case
    folders: Sequence[Path]
    updates: Sequence[Updates]
    wanted: Updates
    ranks: Mapping[str, int]
    shape: Shape

    @property
    def half(self) -> int:
        """Half of the largest rank that the exact blend has."""
        return max(self.ranks.values()) // 2

    def best(self) -> float:
        """The error of the best blend of half the rank."""
        return best_of_rank(self.wanted, dict.fromkeys(self.ranks, self.half))


def prepare(case: Case, folders: Sequence[Path], shape: Shape) -> Job:
    """Read the adapters with PEFT, and make their dense sum."""
    peft = _loaded(folders, shape)
    updates = [updates_in(peft, f"a{place}") for place in range(len(folders))]
    ranks: dict[str, int] = {}
    for place in range(len(folders)):
        for path, module in peft.named_modules():
            if f"a{place}" in getattr(module, "lora_A", {}):
                name = path.removeprefix("base_model.model.")
                ranks[name] = ranks.get(name, 0) + module.r[f"a{place}"]
    return Job(case, folders, updates, weighted_sum(updates, case.weights), ranks, shape)


def scumble_entries(job: Job, best: float) -> list[Entry]:
    """`exact`, `svd` at half the rank, and `ties` at the rank that `exact` has."""
    sums: tuple[str, Updates] = ("sum", job.wanted)
    ties = elected(job.updates, job.case.weights, mean=False)
    parts = [
        Part(Adapter.load(folder), weight)
        for folder, weight in zip(job.folders, job.case.weights, strict=True)
    ]
    found = []
    for method, (against, wanted), recipe, reference in (
        ("exact", sums, Recipe(), 0.0),
        ("svd, half the rank", sums, Recipe("svd", job.half), best),
        ("ties", ("ties", ties), Recipe("ties", density=DENSITY), best_of_rank(ties, job.ranks)),
    ):
        blended, seconds = timed(partial(blend, parts, recipe))
        off = error(_dense(blended.adapter), wanted)
        found.append(Entry("Scumble", method, against, off, reference, seconds))
    return found


def peft_entries(job: Job, best: float) -> list[Entry]:
    """`add_weighted_adapter` by each combination."""
    sums: tuple[str, Updates] = ("sum", job.wanted)
    ties = ("ties", ties_of_peft(job.updates, job.case.weights))
    scatter = scatter_of_dare(job.updates, job.case.weights)
    peft = _loaded(job.folders, job.shape)
    names = [f"a{place}" for place in range(len(job.folders))]
    found = []
    for method, (against, wanted), reference, options in (
        ("linear", sums, 0.0, {}),
        ("cat", sums, 0.0, {}),
        ("svd", sums, best, {"svd_rank": job.half}),
        ("ties", ties, 0.0, {"density": DENSITY}),
        ("dare_linear", sums, scatter, {"density": DENSITY}),
    ):
        title = "svd, half the rank" if method == "svd" else method

        add = partial(
            peft.add_weighted_adapter, names, list(job.case.weights), "blend", combination_type=method
        )
        try:
            _, seconds = timed(partial(add, **options), before=partial(_forget, peft, job.shape.seed))
        except Exception as reason:  # whatever it is that PEFT says no with
            found.append(Entry("PEFT", title, against, None, reference, None, _told(reason)))
            continue
        found.append(
            Entry("PEFT", title, against, error(updates_in(peft, "blend"), wanted), reference, seconds)
        )
    return found


def mergekit_entries(job: Job) -> list[Entry]:
    """`task_arithmetic` and `ties`, from folders of merged models to a folder."""
    entries = []
    with tempfile.TemporaryDirectory() as place:
        models = _merged_models(job, Path(place))
        base = _weights_of(models[0])
        for method, against, wanted, normalize in (
            ("task_arithmetic", "sum", job.wanted, False),
            ("ties", "ties", elected(job.updates, job.case.weights, mean=True), True),
        ):
            config = {
                "merge_method": method,
                "base_model": str(models[0]),
                "dtype": "float32",
                "parameters": {"normalize": normalize},
                "models": [
                    {
                        "model": str(model),
                        "parameters": {"weight": weight} | ({"density": DENSITY} if method == "ties" else {}),
                    }
                    for model, weight in zip(models[1:], job.case.weights, strict=True)
                ],
            }
            out = Path(place) / method
            try:
                _, seconds = timed(partial(_run_mergekit, config, out), repeats=1)
            except Exception as reason:
                entries.append(Entry("mergekit", method, against, None, 0.0, None, _told(reason)))
                continue
            made = _weights_of(out)
            changes = {path: made[path] - base[path] for path in job.wanted}
            entries.append(Entry("mergekit", method, against, error(changes, wanted), 0.0, seconds))
    return entries


def why_no_mergekit() -> str | None:
    """Why mergekit cannot be compared, None where it can."""
    try:
        import mergekit.config
        import mergekit.merge  # noqa: F401
    except Exception as reason:  # its imports fail in more ways than by not being there
        return f"not compared: {_told(reason)}"
    return None


def timed(
    way: Callable[[], Any], *, repeats: int = REPEATS, before: Callable[[], None] = lambda: None
) -> tuple[Any, float]:
    """What a call gave the last time, and the median of its seconds; one that takes long is called once."""
    seconds: list[float] = []
    while len(seconds) < repeats and sum(seconds) < ENOUGH:
        before()
        started = time.perf_counter()
        result = way()
        seconds.append(time.perf_counter() - started)
    return result, sorted(seconds)[len(seconds) // 2]


def _dense(adapter: Adapter) -> dict[str, Tensor]:
    """An adapter's updates, in fp64 from its factors as they would be written."""
    return {
        path: adapter.spec.scale_of(path) * (factors.B.double() @ factors.A.double())
        for path, factors in adapter.factors.items()
    }


def _loaded(folders: Sequence[Path], shape: Shape) -> Any:
    """A model of PEFT with the adapters a0, a1 and so on."""
    from peft import PeftModel

    peft = PeftModel.from_pretrained(shape.make(), str(folders[0]), adapter_name="a0")
    for place, folder in enumerate(folders[1:], 1):
        peft.load_adapter(str(folder), adapter_name=f"a{place}")
    return peft.eval()


def _forget(peft: Any, seed: int) -> None:
    """Take an earlier blend out, whose name would make the next call do nothing, and begin its masks again."""
    torch.manual_seed(seed)
    if "blend" in peft.peft_config:
        peft.delete_adapter("blend")


def _merged_models(job: Job, place: Path) -> list[Path]:
    """Folders of the base and, for each adapter, of the model that has it merged, all fp32."""
    job.shape.make().save_pretrained(place / "base")
    models = [place / "base"]
    for number, folder in enumerate(job.folders):
        models.append(place / f"merged{number}")
        _loaded([folder], job.shape).merge_and_unload().save_pretrained(models[-1])
    return models


def _weights_of(folder: Path) -> dict[str, Tensor]:
    """The modules' weights of a model folder, in fp64, by module path."""
    from safetensors.torch import load_file

    found: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= {name.removesuffix(".weight"): tensor.double() for name, tensor in load_file(file).items()}
    return found


def _run_mergekit(config: Mapping[str, Any], out: Path) -> None:
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    options = MergeOptions(copy_tokenizer=False, write_model_card=False, quiet=True)
    run_merge(MergeConfiguration.model_validate(config), str(out), options)


def _told(reason: BaseException) -> str:
    return f"{type(reason).__name__}: {' '.join(str(reason).split())[:200]}"
