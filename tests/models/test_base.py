import json
import shutil

import pytest
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    LlamaForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
)

from scumble.errors import BaseModelError, ConfigError, MissingFileError, NotSupportedError, ScumbleError
from scumble.models.base import Base, load_base
from scumble.models.identity import hash_parameters
from scumble.models.resolve import EMBEDDED_NAME

from .conftest import tiny_model, tiny_tokenizer

pytestmark = pytest.mark.usefixtures("home", "offline")


def one_line(error: ScumbleError) -> str:
    assert error.message
    assert "\n" not in str(error)
    assert error.hint
    return str(error)


def test_folder_is_loaded_frozen_with_its_tokenizer(tiny_folder):
    base = load_base(str(tiny_folder), device="cpu")
    assert base.name == str(tiny_folder)
    assert base.model.config._name_or_path == str(tiny_folder)
    assert base.dtype == torch.float32
    assert base.device.type == "cpu"
    assert not base.model.training
    assert not any(p.requires_grad for p in base.model.parameters())
    assert base.tokenizer("w1 w2")["input_ids"] == [3, 4]
    assert base.bytes_on_disk == (tiny_folder / "model.safetensors").stat().st_size
    assert base.source_bytes == base.bytes_on_disk
    for name, value in tiny_model().state_dict().items():
        assert torch.equal(value, base.model.state_dict()[name])


def test_default_base_is_that_of_the_environment(tiny_folder, monkeypatch):
    monkeypatch.setenv("SCUMBLE_BASE", str(tiny_folder))
    assert load_base(device="cpu").name == str(tiny_folder)


def test_sharded_weights_are_all_counted(tmp_path):
    tiny_model().save_pretrained(tmp_path / "sharded", max_shard_size="4KB")
    shards = list((tmp_path / "sharded").glob("*.safetensors"))
    assert len(shards) > 1
    base = load_base(str(tmp_path / "sharded"), tokenizer=False, device="cpu")
    assert base.bytes_on_disk == sum(shard.stat().st_size for shard in shards)


def test_dtype_is_fp32_on_a_cpu_unless_told(tmp_path):
    folder = str(tmp_path / "half")
    tiny_model().to(torch.bfloat16).save_pretrained(folder)
    assert load_base(folder, device="cpu").dtype == torch.float32
    assert load_base(folder, device="cpu", dtype="auto").dtype == torch.bfloat16
    assert load_base(folder, device="cpu", dtype="fp16").dtype == torch.float16
    with pytest.raises(ConfigError, match="float8") as caught:
        load_base(folder, dtype="float8")
    assert "bf16" in one_line(caught.value)


@pytest.mark.parametrize("device", ["tpu-9", "meta", "cuda:97"])
def test_device_that_is_not_there(tiny_folder, device):
    with pytest.raises(ConfigError) as caught:
        load_base(str(tiny_folder), device=device)
    assert device in one_line(caught.value)


def test_folder_without_tokenizer_gives_none(tmp_path):
    tiny_model().save_pretrained(tmp_path / "bare")
    assert load_base(str(tmp_path / "bare"), device="cpu").tokenizer is None


def test_broken_tokenizer_is_an_error_and_not_none(tiny_folder):
    (tiny_folder / "tokenizer.json").write_text("{")
    with pytest.raises(BaseModelError, match="tokenizer") as caught:
        load_base(str(tiny_folder), device="cpu")
    one_line(caught.value)
    assert load_base(str(tiny_folder), device="cpu", tokenizer=False).tokenizer is None


def test_loading_says_nothing(tiny_folder, capfd):
    load_base(str(tiny_folder), device="cpu")
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")


class TestHash:
    def test_is_the_same_for_the_same_weights_and_other_for_other(self, tiny_folder):
        assert load_base(str(tiny_folder), device="cpu").hash == Base(tiny_model()).hash
        assert Base(tiny_model(1)).hash != Base(tiny_model()).hash
        assert Base(tiny_model().to(torch.bfloat16)).hash != Base(tiny_model()).hash

    def test_notices_one_bit(self):
        model = tiny_model()
        before = hash_parameters(model)
        with torch.no_grad():
            weight = model.model.layers[1].mlp.down_proj.weight
            weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(9.0))
        assert hash_parameters(model) != before

    def test_stays_when_modules_are_wrapped(self):
        base = Base(tiny_model())
        before = base.hash
        layer = base.model.model.layers[0].self_attn
        layer.q_proj = torch.nn.Sequential(layer.q_proj)
        assert base.hash == before
        assert hash_parameters(base.model) != before

    def test_of_a_model_without_data_is_refused(self):
        with torch.device("meta"):
            model = tiny_model()
        with pytest.raises(BaseModelError, match="no weights"):
            _ = Base(model, name="tiny").hash


class TestBaseOfTheCaller:
    def test_is_frozen_and_named(self):
        words = tiny_tokenizer()
        base = Base(tiny_model().train(), words, "someone/tiny")
        assert base.tokenizer is words
        assert base.name == "someone/tiny"
        assert base.bytes_on_disk == 0
        assert not base.model.training
        assert not any(p.requires_grad for p in base.model.parameters())
        assert Base(tiny_model()).name == ""

    def test_refuses_what_is_no_causal_model(self):
        with pytest.raises(BaseModelError, match="Linear"):
            Base(torch.nn.Linear(2, 2))
        with pytest.raises(BaseModelError, match="encoder-decoder"):
            Base(tiny_t5())


def tiny_t5() -> T5ForConditionalGeneration:
    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=32, d_model=16, d_ff=16, d_kv=8, num_layers=1, num_heads=2, decoder_start_token_id=0
        )
    )


class TestWhatIsRefused:
    def test_encoder_decoder_by_name(self, tmp_path):
        tiny_t5().save_pretrained(tmp_path / "t5")
        with pytest.raises(
            NotSupportedError, match="T5ForConditionalGeneration, an encoder-decoder"
        ) as caught:
            load_base(str(tmp_path / "t5"))
        one_line(caught.value)

    def test_masked_model_by_name(self, tmp_path):
        config = BertConfig(
            vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
        )
        BertForMaskedLM(config).save_pretrained(tmp_path / "bert")
        with pytest.raises(NotSupportedError, match="BertForMaskedLM"):
            load_base(str(tmp_path / "bert"))

    def test_missing_weights_are_not_filled_with_random_numbers(self, tmp_path):
        config = tiny_model().config
        config.tie_word_embeddings = False
        LlamaForSequenceClassification(config).save_pretrained(tmp_path / "classifier")
        with pytest.raises(BaseModelError, match=r"lm_head\.weight") as caught:
            load_base(str(tmp_path / "classifier"))
        one_line(caught.value)

    def test_weights_of_another_size_are_named(self, tiny_folder):
        config = json.loads((tiny_folder / "config.json").read_text())
        (tiny_folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 48}))
        with pytest.raises(BaseModelError, match="mlp") as caught:
            load_base(str(tiny_folder))
        one_line(caught.value)

    def test_folder_without_config(self, tmp_path):
        with pytest.raises(BaseModelError, match=r"no config\.json"):
            load_base(str(tmp_path))
        (tmp_path / "some.gguf").write_bytes(b"GGUF")
        with pytest.raises(BaseModelError) as caught:
            load_base(str(tmp_path))
        assert "some.gguf" in one_line(caught.value)

    def test_adapter_names_its_base(self, tmp_path, tiny_folder):
        (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "some/base"}))
        with pytest.raises(BaseModelError, match="is an adapter") as caught:
            load_base(str(tmp_path))
        assert "some/base" in one_line(caught.value)
        shutil.copy(tmp_path / "adapter_config.json", tiny_folder)
        with pytest.raises(BaseModelError, match="both a model and an adapter"):
            load_base(str(tiny_folder))

    @pytest.mark.parametrize("text", ["{", "[]", "{}", '{"model_type": "never-heard-of"}'])
    def test_broken_config(self, tiny_folder, text):
        (tiny_folder / "config.json").write_text(text)
        with pytest.raises(BaseModelError) as caught:
            load_base(str(tiny_folder))
        assert str(tiny_folder) in one_line(caught.value)

    def test_code_of_its_own(self, tiny_folder):
        config = json.loads((tiny_folder / "config.json").read_text())
        config |= {"model_type": "homemade", "auto_map": {"AutoConfig": "c.C", "AutoModelForCausalLM": "m.M"}}
        (tiny_folder / "config.json").write_text(json.dumps(config))
        (tiny_folder / "c.py").write_text("raise SystemExit('this must never run')")
        with pytest.raises(BaseModelError, match="code of its own") as caught:
            load_base(str(tiny_folder))
        one_line(caught.value)

    def test_truncated_weights(self, tiny_folder):
        path = tiny_folder / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-100])
        with pytest.raises(BaseModelError, match="broken weights") as caught:
            load_base(str(tiny_folder))
        one_line(caught.value)

    def test_pickled_weights(self, tiny_folder):
        torch.save(tiny_model().state_dict(), tiny_folder / "pytorch_model.bin")
        (tiny_folder / "model.safetensors").unlink()
        with pytest.raises(BaseModelError, match="no safetensors") as caught:
            load_base(str(tiny_folder))
        assert "*.bin" in one_line(caught.value)

    def test_file_that_is_not_gguf(self, tiny_folder):
        with pytest.raises(BaseModelError, match="not a GGUF file") as caught:
            load_base(str(tiny_folder / "model.safetensors"))
        assert str(tiny_folder) in one_line(caught.value)

    def test_broken_gguf(self, tmp_path):
        (tmp_path / "broken.gguf").write_bytes(b"GGUF" + bytes(100))
        with pytest.raises(BaseModelError, match=r"broken\.gguf") as caught:
            load_base(str(tmp_path / "broken.gguf"))
        one_line(caught.value)


class TestNames:
    def test_missing_path_names_the_nearest(self, tiny_folder):
        with pytest.raises(MissingFileError) as caught:
            load_base(str(tiny_folder.parent / "tinny"))
        assert str(tiny_folder) in one_line(caught.value)

    def test_typo_in_the_alias(self):
        with pytest.raises(BaseModelError, match="smolm2") as caught:
            load_base("smolm2")
        assert "did you mean 'smollm2'?" in one_line(caught.value)

    def test_typo_in_the_hub_name(self):
        with pytest.raises(BaseModelError) as caught:
            load_base(EMBEDDED_NAME.replace("Instruct", "Instrukt"))
        assert EMBEDDED_NAME in one_line(caught.value)

    def test_hub_that_cannot_be_reached(self):
        with pytest.raises(BaseModelError, match="cannot be reached") as caught:
            load_base("nobody/nothing-at-all-7b")
        assert "needs no network" in one_line(caught.value)

    @pytest.mark.parametrize("name", ["", "two words", "a//b"])
    def test_impossible_names(self, name):
        with pytest.raises((BaseModelError, MissingFileError)) as caught:
            load_base(name)
        one_line(caught.value)
