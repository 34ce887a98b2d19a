"""Bad input: each gives one line with what is wrong and where, a hint, exit 1, and leaves nothing behind."""

import json
from pathlib import Path

import pytest

from tests.bases import chat, sums
from tests.cli.conftest import write_rows

LINES = [json.dumps(row) for row in sums(20)]


def spoiled(line: int, text: str) -> bytes:
    """20 good lines of which one is something else."""
    return "\n".join([*LINES[: line - 1], text, *LINES[line:]]).encode()


DATA = {
    "empty": (b"", "data.jsonl is empty"),
    "blank": (b"\n  \n\r\n", "data.jsonl is empty"),
    "not UTF-8": (spoiled(4, "@").replace(b"@", b'{"messages": "\xff"}'), "data.jsonl, line 4: not UTF-8"),
    "UTF-16": ("\n".join(LINES).encode("utf-16"), "data.jsonl, line 1: not UTF-8"),
    "bad JSON": (spoiled(17, '{"messages": [}'), "data.jsonl, line 17: not JSON"),
    "bytes of zero": (spoiled(20, "\0\0\0"), "data.jsonl, line 20: not JSON"),
    "deep nesting": (spoiled(2, "[" * 200_000 + "]" * 200_000), "data.jsonl, line 2: not JSON"),
    "a JSON array": (("[\n" + ",\n".join(LINES) + "\n]").encode(), "data.jsonl, line 1: not JSON"),
    "not an object": (spoiled(3, "17"), "data.jsonl, line 3: no `messages`"),
    "no messages": (
        spoiled(5, '{"body": "x", "id": 3}'),
        "data.jsonl, line 5: no `messages`; it has body, id",
    ),
    "messages of another kind": (spoiled(5, '{"messages": NaN}'), "data.jsonl, line 5: `messages`"),
    "no turns": (spoiled(5, '{"messages": []}'), "data.jsonl, line 5: `messages`"),
    "no assistant": (spoiled(6, json.dumps(chat("x"))), "data.jsonl, line 6: no assistant's turn"),
    "unknown role": (
        spoiled(7, '{"messages": [{"role": "robot", "content": "x"}]}'),
        "data.jsonl, line 7, message 1: unknown role 'robot'",
    ),
    "half a surrogate pair": (
        spoiled(8, json.dumps(chat("\ud800", "x"))),
        "data.jsonl, line 8, message 1: `content` has half a surrogate pair",
    ),
    "preference pairs": (spoiled(1, '{"chosen": [], "rejected": []}'), "preference pairs are not trained on"),
    "images": (
        spoiled(9, json.dumps({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]})),
        "data.jsonl, line 9, message 1: a content part of type 'image_url'",
    ),
}


@pytest.mark.parametrize("name", DATA)
@pytest.mark.usefixtures("unloaded")
def test_bad_data_is_refused_with_its_line(fails, here, name):
    content, expected = DATA[name]
    (here / "data.jsonl").write_bytes(content)
    before = sorted(here.rglob("*"))
    message, hint = fails("train", "data.jsonl", "--out", "run")
    assert expected in message
    assert hint
    assert sorted(here.rglob("*")) == before


@pytest.mark.usefixtures("unloaded")
def test_bad_data_is_refused_by_compare_too(fails, here, run_folder):
    (here / "data.jsonl").write_bytes(spoiled(17, "{"))
    assert "data.jsonl, line 17: not JSON" in fails("compare", run_folder, "--data", "data.jsonl")[0]


# what is given, beside `train good.jsonl --out run`; what the line says; what the hint says
OPTIONS = [
    (["--rank", "0"], "--rank is 0, and must be 1 or more", "rank of the update; the default is 8"),
    (["--alpha", "-1"], "--alpha is -1.0, and must be above 0", "alpha / rank"),
    (["--alpha", "nan"], "--alpha is nan, and must be a finite number", "alpha / rank"),
    (["--learning-rate", "nan"], "--learning-rate is nan", "highest learning rate"),
    (["--learning-rate", "inf"], "--learning-rate is inf, and must be a finite number", ""),
    (["--epochs", "0"], "--epochs is 0.0, and must be above 0", "passes over the training data"),
    (["--epochs", "inf"], "--epochs is inf, and must be a finite number", ""),
    (["--seed", "-1"], "--seed is -1, and must be 0 or more", ""),
    (["--seed", "9" * 30], "and must be 4294967295 or less", ""),
    (["--dropout", "1"], "--dropout is 1.0, and must be below 1", ""),
    (["--max-steps", "0"], "--max-steps is 0, and must be 1 or more", ""),
    (["--weight-decay", "inf"], "--weight-decay is inf, and must be a finite number", ""),
    (
        ["--schedule", "cosin"],
        "--schedule is 'cosin', and must be 'linear', 'cosine'",
        "did you mean cosine?",
    ),
    (["--dtype", "float99"], "--dtype is 'float99', and must be 'fp32', 'bf16', 'fp16' or 'auto'", ""),
    (["--eval", "2"], "--eval is '2', and must, as a share, be 0 or more and below 1", "a file, a share"),
    (["--eval", "nan"], "--eval is 'nan', and must, as a share", ""),
    (["--eval", ""], "--eval is '', and must not be empty", ""),
    (["--eval", "missing.jsonl"], "the data file missing.jsonl does not exist", "a shipped set"),
    (["--targets", "("], "the pattern '(' is not a regular expression", "commas between them"),
    (["--targets", " "], "no target modules were named", "--targets minimal"),
    (["--method", "dpo"], "--method dpo: preference tuning is not done here", "use TRL's"),
    (["--method", "GRPO"], "--method GRPO: reinforcement learning is not done here", "verl"),
    (["--method", "vision"], "--method vision: images are not trained on here", "SFTTrainer"),
    (["--method", "dora"], "--method dora: DoRA is a kind of lora", "--method lora --dora"),
    (["--method", "magic"], "--method is 'magic', and must be 'lora'", "what is trained"),
]


@pytest.mark.parametrize(("given", "message", "hint"), OPTIONS, ids=lambda value: str(value)[:40])
@pytest.mark.usefixtures("unloaded")
def test_a_value_that_cannot_be_is_refused_before_anything_is_loaded(fails, here, given, message, hint):
    said, advised = fails("train", "good.jsonl", "--out", "run", *given)
    assert message in said
    assert hint in advised
    assert not (here / "run").exists()


BASES = [
    ("./nope", "base './nope' does not exist"),
    ("nope/never", "base 'nope/never' is no alias"),
    ("smollm3", "base 'smollm3' is no alias"),
    ("good.jsonl", "good.jsonl is not a GGUF file"),
    (".", "folder . has no config.json"),
    ("", "the name of the base is empty"),
]


@pytest.mark.parametrize(("base", "message"), BASES)
def test_an_unknown_base_is_refused(fails, here, monkeypatch, base, message):
    monkeypatch.setattr("scumble.models.base.hub_reachable", lambda: False)
    assert message in fails("train", "good.jsonl", "--out", "run", "--base", base)[0]
    assert not (here / "run").exists()


def test_an_adapter_is_no_base_and_its_base_is_named(fails, run_folder, letters_folder):
    message, hint = fails("train", "good.jsonl", "--out", "run", "--base", run_folder / "adapter")
    assert "is an adapter, not a base" in message
    assert str(letters_folder) in hint


def test_an_embedded_base_that_is_mistyped_is_named(fails, monkeypatch):
    monkeypatch.setattr("scumble.models.base.hub_reachable", lambda: False)
    assert fails("train", "good.jsonl", "--out", "run", "--base", "smolm2")[1] == "did you mean 'smollm2'?"


def test_targets_that_match_nothing_name_the_nearest(fails, here, letters_folder):
    message, hint = fails(
        "train", "good.jsonl", "--out", "run", "--base", letters_folder, "--targets", "q_porj"
    )
    assert "q_porj match nothing" in message
    assert "q_proj" in hint
    assert not (here / "run").exists()


@pytest.mark.parametrize(
    ("device", "message"),
    [("cuda:99", "device 'cuda:99' is not there"), ("gpu", "device 'gpu' is not known")],
)
def test_a_device_that_is_not_there_is_refused(fails, letters_folder, device, message):
    words = ("train", "good.jsonl", "--out", "run", "--base", letters_folder, "--device", device)
    assert message in fails(*words)[0]


def test_a_rank_out_of_all_proportion_is_refused(fails, letters_folder):
    words = ("train", "good.jsonl", "--out", "run", "--base", letters_folder, "--rank", 10**12)
    assert fails(*words)[0] == "the rank is 1000000000000"


def test_memory_that_runs_out_is_said(fails, letters_folder, monkeypatch):
    monkeypatch.setattr("scumble.lora.spec.MAX_RANK", 10**13)
    words = ("train", "good.jsonl", "--out", "run", "--base", letters_folder, "--rank", 10**12)
    assert fails(*words)[0] == "memory ran out"


OUTS = [
    ("exists", [], "exists exists already"),
    ("good.jsonl", [], "good.jsonl is good.jsonl, which is read"),
    ("good.jsonl", ["--force"], "good.jsonl is good.jsonl, which is read"),
    ("other.txt", ["--force"], "other.txt is a file, not a folder"),
    ("other.txt/run", [], "other.txt is not a folder"),
    (".", ["--force"], "is the folder you are in"),
    ("", ["--force"], "is the folder you are in"),
    ("..", ["--force"], "holds the folder you are in"),
    ("/", ["--force"], "/ holds "),
    ("~", ["--force"], "is your home folder"),
    ("/proc/nothing/run", [], "/proc/nothing/run cannot be written"),
]


@pytest.mark.parametrize(("out", "more", "message"), OUTS)
def test_what_is_there_is_not_replaced(fails, here, letters_folder, out, more, message):
    (here / "exists").mkdir()
    (here / "exists" / "mine.txt").write_text("mine")
    (here / "other.txt").write_text("mine")
    before = sorted(here.rglob("*"))
    words = ["train", "good.jsonl", "--out", out, "--base", letters_folder, "--max-steps", 1, *more]
    assert message in fails(*words)[0]
    assert sorted(here.rglob("*")) == before
    assert (here / "exists" / "mine.txt").read_text() == "mine"


@pytest.mark.usefixtures("unloaded")
def test_a_folder_that_holds_the_data_is_not_replaced(fails, here):
    (here / "project").mkdir()
    write_rows(here / "project" / "data.jsonl", sums(12))
    message, _ = fails("train", "project/data.jsonl", "--out", "project", "--force")
    assert message == "project holds project/data.jsonl, which is read, and is not replaced"


@pytest.mark.usefixtures("unloaded")
def test_a_missing_file_names_the_shipped_sets(fails):
    message, hint = fails("train", "nothere.jsonl", "--out", "run")
    assert message == "the data file nothere.jsonl does not exist"
    assert "cron" in hint
    assert "tickets" in hint


@pytest.mark.usefixtures("unloaded")
def test_a_folder_is_no_data(fails):
    assert "is a folder, and" in fails("train", ".", "--out", "run")[0]


COMPARE = [
    (["--metric", "blue"], "the metric 'blue' is not known", "exact_match"),
    (["-n", "-1"], "-n is -1, and must be 0 or more", "side by side"),
    (["--limit", "0"], "--limit is 0, and must be 1 or more", "score the first"),
    (["--temperature", "nan"], "--temperature is nan, and must be a finite number", "0 is greedy"),
    (["--temperature", "-0.5"], "--temperature is -0.5, and must be 0 or more", "0 is greedy"),
    (["--data", "missing.jsonl"], "the data file missing.jsonl does not exist", ""),
    (["--html", "."], "is the folder you are in", "choose another --html"),
    (["--html", "good.jsonl", "--force"], "good.jsonl, which is read", "choose another --html"),
    (["--html", "good.jsonl/page.html"], "good.jsonl is not a folder", "choose another --html"),
]


@pytest.mark.parametrize(("given", "message", "hint"), COMPARE, ids=lambda value: str(value)[:40])
@pytest.mark.usefixtures("unloaded")
def test_compare_refuses_before_anything_is_loaded(fails, run_folder, given, message, hint):
    said, advised = fails("compare", run_folder, "--data", "good.jsonl", *given)
    assert message in said
    assert hint in advised


@pytest.mark.parametrize("command", ["compare", "chat"])
@pytest.mark.usefixtures("unloaded")
def test_what_is_no_adapter_is_refused(fails, here, run_folder, command):
    more = ["--data", "good.jsonl"] if command == "compare" else []
    (here / "empty").mkdir()
    (here / "half").mkdir()
    (here / "half" / "adapter_config.json").write_bytes(
        (run_folder / "adapter/adapter_config.json").read_bytes()
    )
    assert fails(command, "nothere", *more)[0] == "the adapter nothere does not exist"
    assert "empty is neither an adapter nor a run" in fails(command, "empty", *more)[0]
    assert "half has no adapter_model.safetensors" in fails(command, "half", *more)[0]
    (here / "half" / "adapter_model.safetensors").write_bytes(b"\x10garbage")
    assert "adapter_model.safetensors cannot be read" in fails(command, "half", *more)[0]


CHAT = [
    (["--adapter", "legal"], "--adapter 'legal' is not NAME=PATH"),
    (["--adapter", "=x"], "--adapter '=x' is not NAME=PATH"),
    (["--adapter", "a=x", "--adapter", "a=y"], "--adapter names 'a' twice"),
    (["--adapter", "base=x"], "'base' cannot name an adapter"),
    (["--adapter", "a/b=x"], "'a/b' cannot name an adapter"),
    (["--temperature", "-1"], "--temperature is -1.0, and must be 0 or more"),
    (["--max-new-tokens", "0"], "--max-new-tokens is 0, and must be 1 or more"),
]


@pytest.mark.parametrize(("given", "message"), CHAT, ids=lambda value: str(value)[:40])
@pytest.mark.usefixtures("unloaded")
def test_chat_refuses_before_anything_is_loaded(fails, given, message):
    assert message in fails("chat", *given)[0]


def test_an_adapter_of_another_base_is_refused(fails, here, run_folder, tmp_path):
    from tests.bases import letters_model, letters_tokenizer

    other = tmp_path / "other"
    letters_model(num_hidden_layers=3).save_pretrained(other)
    letters_tokenizer().save_pretrained(other)
    message, hint = fails("compare", run_folder, "--data", "good.jsonl", "--base", other)
    assert "fits the base only in part" in message
    assert "--base" in hint


def test_the_limit_of_the_lab_is_checked(fails):
    assert fails("lab", "cron", "--limit", "0")[0] == "--limit is 0, and must be 1 or more"


def test_no_failure_leaves_anything_in_the_folder(fails, here: Path, letters_folder):
    fails(
        "train", "good.jsonl", "--out", "deep/run", "--base", letters_folder, "--targets", "nothing_like_it"
    )
    assert sorted(path.name for path in here.iterdir()) == ["good.jsonl"]
