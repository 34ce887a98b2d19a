"""The calibration against the whole model, with a clock that counts multiplications instead of seconds: it is never late.

What is planned from a thin model must be what the whole one does, for every way to train. The clock sees matrix products
only; those of attention are inside a kernel that it does not see.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from transformers import AutoConfig, AutoModelForCausalLM

from scumble import train
from scumble.compare.loss import groups_of
from scumble.data.encoding import Encoded, encode_all
from scumble.data.examples import read_examples
from scumble.errors import ConfigError, NotSupportedError
from scumble.lab import calibrated, layer_times, thin
from scumble.lab.calibrated import calibrate, recalled
from scumble.lab.planned import subject_of
from scumble.models.base import Base
from scumble.plan.setup import Setup
from scumble.plan.shape import Shape
from scumble.plan.timing import Epoch, epoch_time
from scumble.progress import Reporter
from scumble.train import engine
from scumble.train.engine import Engine
from tests.engine import one_thread

__all__ = ["one_thread"]

# Products are linear in tokens and losses, and the fit is of products alone: what is off is rounding of a float sum.
EXACT = 1e-6
QUIET = Reporter(quiet=True)

LLAMA = {
    "model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 10,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 200, "max_position_embeddings": 256,
}  # fmt: skip
SHAPES = {
    "llama": LLAMA,
    "qwen3, tied": {**LLAMA, "model_type": "qwen3", "head_dim": 8, "tie_word_embeddings": True},
    "gemma3": {**LLAMA, "model_type": "gemma3_text", "head_dim": 8, "sliding_window": 20},
    "two layers": {**LLAMA, "num_hidden_layers": 2},
    "one layer": {**LLAMA, "num_hidden_layers": 1},
}
WAYS: dict[str, dict[str, Any]] = {
    "q and v": {},
    "all linear layers": {"targets": "all-linear", "rank": 4},
    "the MLP of some layers": {"targets": r".*layers\.(3|5|6|8|9)\.mlp\.(up|down)_proj"},
    "one layer alone": {"targets": r".*layers\.7\.self_attn\.v_proj"},
    "output layer too": {"targets": ("q_proj", "lm_head")},
    "dropout": {"dropout": 0.1},
    "DoRA": {"dora": True},
    "accumulated": {"batch": 2, "accumulate": 3},
    "all layers twice": {"repeat": "all"},
    "five layers twice": {"repeat": 5},
    "full": {"method": "full"},
    "full, all twice": {"method": "full", "repeat": "all"},
    "bf16": {"dtype": "bf16"},
}


class Products(TorchDispatchMode):
    """Counts multiplications and additions, as PyTorch's own `FlopCounterMode` does, which is slower."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        known = flop_registry.get(func.overloadpacket)
        self.count += known(*args, **(kwargs or {}), out_val=found) if known else 0
        return found


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Products]:
    """A clock of multiplications and additions, and an empty cache."""
    monkeypatch.setenv("SCUMBLE_HOME", str(tmp_path))
    with Products() as counter:
        clock = SimpleNamespace(perf_counter=lambda: float(counter.count))
        for module in (calibrated, layer_times):
            monkeypatch.setattr(module, "time", clock)
        yield counter


def shape_of(kind: str) -> Shape:
    given = dict(SHAPES[kind])
    config = AutoConfig.for_model(given.pop("model_type"), **given)
    return Shape.of_config(config.to_dict(), kind, "this test")


def examples() -> list[Encoded]:
    """Some begin alike."""
    draw = torch.Generator().manual_seed(0)
    found = []
    for number, length in enumerate([12, 50, 33, 20, 64, 15]):
        ids = tuple(range(10)) + tuple(torch.randint(10, 200, (length,), generator=draw).tolist())
        found.append(Encoded(ids, tuple(i > 10 and i % 3 > 0 for i in range(len(ids))), number, ""))
    return found


def setup_of(**changed: Any) -> Setup:
    return replace(Setup(dtype="fp32", batch=4, device="cpu"), **changed)


def planned(shape: Shape, setup: Setup) -> float:
    epoch = Epoch.of(examples(), setup)
    calibration = calibrate(shape, setup, epoch.micro_batches, seconds=1.0, reporter=QUIET)
    return epoch_time(calibration, shape, setup, epoch).seconds


def done(shape: Shape, setup: Setup, counter: Products) -> int:
    """Of a whole model, all steps of the epoch."""
    config = shape.skeleton.model.config
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[setup.dtype]
    subject = subject_of(Base(AutoModelForCausalLM.from_config(config, dtype=dtype)), setup)
    repeat = shape.layers if setup.repeat == "all" else setup.repeat
    made = Engine(subject, setup.batch, repeat=repeat, reporter=QUIET)
    steps = Epoch.of(examples(), setup).steps
    with subject.using(), made.running(examples()):
        made.step(0, steps[0][0])  # what a model allows is tried at its first step
        before = counter.count
        for number, groups in enumerate(steps):
            made.step(number, [example for group in groups for example in group])
        after = counter.count
    subject.close()
    return after - before


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_train(way: str, products: Products) -> None:
    shape, setup = shape_of("llama"), setup_of(**WAYS[way])
    assert planned(shape, setup) == pytest.approx(done(shape, setup, products), rel=EXACT)


@pytest.mark.parametrize("kind", [kind for kind in SHAPES if kind != "llama"])
def test_every_shape(kind: str, products: Products) -> None:
    shape, setup = shape_of(kind), setup_of(targets="standard")
    assert planned(shape, setup) == pytest.approx(done(shape, setup, products), rel=EXACT)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_an_epoch_is_the_one_that_training_makes(
    dropout: float, letters_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[tuple[int, ...]]] = []

    def noted(*args: Any, **kwargs: Any) -> Any:
        groups = groups_of(*args, **kwargs)
        seen.append([tuple(each.number for each in group) for group in groups])
        return groups

    monkeypatch.setattr(engine, "groups_of", noted)
    said = [(f"say {'so ' * (n % 5)}{n}", f"{n} it is") for n in range(13)]
    rows = [
        {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]}
        for asked, answer in said
    ]
    given = {"batch": 2, "accumulate": 2, "dropout": dropout}
    run = train(
        rows, out=tmp_path / "run", base=letters_base, eval=0, epochs=1, seed=3, quiet=True, examples_in_report=0, **given
    )  # fmt: skip
    encoded = encode_all(read_examples(rows), letters_base.tokenizer, 2048).examples
    epoch = Epoch.of(encoded, setup_of(**given), seed=3)
    assert seen == [[tuple(each.number for each in group) for group in groups] for groups in epoch.steps]
    assert (run.steps, run.tokens) == (epoch.count, epoch.tokens)


def test_a_thin_model_is_thin(products: Products) -> None:
    shape, setup = shape_of("llama"), setup_of()
    epoch = Epoch.of(examples(), setup)
    before = products.count
    made = calibrate(shape, setup, epoch.micro_batches, seconds=1.0, reporter=QUIET)
    each = (products.count - before) / made.steps
    assert [kind.count for kind in made.layers] == [shape.layers - 2]
    assert each < 0.8 * done(shape, setup, products) / len(epoch.micro_batches)


def test_what_was_measured_is_kept(products: Products) -> None:
    shape, setup = shape_of("llama"), setup_of()
    assert recalled(shape, setup) is None
    made = calibrate(shape, setup, Epoch.of(examples(), setup).micro_batches, seconds=1.0, reporter=QUIET)
    assert recalled(shape, setup) == made
    assert recalled(shape, replace(setup, rank=9)) is None
    assert recalled(shape_of("qwen3, tied"), setup) is None


def test_a_broken_cache_is_no_cache(products: Products, tmp_path: Path) -> None:
    shape, setup = shape_of("llama"), setup_of()
    for text in ("", "[]", "{", '{"a": 1}'):
        (tmp_path / "timing.json").write_text(text)
        assert recalled(shape, setup) is None
    calibrate(shape, setup, Epoch.of(examples(), setup).micro_batches, seconds=1.0, reporter=QUIET)
    assert recalled(shape, setup) is not None


def test_random_numbers_go_on_as_they_would(products: Products) -> None:
    torch.manual_seed(3)
    wanted = torch.rand(2)
    torch.manual_seed(3)
    shape, setup = shape_of("llama"), setup_of()
    calibrate(shape, setup, Epoch.of(examples(), setup).micro_batches, seconds=1.0, reporter=QUIET)
    assert torch.equal(torch.rand(2), wanted)


@pytest.mark.parametrize(
    "changed",
    [{"method": "qlora", "dtype": "nf4"}, {"dtype": "int8"}, {"engine": "script"}, {"processes": 2}],
)
def test_what_is_not_trained_here_is_refused(changed: dict[str, Any]) -> None:
    with pytest.raises(NotSupportedError, match="calibrated"):
        calibrate(shape_of("llama"), setup_of(**changed), [examples()], reporter=QUIET)


def test_layers_that_a_thin_model_cannot_have_are_refused(products: Products) -> None:
    mixed = {**LLAMA, "num_experts": 4, "moe_intermediate_size": 24, "mlp_only_layers": [0, 1, 2, 3]}
    shape = Shape.of_config({**mixed, "model_type": "qwen3_moe"}, "mixed", "this test")
    with pytest.raises(NotSupportedError, match="the layers of mixed differ"):
        calibrate(shape, setup_of(), [examples()], reporter=QUIET)


def test_too_little_memory_is_said(monkeypatch: pytest.MonkeyPatch, products: Products) -> None:
    monkeypatch.setattr(thin, "free_bytes", lambda device: 1000)
    with pytest.raises(ConfigError, match=r"6 of 10 layers, and 0.0 GB are free"):
        calibrate(shape_of("llama"), setup_of(), [examples()], reporter=QUIET)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_said() -> None:
    with pytest.raises(ConfigError, match="cuda"):
        calibrate(shape_of("llama"), setup_of(device="cuda"), [examples()], reporter=QUIET)
