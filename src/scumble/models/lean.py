"""A model's norms and gated MLPs for training: the same numbers, of which less is kept for the backward pass.

    norm:   y = w (or 1 + w, Gemma) * x / sqrt(mean(x^2) + eps)      keeps x, which the residual stream keeps anyway
    gated:  y = act(gate) * up                                       keeps gate and up

Both outputs come with a recipe, so that an adapter that reads them keeps nothing more. After its attention, the last
layer computes only the tokens that logits are needed for. A module is replaced where its own forward pass gives the same
on random numbers, and else left as it is; names of classes decide nothing. Knows modules, and nothing of adapters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from scumble.lora.recipe import with_recipe

Forward = Callable[..., Tensor]

_rows: ContextVar[Tensor | None] = ContextVar("rows", default=None)


@contextmanager
def lean(model: nn.Module) -> Iterator[None]:
    """Train with the replaced forward passes in the body of a `with`; `model` is on its device."""
    with ExitStack() as stack:
        known: dict[Any, bool] = {}
        for module in model.modules():
            forward = _norm_of(module) or _mlp_of(module)
            if forward is not None and _same(module, forward, known):
                stack.enter_context(replaced(module, forward))
        for module in _after_attention(model):
            stack.enter_context(replaced(module, partial(_needed, module.forward)))
        yield


@contextmanager
def only_rows(rows: Tensor | None) -> Iterator[None]:
    """Say which tokens of a batch of one row are read from the model's last hidden state, (n,) without repeats."""
    token = _rows.set(rows)
    try:
        yield
    finally:
        _rows.reset(token)


def current() -> Callable[[], AbstractContextManager[None]]:
    """What `only_rows` says now, to be said again later."""
    return partial(only_rows, _rows.get())


@contextmanager
def replaced(module: nn.Module, forward: Forward) -> Iterator[None]:
    """Give one module another forward pass."""
    before = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if before is None:
            del module.forward
        else:
            module.forward = before


def _same(module: nn.Module, forward: Forward, known: dict[Any, bool]) -> bool:
    """Whether a replacement gives what the module gives, tried once for each kind of module and size."""
    parameter = next(module.parameters())
    width = _width(module)
    kind = (type(module), type(getattr(module, "act_fn", None)), width)
    if kind not in known:
        draw = torch.Generator().manual_seed(0)
        x = torch.randn((1, 3, width), generator=draw).to(parameter.device, parameter.dtype)
        with torch.no_grad():
            wanted, found = module(x), forward(x)
        # rounding only: transformers computes norms in fp32 whatever the type, and rounds at other places in bf16
        near = 2e-2 if parameter.dtype in (torch.bfloat16, torch.float16) else 1e-5
        known[kind] = (
            isinstance(wanted, Tensor)
            and wanted.shape == found.shape
            and bool((wanted - found).abs().max() <= near * wanted.abs().max())
        )
    return known[kind]


def _width(module: nn.Module) -> int:
    inner = getattr(module, "gate_proj", None)
    weight = module.weight if inner is None else inner.weight
    return int(cast(Tensor, weight).shape[-1])


# -- norms -----------------------------------------------------------------------------------------


def _norm_of(module: nn.Module) -> Forward | None:
    """The replacement of a norm without a mean and a bias, whose weight is frozen."""
    weight = getattr(module, "weight", None)
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if (
        not isinstance(weight, nn.Parameter)
        or weight.ndim != 1
        or weight.requires_grad
        or not isinstance(eps, float)
    ):
        return None
    if getattr(module, "bias", None) is not None or list(module.children()):
        return None
    return partial(_norm, module, eps, "Gemma" in type(module).__name__)


def _norm(module: nn.Module, eps: float, shifted: bool, x: Tensor) -> Tensor:
    weight = cast(Tensor, module.weight)
    if not torch.is_grad_enabled() or not x.requires_grad:
        return _normed(x, weight, eps, shifted)
    y = cast(Tensor, _Norm.apply(x, weight, eps, shifted))
    return with_recipe(y, partial(_normed, eps=eps, shifted=shifted), x, weight)


def _normed(x: Tensor, weight: Tensor, eps: float, shifted: bool) -> Tensor:
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return _scaled(wide * _inverse(wide, eps), weight, shifted, x.dtype)


def _inverse(wide: Tensor, eps: float) -> Tensor:
    """1 / sqrt(mean(x^2) + eps), (..., 1)."""
    square = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_()
    return square.div_(wide.shape[-1]).add_(eps).rsqrt_()


def _scaled(unit: Tensor, weight: Tensor, shifted: bool, dtype: torch.dtype) -> Tensor:
    """`unit` is overwritten. Gemma scales by 1 + w before rounding, Llama and its like by w afterwards."""
    if shifted:
        return unit.mul_(1 + weight.to(unit.dtype)).to(dtype)
    return unit.to(dtype).mul_(weight)


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, shifted: bool) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        inverse = _inverse(wide, eps)
        ctx.save_for_backward(x, weight, inverse)
        ctx.shifted = shifted
        return _scaled(wide * inverse, weight, shifted, x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, inverse = ctx.saved_tensors
        wide = inverse.dtype
        unit = x.to(wide) * inverse
        grad = grad.to(wide) * (1 + weight.to(wide) if ctx.shifted else weight.to(wide))
        along = torch.linalg.vecdot(grad, unit).unsqueeze(-1).div_(x.shape[-1])
        # (g - u mean(g u)) / rms, with u = x / rms
        return grad.sub_(unit.mul_(along)).mul_(inverse).to(x.dtype), None, None, None


# -- gated MLPs ------------------------------------------------------------------------------------

_silu = torch.ops.aten.silu_backward.default
_gelu = torch.ops.aten.gelu_backward.default


def _mlp_of(module: nn.Module) -> Forward | None:
    """The replacement of an MLP with a gate."""
    if not all(
        isinstance(getattr(module, name, None), nn.Module) for name in ("gate_proj", "up_proj", "down_proj")
    ):
        return None
    if not hasattr(module.gate_proj, "weight") or not hasattr(module, "act_fn"):
        return None
    x = torch.linspace(-3, 3, 7)
    for act, back in _ACTS.values():
        if torch.allclose(_act_of(module)(x), act(x), atol=1e-6):
            return partial(_mlp, module, act, back)
    return None


def _act_of(module: nn.Module) -> Callable[[Tensor], Tensor]:
    return cast("Callable[[Tensor], Tensor]", module.act_fn)


_ACTS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]] = {
    "silu": (functional.silu, _silu),
    "gelu": (functional.gelu, _gelu),
    "gelu_tanh": (partial(functional.gelu, approximate="tanh"), partial(_gelu, approximate="tanh")),
}


def _mlp(module: Any, act: Callable[[Tensor], Tensor], back: Any, x: Tensor) -> Tensor:
    gate, up = module.gate_proj(x), module.up_proj(x)
    if not torch.is_grad_enabled() or not (gate.requires_grad or up.requires_grad):
        return cast(Tensor, module.down_proj(act(gate).mul_(up)))
    product = cast(Tensor, _Gated.apply(gate, up, act, back))
    return cast(Tensor, module.down_proj(with_recipe(product, partial(_product, act), gate, up)))


def _product(act: Callable[[Tensor], Tensor], gate: Tensor, up: Tensor) -> Tensor:
    return act(gate).mul_(up)


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, act: Callable[[Tensor], Tensor], back: Any) -> Tensor:
        ctx.save_for_backward(gate, up)
        ctx.act, ctx.back = act, back
        return _product(act, gate, up)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        gate, up = ctx.saved_tensors
        return ctx.back(grad * up, gate), ctx.act(gate).mul_(grad), None, None


# -- the last layer --------------------------------------------------------------------------------


def _after_attention(model: Any) -> list[nn.Module]:
    """Of the last layer what follows its attention, where its shape is known."""
    layers = getattr(getattr(model, "base_model", model), "layers", None)
    if not isinstance(layers, nn.ModuleList) or not len(layers):
        return []
    attention = getattr(layers[-1], "self_attn", None)
    parts = [getattr(attention, "o_proj", None), getattr(layers[-1], "mlp", None)]
    known = (
        all(isinstance(part, nn.Module) for part in parts) and _mlp_of(cast(nn.Module, parts[1])) is not None
    )
    return cast("list[nn.Module]", parts) if known else []


def _needed(forward: Forward, x: Tensor) -> Tensor:
    """The forward pass of the tokens that are read, and zero for the others, which nobody reads."""
    rows = _rows.get()
    if rows is None or x.ndim != 3:
        return forward(x)
    y = forward(x[:, rows])
    return y.new_zeros((1, x.shape[1], y.shape[-1])).index_copy(1, rows, y)
