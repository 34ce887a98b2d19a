"""`inspect` on adapters of tiny bases: what it finds, what it reads of a run, and what it says of a blend."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import scumble
from scumble.errors import AdapterError, ConfigError, ManifestError, MissingFileError
from scumble.lora.adapter import CONFIG_NAME, WEIGHTS_NAME, Adapter
from scumble.lora.fresh import fresh_adapter
from scumble.lora.spec import LoraSpec
from scumble.manage.inspection.expectations import expectation
from scumble.manage.inspection.inspection import inspect, parse_weights
from scumble.manage.inspection.origin import manifest_of, origin_of, settings_in_words, sha256
from scumble.manage.inspection.page import render_inspection
from scumble.models.base import Base
from tests.bases import letters_model, letters_tokenizer, sums


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bases") / "letters"
    letters_model().save_pretrained(folder)
    letters_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def make(tmp_path, base_folder):
    """Write a random adapter of the tiny base, and give its folder."""

    def write(name="first", seed=0, spread=0.1, base=None, **spec) -> Path:
        made = LoraSpec(**{"rank": 4, "alpha": 8, "base_name": str(base or base_folder), **spec})
        model = letters_model()
        one = fresh_adapter(made, dict(model.named_modules()), model.get_output_embeddings(), seed)
        generator = torch.Generator().manual_seed(seed)
        for factors in one.factors.values():
            factors.B = torch.randn(factors.B.shape, generator=generator) * spread
        return one.save(tmp_path / name)

    return write


def spoil(folder: Path, part: str, value: float = float("nan")) -> str:
    """Put a value into the first tensor whose name has `part`; gives the name."""
    tensors = load_file(folder / WEIGHTS_NAME)
    name = next(name for name in tensors if part in name)
    tensors[name].view(-1)[0] = value
    save_file(tensors, folder / WEIGHTS_NAME, metadata={"format": "pt"})
    (folder / "manifest.json").unlink()  # as of an adapter that came so, and was not damaged later
    return name


def test_one_adapter(make):
    folder = make()
    found = scumble.inspect(folder, quiet=True)
    document = found.to_dict()
    (one,) = document["adapters"]
    assert (one["path"], one["rank"], one["alpha"]) == (str(folder), 4, 8)
    assert one["parameters"] == Adapter.load(folder).parameters
    assert one["bytes"] == (folder / WEIGHTS_NAME).stat().st_size
    assert len(one["modules"]) == 4  # q and v of two layers
    assert document["pairs"] == []
    assert one["manifest"]["state"] == "right"
    assert "not known" in one["run_note"]
    weight = letters_model().get_submodule(one["modules"][0]["path"]).weight.norm()
    assert one["modules"][0]["weight_norm"] == pytest.approx(float(weight.detach()), rel=1e-6)
    assert 0 < one["modules"][0]["relative_norm"] < 1
    assert one["relative_norm"] > 0
    assert {kind["kind"] for kind in one["kinds"]} == {"q_proj", "v_proj"}
    json.dumps(document, allow_nan=False)


def test_the_same_adapter_twice_has_a_cosine_of_one(make):
    folder = make()
    found = inspect(folder, folder, weights=[2, -1], quiet=True)
    (pair,) = found.pairs
    assert pair.figures.cosine == pytest.approx(1, abs=1e-12)
    assert pair.figures.signs.plain == 0
    assert "nearly the same adapter" in pair.expectation
    assert [adapter.name for adapter in found.adapters] == ["first", "first (2)"]
    assert found.blend_norm == pytest.approx(found.adapters[0].norm, rel=1e-9)
    assert pair.figures.blends["2, -1"] == pytest.approx(found.blend_norm)


def test_opposite_adapters_are_told(make):
    folder = make()
    one = Adapter.load(folder)
    for factors in one.factors.values():
        factors.B = -factors.B
    other = one.save(folder.parent / "other")
    (pair,) = inspect(folder, other, quiet=True).pairs
    assert pair.figures.cosine == pytest.approx(-1, abs=1e-12)
    assert "opposite directions" in pair.expectation
    assert "100% of the weight by sign" in pair.expectation


def test_independent_adapters_are_nearly_orthogonal_and_the_larger_is_named(make):
    (pair,) = inspect(make("a", 1), make("b", 2, spread=1.0), quiet=True).pairs
    assert abs(pair.figures.cosine) < 0.1
    assert "nearly orthogonal" in pair.expectation
    assert re.search(r"b's update is \d+\.\d times as large as a's", pair.expectation)


def test_adapters_that_change_other_modules_are_told(make):
    (pair,) = inspect(make("a"), make("b", targets=("k_proj",)), quiet=True).pairs
    assert pair.figures.modules == ()
    assert "change different modules" in pair.expectation


def test_an_adapter_of_zero_is_told(make):
    found = inspect(make("a"), make("b", spread=0.0), quiet=True)
    assert "b changes nothing" in found.pairs[0].expectation
    assert len(found.adapters[1].flagged("dead")) == 4
    assert expectation("a", "b", found.pairs[0].figures) == found.pairs[0].expectation


def test_different_bases_are_named(make, tmp_path):
    first, second = make("a"), make("b", 1, base="someone/else")
    found = inspect(first, second, quiet=True)
    assert found.pairs[0].same_base is False
    assert "different bases" in found.pairs[0].expectation
    assert "someone/else" in found.pairs[0].expectation
    # each is held against its own base, and one that is not here is not fetched
    assert found.adapters[0].relative_norm > 0
    assert found.adapters[1].relative_norm is None
    assert "someone/else is not on this machine" in found.adapters[1].notes[0]
    with pytest.raises(AdapterError, match="the adapters name different bases"):
        inspect(first, second, data=sums(3), quiet=True)


def test_values_that_are_not_finite_are_found_by_module(make):
    folder = make()
    name = spoil(folder, "layers.1.self_attn.v_proj.lora_B")
    with pytest.raises(AdapterError, match="not finite"):
        Adapter.load(folder)
    found = inspect(folder, make("whole", 1), quiet=True)
    assert dict(found.adapters[0].not_finite) == {name: 1}
    (module,) = found.adapters[0].flagged("not finite")
    assert module.path == "model.layers.1.self_attn.v_proj"
    assert "lora_B.weight holds 1 values" in module.flags["not finite"]
    assert module.norm is None
    assert found.adapters[0].norm is None
    assert len(found.pairs[0].figures.modules) == 3
    json.dumps(found.to_dict(), allow_nan=False)
    assert "not finite" in render_inspection(found)


def test_dora_with_and_without_its_base(make):
    folder, lost = make("a", dora=True), make("b", dora=True, base="someone/else")
    whole, part = inspect(folder, quiet=True).adapters[0], inspect(lost, quiet=True).adapters[0]
    assert all(module.exact for module in whole.modules)
    assert not any(module.exact for module in part.modules)
    assert any("low-rank part alone" in note for note in part.notes)
    given = inspect(lost, base=Base(letters_model(), letters_tokenizer()), quiet=True).adapters[0]
    assert given.norm == pytest.approx(whole.norm, rel=1e-9)


def test_another_base_is_refused_where_it_was_asked_for(make, tmp_path):
    other = tmp_path / "other"
    letters_model(hidden_size=32).save_pretrained(other)
    with pytest.raises(AdapterError, match="is 32 x 32 in the base"):
        inspect(make(), base=str(other), quiet=True)
    found = inspect(make("b", base=other), quiet=True).adapters[0]  # its own name leads to another model
    assert found.relative_norm is None
    assert "is 32 x 32 in the base" in found.notes[0]


def test_outputs_on_texts(make, base_folder):
    found = inspect(make("a", 1), make("b", 2), data=sums(6), limit=4, quiet=True)
    assert (found.data.examples, found.data.source) == (4, "list")
    assert found.data.tokens > 40
    assert all(share > 0 for share in found.adapters[0].on_data.values())
    assert -1 <= found.pairs[0].on_data.cosine <= 1
    assert "on these prompts" in found.pairs[0].expectation
    (same,) = inspect(make("c", 1), make("d", 1), data=sums(3), quiet=True).pairs
    assert same.on_data.cosine == pytest.approx(1, abs=1e-9)


RUN = {
    "scumble": "0.1.0",
    "started": "2026-01-02T03:04:05Z",
    "base": {"name": "letters", "hash": "abc"},
    "data": {"source": "cron", "hash": "f" * 32, "examples": 600, "tokens": 2400},
    "validation": {"source": "cron validation"},
    "training": {"learning_rate": 0.001, "epochs": 3.0, "seed": 0},
    "result": {"steps": 450, "best_step": 400, "loss": {"first": 4.0, "last": 0.1, "best_eval": 0.2}},
    "versions": {"torch": "2.13.0"},
}


@pytest.mark.parametrize("place", ["adapter", "checkpoints/step-000400", "."])
def test_what_it_was_trained_on_is_read_from_its_run(make, tmp_path, place):
    run = tmp_path / "run"
    folder = run / place
    folder.mkdir(parents=True)
    for file in make().iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (run / "run.json").write_text(json.dumps(RUN))
    origin = origin_of(folder)
    assert origin.run["data"] == RUN["data"]
    assert (origin.run["steps"], origin.run["best_step"]) == (450, 400)
    assert origin.run["loss"] == RUN["result"]["loss"]
    assert origin.run["finished"]


BROKEN = [
    ("{", "cannot be read"),
    ("[]", "no record of a Scumble run"),
    ('{"model": "gpt"}', "no record of a Scumble run"),
    ('{"scumble": 1, "data": []}', "no record of a Scumble run"),
    ("[" * 100_000, "cannot be read"),
    ("\udcff", "cannot be read"),
]


@pytest.mark.parametrize(("text", "said"), BROKEN, ids=lambda value: value[:20])
def test_a_foreign_or_broken_run_is_said(make, text, said):
    folder = make()
    (folder / "run.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    found = inspect(folder, quiet=True).adapters[0]
    assert found.origin.run is None
    assert said in found.origin.note


@pytest.mark.parametrize("key", sorted(RUN))
@pytest.mark.parametrize("value", [None, [], {}, "text", 5])
def test_a_run_with_odd_values_never_fails(make, key, value):
    folder = make()
    (folder / "run.json").write_text(json.dumps({**RUN, key: value}))
    found = inspect(folder, quiet=True)
    assert found.to_dict()["adapters"][0]["run_note"] is not None
    assert "</html>" in render_inspection(found)


def test_a_manifest_is_checked(make):
    folder = make()
    assert manifest_of(folder).state == "right"
    assert len(sha256(folder / WEIGHTS_NAME)) == 64
    (folder / "README.md").write_text("mine")
    assert manifest_of(folder).state == "right"  # what it does not list is not its business
    (folder / CONFIG_NAME).write_text((folder / CONFIG_NAME).read_text() + " ")
    assert manifest_of(folder).state == "wrong"
    assert CONFIG_NAME in manifest_of(folder).note
    with pytest.raises(ManifestError, match=CONFIG_NAME):
        inspect(folder, quiet=True)
    (folder / "manifest.json").unlink()
    assert inspect(folder, quiet=True).adapters[0].manifest.state == "absent"


def test_settings_are_said_in_words():
    spec = LoraSpec(
        rank=4,
        alpha=8,
        rslora=True,
        lora_bias=True,
        bias="all",
        rank_pattern={"v_proj": 2},
        modules_to_save=("lm_head",),
        trainable_token_indices={"": (1, 2)},
    )
    words = dict(settings_in_words(spec))
    assert words["scale"] == "4 (alpha / sqrt(rank), rsLoRA)"
    assert words["other ranks"] == "v_proj: 2"
    assert words["biases of the base"] == "all trained"
    assert (words["replaced whole"], words["token rows"]) == ("lm_head", "2 replaced")
    assert "DoRA" in dict(settings_in_words(LoraSpec(dora=True)))


def test_what_cannot_be_is_refused(make, tmp_path):
    folder = make()
    with pytest.raises(ConfigError, match="no adapter was named"):
        inspect()
    with pytest.raises(ConfigError, match="3 weights for 1 adapters"):
        inspect(folder, weights=[1, 2, 3])
    with pytest.raises(ConfigError, match="not a finite number"):
        inspect(folder, weights=[float("inf")])
    with pytest.raises(ConfigError, match="--limit is 0"):
        inspect(folder, limit=0)
    with pytest.raises(ConfigError, match="--weights is '1,x'"):
        parse_weights("1,x")
    with pytest.raises(MissingFileError, match="does not exist"):
        inspect(tmp_path / "nothing")
    with pytest.raises(MissingFileError, match="does not exist"):
        inspect(folder, base="./nothing")


def test_the_page_asks_for_nothing_and_escapes_names(make):
    odd = make("<b>first & 'last'")
    found = inspect(odd, make("b", 1), make("c", 2), weights=[1, 2, 3], quiet=True)
    page = render_inspection(found)
    assert "<b>first" not in page
    assert page.count("<svg") == 3 * 2 + 3 * 3  # two maps of each adapter, three of each pair
    assert not re.search(r"""(src|href)=|url\(|<script""", page.replace("http://www.w3.org/2000/svg", ""))
    assert "1 × " in page
    assert page == render_inspection(found)


ODD_RECORDS = ["{", "[]", "{}", '{"parts": 5}', '{"parts": [1]}', '{"parts": [{"path": []}]}', "[" * 100_000]


@pytest.mark.parametrize("name", ["blend.json", "resize.json"])
@pytest.mark.parametrize("text", ODD_RECORDS, ids=lambda value: value[:20])
def test_a_broken_record_of_a_blend_is_said(make, name, text):
    folder = make()
    (folder / name).write_text(text)
    origin = origin_of(folder)
    assert (origin.run, origin.made_from) == (None, None)
    assert name in origin.note


@pytest.mark.parametrize("weight", [None, "x", {}, {"a": 0.5, "b": 1.0}, True])
def test_a_record_of_a_blend_with_odd_values_never_fails(make, weight):
    folder = make()
    part = {"path": "/home/me/run\x1b[31m/adapter", "weight": weight}
    (folder / "blend.json").write_text(json.dumps({"parts": [part], "method": 3, "error": []}))
    origin = origin_of(folder)
    assert origin.note.isprintable()
    assert "home" not in origin.note
    assert origin.made_from["parts"][0]["weight"] == (0.75 if weight and isinstance(weight, dict) else None)
    assert "</html>" in render_inspection(inspect(folder, quiet=True))
