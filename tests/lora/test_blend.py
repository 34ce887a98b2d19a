"""Blends equal dense merged weights, written out here; rows equal themselves alone; both kernels agree."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scumble.errors import AdapterError
from scumble.lora.adapter import Adapter
from scumble.lora.bank import Bank
from scumble.lora.kernels import SEGMENTS_FROM, Term, low_rank_update, segments, stacked
from tests.lora.conftest import peft_model
from tests.tiny import logits, tiny_ids, tiny_llama, tiny_qwen2_moe

# fp64: the same sums in another order, through two layers; logits up to 6. Measured: 1.4e-13.
EXACT = 1e-10
ADAPTERS = {
    "a": {"r": 4},
    "b": {"r": 2, "use_rslora": True, "target_modules": "all-linear"},
    "c": {
        "r": 3,
        "lora_alpha": 5,
        "target_modules": ["q_proj", "embed_tokens"],
        "rank_pattern": {"q_proj": 1},
    },
    "d": {"r": 2, "use_dora": True, "target_modules": ["q_proj", "down_proj"]},
    "e": {"r": 3, "use_dora": True, "use_rslora": True, "target_modules": ["q_proj", "v_proj"]},
    "f": {"r": 2, "lora_bias": True},
}
MIXTURES = [
    {"a": 0.7, "b": -0.3},
    {"a": 1.0, "b": 1.0, "c": 0.25},
    {"d": 0.6, "e": 0.4},
    {"a": -1.5, "d": 0.5, "e": 2.0, "f": 0.3},
    {"f": 0.9},
    {"d": 1.0},
]


@pytest.fixture(scope="module")
def base():
    return tiny_llama(dtype=torch.float64)


@pytest.fixture(scope="module")
def folders(base, tmp_path_factory):
    root = tmp_path_factory.mktemp("adapters")
    for number, (name, config) in enumerate(ADAPTERS.items()):
        peft_model(base, seed=number, **config).save_pretrained(root / name)
    return {name: root / name for name in ADAPTERS}


@pytest.fixture
def bank(base, folders):
    bank = Bank(copy.deepcopy(base))
    for name, folder in folders.items():
        bank.add(name, folder)
    return bank


def _merged(base, folders, weights):
    """The dense oracle: W + sum of w_i (s_i B_i A_i), or of w_i (diag(m / |V|) V - W) with V = W + s B A."""
    model = copy.deepcopy(base)
    changes: dict[str, torch.Tensor] = {}
    biases: dict[str, torch.Tensor] = {}
    for name, weight in weights.items():
        adapter = Adapter.load(folders[name])
        for path, factors in adapter.factors.items():
            rank = (
                adapter.spec.rank_pattern.get("q_proj", adapter.spec.rank)
                if "q_proj" in path
                else adapter.spec.rank
            )
            scale = adapter.spec.alpha / (rank**0.5 if adapter.spec.rslora else rank)
            W = base.get_submodule(path).weight.detach()
            update = scale * factors.B @ factors.A
            update = update.T if factors.embedding else update
            if factors.magnitude is not None:
                V = W + update
                update = (factors.magnitude / V.norm(dim=1))[:, None] * V - W
            changes[path] = changes.get(path, 0) + weight * update
            if factors.bias is not None:
                biases[path] = biases.get(path, 0) + weight * scale * factors.bias
    with torch.no_grad():
        for path, change in changes.items():
            model.get_submodule(path).weight += change
        for path, bias in biases.items():
            model.get_submodule(path).bias = torch.nn.Parameter(bias)
    return model


@pytest.mark.parametrize("weights", MIXTURES, ids=str)
def test_a_blend_equals_dense_merged_weights(base, folders, bank, weights):
    ids = tiny_ids()
    want = logits(_merged(base, folders, weights), ids)
    assert (want - logits(base, ids)).abs().max() > 0.1
    bank.use("+".join(f"{name}*{weight}" for name, weight in weights.items()))
    torch.testing.assert_close(logits(bank.model, ids), want, rtol=0, atol=EXACT)


@pytest.mark.parametrize("length", [7, SEGMENTS_FROM // 6 + 1], ids=["stacked", "segments"])
def test_each_row_equals_itself_alone(base, folders, bank, length):
    ids = tiny_ids(rows=len(MIXTURES) + 1, length=length)
    rows = [*MIXTURES, {}]
    bank.use_rows(rows)
    mixed = logits(bank.model, ids)
    for row, weights in enumerate(rows):
        want = logits(_merged(base, folders, weights), ids[row : row + 1])
        torch.testing.assert_close(mixed[row : row + 1], want, rtol=0, atol=EXACT, msg=str(weights))


def test_weights_of_rows_are_not_rounded_to_the_type_of_the_base(made, monkeypatch):
    base = tiny_llama()
    folder = made(base)
    bank = Bank(base.to(torch.bfloat16))
    bank.add("a", folder)
    seen = []
    monkeypatch.setattr(
        "scumble.lora.layer.low_rank_update", lambda x, terms, **kw: seen.append(terms) or 0 * x
    )
    bank.routing.shape = (2, 1)
    bank.use_rows(["a*0.7", {}])
    bank.model.model.layers[0].self_attn.q_proj(torch.zeros(2, 1, 16, dtype=torch.bfloat16))
    # bf16 would give 0.69921875
    assert float(seen[0][0].weight[0]) == pytest.approx(0.7, abs=1e-7)


def test_rows_of_a_module_that_sees_flattened_tokens(tmp_path):
    base = tiny_qwen2_moe(dtype=torch.float64)
    config = {"target_modules": ["shared_expert.down_proj", "shared_expert.gate_proj"]}
    bank = Bank(copy.deepcopy(base))
    ids = tiny_ids(rows=4)
    alone = {}
    for seed, name in enumerate("ab"):
        oracle = peft_model(base, seed=seed, **config)
        alone[name] = logits(oracle, ids)
        oracle.save_pretrained(tmp_path / name)
        bank.add(name, tmp_path / name)
    bank.use_rows(["b", {}, "a", "b"])
    mixed = logits(bank.model, ids)
    want = torch.stack([alone["b"][0], logits(base, ids)[1], alone["a"][2], alone["b"][3]])
    torch.testing.assert_close(mixed, want, rtol=0, atol=EXACT)


def test_inputs_as_embeddings_and_the_decoder_alone(base, bank):
    ids = tiny_ids()
    bank.use_rows(["a", {}, "b"])
    want = logits(bank.model, ids)
    embedded = bank.model.get_input_embeddings()(ids)
    with torch.no_grad():
        by_embeddings = bank.model(inputs_embeds=embedded).logits
        bank.routing.shape = (9, 9)  # of some batch before
        states = bank.model.model(input_ids=ids).last_hidden_state
        by_decoder = bank.model.lm_head(states)
    torch.testing.assert_close(by_embeddings, want, rtol=0, atol=EXACT)
    torch.testing.assert_close(by_decoder, want, rtol=0, atol=EXACT)


def test_generate_with_rows_equals_each_row_alone(bank):
    ids = tiny_ids(rows=3)
    rows = ["a*2", {}, "b+d*0.5"]
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    with bank.using(rows, rows=True):
        together = bank.model.generate(ids, attention_mask=torch.ones_like(ids), **options)
    alone = []
    for row, mixture in enumerate(rows):
        with bank.using(mixture):
            one = ids[row : row + 1]
            alone.append(bank.model.generate(one, attention_mask=torch.ones_like(one), **options))
    assert torch.equal(together, torch.cat(alone))
    assert len({tuple(row[7:].tolist()) for row in together}) > 1


@pytest.mark.parametrize("rows", [["a", "b"], ["a", "a"], [{}, {}], ["a"] * 4], ids=str)
def test_a_wrong_number_of_rows_is_refused(bank, rows):
    bank.use_rows(rows)
    with pytest.raises(AdapterError, match=rf"{len(rows)} rows and the batch is 3x7"):
        bank.model(input_ids=tiny_ids(rows=3))
    with pytest.raises(AdapterError, match="no rows"):
        bank.use_rows([])


@pytest.mark.parametrize(
    ("config", "part"),
    [({"modules_to_save": ["lm_head"]}, "modules_to_save"), ({"trainable_token_indices": [5]}, "token rows")],
)
def test_what_replaces_is_not_blended(bank, base, made, config, part):
    bank.add("whole", made(base, **config))
    bank.use("whole")
    bank.use_rows(["whole", "a*0.5+b", {}])
    for mixture in ("whole*0.5", "whole+a", {"whole": 2.0}):
        with pytest.raises(AdapterError, match=part):
            bank.use(mixture)
        with pytest.raises(AdapterError, match=part):
            bank.use_rows([{}, mixture])
    # also not by the back door: new contents for a name that is being blended
    for use in (lambda: bank.use("a*0.5+b"), lambda: bank.use_rows([{}, "a*0.5", {}])):
        use()
        with pytest.raises(AdapterError, match=part):
            bank.swap("a", made(base, "other", **config))
    bank.use_rows(["a", {}, "b*0.3"])
    bank.swap("a", made(base, "other", **config))


@settings(max_examples=60, deadline=None)
@given(
    ranks=st.lists(st.integers(1, 5), min_size=1, max_size=5),
    shape=st.tuples(st.integers(1, 5), st.integers(1, 6)),
    by_token=st.booleans(),
    seed=st.integers(0, 2**20),
)
def test_both_kernels_equal_a_loop(ranks, shape, by_token, seed):
    generator = torch.Generator().manual_seed(seed)

    def draw(*size):
        return torch.randn(size, generator=generator, dtype=torch.float64)

    x = draw(*shape, 6)
    terms, want = [], torch.zeros(*shape, 7, dtype=torch.float64)
    for number, rank in enumerate(ranks):
        weight = draw(shape[0], shape[1] if by_token else 1, 1)
        weight = torch.where(draw(*weight.shape) > 0, weight, 0.0)  # some rows give it nothing
        term = Term(draw(rank, 6), draw(7, rank), 0.5 + number, weight if len(ranks) > 1 or by_token else 0.3)
        terms.append(term)
        want = want + term.weight * term.scale * (x @ term.A.T @ term.B.T)
    for kernel in (stacked, segments, low_rank_update):
        torch.testing.assert_close(kernel(x, terms), want, rtol=0, atol=1e-11)
