"""`plan`: the lesson's figures, what is decided and refused, data read as training reads them, and advice that holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest

import scumble
from scumble.config import PlanOptions, make
from scumble.errors import AdapterError, ConfigError, DataError, NotSupportedError
from scumble.lora.spec import LoraSpec
from scumble.plan import reading
from scumble.plan.plan import Plan, plan
from scumble.plan.shape import find_shape
from scumble.plan.siblings import smaller_bases
from scumble.plan.tape import PARTS
from tests.bases import letters_model, letters_tokenizer, sums

LLAMA = "meta-llama/Llama-3.1-8B-Instruct"
LESSON: dict[str, Any] = {"rank": 16, "alpha": 32, "targets": "standard", "batch": 4, "max_length": 2048}


@pytest.fixture(scope="module")
def letters(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A base of two layers with its tokenizer, and without weights."""
    folder = tmp_path_factory.mktemp("bases") / "letters"
    letters_model().config.save_pretrained(folder)
    letters_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def lesson() -> Plan:
    return plan(LLAMA, **LESSON)


@pytest.fixture(scope="module")
def fitted() -> Plan:
    return plan(LLAMA, **LESSON, gpu="24GB")


def options_of(text: str) -> dict[str, Any]:
    """What is typed, as Python takes it."""
    words = text.split()
    return {
        name.removeprefix("--").replace("-", "_"): value
        for name, value in zip(words[::2], words[1::2], strict=True)
    }


def test_the_lesson_s_parameters(lesson):
    found = lesson.to_dict()["parameters"]
    assert (found["trainable"], found["total"]) == (13_631_488, 8_043_892_736)
    assert round(found["percent"], 4) == 0.1695


def test_what_json_has_is_whole_and_can_be_written(lesson):
    found = json.loads(json.dumps(lesson.to_dict()))
    assert {
        "parameters",
        "memory",
        "fits",
        "suggestions",
        "alternatives",
        "largest",
        "advice",
        "notes",
    } <= set(found)
    for memory in (found["memory"], *found["alternatives"].values()):
        assert sum(memory[part] for part in PARTS) == memory["peak"]
        assert memory["at"]
    assert (found["fits"], found["largest"], found["suggestions"]) == (None, None, [])


def test_alternatives_are_what_is_planned_when_they_are_asked_for(lesson):
    assert set(lesson.alternatives) == {"qlora", "full", "checkpointing", "script", "script_checkpointing"}
    full = plan(LLAMA, **LESSON, method="full")
    assert full.memory == lesson.alternatives["full"].memory
    assert full.alternatives["lora"].memory == lesson.memory
    repeated = plan(LLAMA, **LESSON, gradient_checkpointing="all")
    assert repeated.memory == lesson.alternatives["checkpointing"].memory
    assert "checkpointing" not in repeated.alternatives


def test_a_module_takes_what_the_plan_differs_by(lesson):
    by_name = {each.name: each for each in lesson.modules}
    assert [each.included for each in lesson.modules] == [True] * 4 + [False] * 3
    with_one = plan(LLAMA, **{**LESSON, "targets": "q_proj,k_proj,v_proj,o_proj,down_proj"})
    taken = by_name["down_proj"]
    assert taken.bytes == with_one.memory.peak - lesson.memory.peak
    assert taken.parameters == with_one.parameters.trainable - lesson.parameters.trainable
    # the lesson says 15 to 20 % for each
    assert all(0 < each.share < 0.1 for each in lesson.modules)


def test_auto_computes_the_fewest_layers_twice_that_fit(fitted):
    repeat = fitted.setup.repeat
    assert fitted.fits
    assert isinstance(repeat, int)
    assert 0 < repeat < 32
    told = {choice.option: choice for choice in fitted.choices}
    assert told["gradient_checkpointing"].value == repeat
    one_less = plan(LLAMA, **LESSON, gpu="24GB", gradient_checkpointing=repeat - 1)
    assert not one_less.fits


def test_without_a_card_auto_is_none(lesson):
    assert lesson.setup.repeat == 0
    assert lesson.fits is None


@pytest.mark.parametrize("gpu", ["rtx 4080", "18GB"])
def test_suggestions_that_are_followed_do_fit(gpu):
    found = plan(LLAMA, **LESSON, gpu=gpu)
    assert not found.fits
    assert found.fit is not None
    last = found.fit.suggestions[-1]
    assert last.fits
    options = {**LESSON, "gpu": gpu, **options_of(found.fit.options)}
    assert plan(LLAMA, **options).fits
    # by itself, `auto` then computes fewer layers twice
    assert plan(LLAMA, **options, gradient_checkpointing="all").memory.peak == last.peak


@pytest.mark.parametrize("name", ["batch", "length", "rank"])
def test_the_largest_fits_and_one_more_does_not(fitted, name):
    assert fitted.largest is not None
    option = {"length": "max_length"}.get(name, name)
    most = getattr(fitted.largest, name)
    # accumulation stays that of the plan, and alpha grows with the rank
    same = {"accumulate": fitted.setup.accumulate}
    assert plan(LLAMA, **{**LESSON, **same, option: most}, gpu="24GB").fits
    assert not plan(LLAMA, **{**LESSON, **same, option: most + 1}, gpu="24GB").fits


def test_a_smaller_base_is_of_the_same_makers_and_kind():
    names = list(smaller_bases(find_shape("meta-llama/Llama-3.1-70B-Instruct")))
    assert "meta-llama/Llama-3.1-8B-Instruct" in names
    assert all(name.startswith("meta-llama/Llama-3") and name.endswith("-Instruct") for name in names)
    counted = [find_shape(name).parameters for name in names]
    assert counted == sorted(counted, reverse=True)


def test_the_type_is_the_configuration_s_and_on_a_cpu_what_training_takes():
    assert plan(LLAMA, **LESSON).setup.dtype == "bf16"
    on_cpu = plan(LLAMA, **LESSON, device="cpu")
    assert on_cpu.setup.dtype == "fp32"
    assert "dtype" in {choice.option for choice in on_cpu.choices}
    assert plan(LLAMA, **LESSON, device="cpu", dtype="bf16").setup.dtype == "bf16"


def test_data_are_read_with_the_base_s_tokenizer(letters):
    found = plan(letters, data=sums(40), eval=0, epochs=1)
    assert found.data is not None
    tokenizer = letters_tokenizer()
    lengths = [
        len(tokenizer.apply_chat_template(row["messages"], tokenize=True)["input_ids"]) for row in sums(40)
    ]
    assert (found.data.examples, found.data.longest) == (40, max(lengths))
    assert abs(found.data.tokens - sum(lengths)) <= 40  # a template's last line break is not trained on
    assert not found.data.approximate
    assert found.data.steps == found.data.steps_per_epoch == 10


def test_a_share_is_held_back_as_training_does(letters):
    found = plan(letters, data=sums(200))
    assert found.data is not None
    assert 160 <= found.data.examples < 200
    whole = plan(letters, data=sums(200), eval=0)
    assert whole.data is not None
    assert whole.data.examples == 200


def test_without_a_tokenizer_lengths_are_said_to_be_approximate(letters, tmp_path, monkeypatch):
    alone = tmp_path / "config.json"
    alone.write_text((Path(letters) / "config.json").read_text())
    real = reading.load_tokenizer
    stands_in = letters_tokenizer()
    monkeypatch.setattr(
        reading, "load_tokenizer", lambda name: stands_in if name == "smollm2" else real(name)
    )
    found = plan(alone, data=sums(20))
    assert found.data is not None
    assert (found.data.approximate, found.data.tokenizer) == (True, "smollm2")
    assert any("approximate" in note for note in found.notes)


def test_examples_that_are_too_long_are_counted_and_the_script_cuts_them(letters):
    rows = [*sums(20), {"messages": [{"role": "user", "content": "x" * 300}, *sums(1)[0]["messages"][1:]]}]
    found = plan(letters, data=rows, eval=0, max_length=200, batch=2)
    assert found.data is not None
    assert (found.data.examples, found.data.too_long[0]) == (20, 1)
    assert found.data.too_long[1] > 300
    assert found.setup.longest < 200
    assert found.alternatives["script"].setup.longest == 200


def test_supervised_is_a_share_of_the_worst_case(letters):
    found = plan(letters, batch=2, max_length=100, supervised=0.25)
    assert (found.setup.tokens, found.setup.losses) == (200, 50)
    assert found.alternatives["script"].setup.losses == 200  # which makes logits of all positions


def test_a_configuration_of_peft_is_taken(letters):
    given = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "o_proj"])
    found = plan(letters, lora=given)
    same = plan(letters, rank=4, alpha=8, targets="q_proj,o_proj")
    assert found.parameters == same.parameters
    assert found.memory == same.memory


def test_targets_that_match_nothing_are_refused(letters):
    with pytest.raises(AdapterError, match="match nothing"):
        plan(letters, targets="nowhere")


def test_full_training_of_a_base_without_the_targets_has_no_adapter_beside_it(tmp_path):
    config = {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 100}
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    found = plan(path, method="full", max_length=64)
    assert found.parameters.trainable == found.parameters.total
    assert "lora" not in found.alternatives
    assert any(note.startswith("LoRA is not planned beside it") for note in found.notes)


def test_a_default_length_is_at_most_the_base_s_positions(letters):
    assert plan(letters).setup.longest == 1024


@pytest.mark.parametrize(
    ("options", "message", "hint"),
    [
        ({"rank": 0}, "--rank is 0", "default is 8"),
        ({"rank": 17}, "--rank is 17", "from 1 to 16"),
        ({"batch": -1}, "--batch is -1", ""),
        ({"batch": 10**7}, "1000000 or less", ""),
        ({"max_length": 1025}, "letters has 1,024 positions", "from 2 to 1,024"),
        ({"max_length": 1}, "2 or more", ""),
        ({"alpha": float("nan")}, "finite", ""),
        ({"supervised": 0}, "above 0", ""),
        ({"gpu": "0GB"}, "out of range", "from 1MB"),
        ({"gpu": 24}, "no unit", "24GB"),
        ({"gradient_checkpointing": 3}, "has 2 layers", "from 0 to 2"),
        ({"gradient_checkpointing": "some"}, "a number of layers", ""),
        ({"gradient_checkpointing": True}, "a number of layers", ""),
        ({"sharding": "fsdp2"}, "one process", "--processes 2"),
        ({"processes": 2, "sharding": "none"}, "gradients", "ddp or fsdp2"),
        ({"processes": 0}, "1 or more", ""),
        ({"method": "full", "dtype": "int8"}, "quantised", "qlora"),
        ({"method": "qlora", "dtype": "int8"}, "NF4", "--method lora --dtype int8"),
        ({"template": "x", "train_on": "last"}, "--template, --train-on is given without --data", "--data"),
        ({"data": "cron", "supervised": 0.5}, "--supervised is given with --data", "leave it out"),
        ({"rnak": 3}, "not a known option", "rank"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_nonsense_is_refused_with_what_is_allowed(letters, options, message, hint):
    with pytest.raises(ConfigError) as caught:
        plan(letters, **options)
    assert message in caught.value.message
    assert hint in caught.value.hint


def test_what_is_elsewhere_is_refused_by_name_and_qlora_is_planned():
    with pytest.raises(NotSupportedError, match="DPOTrainer"):
        make(PlanOptions, method="dpo")
    assert make(PlanOptions, method="qlora").method == "qlora"


def test_a_configuration_that_says_more_than_one_rank_is_refused(letters):
    with pytest.raises(NotSupportedError, match="rank_pattern"):
        plan(letters, lora=LoraSpec(rank_pattern={"q_proj": 2}))
    with pytest.raises(ConfigError, match="rank is given beside lora"):
        plan(letters, lora=LoraSpec(), rank=4)


def test_data_that_are_all_too_long_are_refused(letters):
    with pytest.raises(DataError, match="every example is longer than 3 tokens"):
        plan(letters, data=sums(5), max_length=3)


def test_the_package_is_the_function(letters):
    assert scumble.plan(letters, max_length=64).setup.longest == 64


def test_devices_that_share_take_less(letters):
    alone = plan(letters, method="full")
    shared = plan(letters, method="full", processes=4, sharding="fsdp2")
    assert shared.memory.parts["optimizer"] < alone.memory.parts["optimizer"]
    assert plan(letters, processes=4).setup.sharding == "ddp"
