"""Weights that are tensors: their gradients against finite differences, their values against plain numbers."""

from __future__ import annotations

import copy

import pytest
import torch

from scumble.errors import AdapterError
from scumble.lora.bank import Bank
from scumble.lora.kernels import Term, segments, stacked
from scumble.lora.spec import LoraSpec
from scumble.lora.targets import layer_index
from tests.lora.conftest import peft_model
from tests.tiny import logits, tiny_gpt2, tiny_ids, tiny_llama, tiny_qwen2

# What each has that a weight multiplies: A and B, the gain of DoRA and what it adds, b_i, the base's bias.
CASES = {
    "plain": (tiny_llama, {}),
    "rslora": (tiny_llama, {"use_rslora": True, "rank_pattern": {"v_proj": 3}}),
    "all_linear": (tiny_llama, {"target_modules": "all-linear"}),
    "dora": (tiny_llama, {"use_dora": True, "target_modules": ["q_proj", "down_proj"]}),
    "dora_embedding": (tiny_llama, {"use_dora": True, "target_modules": ["embed_tokens", "q_proj"]}),
    "embedding_and_head": (tiny_llama, {"target_modules": ["embed_tokens", "lm_head"]}),
    "lora_bias": (tiny_llama, {"lora_bias": True}),
    "bias_all": (tiny_qwen2, {"bias": "all"}),
    "conv1d": (tiny_gpt2, {"target_modules": ["c_attn"], "fan_in_fan_out": True, "bias": "all"}),
}
WEIGHTS = (0.7, -0.3)


def _bank(build, config, tmp_path, dtype) -> Bank:
    """A bank of two random adapters, `a` as configured and `b` plain."""
    base = build(dtype=dtype)
    plain = {"target_modules": config.get("target_modules", ["q_proj", "v_proj"])}
    if build is tiny_gpt2:
        plain["fan_in_fan_out"] = True
    bank = Bank(copy.deepcopy(base))
    for name, seed, each in (("a", 3, config), ("b", 4, plain)):
        # a smaller spread than elsewhere: finite differences of a function that is curved less
        peft_model(base, seed=seed, spread=0.1, **each).save_pretrained(tmp_path / name)
        bank.add(name, tmp_path / name)
    return bank


def _loss(model, ids):
    scores = model(input_ids=ids).logits.log_softmax(-1)
    return -scores[:, :-1].gather(-1, ids[:, 1:, None]).mean()


@pytest.mark.parametrize("case", CASES)
def test_gradients_of_weights_are_those_of_finite_differences(case, tmp_path):
    bank = _bank(*CASES[case], tmp_path, torch.float64)
    ids = tiny_ids()

    def loss(a, b):
        with bank.using_learned({"a": a, "b": b}):
            return _loss(bank.model, ids)

    weights = [torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in WEIGHTS]
    # central differences of step 1e-5 are off by its square times the third derivative; measured 2e-9
    assert torch.autograd.gradcheck(loss, weights, eps=1e-5, atol=1e-7, rtol=1e-6)
    gradients = torch.autograd.grad(loss(*weights), weights)
    assert all(gradient.abs() > 1e-4 for gradient in gradients)  # so that the check could fail
    assert all(parameter.grad is None for parameter in bank.model.parameters())


def test_each_module_may_have_a_weight_of_its_own(tmp_path):
    bank = _bank(*CASES["dora"], tmp_path, torch.float64)
    ids = tiny_ids()

    def loss(a, b):
        with bank.using_learned({"a": lambda path: a[layer_index(path, ())], "b": b}):
            return _loss(bank.model, ids)

    a = torch.tensor([0.7, 1.2], dtype=torch.float64, requires_grad=True)  # one for each of the two layers
    b = torch.tensor(-0.3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(loss, (a, b), eps=1e-5, atol=1e-7, rtol=1e-6)
    (gradient,) = torch.autograd.grad(loss(a, b), a)
    assert gradient.abs().min() > 1e-4
    # equal weights everywhere are one weight, and its gradient the sum
    same = torch.full((2,), 0.7, dtype=torch.float64, requires_grad=True)
    one = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    (by_layer,) = torch.autograd.grad(loss(same, b), same)
    with bank.using_learned({"a": one, "b": b}):
        (whole,) = torch.autograd.grad(_loss(bank.model, ids), one)
    torch.testing.assert_close(by_layer.sum(), whole, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("case", CASES)
def test_a_tensor_computes_what_its_number_computes(case, dtype, tmp_path):
    bank = _bank(*CASES[case], tmp_path, dtype)
    ids = tiny_ids()
    for mixture in ({"a": WEIGHTS[0], "b": WEIGHTS[1]}, {"a": WEIGHTS[0]}, {"a": 1.0}):
        bank.use(mixture)
        want = logits(bank.model, ids)
        tensors = {name: torch.tensor(weight, dtype=torch.float64) for name, weight in mixture.items()}
        with bank.using_learned(tensors):
            found = logits(bank.model, ids)
        # bit for bit: a scalar in fp64 takes the type of what it scales, as Python's number does
        assert torch.equal(found, want)
        assert torch.equal(logits(bank.model, ids), want)


def test_learning_leaves_the_rows_as_they_were(tmp_path):
    bank = _bank(*CASES["plain"], tmp_path, torch.float32)
    bank.use_rows([{}, "a", "b"])
    before = logits(bank.model, tiny_ids())
    weight = torch.tensor(0.5, requires_grad=True)
    with pytest.raises(RuntimeError, match="out"), bank.using_learned({"a": weight}):
        with pytest.raises(AdapterError, match="in use"):
            bank.remove("b")  # by the rows that come back afterwards
        raise RuntimeError("out")
    assert torch.equal(logits(bank.model, tiny_ids()), before)


def test_a_weight_of_zero_still_has_a_gradient(tmp_path):
    bank = _bank(*CASES["plain"], tmp_path, torch.float64)
    zero = torch.zeros((), dtype=torch.float64, requires_grad=True)
    with bank.using_learned({"a": zero}):
        _loss(bank.model, tiny_ids()).backward()
    assert zero.grad is not None
    assert zero.grad.abs() > 1e-4


def test_both_kernels_take_a_scalar_tensor():
    generator = torch.Generator().manual_seed(0)
    x, A, B = (torch.randn(shape, generator=generator) for shape in ((2, 3, 6), (4, 6), (5, 4)))
    number = [Term(A, B, 2.0, 0.7), Term(A, B, 1.0, 0.2)]
    tensor = [Term(term.A, term.B, term.scale, torch.tensor(term.weight).double()) for term in number]
    for kernel in (stacked, segments):
        assert torch.equal(kernel(x, tensor), kernel(x, number))


@pytest.mark.parametrize(
    "weight", [torch.zeros(1), torch.tensor(1), torch.zeros(2, 3)], ids=["vector", "integer", "matrix"]
)
def test_a_weight_that_is_no_scalar_is_refused(weight, tmp_path):
    bank = _bank(*CASES["plain"], tmp_path, torch.float32)
    with pytest.raises(AdapterError, match="the weight of 'a' is a tensor of shape"):
        bank.using_learned({"a": weight}).__enter__()
    with pytest.raises(AdapterError, match="no adapter 'c'"):
        bank.using_learned({"c": torch.tensor(1.0)}).__enter__()


def test_what_belongs_to_one_adapter_only_is_not_learned():
    bank = Bank(tiny_llama())
    bank.trainable("saved", LoraSpec(modules_to_save=("lm_head",)))
    with pytest.raises(AdapterError, match=r"modules_to_save .* are not blended"):
        bank.using_learned({"saved": torch.tensor(1.0)}).__enter__()
    # nor does it come in by a swap, at a weight that happens to be 1
    bank.trainable("plain", LoraSpec())
    with bank.using_learned({"plain": torch.tensor(1.0)}), pytest.raises(AdapterError, match="not blended"):
        bank.swap("plain", bank.adapter("saved"))
