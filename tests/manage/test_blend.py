"""`scumble.blend`: folders in, one folder out, against the bank at run time and against PEFT reading the result."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import scumble
from scumble.errors import AdapterError, ConfigError, MissingFileError, OutputExistsError, ScumbleError
from scumble.lora.adapter import Adapter
from scumble.lora.bank import Bank
from scumble.manage.blend import read_weights
from tests.bases import sums
from tests.lora.conftest import peft_load
from tests.lora.synthetic import dense
from tests.tiny import FAMILIES, logits, tiny_gpt2, tiny_ids, tiny_llama, tiny_qwen2

# Two ways of adding the same terms in fp32, over logits up to 9; measured below 1e-5.
TOLERANCE = 1e-4
ATTENTION = {"target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]}
# What PEFT writes, two by two; every blend of them is exact.
PAIRS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "rslora": ({"use_rslora": True}, {"use_rslora": True, "r": 2}),
    "patterns": (
        {"rank_pattern": {"v_proj": 3}, "alpha_pattern": {"layers.0.self_attn.q_proj": 3}},
        {"rank_pattern": {r"layers\.1\.self_attn\.q_proj": 6}, "use_rslora": True},
    ),
    "targets": (ATTENTION, {"target_modules": ["down_proj", "v_proj"]}),
    "layers": ({"layers_to_transform": [1]}, {"layers_to_transform": [0], "layers_pattern": "layers"}),
    "exclude": ({"exclude_modules": ["layers.0.self_attn.q_proj"]}, {}),
    "all linear": ({"target_modules": "all-linear"}, {}),
    "lora bias": ({"lora_bias": True}, {"use_rslora": True}),
    "embedding": ({"target_modules": ["embed_tokens", "q_proj"]}, {"target_modules": ["lm_head"]}),
}


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., Path]:
    """Save a tiny model, and give its folder."""

    def save(model: Any) -> Path:
        model.save_pretrained(tmp_path / "base")
        return tmp_path / "base"

    return save


def at_run_time(model: Any, paths: list[Path], weights: list[float]) -> torch.Tensor:
    """What a bank computes with the adapters themselves."""
    bank = Bank(model)
    try:
        for place, path in enumerate(paths):
            bank.add(f"a{place}", path)
        bank.use([(f"a{place}", weight) for place, weight in enumerate(weights)])
        return logits(bank.model, tiny_ids())
    finally:
        bank.close()


def alone(model: Any, path: Path) -> torch.Tensor:
    """What a bank computes with one adapter."""
    return at_run_time(model, [path], [1.0])


@pytest.mark.parametrize("weights", [(0.7, 0.3), (1.0, -1.0)])
@pytest.mark.parametrize("name", PAIRS)
def test_a_written_blend_is_what_the_bank_computes_and_peft_reads(
    name: str,
    weights: tuple[float, float],
    made: Callable[..., Path],
    tmp_path: Path,
) -> None:
    base = tiny_llama()
    paths = [made(base, f"a{i}", seed=i, **config) for i, config in enumerate(PAIRS[name])]
    found = scumble.blend(dict(zip(paths, weights, strict=True)), out=tmp_path / "blend", quiet=True)
    right = at_run_time(base, paths, list(weights))
    assert (right - logits(base, tiny_ids())).abs().max() > 0.1  # so that the test can fail
    torch.testing.assert_close(alone(base, found.out), right, atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(logits(peft_load(base, found.out), tiny_ids()), right, atol=TOLERANCE, rtol=0)
    assert found.error["predicted"] < 1e-9
    assert found.error["measured"] < 1e-6


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - {"mixtral", "qwen2_moe"}))
def test_every_family(family: str, made: Callable[..., Path], tmp_path: Path) -> None:
    base = FAMILIES[family]()
    targets = {"gpt2": ["c_attn", "c_proj"], "phi3": ["qkv_proj", "down_proj"]}.get(
        family, ["q_proj", "o_proj"]
    )
    paths = [made(base, f"a{i}", seed=i, target_modules=targets) for i in range(2)]
    found = scumble.blend(list(zip(paths, (0.5, 1.5), strict=True)), out=tmp_path / "blend", quiet=True)
    right = at_run_time(base, paths, [0.5, 1.5])
    torch.testing.assert_close(alone(base, found.out), right, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_trained_biases_are_blended_from_the_base_s_own(
    bias: str,
    made: Callable[..., Path],
    folder: Callable[..., Path],
    tmp_path: Path,
) -> None:
    base = tiny_qwen2()
    place = folder(base)
    paths = [made(base, "a0", seed=0, bias=bias), made(base, "a1", seed=1, target_modules=["k_proj"])]
    found = scumble.blend(
        list(zip(paths, (0.7, -0.5), strict=True)), out=tmp_path / "b", base=str(place), quiet=True
    )
    right = at_run_time(base, paths, [0.7, -0.5])
    torch.testing.assert_close(alone(base, found.out), right, atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(logits(peft_load(base, found.out), tiny_ids()), right, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("build", [tiny_llama, tiny_gpt2], ids=["llama", "gpt2"])
@pytest.mark.parametrize("rank", [16, 24])
def test_dora_becomes_a_plain_adapter_with_its_error_shown(
    build: Callable[..., Any],
    rank: int,
    made: Callable[..., Path],
    folder: Callable[..., Path],
    tmp_path: Path,
) -> None:
    base = build()
    place = folder(base)
    names = ["c_attn"] if build is tiny_gpt2 else ["q_proj", "o_proj"]
    paths = [
        made(base, "a0", seed=0, use_dora=True, target_modules=names),
        made(base, "a1", seed=1, target_modules=names),
    ]
    weights = [0.7, 0.3]
    found = scumble.blend(
        list(zip(paths, weights, strict=True)), out=tmp_path / "b", base=str(place), rank=rank, quiet=True
    )
    assert found.error["measured"] == pytest.approx(found.error["predicted"], rel=1e-4, abs=1e-6)
    # 16 is the width: nothing is cut, and the plain adapter is DoRA's update whole
    assert found.error["measured"] < 1e-6
    right = at_run_time(base, paths, weights)
    torch.testing.assert_close(alone(base, found.out), right, atol=TOLERANCE, rtol=0)
    small = scumble.blend(
        list(zip(paths, weights, strict=True)), out=tmp_path / "s", base=str(place), rank=2, quiet=True
    )
    assert small.error["measured"] > 0.01
    assert small.error["measured"] == pytest.approx(small.error["predicted"], rel=1e-5)


def test_what_is_replaced_whole_is_blended_only_when_asked(
    made: Callable[..., Path],
    folder: Callable[..., Path],
    tmp_path: Path,
) -> None:
    base = tiny_llama()
    place = folder(base)
    paths = [made(base, "a0", seed=0, modules_to_save=["lm_head"]), made(base, "a1", seed=1)]
    given = list(zip(paths, (0.5, 0.5), strict=True))
    with pytest.raises(AdapterError, match=r"a0 has modules_to_save \(lm_head\), .* not blended"):
        scumble.blend(given, out=tmp_path / "b", quiet=True)
    assert not (tmp_path / "b").exists()
    found = scumble.blend(given, out=tmp_path / "b", base=str(place), interpolate=True, quiet=True)
    saved = load_file(found.out / "adapter_model.safetensors")["base_model.model.lm_head.weight"]
    own = load_file(paths[0] / "adapter_model.safetensors")["base_model.model.lm_head.weight"]
    # one addition and one product in fp32 round by 6e-8 of values up to 2
    torch.testing.assert_close(saved, (own + base.lm_head.weight.detach()) / 2, atol=1e-6, rtol=0)
    assert alone(base, found.out).isfinite().all()


def test_token_rows_are_interpolated_row_by_row(
    made: Callable[..., Path],
    folder: Callable[..., Path],
    tmp_path: Path,
) -> None:
    base = tiny_llama()
    place = folder(base)
    paths = [
        made(base, "a0", seed=0, trainable_token_indices=[5, 3]),
        made(base, "a1", seed=1, trainable_token_indices=[9, 5]),
    ]
    found = scumble.blend(
        list(zip(paths, (0.5, 2.0), strict=True)),
        out=tmp_path / "b",
        base=str(place),
        interpolate=True,
        quiet=True,
    )
    key = "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta"
    own = [load_file(path / "adapter_model.safetensors")[key] for path in paths]
    start = base.model.embed_tokens.weight.detach()
    right = torch.stack(
        [
            start[3] + 0.5 * (own[0][1] - start[3]),
            start[5] + 0.5 * (own[0][0] - start[5]) + 2 * (own[1][1] - start[5]),
            start[9] + 2 * (own[1][0] - start[9]),
        ]
    )
    torch.testing.assert_close(
        load_file(found.out / "adapter_model.safetensors")[key], right, atol=1e-5, rtol=0
    )


def test_one_adapter_alone_keeps_what_it_replaces(made: Callable[..., Path], tmp_path: Path) -> None:
    base = tiny_llama()
    path = made(base, "a0", modules_to_save=["lm_head"])
    found = scumble.blend({path: 1.0}, out=tmp_path / "b", quiet=True)
    torch.testing.assert_close(alone(base, found.out), alone(base, path), atol=TOLERANCE, rtol=0)


def test_a_blend_can_be_blended_and_says_where_it_comes_from(
    made: Callable[..., Path], tmp_path: Path
) -> None:
    base = tiny_llama()
    paths = [made(base, f"a{i}", seed=i) for i in range(2)]
    first = scumble.blend([(paths[0], 0.5), (paths[1], 0.5)], out=tmp_path / "b", quiet=True)
    second = scumble.blend([f"{first.out}=2", f"{paths[0]}=-1"], out=tmp_path / "c", quiet=True)
    torch.testing.assert_close(alone(base, second.out), alone(base, paths[1]), atol=TOLERANCE, rtol=0)
    assert second.rank == 4  # what cancels takes no rank
    record = json.loads((first.out / "blend.json").read_text())
    assert [part["weight"] for part in record["parts"]] == [0.5, 0.5]
    assert all(len(part["sha256"]) == 64 for part in record["parts"])
    assert record["error"] == first.error


def test_the_same_blend_gives_the_same_bytes(made: Callable[..., Path], tmp_path: Path) -> None:
    base = tiny_llama()
    paths = [made(base, f"a{i}", seed=i) for i in range(2)]
    for method in ("exact", "dare_ties"):
        outs = [
            scumble.blend(
                dict.fromkeys(paths, 0.5), out=tmp_path / f"{method}{i}", method=method, quiet=True
            ).out
            for i in range(2)
        ]
        files = [(out / "adapter_model.safetensors").read_bytes() for out in outs]
        assert files[0] == files[1]


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (["a=0.7", "b"], [("a", 0.7), ("b", 1.0)]),
        (["dir/x=y=-.5"], [("dir/x=y", -0.5)]),
        ("a=1e-3", [("a", 1e-3)]),
        ([("a", 1), ("a", 2.0)], [("a", 1.0), ("a", 2.0)]),
        ({"a": 0.25}, [("a", 0.25)]),
    ],
)
def test_weights_are_read_from_any_form(given: Any, found: list[tuple[str, float]]) -> None:
    assert read_weights(given) == found


@pytest.mark.parametrize("text", ["a=x", "a=", "a=nan", "a=inf", "a=1_0", "a=1,5"])
def test_a_weight_that_is_no_number_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="the weight of a is"):
        read_weights([text])


def test_what_cannot_be_blended_is_refused_before_anything_is_written(
    made: Callable[..., Path],
    tmp_path: Path,
) -> None:
    base = tiny_llama()
    path = made(base, "a0")
    dora = made(base, "dora", use_dora=True)
    wide = made(tiny_llama(hidden_size=32), "wide")
    out = tmp_path / "out"
    cases: list[tuple[Any, dict[str, Any], type[ScumbleError], str]] = [
        ({tmp_path / "none": 1.0}, {}, MissingFileError, "does not exist"),
        ({path: 1.0, wide: 1.0}, {}, AdapterError, "different bases"),
        ({path: 1.0}, {"method": "svd"}, ConfigError, "needs a rank"),
        ({path: 1.0}, {"method": "tise"}, ConfigError, "--method is 'tise'"),
        ({path: 1.0}, {"density": 0.0}, ConfigError, "--density is 0.0"),
        ({path: 1.0}, {"rank": 0}, ConfigError, "--rank is 0"),
        ({path: float("nan")}, {}, ConfigError, "the weight of"),
        ({}, {}, AdapterError, "no adapters"),
        ({dora: 1.0}, {"base": str(tmp_path / "none")}, MissingFileError, "does not exist"),
    ]
    for adapters, options, kind, message in cases:
        with pytest.raises(kind, match=message):
            scumble.blend(adapters, out=out, quiet=True, **options)
        assert not out.exists()
    out.mkdir()
    with pytest.raises(OutputExistsError, match="exists already"):
        scumble.blend({path: 1.0}, out=out, quiet=True)
    with pytest.raises(OutputExistsError, match="which is read"):
        scumble.blend({path: 1.0}, out=path, force=True, quiet=True)


@pytest.mark.parametrize("per", ["layer", "adapter"])
def test_weights_are_learned_and_recorded(
    per: str, letters_base: Any, made: Callable[..., Path], tmp_path: Path
) -> None:
    base = letters_base.model
    paths = [made(base, f"a{i}", seed=i) for i in range(2)]
    given = list(zip(paths, (0.5, 0.5), strict=True))
    options: dict[str, Any] = {"learn_steps": 4, "learn_per": per, "base": letters_base, "quiet": True}
    found = scumble.blend(given, out=tmp_path / "b", learn=[sums(8), sums(8, 20)], **options)
    record = json.loads((found.out / "blend.json").read_text())
    learned, weights = record["learned"], [part["weight"] for part in record["parts"]]
    assert learned["after"] <= learned["before"]
    assert len(learned["sets"]) == 2
    drawn = (found.out / "learned.svg").read_text()
    assert drawn.startswith("<svg")
    assert "part0" not in drawn  # the adapters have names of their own
    if per == "adapter":
        assert weights == learned["weights"][0]
    else:
        assert set(weights[0]) == set(Bank(base).add("a", paths[0]).matched)
    # the file is the blend with exactly those weights
    path = "model.layers.1.self_attn.q_proj"
    own = [weight if per == "adapter" else weight[path] for weight in weights]
    adapters = [Adapter.load(each) for each in paths]
    right = sum(w * dense(adapter)[path] for w, adapter in zip(own, adapters, strict=True))
    torch.testing.assert_close(dense(Adapter.load(found.out))[path], right, atol=1e-5, rtol=1e-5)


def test_what_could_not_be_loaded_again_is_not_written(made: Callable[..., Path], tmp_path: Path) -> None:
    path = made(tiny_llama(), "a0")
    with pytest.raises(ConfigError, match="cannot be an adapter"):
        scumble.blend({path: 9e8}, out=tmp_path / "b", quiet=True)
    assert not (tmp_path / "b").exists()


def test_a_dora_adapter_is_not_resized_against_a_base_of_other_sizes(
    made: Callable[..., Path], tmp_path: Path
) -> None:
    path = made(tiny_llama(), "a0", use_dora=True)
    tiny_llama(hidden_size=32).save_pretrained(tmp_path / "wide")
    with pytest.raises(AdapterError, match="is 32 x 32"):
        scumble.resize(path, out=tmp_path / "b", rank=2, base=str(tmp_path / "wide"), quiet=True)
    assert not (tmp_path / "b").exists()


def test_the_record_is_written_with_the_adapter_and_listed(made: Callable[..., Path], tmp_path: Path) -> None:
    found = scumble.blend({made(tiny_llama(), "a0"): 0.5}, out=tmp_path / "b", quiet=True)
    listed = json.loads((found.out / "manifest.json").read_text())["sha256"]
    assert set(listed) == {"adapter_config.json", "adapter_model.safetensors", "blend.json"}
