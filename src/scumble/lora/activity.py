"""What updates do to real inputs: how large their outputs are beside the module's own, and how alike.

For inputs x of a module, h = A x with the A of all adapters side by side is small, and with H = sum of h h'
over tokens (R x R)

    sum over tokens of <U_i x, U_j x> = s_i s_j tr(B_i' B_j H_ji)

so that no update's output is ever formed. `lora_bias` is one more column of B, which reads a constant 1.
DoRA's update, (g - 1) W x + g s B A x, has the module's own output in it, and is summed from outputs.
The inputs are those of the base alone, without any adapter: a first-order picture, in which no update sees
what earlier ones have changed. Knows a model and token ids, and nothing of texts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from scumble.lora.adapter import Adapter, Factors
from scumble.lora.pairs import cosine_of


@dataclass(frozen=True)
class Activity:
    """Figures on real inputs.

    Attributes:
        tokens: seen by the model.
        grams: from a module's path to G, (n, n): sums over tokens of <U_i x, U_j x>.
        outputs: from a module's path to the root of the sum of |W x|^2.
    """

    tokens: int
    grams: Mapping[str, Tensor]
    outputs: Mapping[str, float]

    def relative(self, path: str, number: int) -> float | None:
        """The norm of an adapter's update's outputs over that of the module's own; None where that is zero."""
        size = self.outputs[path]
        return float(self.grams[path][number, number].clamp(min=0).sqrt()) / size if size else None

    def cosine(self, path: str, first: int, second: int) -> float | None:
        """Of the outputs of two adapters' updates of one module; None where one is zero."""
        index = torch.tensor([first, second])
        return cosine_of(self.grams[path][index[:, None], index])


@dataclass
class _Seen:
    """What one module has seen."""

    module: nn.Module
    parts: dict[int, tuple[Factors, float]]
    count: int
    gains: dict[int, Tensor] = field(default_factory=dict)
    moments: Tensor | None = None  # H, (R, R)
    gram: Tensor | None = None
    output: float = 0.0

    @property
    def direct(self) -> bool:
        """Whether outputs have to be formed: for DoRA."""
        return bool(self.gains)

    def forward(self, module: nn.Module, args: tuple[Any, ...], result: Any) -> None:
        """Take in one call of the module."""
        y = result.detach().flatten(0, -2)  # (tokens, out)
        bias = getattr(module, "bias", None)
        # in fp64 first: in half precision the difference would be rounded once more
        plain = y.double() if bias is None else y.double() - bias.detach().double()
        self.output += float(plain.square().sum())
        hidden = self._hidden(args[0].detach())  # by adapter (tokens, r)
        if self.direct:
            flat = torch.stack([self._update(i, h, plain).flatten() for i, h in hidden.items()])
            index = torch.tensor(list(hidden))
            gram = torch.zeros(self.count, self.count, dtype=torch.float64)
            gram[index[:, None], index] = (flat @ flat.T).cpu()
            self.gram = gram if self.gram is None else self.gram + gram
            return
        stacked = torch.cat(list(hidden.values()), dim=1)  # (tokens, R)
        moments = (stacked.T @ stacked).cpu()
        self.moments = moments if self.moments is None else self.moments + moments

    def finished(self) -> Tensor:
        """G, (count, count)."""
        if self.gram is not None:
            return self.gram
        gram = torch.zeros(self.count, self.count, dtype=torch.float64)
        if self.moments is None:
            return gram
        lefts = torch.cat([_left(*part).cpu() for part in self.parts.values()], dim=1)  # (out, R)
        products = (lefts.T @ lefts) * self.moments
        owner = [i for i, (factors, _) in self.parts.items() for _ in range(_width(factors))]
        select = nn.functional.one_hot(torch.tensor(owner), self.count).double()  # (R, count)
        return select.T @ products @ select

    def _hidden(self, x: Tensor) -> dict[int, Tensor]:
        found = {}
        for i, (factors, _) in self.parts.items():
            A = factors.A.detach().to(x.device)
            if isinstance(self.module, nn.Embedding):
                h = A.T[x.flatten()].double() * float(getattr(self.module, "embed_scale", 1.0))
            else:
                h = x.flatten(0, -2).double() @ A.double().T
            if factors.bias is not None:
                h = torch.cat([h, h.new_ones(len(h), 1)], dim=1)
            found[i] = h
        return found

    def _update(self, number: int, h: Tensor, plain: Tensor) -> Tensor:
        low = h @ _left(*self.parts[number]).to(h.device).T
        if number not in self.gains:
            return low
        gain = self.gains[number].to(h.device)
        return (gain - 1) * plain + gain * low


@torch.no_grad()
def on_data(
    model: nn.Module,
    adapters: Sequence[Adapter],
    texts: Iterable[Sequence[int]],
    *,
    done: Callable[[int], None] = lambda count: None,
) -> Activity:
    """Run the base on token ids and sum what the adapters' updates would add in each module.

    Args:
        model: the base, without adapters in use; every adapter fits it.
        adapters: one or several.
        texts: token ids, one sequence after the other, so that nothing is padded.
        done: called with 1 after each.

    Returns:
        The sums over all tokens, all of them in fp64.
    """
    modules = dict(model.named_modules())
    paths = sorted({path for adapter in adapters for path in adapter.factors})
    seen = {path: _seen_at(path, modules[path], adapters) for path in paths}
    hooks = [seen[path].module.register_forward_hook(seen[path].forward) for path in paths]
    device = next(model.parameters()).device
    decoder = getattr(model, "base_model", model)  # no logits are wanted, unless the output layer is updated
    head = cast(Any, model).get_output_embeddings()
    runs = model if any(modules[path] is head for path in paths) else decoder
    tokens = 0
    try:
        for ids in texts:
            runs(input_ids=torch.tensor([list(ids)], device=device), use_cache=False)
            tokens += len(ids)
            done(1)
    finally:
        for hook in hooks:
            hook.remove()
    return Activity(
        tokens,
        {path: each.finished() for path, each in seen.items()},
        {path: each.output**0.5 for path, each in seen.items()},
    )


def _seen_at(path: str, module: nn.Module, adapters: Sequence[Adapter]) -> _Seen:
    parts = {
        i: (adapter.factors[path], adapter.spec.scale_of(path))
        for i, adapter in enumerate(adapters)
        if path in adapter.factors
    }
    gains = {}
    for i, (factors, scale) in parts.items():
        if factors.magnitude is not None:
            weight = cast(Tensor, module.weight).detach().cpu().double()
            matrix = weight.T if isinstance(module, nn.Embedding | Conv1D) else weight
            full = matrix + (factors.B.double() * scale) @ factors.A.double()
            gains[i] = factors.magnitude.double() / torch.linalg.vector_norm(full, dim=1)
    return _Seen(module, parts, len(adapters), gains)


def _left(factors: Factors, scale: float) -> Tensor:
    """s B, and beside it s b where there is a bias: (out, r) or (out, r + 1), fp64."""
    left = factors.B.detach().double() * scale
    return left if factors.bias is None else torch.cat([left, factors.bias.double()[:, None] * scale], dim=1)


def _width(factors: Factors) -> int:
    return factors.rank + (factors.bias is not None)
