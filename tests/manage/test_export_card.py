"""The model card: what the files say, and `unknown` for what they do not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from scumble.errors import ConfigError, DataError, MissingFileError, OutputExistsError
from scumble.lora.adapter import Adapter
from scumble.manage.export.card import export_card
from scumble.manage.export.licence import licence_of
from scumble.models.resolve import EMBEDDED_NAME
from tests.manage.folders import model_of, save

RUN = {
    "scumble": "0.1.0",
    "started": "2026-01-02T03:04:05Z",
    "base": {"name": EMBEDDED_NAME, "hash": "ab" * 16, "dtype": "float32"},
    "data": {
        "source": "/home/someone/secret/tickets.jsonl",
        "hash": "cd" * 16,
        "examples": 600,
        "tokens": 9000,
    },
    "training": {"epochs": 3.0, "learning_rate": 0.0013, "seed": 7},
    "result": {"steps": 450, "loss": {"first": 4.05, "last": 0.00887856, "best_eval": 0.1249}},
    "versions": {"torch": "2.13.0", "peft": "0.21.2"},
}
COMPARISON = {
    "metric": {"name": "exact_match", "n": 100, "before": 0.01, "after": 0.93},
    "loss": {"before": 3.2, "after": 0.12},
    "data": {"source": "cron", "hash": "ef" * 16},
}


def front_of(card: str | Path) -> dict[str, Any]:
    text = Path(card).read_text(encoding="utf-8")
    assert text.startswith("---\n")
    return yaml.safe_load(text.split("---\n")[1])


@pytest.fixture
def run_folder(made, tmp_path) -> Path:
    adapter = Adapter.load(made(model_of("llama"), r=4, lora_alpha=8))
    adapter.spec = adapter.spec.with_base(EMBEDDED_NAME)
    adapter.save(tmp_path / "legal" / "adapter")
    (tmp_path / "legal" / "run.json").write_text(json.dumps(RUN))
    return tmp_path / "legal"


def test_card_of_a_run_has_its_facts(run_folder, tmp_path):
    (tmp_path / "comparison.json").write_text(json.dumps(COMPARISON))
    written = export_card(run_folder, out=tmp_path / "README.md", comparison=tmp_path / "comparison.json")
    text = Path(written.out).read_text()
    assert front_of(written.out) == {
        "base_model": EMBEDDED_NAME,
        "base_model_relation": "adapter",
        "library_name": "peft",
        "license": "apache-2.0",
        "pipeline_tag": "text-generation",
        "tags": ["lora", "scumble"],
    }
    assert "# legal\n" in text
    for fact in (
        "| data | tickets.jsonl |",
        f"| hash of the data | {'cd' * 16} |",
        f"hash of its weights `{'ab' * 16}`",
        "| rank | 4 |",
        "| loss of the last step | 0.008879 |",
        "| exact_match | 1.0% | 93.0% |",
        "| loss | 3.200 | 0.120 |",
        "On 100 unseen examples (cron,",
        'PeftModel.from_pretrained(base, "FOLDER")',
        f"vllm serve {EMBEDDED_NAME} --enable-lora",
        "scumble 0.1.0, torch 2.13.0, peft 0.21.2",
    ):
        assert fact in text, fact
    assert "/home/someone" not in text
    assert str(tmp_path) not in text
    assert written.unknown == []


def test_unknown_is_said_and_nothing_invented(made, tmp_path):
    folder = made(model_of("llama"))
    written = export_card(folder, out=tmp_path / "card.md")
    text = Path(written.out).read_text()
    assert front_of(written.out)["license"] == "unknown"
    assert "base_model" not in front_of(written.out)
    assert "licence of the base is not known here" in text
    assert "there is no record of its training" in text
    assert "Before and after" not in text
    assert written.unknown == [
        "the base",
        "the licence of the base",
        "the data",
        "figures before and after (--comparison)",
    ]


def test_card_of_a_merged_model(tmp_path):
    folder = save(model_of("llama"), tmp_path / "merged")
    certificate = {"passed": True, "base": {"name": EMBEDDED_NAME, "hash": "12" * 16}}
    (folder / "certificate.json").write_text(json.dumps(certificate))
    written = export_card(folder, out=folder)
    assert written.out == str(folder / "README.md")
    assert written.about == "model"
    front, text = front_of(written.out), (folder / "README.md").read_text()
    assert front["library_name"] == "transformers"
    assert front["base_model"] == EMBEDDED_NAME
    assert front["base_model_relation"] == "finetune"
    assert "certificate.json`, passed" in text
    size = (folder / "model.safetensors").stat().st_size
    assert f"{size:,} bytes" in text
    with pytest.raises(OutputExistsError):
        export_card(folder, out=folder)


def test_licence_comes_from_the_base_own_card(tmp_path):
    (tmp_path / "README.md").write_text("---\nlicense: llama3.1\n---\n# Base\n")
    assert licence_of(str(tmp_path)) == "llama3.1"
    (tmp_path / "README.md").write_text("---\nlicense: other\nlicense_name: own-licence\n---\n")
    assert licence_of(str(tmp_path)) == "own-licence"
    for text in ("# no front matter", "---\nlicense: [1]\n---\n", "---\n: {", "---\nlicense: unknown\n---"):
        (tmp_path / "README.md").write_text(text)
        assert licence_of(str(tmp_path)) is None, text
    assert licence_of("smollm2") == licence_of(EMBEDDED_NAME) == "apache-2.0"
    assert licence_of("nobody/nothing") is None
    assert licence_of(None) is None


@pytest.mark.parametrize("text", ["no json", "[]", "{}", '{"metric": {}, "loss": {}, "data": {}}'])
def test_what_is_no_comparison_is_refused(text, run_folder, tmp_path):
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(DataError, match="is no comparison"):
        export_card(run_folder, out=tmp_path / "card.md", comparison=tmp_path / "c.json")
    with pytest.raises(MissingFileError, match="does not exist"):
        export_card(run_folder, out=tmp_path / "card.md", comparison=tmp_path / "none.json")
    assert not (tmp_path / "card.md").exists()


@pytest.mark.parametrize("name", ["run.json", "adapter/adapter_model.safetensors"])
def test_only_a_page_is_replaced(name, run_folder):
    before = (run_folder / name).read_bytes()
    with pytest.raises(ConfigError, match=r"does not end in \.md"):
        export_card(run_folder, out=run_folder / name, force=True)
    assert (run_folder / name).read_bytes() == before
