"""The bank as a container: names, swapping, removing, closing, and that a failure changes nothing."""

from __future__ import annotations

import copy
import gc
import weakref
from dataclasses import replace

import pytest
import torch

from scumble.errors import AdapterError, OutputExistsError
from scumble.lora.adapter import CONFIG_NAME, WEIGHTS_NAME, Adapter
from scumble.lora.bank import Bank
from scumble.lora.spec import LoraSpec
from tests.lora.conftest import peft_model
from tests.tiny import logits, tiny_gpt2, tiny_ids, tiny_llama

IDS = tiny_ids()


def _tree(model) -> list[tuple[str, int]]:
    return [(name, id(module)) for name, module in model.named_modules()]


def _state(bank) -> tuple:
    return _tree(bank.model), bank.names, bank.routing.state(), logits(bank.model, IDS).tolist()


@pytest.fixture
def bank():
    return Bank(tiny_llama())


@pytest.fixture
def folder(made):
    return made(tiny_llama())


def test_names_are_compared_whole(bank, tmp_path):
    seen = {}
    for seed, name in enumerate(["a", "a_2", "a.b", "a-b", "s1", "default"]):
        oracle = peft_model(tiny_llama(), seed=seed)
        oracle.save_pretrained(tmp_path / name)
        bank.add(name, tmp_path / name)
        seen[name] = logits(oracle, IDS)
    for name, want in seen.items():
        bank.use(name)
        # fp32, another program for the same sums; measured 0
        torch.testing.assert_close(logits(bank.model, IDS), want, rtol=0, atol=1e-5)
    bank.use({})
    bank.remove("a")
    bank.swap("a.b", tmp_path / "default")
    seen["a.b"] = seen["default"]
    for name in bank.names:
        bank.use(name)
        torch.testing.assert_close(logits(bank.model, IDS), seen[name], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["", "base", "a b", "-a", ".a", "a*b", "a+b", "é", "a\n"])
def test_bad_names(bank, folder, name):
    with pytest.raises(AdapterError, match="cannot name an adapter"):
        bank.add(name, folder)


def test_taken_and_unknown_names(bank, folder):
    bank.add("a", folder)
    with pytest.raises(AdapterError, match="has an adapter 'a' already"):
        bank.add("a", folder)
    for call in (bank.adapter, bank.remove, bank.parameters, bank.snapshot, bank.use):
        with pytest.raises(AdapterError, match=r"no adapter 'b'.*it has: a"):
            call("b")
    with pytest.raises(AdapterError, match="no adapter 'b'"):
        bank.swap("b", folder)


CONFIGS = [
    {},
    {"target_modules": "all-linear", "use_dora": True},
    {"modules_to_save": ["norm", "mlp"]},
    {"trainable_token_indices": [5, 3]},
    {"target_modules": ["embed_tokens", "lm_head"]},
]


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_removing_and_closing_restore_bit_for_bit(made, tied):
    model = tiny_llama(tie_word_embeddings=tied)
    tree, before = _tree(model), logits(model, IDS)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trained = [parameter.requires_grad for parameter in model.parameters()]
    bank = Bank(model)
    for number, config in enumerate(CONFIGS[:4]):
        bank.add(f"a{number}", made(tiny_llama(tie_word_embeddings=tied), f"a{number}", **config))
        bank.use(f"a{number}")
        logits(model, IDS)
    bank.use({})
    for name in ("a1", "a3", "a0", "a2"):
        bank.remove(name)
    assert _tree(model) == tree
    bank.add("a", made(tiny_llama(tie_word_embeddings=tied), "again"))
    bank.use("a")
    bank.close()
    assert _tree(model) == tree
    assert torch.equal(logits(model, IDS), before)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert [parameter.requires_grad for parameter in model.parameters()] == trained
    assert not model._forward_pre_hooks
    assert not model.model._forward_pre_hooks
    Bank(model)  # and it can be in a bank again


def test_a_model_is_in_one_bank(bank):
    with pytest.raises(AdapterError, match="in a bank already"):
        Bank(bank.model)


@pytest.mark.parametrize("way", ["remove", "swap", "close"])
def test_memory_is_freed(bank, folder, way):
    bank.add("a", folder)
    alive = [weakref.ref(parameter) for parameter in bank.parameters("a").values()]
    if way == "swap":
        bank.swap("a", folder)
    elif way == "remove":
        bank.remove("a")
    else:
        bank.close()
    gc.collect()
    assert alive
    assert not any(reference() is not None for reference in alive)


def test_what_is_in_use_is_not_removed(bank, folder):
    bank.add("a", folder)
    for use in (lambda: bank.use("a"), lambda: bank.use_rows(["a", {}, {}])):
        use()
        with pytest.raises(AdapterError, match="in use"):
            bank.remove("a")
        with bank.using({}), pytest.raises(AdapterError, match="in use"):
            bank.remove("a")  # it comes back after the `with`
    bank.use({})
    bank.remove("a")


def test_swap_changes_the_rows_that_use_the_name(bank, folder, made):
    other = peft_model(tiny_llama(), seed=9, target_modules=["k_proj", "down_proj"])
    other.save_pretrained(folder.parent / "other")
    bank.add("a", folder)
    bank.use_rows([{}, "a", {}])
    with bank.using("a"):
        bank.swap("a", folder.parent / "other")
        want = logits(other, IDS)
        torch.testing.assert_close(logits(bank.model, IDS), want, rtol=0, atol=1e-5)
    torch.testing.assert_close(logits(bank.model, IDS)[1], want[1], rtol=0, atol=1e-5)
    assert "q_proj" not in " ".join(bank.parameters("a"))


def test_using_goes_back_also_after_an_error(bank, folder):
    bank.add("a", folder)
    bank.use("a*0.5")
    want = logits(bank.model, IDS)
    with pytest.raises(RuntimeError), bank.using(["a", {}, {}], rows=True):
        raise RuntimeError
    assert torch.equal(logits(bank.model, IDS), want)
    with pytest.raises(AdapterError), bank.using("nobody"):
        pass
    assert torch.equal(logits(bank.model, IDS), want)


def test_a_partial_match_fails_with_its_three_lists_and_changes_nothing(bank, folder):
    bank.add("ok", folder)
    bank.use("ok*0.5")
    before = _state(bank)
    whole = Adapter.load(folder)
    path = "model.layers.1.self_attn.v_proj"
    less = replace(whole, factors={p: f for p, f in whole.factors.items() if p != path})
    more = replace(whole, factors={**whole.factors, "model.layers.7.x": whole.factors[path]})
    for adapter, message in (
        (less, rf"3 modules match, 1 are missing \({path}\), 0 have no place"),
        (more, r"4 modules match, 0 are missing, 1 have no place \(model.layers.7.x\)"),
    ):
        with pytest.raises(AdapterError, match=message):
            bank.add("b", adapter)
        with pytest.raises(AdapterError, match=message):
            bank.swap("ok", adapter)
        assert _state(bank) == before
    found = bank.add("b", whole)
    assert len(found.matched) == 4
    assert found.missing == found.unexpected == ()


@pytest.mark.parametrize("config", [*CONFIGS[2:4], {"target_modules": ["c_attn"], "bias": "all"}], ids=str)
def test_a_missing_part_of_another_kind_fails(config, made):
    build = tiny_gpt2 if "bias" in config else tiny_llama
    whole = Adapter.load(made(build(), **config))
    bank = Bank(build())
    for part in ("factors", "saved", "tokens", "biases"):
        if getattr(whole, part):
            less = dict(list(getattr(whole, part).items())[1:])
            with pytest.raises(AdapterError, match=r"missing|lacks"):
                bank.add("a", replace(whole, **{part: less}))
            with pytest.raises(AdapterError, match=r"missing|lacks"):
                bank.add("a", replace(whole, **{part: {}}))
    bank.add("a", whole)


def test_replacing_and_updating_one_module_conflict_and_change_nothing(bank, made):
    updates = made(tiny_llama(), "updates", target_modules=["q_proj", "lm_head"])
    replaces = made(tiny_llama(), "replaces", modules_to_save=["lm_head"])
    for first, second in ((updates, replaces), (replaces, updates)):
        bank.add("first", first)
        before = _state(bank)
        with pytest.raises(AdapterError, match="replaces lm_head whole and another updates it"):
            bank.add("second", second)
        assert _state(bank) == before
        bank.remove("first")


def test_running_out_of_memory_changes_nothing(bank, folder, monkeypatch):
    from scumble.lora import install

    bank.add("ok", folder)
    before = _state(bank)
    real, calls = install._slot_of, []

    def fail(*args):
        calls.append(args)
        if len(calls) == 3:
            raise MemoryError
        return real(*args)

    monkeypatch.setattr(install, "_slot_of", fail)
    with pytest.raises(MemoryError):
        bank.add("b", folder)
    assert _state(bank) == before


@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["outer first", "inner first"])
def test_one_replaces_a_container_and_another_updates_inside_it(made, order):
    base = tiny_llama()
    configs = {"outer": {"modules_to_save": ["mlp"]}, "inner": {"target_modules": ["gate_proj", "down_proj"]}}
    want = {name: logits(peft_model(base, **config), IDS) for name, config in configs.items()}
    bank = Bank(copy.deepcopy(base))
    names = [list(configs)[number] for number in order]
    for name in names:
        bank.add(name, made(base, name, **configs[name]))
    for name in names:
        bank.use(name)
        torch.testing.assert_close(logits(bank.model, IDS), want[name], rtol=0, atol=1e-5)
    bank.use_rows(["outer", {}, "inner"])
    mixed = logits(bank.model, IDS)
    torch.testing.assert_close(mixed[0], want["outer"][0], rtol=0, atol=1e-5)
    torch.testing.assert_close(mixed[2], want["inner"][2], rtol=0, atol=1e-5)
    bank.use({})
    bank.remove(names[0])
    bank.use(names[1])
    torch.testing.assert_close(logits(bank.model, IDS), want[names[1]], rtol=0, atol=1e-5)


def test_a_module_replaced_whole_that_gives_no_tensor_serves_one_mixture_at_a_time(made):
    base = tiny_llama()
    config = {"modules_to_save": ["self_attn"], "target_modules": ["up_proj"]}
    want = logits(peft_model(base, **config), IDS)
    bank = Bank(base)
    bank.add("a", made(tiny_llama(), **config))
    bank.use("a")
    torch.testing.assert_close(logits(bank.model, IDS), want, rtol=0, atol=1e-5)
    bank.use_rows(["a", {}, {}])
    with pytest.raises(AdapterError, match="self_attn is replaced whole"):
        bank.model(input_ids=IDS)


def test_another_base_draws_a_warning_that_names_both(folder, tmp_path):
    bank = Bank(tiny_llama())
    bank.base_hash, bank.base_name = "hash-one", "base-one"
    bank.trainable("a", LoraSpec(), seed=1)
    bank.save("a", tmp_path / "out")
    other = Bank(tiny_llama())
    other.base_hash, other.base_name = "hash-two", "base-two"
    with pytest.warns(UserWarning, match=r"hash-one \(base-one\).*hash-two \(base-two\)"):
        other.add("a", tmp_path / "out")
    assert Adapter.load(tmp_path / "out").base_hash == "hash-one"


@pytest.mark.parametrize("base_hash", [None, "hash"])
def test_the_same_adapter_gives_the_same_bytes(folder, tmp_path, base_hash):
    adapter = replace(Adapter.load(folder), base_hash=base_hash)
    turned = replace(adapter, factors=dict(reversed(adapter.factors.items())))
    files = set()
    for number in range(20):
        out = (adapter, turned)[number % 2].save(tmp_path / str(number))
        files.add((out / WEIGHTS_NAME).read_bytes() + (out / CONFIG_NAME).read_bytes())
    assert len(files) == 1
    back = Adapter.load(tmp_path / "0")
    assert back.base_hash == base_hash
    assert all(torch.equal(tensor, adapter.tensors()[name]) for name, tensor in back.tensors().items())
    with pytest.raises(OutputExistsError):
        adapter.save(tmp_path / "0")
    adapter.save(tmp_path / "0", force=True)


def test_a_run_folder_holds_its_adapter(folder, tmp_path):
    Adapter.load(folder).save(tmp_path / "run" / "adapter")
    assert Adapter.load(tmp_path / "run").parameters == Adapter.load(folder).parameters > 0


def test_one_wrong_target_name_among_right_ones_is_refused():
    bank = Bank(tiny_llama())
    with pytest.raises(AdapterError, match="q_porj match nothing") as caught:
        bank.trainable("a", LoraSpec(targets=("q_porj", "v_proj")))
    assert "q_proj" in caught.value.hint
    assert bank.names == []
