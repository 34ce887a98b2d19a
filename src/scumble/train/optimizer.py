"""The optimizer of a run: which parameters share a rate and a decay, and who makes the steps.

    rate of a parameter = that of its module (`--rates`), or the run's; for B times `--lora-plus`
    decay = the run's for A and for whole matrices; none for B, biases, norms, DoRA's magnitudes and token rows

Every group keeps its highest rate under `highest`; the schedule multiplies that. Knows parameters by name, and nothing
of models, data or steps.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from scumble.errors import ConfigError, MissingExtraError, NotSupportedError
from scumble.lora.adapter import PREFIX
from scumble.lora.patterns import PatternTable, bounded_matching, check_patterns
from scumble.lora.targets import nearest_names

ADAMW = "adamw"
# what bitsandbytes calls them
_BITSANDBYTES = {"adamw8bit": "AdamW8bit", "paged_adamw": "PagedAdamW", "paged_adamw8bit": "PagedAdamW8bit"}
_PROBED = 4096  # numbers in a parameter from which on bitsandbytes keeps its moments in 8 bits


class Rates(Protocol):
    """What of a run's settings decides on its optimizer."""

    @property
    def optimizer(self) -> str:
        """`adamw`, or one of bitsandbytes': `adamw8bit`, `paged_adamw`, `paged_adamw8bit`."""

    @property
    def learning_rate(self) -> float:
        """The highest."""

    @property
    def weight_decay(self) -> float:
        """The share of the rate by which a number shrinks in a step."""

    @property
    def lora_plus(self) -> float | None:
        """The rate of B over that of A; None for one rate."""

    @property
    def rates(self) -> Mapping[str, float]:
        """From a part of module names to their highest rate."""


def make_optimizer(parameters: Mapping[str, nn.Parameter], settings: Rates) -> torch.optim.Optimizer:
    """The optimizer over all parameters, in their order where all have one rate and one decay.

    Args:
        parameters: by the name that PEFT or the model gives each.
        settings: of the run.

    Returns:
        AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101); each group has its highest rate under `highest`.

    Raises:
        ConfigError: a name in `rates` matches no module, or LoRA+ is asked for where there is no B.
        MissingExtraError: bitsandbytes is asked for and not installed.
        NotSupportedError: bitsandbytes cannot compute on this device.
    """
    groups = parameter_groups(parameters, settings)
    if settings.optimizer == ADAMW:
        return torch.optim.AdamW(groups, lr=settings.learning_rate)
    kind = _of_bitsandbytes(settings.optimizer)
    _probe(kind, settings.optimizer, next(iter(parameters.values())))
    made: torch.optim.Optimizer = kind(groups, lr=settings.learning_rate)
    return made


def set_rates(optimizer: Any, share: float) -> None:
    """Give every group its share of its own highest rate."""
    for group in optimizer.param_groups:
        group["lr"] = share * group["highest"]


def parameter_groups(parameters: Mapping[str, nn.Parameter], settings: Rates) -> list[dict[str, Any]]:
    """The parameters by rate and decay, for any optimizer of torch.

    With `lora_plus` (Hayou et al. 2024, arXiv:2402.12354) B, and with it whatever is a vector, has its rate times
    that; the factors of embeddings keep theirs.

    Raises:
        ConfigError: as in `make_optimizer`.
    """
    check_patterns(list(settings.rates), "suffix")
    if settings.lora_plus and not any(".lora_B." in name for name in parameters):
        raise ConfigError("--lora-plus is given, and nothing that is trained has a B", "leave it out")
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    with bounded_matching():
        _check_matched(parameters, settings.rates)
        table = PatternTable(settings.rates)
        for name, parameter in parameters.items():
            rate = next(
                (found for owner in _owners(name) if (found := table.value(owner, 0.0))),
                settings.learning_rate,
            )
            if settings.lora_plus and _is_fast(name, parameter):
                rate *= settings.lora_plus
            decay = settings.weight_decay if decays(name, parameter) else 0.0
            group = groups.setdefault(
                (rate, decay), {"params": [], "lr": rate, "highest": rate, "weight_decay": decay}
            )
            group["params"].append(parameter)
    return list(groups.values())


def decays(name: str, parameter: Tensor) -> bool:
    """Whether weight decay holds for a parameter: for A, and for whole matrices that are trained.

    B begins at zero and is most of what an update is: decay would pull the update itself back to nothing (of an
    embedding it is A that begins so). Rows of tokens and vectors (biases, norms, magnitudes) are left alone too.
    """
    if parameter.ndim < 2 or "trainable_tokens_delta" in name:
        return False
    return ".lora_B." not in name and not name.endswith(".lora_embedding_A")


def _is_fast(name: str, parameter: Tensor) -> bool:
    """Whether LoRA+ trains it at the rate of B, as PEFT's `create_loraplus_optimizer` sorts them."""
    return (".lora_B." in name or parameter.ndim == 1) and ".lora_embedding_" not in name


def _owners(name: str) -> list[str]:
    """The modules that a parameter lies in, the innermost first."""
    parts = name.removeprefix(PREFIX).split(".")
    return [".".join(parts[:n]) for n in range(len(parts), 0, -1)]


def _check_matched(parameters: Mapping[str, nn.Parameter], rates: Mapping[str, float]) -> None:
    """Refuse a name that matches nothing: a typing mistake would train at another rate, in silence."""
    owners = dict.fromkeys(owner for name in parameters for owner in _owners(name))
    for pattern in rates:
        alone = PatternTable({pattern: 1.0})
        if not any(alone.value(owner, 0.0) for owner in owners):
            near = nearest_names([pattern], owners)
            raise ConfigError(
                f"--rates: {pattern} matches nothing that is trained",
                f"trained are {', '.join(near)}" if near else "name modules that the targets reach",
            )


def _of_bitsandbytes(name: str) -> Any:
    try:
        library = importlib.import_module("bitsandbytes")
    except ImportError as error:
        raise MissingExtraError(
            f"--optimizer {name} needs bitsandbytes, which is not installed", 'pip install "scumble[gpu]"'
        ) from error
    return getattr(library.optim, _BITSANDBYTES[name])


def _probe(kind: Any, name: str, like: nn.Parameter) -> None:
    """Make one step of a parameter that nobody needs: the library says only then what it cannot do."""
    probe = nn.Parameter(torch.zeros(_PROBED, device=like.device))
    probe.grad = torch.ones_like(probe)
    try:
        kind([probe], lr=1.0).step()
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise NotSupportedError(
            f"--optimizer {name} does not work on {like.device.type}: bitsandbytes says {reason}",
            "use --optimizer adamw",
        ) from error
    if not bool((probe.detach() < 0).all()):
        raise NotSupportedError(
            f"--optimizer {name} changes nothing on {like.device.type}", "use --optimizer adamw"
        )
