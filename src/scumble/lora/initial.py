"""Other beginnings than PEFT's default: gaussian, orthogonal, PiSSA, OLoRA and EVA, computed by PEFT's own code.

PiSSA (Meng et al. 2024, arXiv:2404.02948) and OLoRA (Büyükakyüz 2024, arXiv:2406.01775) begin with an update B0 A0
taken from W, and train on what is left of it: y = (W - s B0 A0) x + s B A x. PEFT writes W - s B0 A0 over the base. Here
the base stays as it is, bit for bit, and B0 A0 is a second adapter of the bank with weight -1: the same sum, in more
digits where the base has few. For the base itself the result is an adapter of twice the rank (`difference`), or one
of the same rank that is as near as can be (`compressed`).

PEFT's code is run on a stand-in of one module at a time. Knows specs, modules and batches of token ids; nothing of
training.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from scumble.errors import AdapterError, ConfigError, NotSupportedError
from scumble.lora.adapter import Adapter
from scumble.lora.dropout import module_key
from scumble.lora.fit import reached
from scumble.lora.fresh import fresh_adapter
from scumble.lora.layer import BankLayer
from scumble.lora.resize import resize
from scumble.lora.routing import Routing
from scumble.lora.spec import LoraSpec

DEFAULT = "default"
SHIFTED = ("pissa", "olora")  # their update is not zero at the beginning
_PASSES = 200  # of batches, after which EVA is taken not to converge
_RHO = 2.0  # EVA looks at so many times the rank before it shares the ranks out, as in PEFT

Batch = Mapping[str, Tensor]


def initial_adapter(
    kind: str, spec: LoraSpec, model: nn.Module, seed: int, batches: Sequence[Batch] = ()
) -> Adapter:
    """An adapter that begins as `kind` has it, in fp32 on the CPU.

    Args:
        kind: `default`, `gaussian`, `orthogonal`, `pissa`, `olora` or `eva`.
        spec: ranks, targets and variants.
        model: the base, not wrapped by a bank; it is not changed.
        seed: decides what is drawn, module by module.
        batches: for EVA, `input_ids` and `attention_mask`, (rows, length), on the model's device.

    Returns:
        The adapter; EVA shares its ranks out among the modules, and the spec says how.

    Raises:
        ConfigError: the beginning is not to be had with this spec.
        NotSupportedError: it needs what there is not yet, by name.
        AdapterError: the targets match nothing.
    """
    check_initial(kind, spec)
    modules: dict[str, nn.Module] = dict(model.named_modules())
    causal: Any = model
    head: nn.Module | None = causal.get_output_embeddings()
    found: dict[str, Tensor] = {}
    if kind == "eva":
        spec, found = _eva(spec, model, reached(spec, modules, head), batches)
    adapter = fresh_adapter(spec, modules, head, seed)
    if kind == DEFAULT:
        return adapter
    for path, factors in adapter.factors.items():
        if kind == "eva":
            adapter.factors[path] = replace(factors, A=found[path].float().cpu().contiguous())
        elif not factors.embedding:
            A, B = _by_peft(kind, spec, path, modules[path], seed)
            adapter.factors[path] = replace(factors, A=A, B=B)
        elif kind != "gaussian":  # of which PEFT makes no difference for an embedding
            raise ConfigError(f"--init {kind} is for linear layers, and {path} is an embedding", _DEFAULT)
    return adapter


_DEFAULT = "leave --init out"


def check_initial(kind: str, spec: LoraSpec) -> None:
    """Refuse what a beginning cannot be combined with, before any base is loaded.

    Raises:
        ConfigError, NotSupportedError: with the reason.
    """
    if kind == "loftq":
        raise NotSupportedError(
            "--init loftq begins from the error of a quantised base, and there are none yet",
            "use --init pissa, or leave it out",
        )
    patterns = bool(spec.rank_pattern or spec.alpha_pattern)
    if kind in SHIFTED and spec.rslora and patterns:
        raise ConfigError(
            f"--init {kind} with rsLoRA and a rank_pattern or alpha_pattern cannot be saved for the base itself",
            "leave one of them out, as PEFT asks too",
        )
    if kind in (*SHIFTED, "orthogonal") and spec.dora:
        raise ConfigError(f"--init {kind} begins with a B that DoRA does not expect", "leave --dora out")
    if kind == "eva" and patterns:
        raise ConfigError(
            "--init eva shares the ranks out itself, and a rank_pattern or alpha_pattern is given", _DEFAULT
        )
    odd = [rank for rank in (spec.rank, *spec.rank_pattern.values()) if rank % 2]
    if kind == "orthogonal" and odd:
        raise ConfigError(f"--init orthogonal needs an even rank, not {odd[0]}", "use another --rank")


def difference(adapter: Adapter, start: Adapter) -> Adapter:
    """The adapter of twice the rank whose update is that of `adapter` less that of `start`, exactly.

    s (B A - B0 A0) = s [B, -B0] [A; A0], as PEFT's `subtract_mutated_init` has it; alpha grows with the rank so that s
    stays.

    Args:
        adapter: as it is.
        start: as it was at the beginning, of the same spec.
    """
    spec = adapter.spec
    grown = math.sqrt(2) if spec.rslora else 2
    twice = replace(
        spec,
        rank=2 * spec.rank,
        alpha=grown * spec.alpha,
        rank_pattern={key: 2 * rank for key, rank in spec.rank_pattern.items()},
        alpha_pattern={key: grown * alpha for key, alpha in spec.alpha_pattern.items()},
    )
    factors = {
        path: replace(
            now,
            A=torch.cat([now.A, start.factors[path].A.to(now.A)]),
            B=torch.cat([now.B, -start.factors[path].B.to(now.B)], dim=1),
        )
        for path, now in adapter.factors.items()
    }
    return replace(adapter, spec=twice, factors=factors)


def compressed(adapter: Adapter, rank: int) -> tuple[Adapter, float]:
    """The nearest adapter of a rank, and what it misses of the update: the relative Frobenius norm, all together."""
    found = resize(adapter, rank=rank)
    return replace(found.adapter, base_hash=adapter.base_hash), found.predicted


def _by_peft(kind: str, spec: LoraSpec, path: str, module: nn.Module, seed: int) -> tuple[Tensor, Tensor]:
    """A and B as PEFT begins with them beside a stand-in of the module."""
    from peft import LoraConfig  # heavy, and wanted by few
    from peft.tuners.lora.layer import Linear

    rank, scale = spec.rank_of(path), spec.scale_of(path)
    # PEFT takes its share out of the weights that it is given, OLoRA in place: they must not be the base's own
    weight = BankLayer(module, path, Routing()).matrix().detach().to(torch.float32, copy=True)
    if kind in SHIFTED and rank > min(weight.shape):
        raise ConfigError(
            f"--init {kind}: {path} is {tuple(weight.shape)} and has no rank of {rank}",
            "use a smaller --rank",
        )
    stand_in = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    stand_in.weight = nn.Parameter(weight, requires_grad=False)
    named: Any = kind
    alpha: Any = scale * (math.sqrt(rank) if spec.rslora else rank)
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        use_rslora=spec.rslora,
        init_lora_weights=named,
        target_modules=["x"],
    )
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(module_key(seed, path) % 2**63)
        made: Any = Linear(stand_in, "default", config, r=rank, lora_alpha=alpha)
    A, B = made.lora_A["default"].weight, made.lora_B["default"].weight
    return A.detach().float().cpu().contiguous(), B.detach().float().cpu().contiguous()


def _eva(
    spec: LoraSpec, model: nn.Module, paths: Sequence[str], batches: Sequence[Batch]
) -> tuple[LoraSpec, dict[str, Tensor]]:
    """EVA (Paischer et al. 2024, arXiv:2410.07170): A spans what the inputs of each module vary in most.

    Returns:
        The spec with the ranks shared out by explained variance, and A of each module that has a rank left.
    """
    from peft import LoraConfig
    from peft.tuners.lora.config import EvaConfig
    from peft.tuners.lora.eva import get_eva_state_dict

    widths = {path: BankLayer(model.get_submodule(path), path, Routing()).shape()[1] for path in paths}
    tokens = min((int(batch["attention_mask"].sum()) for batch in batches), default=0)
    narrow = min(min(widths.values()), tokens)
    if narrow < spec.rank:
        raise ConfigError(
            f"--init eva: rank {spec.rank} needs as many dimensions and tokens, and there are {narrow}",
            "use a smaller --rank, or longer data",
        )
    config = LoraConfig(
        r=spec.rank,
        target_modules=list(paths),
        eva_config=EvaConfig(rho=min(_RHO, narrow / spec.rank)),
        init_lora_weights="eva",
    )
    try:
        found = get_eva_state_dict(
            model,
            list(batches),
            config,
            forward_fn=_limited_forward(),
            gather_distributed_inputs=False,
            show_progress_bar=False,
        )
    finally:
        _remove_hooks(model)
    missing = [path for path in paths if path not in found]
    if missing:
        raise ConfigError(f"--init eva is for linear layers, and {missing[0]} is none", _DEFAULT)
    return _shared_out(spec, {path: int(found[path].shape[0]) for path in paths}), found


def _limited_forward() -> Callable[[nn.Module, Batch], Any]:
    """A forward pass of the model that EVA may ask for `_PASSES` times: by itself it has no end."""
    passes = 0

    def forward(model: nn.Module, batch: Batch) -> Any:
        nonlocal passes
        passes += 1
        if passes > _PASSES:
            raise AdapterError(
                f"--init eva has not converged after {_PASSES} batches of the data",
                "use more data, or leave it out",
            )
        return model(**batch)

    return forward


def _shared_out(spec: LoraSpec, ranks: Mapping[str, int]) -> LoraSpec:
    """The spec with these ranks; a module whose rank is 0 is no longer a target."""
    left = {path: rank for path, rank in ranks.items() if rank}
    shared = {path: rank for path, rank in left.items() if rank != spec.rank}
    return replace(
        spec,
        targets=spec.targets if len(left) == len(ranks) else tuple(left),
        rank_pattern=shared,
        # PEFT scales alpha with the rank; with rsLoRA too
        alpha_pattern={path: spec.alpha * rank / spec.rank for path, rank in shared.items()},
    )


def _remove_hooks(model: nn.Module) -> None:
    """Take out of the model what EVA leaves there on an error."""
    from peft.tuners.lora.eva import _Hook

    for module in model.modules():
        for key, hook in list(module._forward_hooks.items()):
            if isinstance(hook, _Hook):
                del module._forward_hooks[key]
