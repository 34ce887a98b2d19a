"""Tiny random models of every family that the tests hold Scumble against, made here and nowhere downloaded.

Each builder takes overrides of its configuration, and gives the same weights for the same `seed`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

VOCABULARY = 48
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# Random weights of this spread, not transformers' 0.02: a tiny model then has logits that an update moves.
SPREAD = 0.3


def _build(
    config_class: Any, model_class: Any, overrides: dict[str, Any], seed: int, dtype: torch.dtype
) -> Any:
    config = config_class(**{**SIZES, **overrides})
    config._experts_implementation = "eager"  # the fused kernel knows no fp64
    torch.manual_seed(seed)
    model = model_class(config).to(dtype).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if parameter.ndim > 1 or name.endswith("bias"):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * SPREAD)
    if dtype == torch.float64:
        _norms_in_fp64(model)
    return model


class GemmaNormInFp64(nn.Module):
    """Gemma's norm, which scales by 1 + weight."""

    def __init__(self, weight: nn.Parameter, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = weight, eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * (1 + self.weight)


def _norms_in_fp64(model: nn.Module) -> None:
    """transformers' RMSNorm computes in fp32 whatever its input, which hides differences below 6e-8."""
    for path, module in list(model.named_modules()):
        if not type(module).__name__.endswith("RMSNorm"):
            continue
        if "Gemma" in type(module).__name__:
            model.set_submodule(path, GemmaNormInFp64(module.weight, module.eps).eval())
            continue
        norm = nn.RMSNorm(len(module.weight), eps=module.variance_epsilon, dtype=torch.float64)
        norm.weight = module.weight
        model.set_submodule(path, norm.eval())


def _builder(config_class: Any, model_class: Any, **defaults: Any) -> Callable[..., Any]:
    def build(*, seed: int = 0, dtype: torch.dtype = torch.float32, **overrides: Any) -> Any:
        return _build(config_class, model_class, {**defaults, **overrides}, seed, dtype)

    return build


tiny_llama = _builder(LlamaConfig, LlamaForCausalLM)
tiny_qwen2 = _builder(Qwen2Config, Qwen2ForCausalLM)  # biases at q, k and v
tiny_gemma = _builder(GemmaConfig, GemmaForCausalLM, head_dim=4, tie_word_embeddings=True)
tiny_gemma2 = _builder(Gemma2Config, Gemma2ForCausalLM, head_dim=4, tie_word_embeddings=True)
tiny_gemma3 = _builder(Gemma3TextConfig, Gemma3ForCausalLM, head_dim=4, tie_word_embeddings=True)
tiny_qwen3 = _builder(Qwen3Config, Qwen3ForCausalLM, head_dim=4)  # norms of queries and keys
tiny_mistral = _builder(MistralConfig, MistralForCausalLM)
tiny_phi3 = _builder(Phi3Config, Phi3ForCausalLM)  # fused qkv_proj and gate_up_proj
tiny_gpt2 = _builder(GPT2Config, GPT2LMHeadModel, num_key_value_heads=4)  # Conv1D, biases everywhere
tiny_mixtral = _builder(MixtralConfig, MixtralForCausalLM, num_local_experts=3, num_experts_per_tok=2)
tiny_qwen2_moe = _builder(
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    num_experts=3,
    num_experts_per_tok=2,
    moe_intermediate_size=12,
    shared_expert_intermediate_size=20,
)

FAMILIES: dict[str, Callable[..., Any]] = {
    "llama": tiny_llama,
    "qwen2": tiny_qwen2,
    "gemma": tiny_gemma,
    "gemma3": tiny_gemma3,
    "mistral": tiny_mistral,
    "phi3": tiny_phi3,
    "gpt2": tiny_gpt2,
    "mixtral": tiny_mixtral,
    "qwen2_moe": tiny_qwen2_moe,
}


def tiny_ids(rows: int = 3, length: int = 7, seed: int = 1) -> torch.Tensor:
    """(rows, length) token ids, among them every one that the tests train rows of."""
    ids = torch.randint(3, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))
    ids[:, 1] = 5
    return ids


def logits(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """(rows, length, vocabulary), without a gradient."""
    with torch.no_grad():
        return model(input_ids=ids).logits.clone()
