"""Weights learned from examples: they find what is known to be best, and never end up worse than they began."""

from __future__ import annotations

import json
import math
from xml.etree import ElementTree

import pytest
import torch

from scumble.compare.loss import mean_loss
from scumble.data.encoding import encode_all
from scumble.data.examples import read_examples, split_by_hash
from scumble.errors import AdapterError, ConfigError, DataError, TrainingError
from scumble.lora.bank import Bank
from scumble.lora.spec import LoraSpec
from scumble.manage.learning.curve import curve_svg, in_lines
from scumble.manage.learning.learn import Learned, learn_weights
from scumble.progress import Reporter
from tests.bases import chat, make_letters_base, sums

BASE = make_letters_base()


def _bank(*specs: LoraSpec, spread: float = 0.3) -> Bank:
    """A bank of random adapters `a`, `b`, ... on a base of its own."""
    bank = Bank(make_letters_base())
    for number, spec in enumerate(specs or (LoraSpec(rank=2), LoraSpec(rank=3, targets="all-linear"))):
        name = "abc"[number]
        bank.trainable(name, spec, seed=number)
        generator = torch.Generator().manual_seed(number)
        with torch.no_grad():
            for tensor in bank.parameters(name).values():
                tensor.add_(torch.randn(tensor.shape, generator=generator) * spread)
    return bank


def _learn(bank: Bank | None = None, examples=None, start=(1.0, 1.0), **changed) -> Learned:
    bank = bank or _bank()
    rows = read_examples(sums(24)) if examples is None else examples
    options = {"steps": 12, "batch": 6, "rate": 0.1, **changed}
    return learn_weights(bank, ["a", "b"], start, rows, BASE.tokenizer, **options)


def _held_loss(bank: Bank, rows, mixture, share=0.25) -> float:
    held = encode_all(split_by_hash(rows, share)[1], BASE.tokenizer, 4096).examples
    with bank.using(mixture):
        return mean_loss(bank.model, held, 4, bank.model.device)


HEAD = LoraSpec(rank=2, targets=("lm_head",))  # logits are linear in its weight, so the loss is convex in it


def test_the_lowest_point_of_a_convex_loss_is_found():
    bank, rows, start = _bank(HEAD, HEAD), read_examples(sums(24)), (0.6, -0.4)
    found = _learn(bank, rows, start=start, steps=150, batch=18)
    train = encode_all(split_by_hash(rows, 0.25)[0], BASE.tokenizer, 4096).examples

    def loss(a: float, b: float) -> float:
        with bank.using({"a": a, "b": b}):
            return mean_loss(bank.model, train, 24, bank.model.device)

    # the last weights of the path, not those that the part held back chose; convex, so that no lower point
    # nearby means none anywhere. 1e-4: the batches of 18 are not quite all of the training part each time
    a, b = found.curve[-1].weights[0]
    assert (
        loss(a, b) <= min(loss(a + da, b + db) for da in (-0.02, 0, 0.02) for db in (-0.02, 0, 0.02)) + 1e-4
    )
    assert loss(a, b) < loss(*start) - 0.05
    assert found.after < found.before


def test_losses_are_those_of_the_part_held_back():
    bank, rows = _bank(), read_examples(sums(24))
    found = _learn(bank, rows)
    # fp32 sums in batches of another size
    assert found.before == pytest.approx(_held_loss(bank, rows, {"a": 1.0, "b": 1.0}), rel=1e-5)
    assert found.after == pytest.approx(_held_loss(bank, rows, found.mixture), rel=1e-5)
    assert found.after < found.before
    kept = min(found.curve, key=lambda point: point.validation)
    assert (kept.step, kept.weights, kept.validation) == (found.step, found.weights, found.after)
    assert [s.after for s in found.sets] == [pytest.approx(found.after)]
    assert (found.sets[0].examples, found.sets[0].held_back) == (24, len(split_by_hash(rows, 0.25)[1]))


def test_what_learning_makes_worse_is_not_kept():
    # a rate so large that every step leaps past anything good
    found = _learn(_bank(HEAD, HEAD), start=(0.0, 0.0), rate=1e3, steps=5)
    assert found.step == 0
    assert found.weights == [[0.0, 0.0]]
    assert found.after == found.before
    assert all(point.validation > found.before for point in found.curve[1:])


def test_the_same_seed_gives_the_same_weights():
    first, again = _learn(seed=3), _learn(seed=3)
    assert first.curve == again.curve
    assert first.weights == again.weights
    assert _learn(seed=4).curve != first.curve


def test_each_layer_may_have_weights():
    bank, rows = _bank(LoraSpec(rank=2), LoraSpec(rank=2, targets=("q_proj", "lm_head"))), sums(24)
    found = _learn(bank, read_examples(rows), per_layer=True)
    assert found.per_layer
    assert found.layers == [0, 1, None]  # lm_head lies outside the layers
    assert [len(row) for row in found.weights] == [2, 2, 2]
    assert found.at("model.layers.1.self_attn.q_proj") == dict(zip("ab", found.weights[1], strict=True))
    assert found.at("lm_head") == dict(zip("ab", found.weights[2], strict=True))
    assert found.weights[2][0] == 1.0  # `a` has nothing there, and its weight no gradient
    assert len({row[1] for row in found.weights}) == 3
    assert found.mixture["b"] == pytest.approx(sum(row[1] for row in found.weights) / 3)
    assert found.after < found.before


def test_sets_count_alike_whatever_their_sizes():
    short = read_examples([chat(f"{i}?", f"{i % 7}") for i in range(40)])
    long = read_examples([chat(f"say {i}", f"{i} " * 12) for i in range(12)])
    bank = _bank()
    found = _learn(bank, [short, long])
    assert [s.examples for s in found.sets] == [40, 12]
    one = {"a": 1.0, "b": 1.0}
    apart = [_held_loss(bank, rows, one) for rows in (short, long)]
    assert [s.before for s in found.sets] == pytest.approx(apart, rel=1e-5)
    assert found.before == pytest.approx(sum(apart) / 2, rel=1e-5)
    assert found.after == pytest.approx(sum(s.after for s in found.sets) / 2, rel=1e-6)


def test_the_bank_is_as_before():
    bank = _bank()
    bank.use({"a": 0.5})
    state = bank.routing.state()
    ids = torch.tensor([[5, 6, 7]])
    before = bank.model(input_ids=ids).logits
    _learn(bank)
    assert bank.routing.state() is state
    assert torch.equal(bank.model(input_ids=ids).logits, before)
    assert all(tensor.grad is None for tensor in bank.model.parameters())


def test_the_document_is_json_and_the_curve_can_be_seen(capsys):
    found = _learn(reporter=Reporter())
    document = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert {"names", "layers", "weights", "mixture", "curve", "before", "after", "sets", "settings"} <= set(
        document
    )
    assert document["weights"] == found.weights
    assert document["curve"][0]["training"] is None
    said = capsys.readouterr().err
    assert said.count("loss on what is held back") == len(found.curve)
    lines = in_lines(found)
    assert len(lines) == len(found.curve) + 1
    assert [line for line in lines if line.endswith("kept")] == [
        line for line in lines if line.split()[0] == str(found.step)
    ]
    svg = curve_svg(found)
    assert svg == curve_svg(found)
    assert ElementTree.fromstring(svg).attrib["role"] == "img"
    assert svg.count("<polyline") == 4
    assert "nan" not in svg


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"rate": 0.0}, "rate is 0"),
        ({"rate": math.nan}, "rate is nan"),
        ({"batch": 0}, "batch is 0"),
        ({"validation": 1.0}, "validation is 1"),
        ({"start": (1.0,)}, "2 adapters cannot start with the weights 1"),
        ({"start": (1.0, math.inf)}, "cannot start with the weights 1, inf"),
    ],
)
def test_a_wrong_argument_is_refused(changed, message):
    with pytest.raises(ConfigError, match=message):
        _learn(**changed)


@pytest.mark.parametrize(
    "examples", [[], [[]], [read_examples(sums(4)), []]], ids=["none", "empty", "one empty"]
)
def test_no_examples_are_refused(examples):
    with pytest.raises(DataError, match="no examples to learn weights from"):
        _learn(examples=examples)


def test_what_cannot_be_held_back_or_read_is_refused():
    with pytest.raises(DataError, match="none can be held back"):
        _learn(examples=read_examples(sums(1) * 3))
    with pytest.raises(DataError, match="longer than 8 tokens"):
        _learn(max_length=8)
    with pytest.raises(DataError, match="no tokenizer"):
        learn_weights(_bank(), ["a"], [1.0], read_examples(sums(4)), None)


def test_too_long_examples_are_left_out_aloud(capsys):
    rows = [*sums(12), chat("x", "y" * 300), chat("x", "z" * 300)]
    _learn(examples=read_examples(rows), max_length=200, reporter=Reporter())
    assert "more than 200 tokens are left out" in capsys.readouterr().err


def test_adapters_that_cannot_be_blended_are_refused():
    bank = _bank(LoraSpec(rank=2), LoraSpec(rank=2, modules_to_save=("lm_head",)))
    with pytest.raises(AdapterError, match="modules_to_save"):
        _learn(bank)
    with pytest.raises(AdapterError, match="no adapter 'c'"):
        learn_weights(bank, ["c"], [1.0], read_examples(sums(4)), BASE.tokenizer)
    with pytest.raises(AdapterError, match="cannot be learned for a, a"):
        learn_weights(bank, ["a", "a"], [1.0, 1.0], read_examples(sums(4)), BASE.tokenizer)


def test_a_start_without_a_finite_loss_is_refused():
    with pytest.raises(TrainingError, match="the loss with the weights 1e\\+300"):
        _learn(start=(1e300, 1.0))
