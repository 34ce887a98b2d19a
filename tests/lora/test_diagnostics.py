"""Figures of updates against dense fp64 matrices, made with numpy from the factors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scumble.errors import AdapterError
from scumble.lora.activity import on_data
from scumble.lora.adapter import Adapter, Factors
from scumble.lora.bank import Bank
from scumble.lora.diagnostics import diagnose, spectrum_of
from scumble.lora.lowrank import LowRank, decompose
from scumble.lora.pairs import SIGN_ROWS, norm_of_blend, overlaps, pair_up, sign_conflict
from scumble.lora.spec import LoraSpec
from scumble.manage.inspection.sources import LoadedWeights
from tests.tiny import tiny_gpt2, tiny_ids, tiny_llama

EXACT = {"rel": 1e-9, "abs": 1e-12}  # both sides in fp64; sums of a few thousand terms in another order
PATHS = ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.up_proj")


def adapter(seed: int, *, rank: int = 3, out: int = 20, width: int = 12, **spec) -> Adapter:
    generator = torch.Generator().manual_seed(seed)
    factors = {
        path: Factors(
            torch.randn(rank, width, generator=generator), torch.randn(out, rank, generator=generator)
        )
        for path in PATHS
    }
    return Adapter(LoraSpec(rank=rank, targets=("q_proj", "up_proj"), **spec), factors)


def dense(one: Adapter, path: str) -> np.ndarray:
    factors = one.factors[path]
    return one.spec.scale_of(path) * factors.B.double().numpy() @ factors.A.double().numpy()


def paired(first: Adapter, second: Adapter, **options):
    found = diagnose([first, second])
    return found, pair_up(first, second, found.grams, layers={}, **options)


@pytest.mark.parametrize("rslora", [False, True])
def test_figures_of_one_module_are_those_of_the_dense_matrix(rslora):
    one = adapter(0, rank=5, rslora=rslora, alpha=7)
    for figures in diagnose([one]).modules[0]:
        values = np.linalg.svd(dense(one, figures.path), compute_uv=False)[:5]
        share = values / values.sum()
        assert figures.norm == pytest.approx(np.linalg.norm(dense(one, figures.path)), **EXACT)
        assert figures.spectrum.values == pytest.approx(values, **EXACT)
        assert figures.spectrum.effective_rank == pytest.approx(
            np.exp(-(share * np.log(share)).sum()), **EXACT
        )
        assert figures.spectrum.stable_rank == pytest.approx((values**2).sum() / values[0] ** 2, **EXACT)
        energy = np.cumsum(values**2) / (values**2).sum()
        assert figures.spectrum.energy == pytest.approx({k: energy[k - 1] for k in (1, 2, 4, 5)}, **EXACT)
        assert figures.spectrum.rank_99 == int((energy < 0.99).sum()) + 1
        assert figures.shape == (20, 12)
        assert figures.relative_norm is None


def test_modules_come_by_layer_and_as_numbers():
    factors = {
        f"model.layers.{n}.self_attn.q_proj": Factors(torch.ones(1, 2), torch.ones(2, 1)) for n in (10, 2)
    }
    factors["lm_head"] = Factors(torch.ones(1, 2), torch.ones(2, 1))
    modules = diagnose([Adapter(LoraSpec(rank=1), factors)]).modules[0]
    assert [module.layer for module in modules] == [None, 2, 10]
    assert modules[0].kind == "lm_head"


def test_dead_modules_say_why():
    one = adapter(0)
    extra = {f"model.layers.{n}.mlp.up_proj": one.factors[PATHS[1]] for n in (2, 3)}
    zero, tiny = (
        Factors(torch.ones(3, 12), torch.zeros(20, 3)),
        Factors(torch.ones(3, 12), torch.full((20, 3), 1e-6)),
    )
    one.factors |= extra | {"model.layers.4.mlp.up_proj": zero, "model.layers.5.mlp.up_proj": tiny}
    flags = {module.layer: module.flags for module in diagnose([one]).modules[0]}
    assert "exactly zero" in flags[4]["dead"]
    assert "of the median module's" in flags[5]["dead"]
    assert not any("dead" in flags[layer] for layer in (0, 1, 2, 3))
    assert spectrum_of(zero, 1.0).effective_rank == 0


def test_a_spectrum_that_is_flat_to_its_end_is_saturated():
    flat = Factors(torch.eye(8, 12), torch.eye(20, 8))
    steep = Factors(torch.eye(8, 12), torch.eye(20, 8) * 0.5 ** torch.arange(8))
    one = Adapter(LoraSpec(rank=8), {PATHS[0]: flat, PATHS[1]: steep})
    first, second = diagnose([one]).modules[0]
    assert "a higher rank" in first.flags["saturated"]
    assert first.spectrum.effective_rank == pytest.approx(8, **EXACT)
    assert "saturated" not in second.flags
    # with one direction the end is the beginning, which says nothing
    assert not spectrum_of(Factors(torch.ones(1, 12), torch.ones(20, 1)), 1.0).saturated


def test_modules_that_are_not_finite_have_no_figures_and_spoil_no_others():
    first, second = adapter(0), adapter(1)
    found = diagnose([first, second], broken=[{PATHS[0]: "B holds NaN"}, {}])
    broken, whole = found.modules[0]
    assert (broken.norm, broken.spectrum) == (None, None)
    assert broken.flags["not finite"] == "B holds NaN"
    assert whole.norm > 0
    assert found.grams[PATHS[0]][0].tolist() == [0, 0]
    assert found.grams[PATHS[0]][1, 1] > 0


def test_relative_norms_are_over_the_weight_whichever_way_round_it_is_kept(made):
    for model, names in ((tiny_llama(), ["q_proj", "embed_tokens"]), (tiny_gpt2(), ["c_attn", "wte"])):
        one = Adapter.load(made(model, f"adapter-{names[0]}", target_modules=names))
        weights = LoadedWeights(dict(model.named_modules()))
        for figures in diagnose([one], weights=weights).modules[0]:
            weight = model.get_submodule(figures.path).weight.detach().double()
            assert figures.weight_norm == pytest.approx(float(weight.norm()), **EXACT)
            assert figures.relative_norm == pytest.approx(figures.norm / float(weight.norm()), **EXACT)


def test_a_base_of_another_shape_is_refused_by_module(made):
    one = Adapter.load(made(tiny_llama()))
    other = LoadedWeights(dict(tiny_llama(hidden_size=32).named_modules()))
    with pytest.raises(AdapterError, match=r"q_proj is 32 x 32 in the base.*16 x 16"):
        diagnose([one], weights=other)


def test_dora_is_its_true_update_with_the_base_and_said_to_be_a_part_without(made):
    model = tiny_llama()
    first = Adapter.load(made(model, "a", use_dora=True))
    second = Adapter.load(made(model, "b", seed=8))
    weights = LoadedWeights(dict(model.named_modules()))
    found = diagnose([first, second], weights=weights)
    bank = Bank(model)
    for name, one in (("a", first), ("b", second)):
        bank.add(name, one)
    for path, gram in found.grams.items():
        module, true = bank.model.get_submodule(path), []
        for name in ("a", "b"):
            eye = torch.eye(16).unsqueeze(0)
            with torch.no_grad():
                bank.routing.shape = (1, 16)
                bank.use({})
                plain = module(eye)
                bank.use(name)
                true.append((module(eye) - plain).double().flatten())
        # the bank computes in fp32
        wanted = torch.tensor([[float(u @ v) for v in true] for u in true])
        assert torch.allclose(gram, wanted.double(), rtol=1e-4, atol=1e-4)
    assert all(module.exact for module in found.modules[0])
    without = diagnose([first, second])
    assert not any(module.exact for module in without.modules[0])
    assert all(module.exact for module in without.modules[1])


def test_pairs_are_those_of_the_dense_matrices():
    first, second = adapter(1, rank=3), adapter(2, rank=5, alpha=10, rslora=True)
    found, pair = paired(first, second, blends=[(0.7, -0.3)])
    flat = [np.concatenate([dense(one, path).ravel() for path in PATHS]) for one in (first, second)]
    sizes = [np.linalg.norm(each) for each in flat]
    product = flat[0] @ flat[1]
    assert pair.norms == pytest.approx(sizes, **EXACT)
    assert pair.cosine == pytest.approx(product / sizes[0] / sizes[1], **EXACT)
    assert pair.interference == pytest.approx(2 * product / (sizes[0] ** 2 + sizes[1] ** 2), **EXACT)
    assert pair.blends["0.7, -0.3"] == pytest.approx(np.linalg.norm(0.7 * flat[0] - 0.3 * flat[1]), **EXACT)
    assert found.gram[0, 1] == pytest.approx(product, **EXACT)
    for module in pair.modules:
        u, v = dense(first, module.path), dense(second, module.path)
        cosine = (u * v).sum() / np.linalg.norm(u) / np.linalg.norm(v)
        assert module.cosine == pytest.approx(cosine, **EXACT)
        q = [np.linalg.svd(m)[0][:, :r] for m, r in ((u, 3), (v, 5))]
        assert module.outputs.value == pytest.approx(np.linalg.norm(q[0].T @ q[1]) ** 2 / 3, **EXACT)
        assert module.outputs.random == 5 / 20
        assert module.inputs.random == 5 / 12
        # 20 rows are fewer than are sampled: exact
        assert (module.signs.rows, module.signs.of) == (20, 20)
        assert module.signs.plain == pytest.approx((u * v < 0).mean(), **EXACT)
        size = np.abs(u * v)
        assert module.signs.weighted == pytest.approx(size[u * v < 0].sum() / size.sum(), **EXACT)


def test_random_subspaces_overlap_as_is_said():
    generator = torch.Generator().manual_seed(0)
    seen = []
    for _ in range(200):
        parts = [
            LowRank(
                torch.randn(40, r, generator=generator).double(),
                torch.randn(r, 30, generator=generator).double(),
            )
            for r in (2, 6)
        ]
        outputs, inputs = overlaps(*map(decompose, parts))
        seen.append((outputs.value, inputs.value))
        assert (outputs.random, inputs.random) == (6 / 40, 6 / 30)
    # 200 draws of a share whose spread is about 0.06: the mean is good to 0.005, four times which is allowed
    assert np.mean(seen, axis=0) == pytest.approx([6 / 40, 6 / 30], abs=0.02)


def test_signs_of_many_rows_are_sampled_and_counted():
    tall = [adapter(seed, out=1000) for seed in (1, 2)]
    updates = [(one.factors[PATHS[0]], one.spec.scale_of(PATHS[0])) for one in tall]
    signs = sign_conflict(PATHS[0], *updates)
    assert (signs.rows, signs.of) == (SIGN_ROWS, 1000)
    u, v = (dense(one, PATHS[0]) for one in tall)
    # 64 rows of 12 entries that hang together by 3 directions: a spread of about 0.03
    assert signs.plain == pytest.approx((u * v < 0).mean(), abs=0.1)
    assert signs.both == pytest.approx(1000 * 12)


def test_modules_of_one_alone_and_of_other_shapes_are_counted():
    first, second = adapter(1), adapter(2)
    del second.factors[PATHS[1]]
    second.factors["lm_head"] = first.factors[PATHS[1]]
    _, pair = paired(first, second)
    assert pair.only == (1, 1)
    assert len(pair.modules) == 1
    other = adapter(3, width=13)
    found, pair = paired(first, other)
    assert (pair.modules, set(pair.differing)) == ((), set(PATHS))
    assert pair.cosine == 0
    assert found.gram[0, 1] == 0


def test_an_update_of_zero_has_no_cosine():
    first, second = adapter(1), adapter(2)
    for factors in second.factors.values():
        factors.B.zero_()
    _, pair = paired(first, second)
    assert (pair.cosine, pair.outputs, pair.signs.plain) == (None, None, None)
    assert pair.norms[1] == 0


@settings(max_examples=40, deadline=None)
@given(
    seeds=st.tuples(st.integers(0, 99), st.integers(0, 99)),
    ranks=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    weights=st.tuples(st.floats(-3, 3), st.floats(-3, 3)),
)
def test_identities_of_pairs(seeds, ranks, weights):
    first, second = (adapter(seed, rank=rank) for seed, rank in zip(seeds, ranks, strict=True))
    found, pair = paired(first, second)
    assert -1 <= pair.cosine <= 1
    assert -1 - 1e-12 <= pair.interference <= 1 + 1e-12
    blend = norm_of_blend(found.gram, weights)
    wanted = sum(
        np.linalg.norm(weights[0] * dense(first, path) + weights[1] * dense(second, path)) ** 2
        for path in PATHS
    )
    # a norm that cancels is the root of a difference: half the digits
    assert blend == pytest.approx(np.sqrt(wanted), abs=1e-6 * (1 + pair.norms[0] + pair.norms[1]))
    for module in pair.modules:
        assert 0 <= module.outputs.value <= 1
        assert 0 <= module.signs.weighted <= 1
    if seeds[0] == seeds[1] and ranks[0] == ranks[1]:
        assert pair.cosine == pytest.approx(1, abs=1e-12)
        assert pair.signs.differ == 0


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 999), rank=st.integers(1, 6))
def test_another_writing_of_the_same_update_changes_nothing(seed, rank):
    one, other = adapter(seed, rank=rank), adapter(seed, rank=rank)
    generator = torch.Generator().manual_seed(seed)
    for factors in one.factors.values():
        factors.A, factors.B = factors.A.double(), factors.B.double()
    for path, factors in other.factors.items():
        # orthogonal, times scales up to 4: well conditioned, so that B T^-1 loses no digits
        turn = torch.linalg.qr(torch.randn(rank, rank, generator=generator).double())[0] * (
            1 + 3 * torch.rand(rank, generator=generator).double()
        )
        factors.A = turn @ one.factors[path].A
        factors.B = one.factors[path].B @ torch.linalg.inv(turn)
    found, pair = paired(one, other)
    assert pair.cosine == pytest.approx(1, abs=1e-9)
    assert pair.outputs.value == pytest.approx(1, abs=1e-9)
    assert pair.inputs.value == pytest.approx(1, abs=1e-9)
    for mine, theirs in zip(*found.modules, strict=True):
        assert mine.norm == pytest.approx(theirs.norm, **EXACT)
        assert mine.spectrum.effective_rank == pytest.approx(theirs.spectrum.effective_rank, **EXACT)


VARIANTS = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "bias": {"lora_bias": True},
    "dora": {"use_dora": True},
    "embedding": {"target_modules": ["embed_tokens", "q_proj"]},
    "head": {"target_modules": ["lm_head", "v_proj"]},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_outputs_on_real_inputs_are_those_of_the_bank(made, variant):
    model = tiny_llama(dtype=torch.float64)
    pair = [
        Adapter.load(made(model, "a", seed=1, **VARIANTS[variant])),
        Adapter.load(made(model, "b", seed=2, r=2, target_modules=["q_proj", "v_proj"])),
    ]
    ids = tiny_ids()
    found = on_data(model, pair, ids.tolist())
    assert found.tokens == ids.numel()
    inputs, outputs = {}, {}

    def keep(path):
        def hook(module, args, result):
            inputs[path], outputs[path] = args[0], result

        return model.get_submodule(path).register_forward_hook(hook)

    hooks = [keep(path) for path in found.grams]
    with torch.no_grad():
        model(input_ids=ids)
    for hook in hooks:
        hook.remove()
    bank = Bank(model)
    for name, one in zip("ab", pair, strict=True):
        bank.add(name, one)
    for path, gram in found.grams.items():
        module, updates = bank.model.get_submodule(path), []
        for name in "ab":
            bank.use(name)
            bank.routing.shape = tuple(ids.shape)
            with torch.no_grad():
                updates.append((module(inputs[path]) - outputs[path]).flatten())
        wanted = torch.tensor([[float(u @ v) for v in updates] for u in updates], dtype=torch.float64)
        assert torch.allclose(gram, wanted, rtol=1e-8, atol=1e-10)  # all of it in fp64
        assert found.outputs[path] == pytest.approx(float(outputs[path].norm()), rel=1e-9)
        relative = float(updates[0].norm() / outputs[path].norm())
        assert found.relative(path, 0) == pytest.approx(relative, rel=1e-7)


def test_hooks_are_taken_off_again(made):
    model = tiny_llama()
    one = Adapter.load(made(model))
    on_data(model, [one], [[3, 4, 5]])
    assert not any(module._forward_hooks for module in model.modules())
