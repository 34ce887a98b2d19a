"""The six blends of `scumble bench blend`: adapters that PEFT writes, and what each blend should be, dense in fp64.

The adapters have seeded random factors and stand on a random model with the widths of SmolLM2-135M, a few layers and
a small vocabulary: a blend's error and time depend on shapes and ranks, not on what the weights were trained on. The
true updates are read from PEFT, `scaling * B A` as its layer applies it. Knows nothing of the systems compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
DENSITY = 0.5  # of TIES and DARE, in every system
SPREAD = 0.02  # of B; A is as PEFT draws it

Updates = Mapping[str, Tensor]  # by module path, (out, in) in fp64


@dataclass(frozen=True)
class Case:
    """One blend.

    Attributes:
        title: what it tests, short enough for a column.
        adapters: the arguments of each one's `LoraConfig`.
        weights: of each.
    """

    title: str
    adapters: tuple[Mapping[str, Any], ...]
    weights: tuple[float, ...]


_PLAIN: dict[str, Any] = {"r": 8, "lora_alpha": 16, "target_modules": list(ALL)}
CASES = (
    Case("0.7, 0.3", (_PLAIN, _PLAIN), (0.7, 0.3)),
    Case("1, -1", (_PLAIN, _PLAIN), (1.0, -1.0)),
    Case("rsLoRA", ({**_PLAIN, "use_rslora": True},) * 2, (0.7, 0.3)),
    Case("ranks 4, 16", ({**_PLAIN, "r": 4}, {**_PLAIN, "r": 16}), (0.7, 0.3)),
    Case(
        "other targets",
        ({**_PLAIN, "target_modules": list(ALL[:4])}, {**_PLAIN, "target_modules": list(ALL[2:])}),
        (0.7, 0.3),
    ),
    Case(
        "three, patterns",
        (
            _PLAIN,
            {**_PLAIN, "rank_pattern": {"q_proj": 4}, "alpha_pattern": {"down_proj": 32}},
            {**_PLAIN, "use_rslora": True},
        ),
        (0.5, 0.8, -0.3),
    ),
)


@dataclass(frozen=True)
class Shape:
    """A random Llama, by default with the widths of SmolLM2-135M's layers.

    Attributes:
        layers: how many.
        hidden: width of the model, a multiple of 192; the MLP's is 8/3 of it, and a head's 64.
        seed: of its weights.
    """

    layers: int = 2
    hidden: int = 576
    seed: int = 0

    def make(self) -> Any:
        """The model, in fp32."""
        from transformers import LlamaConfig, LlamaForCausalLM

        config = LlamaConfig(
            vocab_size=256,
            hidden_size=self.hidden,
            intermediate_size=self.hidden * 8 // 3,
            num_hidden_layers=self.layers,
            num_attention_heads=self.hidden // 64,
            num_key_value_heads=self.hidden // 192,
            max_position_embeddings=128,
            tie_word_embeddings=True,
            pad_token_id=None,
            bos_token_id=1,
            eos_token_id=2,
        )
        torch.manual_seed(self.seed)
        return LlamaForCausalLM(config).eval()


def write_adapters(case: Case, shape: Shape, folder: Path) -> list[Path]:
    """Let PEFT write the adapters of a blend, with random factors, and give their folders."""
    from peft import LoraConfig, get_peft_model

    written = []
    for place, options in enumerate(case.adapters):
        model = shape.make()
        torch.manual_seed(shape.seed + 1 + place)
        peft = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **options))
        with torch.no_grad():
            for name, parameter in peft.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(0, SPREAD)
        written.append(folder / f"adapter{place}")
        peft.save_pretrained(str(written[-1]))
    return written


def updates_in(peft: Any, name: str) -> dict[str, Tensor]:
    """What an adapter that PEFT holds adds to each weight, in fp64 from its factors."""
    found = {}
    for path, module in peft.named_modules():
        if name in getattr(module, "lora_A", {}):
            A, B = module.lora_A[name].weight.detach(), module.lora_B[name].weight.detach()
            found[path.removeprefix("base_model.model.")] = module.scaling[name] * (B.double() @ A.double())
    return found


def weighted_sum(updates: Sequence[Updates], weights: Sequence[float]) -> dict[str, Tensor]:
    """`sum over i of w_i U_i`, module by module."""
    found: dict[str, Tensor] = {}
    for each, weight in zip(updates, weights, strict=True):
        for path, update in each.items():
            found[path] = found.get(path, 0) + weight * update
    return found


def ties_of_peft(updates: Sequence[Updates], weights: Sequence[float]) -> dict[str, Tensor]:
    """PEFT's own TIES, applied to the true updates: the mean over how many agree."""
    from peft.utils.merge_utils import ties

    found = {}
    for path in {path for each in updates for path in each}:
        here = [(each[path], weight) for each, weight in zip(updates, weights, strict=True) if path in each]
        by = torch.tensor([weight for _, weight in here], dtype=torch.float64)
        found[path] = ties([update for update, _ in here], by, DENSITY)
    return found


def elected(updates: Sequence[Updates], weights: Sequence[float], *, mean: bool) -> dict[str, Tensor]:
    """TIES (arXiv:2306.01708) on the true updates: trimmed, and summed over those with the sign of the whole sum.

    Args:
        updates: of each adapter.
        weights: of each.
        mean: divide by the sum of the weights of what agrees, as mergekit's `normalize` does (a negative weight
            then loses its sign).
    """
    found = {}
    for path in {path for each in updates for path in each}:
        kept, by = [], []
        for each, weight in zip(updates, weights, strict=True):
            if path in each:
                kept.append(weight * _trimmed(each[path]))
                by.append(weight)
        stacked = torch.stack(kept)
        agree = stacked.sign() == torch.where(stacked.sum(0) >= 0, 1.0, -1.0)
        total = (stacked * agree).sum(0)
        if mean:
            shares = (torch.tensor(by, dtype=torch.float64)[:, None, None] * agree).sum(0)
            total = total / torch.where(shares == 0, 1.0, shares)
        found[path] = total
    return found


def scatter_of_dare(updates: Sequence[Updates], weights: Sequence[float]) -> float:
    """How far DARE (arXiv:2311.03099) on the true updates is from their sum, over the sum's norm, as expected.

    A weight u becomes u / density with probability density, else 0: its variance is u^2 (1 - density) / density.
    """
    variance = sum(
        weight**2 * _energy(each) for each, weight in zip(updates, weights, strict=True)
    )  # masks are independent
    return ((1 - DENSITY) / DENSITY * variance / _energy(weighted_sum(updates, weights))) ** 0.5


def best_of_rank(wanted: Updates, ranks: Mapping[str, int]) -> float:
    """The error of the best approximation of the given ranks, from the dense matrices' singular values."""
    missed = sum(
        float(torch.linalg.svdvals(update)[ranks[path] :].square().sum()) for path, update in wanted.items()
    )
    return (missed / _energy(wanted)) ** 0.5


def error(found: Updates, wanted: Updates) -> float:
    """The Frobenius norm of what is missing or too much, over that of the wanted update, all modules together."""
    paths = {*found, *wanted}
    gaps = {path: found.get(path, torch.zeros(())) - wanted.get(path, torch.zeros(())) for path in paths}
    return (_energy(gaps) / _energy(wanted)) ** 0.5


def _energy(updates: Updates) -> float:
    return sum(float(update.square().sum()) for update in updates.values())


def _trimmed(update: Tensor) -> Tensor:
    """The largest `DENSITY` of the weights."""
    count = max(1, int(DENSITY * update.numel()))
    threshold = update.abs().flatten().kthvalue(update.numel() - count + 1).values
    return torch.where(update.abs() >= threshold, update, 0.0)
