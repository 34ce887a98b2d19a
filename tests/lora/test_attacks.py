"""What somebody who means ill would try, and random damage does not reach."""

from __future__ import annotations

import json
import os
import resource
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from scumble.errors import AdapterError, ManifestError, MissingFileError, ScumbleError
from scumble.lora.adapter import CONFIG_NAME, WEIGHTS_NAME, Adapter, Factors
from scumble.lora.bank import Bank
from scumble.lora.spec import LoraSpec
from scumble.manifest import MANIFEST_NAME
from tests.lora.conftest import peft_load
from tests.tiny import logits, tiny_ids, tiny_llama

PLAIN = {"peft_type": "LORA", "r": 4, "target_modules": ["q_proj"]}


@pytest.fixture
def folder(made, tmp_path) -> Path:
    """An adapter that Scumble wrote, of PEFT's making."""
    return Adapter.load(made(tiny_llama(), "peft")).save(tmp_path / "adapter")


def change(folder: Path, **values: Any) -> None:
    """Change values of the configuration on purpose."""
    (folder / MANIFEST_NAME).unlink(missing_ok=True)
    config = json.loads((folder / CONFIG_NAME).read_text())
    (folder / CONFIG_NAME).write_text(json.dumps({**config, **values}))


def refused(folder: Path, **values: Any) -> AdapterError:
    """What loading says once values of the configuration were changed."""
    change(folder, **values)
    with pytest.raises(AdapterError) as error:
        Bank(tiny_llama()).add("a", folder)
    assert str(error.value).isprintable()
    assert len(error.value.message) < 500
    return error.value


def weights(folder: Path, header: bytes, data: bytes = b"", length: int | None = None) -> Path:
    """Weights with a header of our own, in a folder without a manifest."""
    (folder / MANIFEST_NAME).unlink(missing_ok=True)
    length = len(header) if length is None else length
    (folder / WEIGHTS_NAME).write_bytes(struct.pack("<Q", length) + header + data)
    return folder


# -- damage --------------------------------------------------------------------------------------------


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from([CONFIG_NAME, WEIGHTS_NAME]), share=st.floats(0, 1, exclude_max=True))
def test_every_flipped_bit_of_what_scumble_wrote_is_found(folder, name, share):
    whole = (folder / name).read_bytes()
    place = int(share * 8 * len(whole))
    data = bytearray(whole)
    data[place // 8] ^= 1 << place % 8
    (folder / name).write_bytes(data)
    with pytest.raises(ManifestError, match=name):
        Adapter.load(folder)
    (folder / name).write_bytes(whole)
    assert Adapter.load(folder).factors


def test_peft_loads_what_has_a_manifest(folder):
    base = tiny_llama()
    want = logits(peft_load(base, folder), tiny_ids())
    bank = Bank(base)
    bank.add("a", folder)
    bank.use("a")
    # fp32 in another order of sums
    torch.testing.assert_close(logits(bank.model, tiny_ids()), want, rtol=1e-4, atol=1e-4)


def test_weights_cut_at_any_byte_are_refused(folder):
    whole = (folder / WEIGHTS_NAME).read_bytes()
    (folder / MANIFEST_NAME).unlink()
    Adapter.load(folder)
    for length in {*range(64), *range(64, len(whole), 17), *range(len(whole) - 32, len(whole))}:
        (folder / WEIGHTS_NAME).write_bytes(whole[:length])
        with pytest.raises(AdapterError):
            Adapter.load(folder)


# -- files that are none -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [CONFIG_NAME, WEIGHTS_NAME])
@pytest.mark.parametrize("kind", ["pipe", "zero", "folder", "loop", "nowhere", "forbidden"])
def test_only_regular_files_are_read(folder, name, kind, monkeypatch):
    path = folder / name
    (folder / MANIFEST_NAME).unlink()
    if kind != "forbidden":
        path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "forbidden":
        real = os.open

        def deny(file: Any, *args: Any, **kwargs: Any) -> int:
            if Path(file) == path:
                raise PermissionError(13, "Permission denied", str(file))
            return real(file, *args, **kwargs)

        monkeypatch.setattr(os, "open", deny)  # root reads whatever its mode
    else:
        path.symlink_to({"zero": "/dev/zero", "loop": path, "nowhere": folder / "none"}[kind])
    with pytest.raises((AdapterError, MissingFileError)) as error:
        Adapter.load(folder)
    assert name in error.value.message


def test_links_to_files_are_read_as_the_hub_stores_them(folder, tmp_path):
    snapshot = tmp_path / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    for index, path in enumerate(sorted(folder.iterdir())):
        (tmp_path / f"blob-{index}").write_bytes(path.read_bytes())
        (snapshot / path.name).symlink_to(Path("..") / ".." / f"blob-{index}")
    assert Adapter.load(snapshot).factors.keys() == Adapter.load(folder).factors.keys()


def test_shards_are_refused_by_name(folder):
    (folder / MANIFEST_NAME).unlink()
    (folder / WEIGHTS_NAME).rename(folder / "adapter_model-00001-of-00002.safetensors")
    (folder / f"{WEIGHTS_NAME}.index.json").write_text('{"weight_map": {"a": "../../x"}}')
    with pytest.raises(AdapterError, match="shards"):
        Adapter.load(folder)


# -- sizes ---------------------------------------------------------------------------------------------


def _peak(folder: Path) -> tuple[str, float]:
    """What loading says, and by how many MB it grew: what Python allocated, or the highest resident size."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tracemalloc.start()
    try:
        with pytest.raises(AdapterError) as error:
            Adapter.load(folder)
        allocated = tracemalloc.get_traced_memory()[1] / 2**20
    finally:
        tracemalloc.stop()
    assert str(error.value).isprintable()
    return error.value.message, max(
        allocated, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    )


def test_a_header_is_not_read_where_it_is_too_large(folder):
    sparse = weights(folder, b"{", length=99_000_000) / WEIGHTS_NAME
    os.truncate(sparse, 2**40)  # a terabyte that takes no room on the disk
    message, grown = _peak(folder)
    assert "99,000,000 bytes" in message
    assert grown < 5
    for length in (2**63, 2**64 - 1):
        weights(folder, b"{}", length=length)
        assert _peak(folder)[1] < 5


ENTRY = '{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
BOMBS = {
    "lists": b'{"x":[' + b"[]," * 4_000_000 + b"[]]}",
    "numbers": b'{"x":{"dtype":"F32","shape":[' + b"1," * 6_000_000 + b'1],"data_offsets":[0,4]}}',
    "depth": b'{"x":' + b"[" * 7_000_000 + b"]" * 7_000_000 + b"}",
    "metadata": b'{"__metadata__":{' + b'"":"",' * 2_000_000 + b'"":""},"a":' + ENTRY.encode() + b"}",
    "names": b"{" + b",".join(b'"%d":%s' % (i, ENTRY.encode()) for i in range(200_000)) + b"}",
    "one name": b'{"' + b"x" * 15_000_000 + b'":' + ENTRY.encode() + b"}",
}


@pytest.mark.parametrize("kind", BOMBS)
def test_headers_that_unfold(folder, kind):
    weights(folder, BOMBS[kind], bytes(4))
    message, grown = _peak(folder)
    assert len(message) < 500
    assert grown < 150, f"{grown:.0f} MB"  # a header of 16 MiB, what the library makes of it, and little more


def test_tensors_without_bytes_take_no_memory(folder):
    """A shape with a zero has no bytes, whatever the other numbers say."""
    for shape in ([0, 2**62], [2**40, 0], [1] * 9 + [0]):
        entry = {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}
        weights(folder, json.dumps({"a": entry}).encode())
        assert "shape" in _peak(folder)[0]


@pytest.mark.parametrize("escaped", [False, True])
def test_a_name_given_twice_is_refused(folder, escaped):
    data = (folder / WEIGHTS_NAME).read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    name = next(name for name in header if "lora_A" in name)
    key = json.dumps(name).replace("l", "\\u006c", 1) if escaped else json.dumps(name)
    text = json.dumps(header)[:-1] + f", {key}: {json.dumps(header[name])}}}"
    with pytest.raises(AdapterError, match="describes"):
        Adapter.load(weights(folder, text.encode(), data[8 + length :]))


@pytest.mark.parametrize("kind", ["float8_e4m3fn", "int32", "bool"])
def test_types_that_no_adapter_has(folder, kind):
    (folder / MANIFEST_NAME).unlink()
    tensors = load_file(folder / WEIGHTS_NAME)
    first = min(tensors)
    tensors[first] = tensors[first].to(getattr(torch, kind))
    save_file(tensors, folder / WEIGHTS_NAME)
    with pytest.raises(AdapterError, match="the type"):
        Adapter.load(folder)


def test_values_that_would_overflow_in_the_model_are_refused(folder):
    """Not finite in one row of a batch would be not finite in all: 0 x inf is NaN."""
    (folder / MANIFEST_NAME).unlink()
    tensors = load_file(folder / WEIGHTS_NAME)
    save_file({**tensors, min(tensors): tensors[min(tensors)] * 1e30}, folder / WEIGHTS_NAME)
    with pytest.raises(AdapterError, match=r"as large as \d"):
        Adapter.load(folder)
    save_file({name: tensor * 1e7 for name, tensor in tensors.items()}, folder / WEIGHTS_NAME)
    with pytest.raises(AdapterError, match="the update of"):
        Adapter.load(folder)


def test_a_configuration_that_is_too_large_is_not_read(folder):
    (folder / MANIFEST_NAME).unlink()
    os.truncate(folder / CONFIG_NAME, 2**40)
    message, grown = _peak(folder)
    assert "larger than 2,097,152 bytes" in message
    assert grown < 10


# -- names and values ----------------------------------------------------------------------------------

KEYS = [*LoraSpec().to_peft()]
WRONG: list[Any] = [
    [["q"]],
    [None],
    {"a": [1]},
    {"a": {"b": 1}},
    10**400,
    -(10**400),
    1e308,
    float("nan"),
    "\x1b[2J",
    [10**400],
]


@pytest.mark.parametrize("key", KEYS)
def test_a_wrong_value_at_every_key(folder, key):
    """Refused with one line, or without effect; never another error."""
    (folder / MANIFEST_NAME).unlink()
    whole = json.loads((folder / CONFIG_NAME).read_text())
    bank = Bank(tiny_llama())
    ended = []
    for value in WRONG:
        (folder / CONFIG_NAME).write_text(json.dumps({**whole, key: value}))
        error = None
        try:
            bank.add("a", folder)
            bank.remove("a")
        except ScumbleError as raised:
            error = raised
        ended.append(error is None)
        assert error is None or (str(error).isprintable() and len(error.message) < 500)
    harmless = {"inference_mode", "init_lora_weights", "task_type"}
    assert all(ended) if key in harmless else not any(ended)


@pytest.mark.parametrize("name", ["ｑ_proj", "q_proj\u200b", "q\u0335_proj", "Q_PROJ"])
def test_names_that_only_look_alike_are_others(folder, name):
    assert refused(folder, target_modules=[name, "v_proj"]).message.isprintable()


@pytest.mark.parametrize("name", ["a\nb", "\x1b]0;title\x07", "\u202etxt", "x" * 5000, "\ud800"])
def test_the_name_of_a_base_is_one_line(folder, name):
    assert "no possible name" in refused(folder, base_model_name_or_path=name).message


def test_a_path_as_the_name_of_a_base_is_a_text_here(folder):
    (folder / MANIFEST_NAME).unlink()
    config = json.loads((folder / CONFIG_NAME).read_text())
    for name in ("../../x", "/etc/passwd", "http://localhost:1/x", "~nobody-is-called-that/x"):
        (folder / CONFIG_NAME).write_text(json.dumps({**config, "base_model_name_or_path": name}))
        assert Adapter.load(folder).spec.base_name == name


def test_two_names_for_one_place_are_refused(made):
    folder = made(tiny_llama(attention_bias=True), bias="lora_only")
    tensors = load_file(folder / WEIGHTS_NAME)
    name = next(name for name in tensors if name.endswith("q_proj.base_layer.bias"))
    tensors[name.replace(".base_layer", "")] = tensors[name].clone()
    save_file(tensors, folder / WEIGHTS_NAME)
    with pytest.raises(AdapterError, match="not known here"):
        Adapter.load(folder)


def test_factors_of_an_embedding_at_a_linear_layer_are_refused(folder):
    (folder / MANIFEST_NAME).unlink()
    tensors = load_file(folder / WEIGHTS_NAME)
    first = "base_model.model.model.layers.0.self_attn.q_proj"
    for letter in "AB":
        tensors[f"{first}.lora_embedding_{letter}"] = tensors[f"{first}.lora_{letter}.weight"].clone()
    save_file(tensors, folder / WEIGHTS_NAME)
    with pytest.raises(AdapterError, match="of a linear layer and of an embedding"):
        Adapter.load(folder)
    for letter in "AB":
        del tensors[f"{first}.lora_{letter}.weight"]
    save_file(tensors, folder / WEIGHTS_NAME)
    with pytest.raises(AdapterError, match="is a Linear in the base"):
        Bank(tiny_llama()).add("a", folder)


def test_dora_that_divides_by_nothing_cannot_reach_the_rows_of_others() -> None:
    """W + s B A made zero in one row: its gain is infinite, and zero times that is not zero."""
    model = tiny_llama()
    path = "model.layers.0.self_attn.q_proj"
    weight = model.get_submodule(path).weight.detach().clone()
    A, B = torch.zeros(4, 16), torch.zeros(16, 4)
    A[0], B[3, 0] = weight[3], -0.5  # at a scale of 2 this is -W in row 3
    spec = LoraSpec(rank=4, alpha=8.0, targets=(path,), dora=True)
    hostile = Adapter(spec, {path: Factors(A, B, magnitude=weight.norm(dim=1))})
    bank = Bank(model)
    with pytest.raises(AdapterError, match="cannot rescale row 3"):
        bank.add("hostile", hostile)
    assert bank.names == []
    assert logits(bank.model, tiny_ids()).isfinite().all()
