"""What models allow is tried, not believed: a leak from one example into the next is always found."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as hf

from scumble.compare.loss import lay_out, loss_sum, mean_loss
from scumble.data.batches import Batch
from scumble.data.packing import Packed
from scumble.models import attention
from scumble.models.packable import Ways, ways_of
from tests.engine import one_thread, trees
from tests.tiny import FAMILIES, SIZES, _builder, tiny_gemma2, tiny_llama, tiny_qwen2_moe
from tests.trees import conversations, example, forest

__all__ = ["one_thread"]

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
SMALL: dict[str, Any] = {"vocab_size": 48, "hidden_size": 16, "num_hidden_layers": 2}


def fresh(config: Any, model: Any, **more: Any) -> Any:
    torch.manual_seed(0)
    return model(config(**more)).eval()


ALL: dict[str, Any] = {
    **FAMILIES,
    "gemma2": lambda **more: tiny_gemma2(
        sliding_window=6, attn_logit_softcapping=4.0, final_logit_softcapping=3.0, **more
    ),
    "qwen3": _builder(hf.Qwen3Config, hf.Qwen3ForCausalLM, head_dim=4),
    "phi": _builder(hf.PhiConfig, hf.PhiForCausalLM),
    "olmo2": _builder(hf.Olmo2Config, hf.Olmo2ForCausalLM),
    "gpt_oss": _builder(
        hf.GptOssConfig, hf.GptOssForCausalLM, head_dim=4, num_local_experts=3, num_experts_per_tok=2, sliding_window=6
    ),
    "neox": lambda dtype: fresh(
        hf.GPTNeoXConfig, hf.GPTNeoXForCausalLM, **SMALL, intermediate_size=24, num_attention_heads=4
    ).to(dtype),
}  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("family", ALL)
def test_plain_attention_is_laid_end_to_end_in_every_type(family: str, dtype: torch.dtype) -> None:
    # a family that falls back to padding would be right, and several times slower, without a sound
    if family == "gpt_oss" and dtype == torch.float64:
        pytest.skip("its experts know no fp64")
    assert ways_of(ALL[family](dtype=dtype)) == Ways(True, True, "")


SCALED: dict[str, Any] = {
    "cohere": _builder(hf.CohereConfig, hf.CohereForCausalLM, logit_scale=0.25, tie_word_embeddings=True),
    "cohere2": _builder(hf.Cohere2Config, hf.Cohere2ForCausalLM, head_dim=4, logit_scale=0.25, sliding_window=6),
    "granite": _builder(hf.GraniteConfig, hf.GraniteForCausalLM, logits_scaling=8.0, embedding_multiplier=2.0),
}  # fmt: skip


@pytest.mark.parametrize("family", SCALED)
def test_logits_scaled_in_a_way_of_their_own_are_asked_of_the_model(family: str) -> None:
    assert ways_of(SCALED[family]()) == Ways(True, False, "")


MIXING: dict[str, Any] = {
    "lfm2": lambda: _builder(hf.Lfm2Config, hf.Lfm2ForCausalLM, layer_types=["conv", "full_attention"])(),
    "mamba": lambda: fresh(hf.MambaConfig, hf.MambaForCausalLM, **SMALL, state_size=4),
    "mamba2": lambda: fresh(
        hf.Mamba2Config, hf.Mamba2ForCausalLM, **SMALL, state_size=4, num_heads=4, head_dim=8, n_groups=1, chunk_size=8
    ),
    "recurrent_gemma": lambda: fresh(
        hf.RecurrentGemmaConfig, hf.RecurrentGemmaForCausalLM, **{**SMALL, "num_hidden_layers": 3},
        intermediate_size=24, num_attention_heads=4, lru_width=16, attention_window_size=64,
    ),
    "qwen3_next": lambda: fresh(
        hf.Qwen3NextConfig, hf.Qwen3NextForCausalLM, **SIZES, head_dim=4, num_experts=3, num_experts_per_tok=2,
        moe_intermediate_size=8, shared_expert_intermediate_size=8, linear_num_value_heads=2,
        linear_num_key_heads=2, linear_key_head_dim=4, linear_value_head_dim=4,
        layer_types=["linear_attention", "full_attention"],
    ),
    "bloom": lambda: fresh(hf.BloomConfig, hf.BloomForCausalLM, vocab_size=48, hidden_size=16, n_layer=2, n_head=4),
    "falcon": lambda: fresh(hf.FalconConfig, hf.FalconForCausalLM, **SMALL, num_attention_heads=4),
    "gpt_neo": lambda: fresh(
        hf.GPTNeoConfig, hf.GPTNeoForCausalLM, vocab_size=48, hidden_size=16, num_layers=2, num_heads=4,
        attention_types=[[["global", "local"], 1]], window_size=8, max_position_embeddings=64,
    ),
    "window by the mask alone": lambda: tiny_qwen2_moe(
        use_sliding_window=True, sliding_window=12, max_window_layers=2
    ),
    "chunks by the mask alone": lambda: fresh(
        hf.Llama4TextConfig, hf.Llama4ForCausalLM, **SIZES, head_dim=4, intermediate_size_mlp=24,
        num_local_experts=2, attention_chunk_size=32, no_rope_layers=[1, 0],
    ),
}  # fmt: skip


@pytest.mark.parametrize("family", MIXING)
def test_what_mixes_tokens_by_more_than_attention_is_found_and_padded(family: str) -> None:
    model = MIXING[family]()
    ways = ways_of(model)
    assert not ways.packed
    assert not ways.head
    assert ways.reason
    examples = forest(1, 5, 30)
    assert isinstance(lay_out(model, examples), Batch)
    with torch.no_grad():
        alone = sum(float(loss_sum(model, lay_out(model, [each]))) for each in examples)
    found = mean_loss(model, examples, 3, torch.device("cpu")) * sum(sum(e.supervised[1:]) for e in examples)
    assert found == pytest.approx(
        alone, rel=1e-4
    )  # fp32; padding on the left goes through a convolution as zeros


def test_a_padded_batch_in_which_nothing_is_predicted_has_no_loss() -> None:
    model = MIXING["bloom"]()
    laid = lay_out(model, [example([5], [True]), example([5, 6, 7], [True, False, False])])
    assert isinstance(laid, Batch)
    loss = loss_sum(model, laid)
    assert float(loss.detach()) == 0.0
    loss.backward()


def leaky(how: str) -> Any:
    """Packed attention with a fault put in."""
    true = attention.packed_attention

    def wrong(module: Any, query: Any, key: Any, value: Any, mask: Any, **more: Any) -> Any:
        layout = attention._layout.get()
        assert layout is not None
        runs, length = layout.segments, query.shape[2]
        if how == "sees all before it":
            runs = (attention.Segment(0, length, length, 0, -1),)
        elif how == "does not see its ancestors":
            runs = tuple(attention.Segment(s.start, s.end, s.end, s.depth, -1) for s in runs)
        elif how == "sees its sibling":
            last = next(s for s in runs if s.start > 3)
            runs = (attention.Segment(0, last.end, last.end, 0, -1), *runs[3:])
        elif how == "one segment a token short":
            runs = (*runs[:-1], runs[-1]._replace(start=runs[-1].start + 1))
        products = list(attention.products(runs))
        if how == "one segment a token short":
            # the token left out is computed by itself
            first = runs[-1].start - 1
            products.insert(0, attention.Product(slice(first, first + 1), slice(first, first + 1), True))
        token = attention._layout.set(attention._Layout(layout.model, runs, tuple(products)))
        try:
            return true(module, query, key, value, mask, **more)
        finally:
            attention._layout.reset(token)

    return wrong


FAULTS = ["sees all before it", "does not see its ancestors", "sees its sibling", "one segment a token short"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("how", FAULTS)
def test_a_leak_put_in_on_purpose_is_caught(how: str, dtype: torch.dtype) -> None:
    from transformers import AttentionInterface

    AttentionInterface.register(attention.NAME, leaky(how))
    try:
        ways = ways_of(tiny_llama(dtype=dtype))
    finally:
        AttentionInterface.register(attention.NAME, attention.packed_attention)
    assert ways == Ways(False, False, "tokens are mixed by more than attention")
    assert ways_of(tiny_llama(dtype=dtype)).packed


def test_it_is_caught_at_the_spread_that_models_begin_with_too() -> None:
    from transformers import AttentionInterface

    sizes = {**SIZES, "hidden_size": 64, "num_hidden_layers": 1}
    AttentionInterface.register(attention.NAME, leaky("sees all before it"))
    try:
        ways = ways_of(fresh(hf.LlamaConfig, hf.LlamaForCausalLM, **sizes))
    finally:
        AttentionInterface.register(attention.NAME, attention.packed_attention)
    assert not ways.packed


def test_a_model_is_tried_once() -> None:
    model = tiny_llama()
    first = ways_of(model)
    model.forward = None  # a second trial would fail
    assert ways_of(model) is first


def test_trying_leaves_no_trace() -> None:
    model = tiny_llama()
    torch.manual_seed(4)
    wanted = torch.rand(3)
    torch.manual_seed(4)
    before = {name: p.clone() for name, p in model.named_parameters()}
    ways_of(model)
    assert torch.equal(torch.rand(3), wanted)
    assert model.config._attn_implementation != attention.NAME
    assert all(torch.equal(p, before[name]) and p.grad is None for name, p in model.named_parameters())


def test_what_is_laid_out_is_what_the_model_allows() -> None:
    laid = lay_out(tiny_llama(), conversations(20, 3))
    assert isinstance(laid, Packed)
    assert laid.computed < laid.tokens
    assert lay_out(tiny_llama(), conversations(20, 3), share=False).tokens == laid.tokens
    assert trees(conversations(20, 3)).computed <= laid.computed
