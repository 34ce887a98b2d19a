"""What changes the forward pass and is not computed is refused by name; PEFT itself makes it where it can."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import peft
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from scumble.errors import AdapterError, MissingFileError
from scumble.lora.adapter import CONFIG_NAME, WEIGHTS_NAME, Adapter
from scumble.lora.bank import Bank
from scumble.lora.spec import LoraSpec
from tests.tiny import FAMILIES, tiny_llama, tiny_mixtral

LORA = {"r": 4, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}


def _peft(kind: str, **extra):
    return lambda: getattr(peft, kind)(**{**extra, "task_type": "CAUSAL_LM"})


def _lora(**extra):
    return lambda: LoraConfig(**{**LORA, **extra})


MADE_BY_PEFT = {
    "aLoRA": _lora(alora_invocation_tokens=[5]),
    "target_parameters": _lora(target_parameters=["mlp.down_proj.weight"], target_modules=["q_proj"]),
    "LOHA": _peft("LoHaConfig", target_modules=["q_proj"]),
    "LOKR": _peft("LoKrConfig", target_modules=["q_proj"]),
    "IA3": _peft("IA3Config", target_modules=["q_proj"], feedforward_modules=[]),
    "PROMPT_TUNING": _peft("PromptTuningConfig", num_virtual_tokens=4),
    "VERA": _peft("VeraConfig", target_modules=["q_proj"]),
    "ADALORA": _peft("AdaLoraConfig", target_modules=["q_proj"], total_step=10),
    "OFT": _peft("OFTConfig", target_modules=["q_proj"], oft_block_size=4, r=0),
    "layer_replication": _lora(layer_replication=[[0, 2], [1, 2]]),
    "pissa": _lora(init_lora_weights="pissa"),
    "pissa_niter_2": _lora(init_lora_weights="pissa_niter_2"),
    "olora": _lora(init_lora_weights="olora"),
    "ensure_weight_tying": _lora(ensure_weight_tying=True, modules_to_save=["embed_tokens"]),
}
# What needs a GPU kernel, a quantised base or data to be made: the configuration alone, as PEFT writes it.
BY_CONFIGURATION = {
    "use_qalora": {"use_qalora": True},
    "Arrow": {"arrow_config": {"top_k": 2}},
    "use_bdlora": {"use_bdlora": {"nblocks": 2}},
    "KaSA": {"kasa_config": {}},
    "VeLoRA": {"velora_config": {}},
    "MonteCLoRA": {"monteclora_config": {}},
    "Megatron": {"megatron_config": {"a": 1}},
    "corda": {"init_lora_weights": "corda"},
    "lora_ga": {"init_lora_weights": "lora_ga"},
    "loftq": {"init_lora_weights": "loftq"},
    "a_key_of_tomorrow": {"a_key_of_tomorrow": 3},
}


def _edit(folder: Path, **values) -> Path:
    config = json.loads((folder / CONFIG_NAME).read_text())
    (folder / CONFIG_NAME).write_text(json.dumps({**config, **values}))
    return folder


def _tensors(folder: Path, change) -> Path:
    tensors = load_file(folder / WEIGHTS_NAME)
    change(tensors)
    save_file(tensors, folder / WEIGHTS_NAME)
    return folder


@pytest.mark.parametrize("kind", MADE_BY_PEFT)
def test_another_kind_made_by_peft_is_refused_by_name(kind, tmp_path):
    base = tiny_llama(tie_word_embeddings=True)
    model = get_peft_model(copy.deepcopy(base), MADE_BY_PEFT[kind]())
    model.save_pretrained(tmp_path / "a")
    bank = Bank(base)
    with pytest.raises(AdapterError, match=kind):
        bank.add("a", tmp_path / "a")
    assert bank.names == []


@pytest.mark.parametrize("kind", BY_CONFIGURATION)
def test_another_kind_is_refused_by_its_configuration(kind, made):
    folder = made(tiny_llama())
    LoraSpec.from_peft(json.loads((folder / CONFIG_NAME).read_text()))
    with pytest.raises(AdapterError, match=kind):
        Adapter.load(_edit(folder, **BY_CONFIGURATION[kind]))


def test_every_field_of_peft_is_known():
    """A field that a new PEFT adds must be looked at: refused, computed, or harmless."""
    from scumble.lora.peft_config import HARMLESS, REFUSED

    known = {*LoraSpec().to_peft(), *HARMLESS, *REFUSED}
    assert set(LoraConfig().to_dict()) <= known


def test_no_peft_type_and_wrong_types():
    with pytest.raises(AdapterError, match="without peft_type"):
        LoraSpec.from_peft({"r": 8, "target_modules": ["q_proj"]})
    with pytest.raises(AdapterError, match="names no target_modules"):
        LoraSpec.from_peft({"peft_type": "LORA", "r": 8})
    with pytest.raises(AdapterError, match="wrong type"):
        LoraSpec.from_peft({"peft_type": "LORA", "r": 8, "target_modules": ["q"], "rank_pattern": 3})


@pytest.mark.parametrize("targets", [["q_proj", "w1", "w3"], ["w2"], ["w1"], "all-linear", ["gate"]], ids=str)
def test_fused_experts_are_refused_by_name(targets, tmp_path):
    base = tiny_mixtral()
    bank = Bank(copy.deepcopy(base))
    with pytest.raises(AdapterError, match=r"fused experts.*target_parameters"):
        bank.trainable("a", LoraSpec(targets=targets if isinstance(targets, str) else tuple(targets)))
    assert bank.names == []
    # and where PEFT makes an adapter for them
    if targets != ["w1"]:  # which PEFT refuses too: w1 and w3 are one parameter
        config = LoraConfig(**{**LORA, "target_modules": targets})
        get_peft_model(base, config).save_pretrained(tmp_path / "a")
        with pytest.raises(AdapterError, match="target_parameters"):
            bank.add("a", tmp_path / "a")


def test_a_pattern_that_picks_layers_of_a_mixture_is_refused():
    """PEFT reads it as the last names, in every layer."""
    base = tiny_mixtral()
    pattern = r".*layers\.0\.self_attn\.q_proj"
    with pytest.raises(AdapterError, match=r"PEFT reads the pattern .* as q_proj in every layer"):
        Bank(copy.deepcopy(base)).trainable("a", LoraSpec(targets=pattern))
    peft = get_peft_model(base, LoraConfig(**{**LORA, "target_modules": pattern}))
    assert any("layers.1.self_attn.q_proj.lora_A" in name for name, _ in peft.named_parameters())
    bank = Bank(tiny_mixtral())
    bank.trainable("a", LoraSpec(targets=r".*self_attn\.[qv]_proj"))
    assert len(bank.adapter("a").factors) == 4


@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe"])
@pytest.mark.parametrize("name", ["gate_up_proj", "experts"])
def test_bare_expert_parameters_are_refused(family, name):
    with pytest.raises(AdapterError, match="expert"):
        Bank(FAMILIES[family]()).trainable("a", LoraSpec(targets=("q_proj", name)))


def test_a_pickle_is_refused_with_the_reason(made):
    folder = made(tiny_llama())
    (folder / WEIGHTS_NAME).rename(folder / "adapter_model.bin")
    with pytest.raises(AdapterError, match=r"pickle.*run any code"):
        Adapter.load(folder)
    (folder / "adapter_model.bin").unlink()
    with pytest.raises(MissingFileError, match=WEIGHTS_NAME):
        Adapter.load(folder)


def test_a_folder_that_is_no_adapter(tmp_path):
    with pytest.raises(MissingFileError, match="does not exist"):
        Adapter.load(tmp_path / "nowhere")
    with pytest.raises(MissingFileError, match=CONFIG_NAME):
        Adapter.load(tmp_path)


@pytest.mark.parametrize("text", ["{", "[1]", "", "[" * 100_000], ids=["cut", "list", "empty", "deep"])
def test_a_damaged_configuration(made, text):
    folder = made(tiny_llama())
    (folder / CONFIG_NAME).write_text(text)
    with pytest.raises(AdapterError, match="JSON"):
        Adapter.load(folder)


def test_damaged_weights(made):
    folder = made(tiny_llama())
    whole = (folder / WEIGHTS_NAME).read_bytes()
    for damaged in (b"", whole[:50], whole[:-7]):
        (folder / WEIGHTS_NAME).write_bytes(damaged)
        with pytest.raises(AdapterError, match="cannot be read"):
            Adapter.load(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite(made, value):
    def spoil(tensors):
        next(iter(tensors.values()))[0, 0] = value

    with pytest.raises(AdapterError, match="not finite"):
        Adapter.load(_tensors(made(tiny_llama()), spoil))


def test_an_unknown_tensor_and_half_a_pair(made):
    def unknown(tensors):
        tensors["base_model.model.model.layers.0.self_attn.q_proj.lora_C.weight"] = torch.ones(2)

    with pytest.raises(AdapterError, match="lora_C"):
        Adapter.load(_tensors(made(tiny_llama(), "x"), unknown))

    def half(tensors):
        del tensors["base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"]

    with pytest.raises(AdapterError, match="only one of lora_A and lora_B"):
        Adapter.load(_tensors(made(tiny_llama(), "y"), half))


def test_a_configuration_of_another_rank(made):
    with pytest.raises(AdapterError, match="its rank is 5"):
        Adapter.load(_edit(made(tiny_llama()), r=5))


@pytest.mark.parametrize("flag", ["use_dora", "lora_bias"])
def test_a_variant_that_the_weights_lack(made, flag):
    with pytest.raises(AdapterError, match="lacks"):
        Adapter.load(_edit(made(tiny_llama(), "x"), **{flag: True}))
    with pytest.raises(AdapterError, match="does not ask for it"):
        Adapter.load(_edit(made(tiny_llama(), "y", **{flag: True}), **{flag: False}))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rank": 0}, "rank is 0"),
        ({"rank": -3}, "rank is -3"),
        ({"rank": True}, "rank is True"),
        ({"rank_pattern": {"q_proj": 0}}, "rank is 0"),
        ({"alpha": -1.0}, "alpha is -1.0"),
        ({"alpha": 0}, "alpha is 0"),
        ({"alpha": float("nan")}, "alpha is nan"),
        ({"alpha_pattern": {"q_proj": -2}}, "alpha is -2"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"bias": "some"}, "bias is 'some'"),
        ({"dora": True, "lora_bias": True}, "DoRA has no lora_bias"),
        ({"targets": "(q_proj"}, "not a regular expression"),
        ({"targets": ()}, "no target modules"),
        ({"rank_pattern": {"(": 3}}, "not a regular expression"),
        ({"layers_pattern": ("layers",)}, "without layers_to_transform"),
        ({"targets": "all-linear", "layers_to_transform": (1,)}, "by name"),
        ({"trainable_token_indices": {"": (3, 3)}}, "twice"),
    ],
    ids=str,
)
def test_values_that_cannot_be(values, message):
    with pytest.raises(AdapterError, match=message):
        LoraSpec(**values)


def test_targets_that_match_nothing_show_the_nearest_names():
    with pytest.raises(AdapterError, match=r"q_prj match nothing.*q_proj"):
        Bank(tiny_llama()).trainable("a", LoraSpec(targets=("q_prj",)))
    with pytest.raises(AdapterError, match=r"lm_heads.*lm_head"):
        Bank(tiny_llama()).trainable("a", LoraSpec(modules_to_save=("lm_heads",)))
    with pytest.raises(AdapterError, match="embed"):
        Bank(tiny_llama()).trainable("a", LoraSpec(trainable_token_indices={"embed": (1,)}))
    with pytest.raises(AdapterError, match="48 tokens"):
        Bank(tiny_llama()).trainable("a", LoraSpec(trainable_token_indices={"": (48,)}))
    with pytest.raises(AdapterError, match="LlamaMLP"):
        Bank(tiny_llama()).trainable("a", LoraSpec(targets=("mlp",)))


def test_shapes_of_another_base(made):
    folder = made(tiny_llama())
    with pytest.raises(AdapterError, match=r"q_proj is 32 x 32 in the base.*16 x 16"):
        Bank(tiny_llama(hidden_size=32)).add("a", folder)
    saved = made(tiny_llama(), "saved", modules_to_save=["lm_head"])
    with pytest.raises(AdapterError, match=r"lm_head.weight has shape \(48, 16\)"):
        Bank(tiny_llama(vocab_size=50)).add("a", saved)
    tokens = Adapter.load(made(tiny_llama(), "tokens", trainable_token_indices=[3]))
    broken = replace(tokens, tokens={path: rows[:, :5] for path, rows in tokens.tokens.items()})
    with pytest.raises(AdapterError, match="token rows"):
        Bank(tiny_llama()).add("a", broken)
    copies = made(tiny_llama(), "copies", target_modules=["embed_tokens", "q_proj"])
    with pytest.raises(AdapterError, match=r"weight of model.embed_tokens that differs"):
        Bank(tiny_llama(seed=1)).add("a", copies)
