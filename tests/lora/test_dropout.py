"""Dropout's mask is a function of what a number belongs to, and has the right rate."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scumble.errors import AdapterError
from scumble.lora.bank import Bank
from scumble.lora.dropout import TokenMarks, keep_mask, module_key
from scumble.lora.spec import LoraSpec
from tests.tiny import tiny_ids, tiny_llama, tiny_qwen2_moe


def _marks(examples, positions, step=0) -> TokenMarks:
    return TokenMarks(torch.as_tensor(examples), torch.as_tensor(positions), step)


def _row(example: int, length: int, step: int = 0, key: int = 3, rate: float = 0.5, width: int = 16):
    marks = _marks([[example] * length], [list(range(length))], step)
    return keep_mask(key, marks, width, rate)[0]


@settings(max_examples=40, deadline=None)
@given(
    order=st.permutations(range(5)),
    lengths=st.lists(st.integers(1, 6), min_size=5, max_size=5),
    padding=st.integers(0, 4),
    step=st.integers(0, 10**6),
)
def test_the_mask_does_not_see_order_padding_or_packing(order, lengths, padding, step):
    alone = {example: _row(example, lengths[example], step) for example in order}
    longest = max(lengths) + padding
    padded = _marks([[e] * longest for e in order], [list(range(longest))] * 5, step)
    in_batch = keep_mask(3, padded, 16, 0.5)
    packed = _marks(
        [[e for e in order for _ in range(lengths[e])]], [[p for e in order for p in range(lengths[e])]], step
    )
    in_pack = keep_mask(3, packed, 16, 0.5)[0]
    at = 0
    for row, example in enumerate(order):
        length = lengths[example]
        assert torch.equal(in_batch[row, :length], alone[example])
        assert torch.equal(in_pack[at : at + length], alone[example])
        at += length


@pytest.mark.parametrize("rate", [0.0, 0.05, 0.1, 0.5, 0.9])
def test_the_rate(rate):
    mask = keep_mask(
        module_key(1, "m"), _marks([[example] for example in range(200)], [[0]] * 200), 1000, rate
    )
    # 200,000 draws: a standard deviation is below 0.0012, and five of them 0.006
    assert mask.float().mean().item() == pytest.approx(1 - rate, abs=0.006)
    if rate == 0:
        assert mask.all()


def test_masks_are_independent_of_one_another():
    """Another step, module, seed, example or position has a mask that agrees in half of the numbers."""
    n = 20_000
    first = _row(1, 1, 0, module_key(0, "m"), width=n)
    assert torch.equal(first, _row(1, 1, 0, module_key(0, "m"), width=n))
    others = [
        _row(1, 1, 1, module_key(0, "m"), width=n),
        _row(1, 1, 0, module_key(0, "m2"), width=n),
        _row(1, 1, 0, module_key(1, "m"), width=n),
        _row(2, 1, 0, module_key(0, "m"), width=n),
        _row(1, 2, 0, module_key(0, "m"), width=n)[1:],
    ]
    others.append(torch.roll(first, 1, dims=-1))
    for other in others:
        # 20,000 draws: a standard deviation is 0.0035; five of them
        assert (first == other).float().mean().item() == pytest.approx(0.5, abs=0.018)


def test_the_golden_mask():
    """A mask is part of a run's record: a change of the hash would make runs of today unrepeatable."""
    golden = [0b10100010, 0b11100111]
    bits = _row(7, 2, step=5, key=module_key(3, "model.layers.0.self_attn.q_proj"), width=8)
    assert [int("".join(str(int(b)) for b in row), 2) for row in bits] == golden


def _gradients(bank, ids, marks):
    for parameter in bank.parameters("a").values():
        parameter.grad = None
    bank.routing.marks = marks
    with bank.using("a"):
        scores = bank.model(input_ids=ids).logits
    bank.routing.marks = None
    scores.square().sum().backward()
    return scores.detach(), {name: p.grad.clone() for name, p in bank.parameters("a").items()}


@pytest.mark.parametrize("spec", [{}, {"dora": True}, {"lora_bias": True}], ids=str)
def test_in_the_bank_rows_do_not_change_one_another(spec):
    base = tiny_llama(dtype=torch.float64)
    bank = Bank(base)
    bank.trainable("a", LoraSpec(dropout=0.3, **spec), seed=2)
    with torch.no_grad():
        for parameter in bank.parameters("a").values():
            parameter.add_(0.1)
    ids = tiny_ids(rows=3)
    positions = torch.arange(7).expand(3, 7)
    examples = torch.tensor([[4], [9], [2]]).expand(3, 7)
    together, gradients = _gradients(bank, ids, TokenMarks(examples, positions, 1))
    total = {name: torch.zeros_like(tensor) for name, tensor in gradients.items()}
    for row in (2, 0, 1):
        one = slice(row, row + 1)
        scores, parts = _gradients(bank, ids[one], TokenMarks(examples[one], positions[one], 1))
        torch.testing.assert_close(scores, together[one], rtol=0, atol=1e-10)  # fp64
        for name, part in parts.items():
            total[name] += part
    for name, gradient in gradients.items():
        torch.testing.assert_close(total[name], gradient, rtol=1e-9, atol=1e-9)
    other, _ = _gradients(bank, ids, TokenMarks(examples, positions, 2))
    assert (other - together).abs().max() > 1e-2
    # and without marks, as in evaluation, nothing is dropped
    plain, _ = _gradients(bank, ids, None)
    assert (plain - together).abs().max() > 1e-2


@pytest.mark.parametrize("dora", [False, True])
def test_one_layer_equals_the_formula(dora):
    """y = W x + s B A D x for the mask's D, and for DoRA (g - 1) W D x + g s B A D x, as PEFT has it."""
    bank = Bank(tiny_llama(dtype=torch.float64))
    bank.trainable("a", LoraSpec(dropout=0.5, targets=("up_proj",), dora=dora), seed=2)
    with torch.no_grad():
        for parameter in bank.parameters("a").values():
            parameter.add_(0.1)
    bank.use("a")
    layer = bank.model.model.layers[0].mlp.up_proj
    x = torch.randn(2, 3, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    marks = _marks([[1] * 3, [2] * 3], [[0, 1, 2]] * 2)
    bank.routing.shape, bank.routing.marks = (2, 3), marks
    slot = next(iter(layer.slots.values()))
    dropped = x * keep_mask(module_key(2, layer.path), marks, 16, 0.5) / 0.5
    W, update = layer.base.weight, 2 * slot.B @ slot.A
    want = x @ W.T + dropped @ update.T
    if dora:
        gain = slot.magnitude / (W + update).norm(dim=1)
        want = x @ W.T + (gain - 1) * (dropped @ W.T) + gain * (dropped @ update.T)
    torch.testing.assert_close(layer(x), want, rtol=0, atol=1e-12)


def test_embeddings_drop_nothing_as_in_peft():
    base = tiny_llama(dtype=torch.float64)
    ids = tiny_ids()
    marks = TokenMarks(torch.zeros_like(ids), torch.arange(7).expand(3, 7), 0)
    scores = []
    for dropout in (0.0, 0.5):
        bank = Bank(copy.deepcopy(base))
        bank.trainable("a", LoraSpec(targets=("embed_tokens",), dropout=dropout), seed=1)
        with torch.no_grad():
            for parameter in bank.parameters("a").values():
                parameter.add_(0.1)
        scores.append(_gradients(bank, ids, marks)[0])
    assert torch.equal(*scores)


def test_flattened_tokens_cannot_be_told_apart():
    bank = Bank(tiny_qwen2_moe())
    bank.trainable("a", LoraSpec(targets=("shared_expert.up_proj",), dropout=0.1))
    ids = tiny_ids()
    with pytest.raises(AdapterError, match="train with dropout 0"):
        _gradients(bank, ids, TokenMarks(torch.zeros_like(ids), torch.zeros_like(ids), 0))
