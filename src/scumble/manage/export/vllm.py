"""An adapter as vLLM takes it: one rank, one scale, plain factors.

vLLM reads `r`, `lora_alpha` and `use_rslora` of the configuration, and the tensors lora_A and lora_B. Released
versions scale every module by the one alpha / r, whatever `rank_pattern` and `alpha_pattern` say, and refuse
DoRA, biases, `modules_to_save` and ranks above `--max-lora-rank`. So:

    patterns    one rank by rows and columns of zeros, one alpha equal to it, the true scale s in B: s B A
    DoRA        the best plain adapter of a rank, by singular values of the true update, with its error
    the others  refused by name

Facts: vllm/lora/peft_helper.py, vllm/lora/lora_model.py and vllm/config/lora.py of vLLM. Knows adapters, no models.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scumble.errors import AdapterError, ConfigError, NotSupportedError
from scumble.files import refuse_existing
from scumble.lora.adapter import Adapter, Factors
from scumble.lora.lowrank import LowRank, distance
from scumble.lora.spec import LoraSpec
from scumble.manage.blend import blend

MAX_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # what --max-lora-rank can be
_MERGE = "merge it first (scumble merge), and serve the merged model"


@dataclass(frozen=True)
class VllmAdapter:
    """An adapter that vLLM takes.

    Attributes:
        out: its folder.
        base: what vLLM is to serve.
        rank: of every module.
        max_rank: the smallest `--max-lora-rank` that admits it.
        changes: what was converted, in words; empty where the adapter was taken as it is.
        error: what the conversion misses of the update, over the update's norm.
        command: how it is served.
    """

    out: str
    base: str | None
    rank: int
    max_rank: int
    changes: list[str]
    error: float
    command: str

    def to_dict(self) -> dict[str, Any]:
        """What `--json` prints."""
        return {"kind": "vllm", **asdict(self)}


def export_vllm(
    adapter: str | Path,
    *,
    out: str | Path,
    rank: int | None = None,
    base: str | None = None,
    force: bool = False,
) -> VllmAdapter:
    """Write an adapter folder that vLLM accepts and computes as it was trained.

    Args:
        adapter: folder of an adapter or of a run.
        out: the new folder.
        rank: of the plain adapter that DoRA, or a rank beyond vLLM's largest, is converted to.
        base: another base than the adapter names; needed for DoRA alone.
        force: replace `out` where it exists.

    Raises:
        NotSupportedError: the adapter has what vLLM cannot take and what is not converted; by name.
        ConfigError: DoRA without a rank, a rank that is not needed, or one that vLLM does not take.
        AdapterError: the adapter cannot be read.
        OutputExistsError, OutputError: `out` cannot be written.
    """
    folder = refuse_existing(out, force=force, inputs=[adapter, base])
    read = Adapter.load(adapter)
    refuse_what_vllm_lacks(read, str(adapter))
    changes: list[str] = []
    error = 0.0
    if _needs_rank(read, rank, str(adapter)):
        assert rank is not None
        read, error, said = _truncated(adapter, read, rank, base)
        changes.append(said)
    plain, more, rounding = one_scale(read)
    plain.save(folder, force=force)
    highest = next(limit for limit in MAX_RANKS if limit >= plain.spec.rank)
    name = plain.spec.base_name
    served = f"vllm serve {name or 'BASE'} --enable-lora --max-lora-rank {highest} --lora-modules NAME={out}"
    return VllmAdapter(str(out), name, plain.spec.rank, highest, changes + more, max(error, rounding), served)


def refuse_what_vllm_lacks(adapter: Adapter, where: str) -> None:
    """Raise `NotSupportedError` for the first thing in an adapter that vLLM refuses or leaves out."""
    spec = adapter.spec
    asked = {
        "lora_bias": spec.lora_bias or any(each.bias is not None for each in adapter.factors.values()),
        f"trained biases of the base (bias={spec.bias!r})": spec.bias != "none" or bool(adapter.biases),
        f"modules_to_save ({', '.join(spec.modules_to_save)})": bool(adapter.saved or spec.modules_to_save),
        "trained token rows (trainable_token_indices)": bool(adapter.tokens or spec.trainable_token_indices),
        "factors of an embedding": any(each.embedding for each in adapter.factors.values()),
    }
    for title, there in asked.items():
        if there:
            raise NotSupportedError(f"{where} has {title}, which vLLM does not take in an adapter", _MERGE)
    if not adapter.factors:
        raise AdapterError(f"{where} holds no low-rank update", "train it again")


def one_scale(adapter: Adapter) -> tuple[Adapter, list[str], float]:
    """The same adapter with one rank and one scale, as vLLM reads it.

    Returns:
        The adapter, what was changed in words, and what rounding B cost, over the update's norm: 0 where nothing
        had to be folded.
    """
    spec, factors, changes = adapter.spec, adapter.factors, []
    rank = max(each.rank for each in factors.values())
    scales = {spec.scale_of(path) for path in factors}
    common = spec.alpha / (rank**0.5 if spec.rslora else rank)
    same = all(abs(scale - common) <= 1e-12 * common for scale in scales)
    padded = sum(each.rank != rank for each in factors.values())
    plain = replace(spec, rank=rank, rank_pattern={}, alpha_pattern={}, **_listed(spec, factors))
    if not same:
        plain = replace(plain, alpha=float(rank), rslora=False)
        changes.append(f"the scale of each module is folded into B ({len(scales)} different ones)")
    if padded:
        changes.append(f"{padded} modules of a lower rank are filled up with zeros to rank {rank}")
    if plain.targets != spec.targets:
        changes.append("target modules are listed by their paths")
    made = {path: _filled(each, rank, 1.0 if same else spec.scale_of(path)) for path, each in factors.items()}
    result = Adapter(plain, made, base_hash=adapter.base_hash)
    return result, changes, 0.0 if same else _gap(adapter, result)


def _listed(spec: LoraSpec, factors: Mapping[str, Factors]) -> dict[str, Any]:
    """Targets by name: a pattern, or names that layers or exclusions limit, become the paths that there are."""
    if not (isinstance(spec.targets, str) or spec.layers_to_transform or spec.exclude_modules):
        return {}
    nothing: dict[str, Any] = {"layers_to_transform": (), "layers_pattern": (), "exclude_modules": ()}
    return {"targets": tuple(sorted(factors)), **nothing}


def _filled(factors: Factors, rank: int, scale: float) -> Factors:
    """Factors with a scale folded into B, (out, rank), and A, (rank, in), filled up with zeros to a rank."""
    B = factors.B
    if scale != 1:
        exact = B.double() * scale
        rounded = exact.to(B.dtype)
        # a scale that is no power of two does not fit bf16's 8 bits
        B = rounded if torch.equal(rounded.double(), exact) else exact.float()
    more = rank - factors.rank
    return Factors(_with_zeros(factors.A, more, 0), _with_zeros(B, more, 1))


def _with_zeros(tensor: Tensor, more: int, dim: int) -> Tensor:
    if not more:
        return tensor
    shape = list(tensor.shape)
    shape[dim] = more
    return torch.cat([tensor, tensor.new_zeros(shape)], dim)


def _gap(before: Adapter, after: Adapter) -> float:
    """The norm of the difference of two adapters' updates over that of the first, all modules together."""
    missing = wanted = 0.0
    for path, factors in before.factors.items():
        true = LowRank.of(factors, before.spec.scale_of(path))
        missing += distance(true, LowRank.of(after.factors[path], after.spec.scale_of(path))) ** 2
        wanted += true.norm() ** 2
    return (missing / wanted) ** 0.5 if wanted else 0.0


def _needs_rank(adapter: Adapter, rank: int | None, where: str) -> bool:
    """Whether the adapter must be converted to a rank."""
    highest = max(each.rank for each in adapter.factors.values())
    reason = "is DoRA, which vLLM does not take" if adapter.spec.dora else ""
    if not reason and highest > MAX_RANKS[-1]:
        reason = f"has rank {highest}, and vLLM takes {MAX_RANKS[-1]} at most"
    if rank is not None and not 1 <= rank <= MAX_RANKS[-1]:
        raise ConfigError(f"--rank is {rank}, and vLLM takes 1 to {MAX_RANKS[-1]}", "choose one of these")
    if reason and rank is None:
        hint = "convert it to a plain adapter with --rank, such as twice its rank; the error is shown"
        raise ConfigError(f"{where} {reason}", hint)
    if rank is not None and not reason:
        raise ConfigError(
            f"{where} needs no conversion to a rank, and --rank {rank} would only lose something",
            "leave --rank out, or see scumble resize",
        )
    return bool(reason)


def _truncated(adapter: str | Path, read: Adapter, rank: int, base: str | None) -> tuple[Adapter, float, str]:
    """The best plain adapter of a rank, its error, and what was done, in words."""
    with tempfile.TemporaryDirectory(prefix="scumble-vllm-") as temporary:
        found = blend(
            {str(adapter): 1.0}, out=Path(temporary) / "plain", base=base, method="svd", rank=rank, quiet=True
        )
        plain = Adapter.load(found.out)
    what = "DoRA" if read.spec.dora else "its update"
    plain.spec = plain.spec.with_base(read.spec.base_name)
    return plain, found.error["measured"], f"{what} is converted to a plain adapter of rank {rank}"
