"""Updates that are intended and lost, however small: modules, many modules together, token rows, whole merges."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from scumble.errors import AdapterError
from scumble.lora.adapter import Adapter, Factors
from scumble.manage.certificate.achieved import DORA_NOISE, NOISE, Sums, achieved, untouched
from scumble.manage.certificate.certificate import describe
from scumble.manage.certificate.intended import Wanted
from scumble.manage.certificate.verdict import SMALL_PART, judge_modules
from tests.manage.merges import (
    BF16,
    FP16,
    FP32,
    SHORT,
    honest_merge,
    judged,
    load,
    merged,
    merging,
    write_adapter,
    write_base,
)


def numbers(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def held(want, base, written):
    return achieved(want, lambda a, b: base[a:b], lambda a, b: written[a:b], tuple(base.shape))


def one_module(scale, seed=0, kind=BF16, magnitude=None, b=None):
    """A bf16 weight with an update, B of the size `scale`, honestly merged in `kind`."""
    W = (numbers(64, 32, seed=seed) * 0.02).bfloat16()
    B = (numbers(64, 4, seed=seed + 2) * scale).float() if b is None else b
    want = Wanted("x", "update", Factors(numbers(4, 32, seed=seed + 1).float(), B, magnitude=magnitude), 1.0)
    full = want.block(0, 64, W, want.gain(lambda a, b: W[a:b], (64, 32)))
    return held(want, W, full.to(kind))


def overall_of(modules):
    return sum((found.sums for found in modules.values()), Sums())


@pytest.mark.parametrize("scale", [1e-6, 1e-8, 1e-10])
def test_a_bf16_base_is_known_exactly(scale):
    """Far below bf16's and even fp32's rounding of W, and all of it lost: it fails."""
    found = one_module(scale)
    assert found.misrounded == 0
    assert found.sums.relative < 1e-3
    assert found.sums.lost > 0.9
    failures, _ = judge_modules({"x": found}, found.sums)
    assert any("the whole update" in line for line in failures)


def test_fp32_keeps_what_bf16_loses():
    found = one_module(1e-8, kind=FP32)
    assert found.sums.relative < 2.0**-19
    assert found.sums.cosine > 0.99
    assert judge_modules({"x": found}, found.sums, all_fp32=True)[0] == []


def test_what_fp64_itself_cannot_tell_is_warned_of_and_not_judged():
    found = one_module(1e-17)
    assert 0 < found.sums.relative < NOISE
    assert found.sums.cosine is None
    failures, warnings = judge_modules({"x": found}, found.sums)
    assert failures == []
    assert len(warnings) == 1
    assert f"{found.sums.relative:.2g} of their norm" in warnings[0]
    assert "is not judged" in warnings[0]


def test_an_untrained_dora_moves_weights_by_its_magnitude_alone():
    W = (numbers(64, 32) * 0.02).bfloat16()
    magnitude = W.float().norm(dim=1) * (1 + 2.0**-22)
    fresh = one_module(0.0, magnitude=magnitude, b=torch.zeros(64, 4))
    assert 0 < fresh.sums.relative < DORA_NOISE
    assert fresh.sums.negligible
    failures, warnings = judge_modules({"x": fresh}, fresh.sums)
    assert (failures, len(warnings)) == ([], 1)
    # the same magnitude with an update of that size is an adapter that was trained, and lost
    trained = one_module(1e-9, magnitude=magnitude)
    assert trained.sums.relative < DORA_NOISE
    assert judge_modules({"x": trained}, trained.sums)[0]
    # and so is a magnitude that has moved by more than rounding
    moved = one_module(0.0, magnitude=magnitude * (1 + 1e-5), b=torch.zeros(64, 4))
    assert judge_modules({"x": moved}, moved.sums)[0]


def rows_of_an_embedding(by):
    E = (numbers(4000, 16) * 0.02).bfloat16()
    which = [5, 3977]
    values = E[which].double() * (1 + by * numbers(2, 16, seed=4))
    return E, which, Wanted("emb", "rows", rows=tuple(which), values=values)


def test_trained_rows_are_judged_by_themselves():
    E, which, want = rows_of_an_embedding(2e-4)
    written = E.clone()
    written[which] = want.values.bfloat16()
    found = held(want, E, written)
    # by hand: the weight's norm is that of the two rows
    assert math.sqrt(found.sums.ww) == pytest.approx(float(E[which].double().norm()), rel=1e-12)
    assert found.to_dict()["weight"] == pytest.approx(float(E[which].double().norm()), rel=1e-12)
    assert judge_modules({"emb": found}, found.sums)[0]
    kept = E.float()
    kept[which] = want.values.float()
    wide = held(want, E, kept)
    assert judge_modules({"emb": wide}, wide.sums)[0] == []


def test_a_row_of_others_that_changed_is_still_seen():
    E, which, want = rows_of_an_embedding(0.5)
    written = E.clone()
    written[which] = want.values.bfloat16()
    written[100, 3] = 1.0
    found = held(want, E, written)
    assert found.misrounded == 1
    assert found.elements == E.numel()


def scaled(found, by):
    """The same module with all of its sums `by` times as large in norm."""
    return replace(found, sums=Sums(*(value * by**2 for value in found.sums.values)))


def test_many_small_modules_that_are_lost_fail_together():
    lost, kept = one_module(1e-7), one_module(1.0)
    unit = math.sqrt(kept.sums.ii / lost.sums.ii)
    for count, share, fails in ((100, 0.005, True), (3, 0.005, False), (100, 0.0009, False)):
        modules = {f"small{i}": scaled(lost, share * unit) for i in range(count)} | {"large": kept}
        overall = overall_of(modules)
        together = math.sqrt(count * scaled(lost, share * unit).sums.ii / overall.ii)
        assert (together > SMALL_PART) is fails
        assert overall.cosine > 0.99  # so that the whole update says nothing
        failures, warnings = judge_modules(modules, overall)
        assert len(warnings) >= min(count, 8)
        if fails:
            assert len(failures) == 1
            assert failures[0].startswith(
                f"{count} small modules, together {together:.1%} of the update's norm"
            )
            assert "such as small" in failures[0]
        else:
            assert failures == []


@pytest.mark.parametrize("dtype", [None, "bf16"])
def test_a_whole_merge_that_loses_a_tiny_update_fails(dtype, tmp_path):
    base = write_base(tmp_path / "base", dtype=BF16)
    adapter = write_adapter(base, tmp_path / "adapter", shrink=1e-7)
    options = {"base": base, "prompts": SHORT, "quiet": True}
    with pytest.raises(AdapterError, match="the whole update: the update was lost") as caught:
        merging.merge(adapter, out=tmp_path / "merged", dtype=dtype, **options)
    assert "--dtype fp32" in caught.value.hint
    assert not (tmp_path / "merged").exists()


def test_fp32_is_not_advised_where_it_was_asked_for(tmp_path):
    base = write_base(tmp_path / "base", dtype=FP32)
    adapter = write_adapter(base, tmp_path / "adapter", shrink=1e-9)
    with pytest.raises(AdapterError, match="the whole update") as caught:
        merging.merge(adapter, out=tmp_path / "merged", base=base, prompts=SHORT, quiet=True)
    assert "fp32" not in caught.value.hint


def test_it_never_says_that_an_adapter_changes_nothing_when_it_changes_something(tmp_path):
    base, adapter, out = merged(tmp_path, use_dora=True, shrink=0.0)
    fresh, weights = Adapter.load(adapter), load(base, FP32).state_dict()
    for path, factors in fresh.factors.items():
        norms = weights[f"{path}.weight"].norm(dim=1) * (1 + 2.0**-22)
        fresh.factors[path] = replace(factors, magnitude=norms)
    fresh.save(tmp_path / "fresh")
    adapter, out = tmp_path / "fresh", honest_merge(base, tmp_path / "fresh", tmp_path / "out")
    certificate = judged(base, adapter, out)
    assert certificate.passed, certificate.failures
    assert certificate.overall.ii > 0
    line = describe(certificate)[0]
    assert "changes nothing" not in line
    assert f"{certificate.overall.relative:.2g} of the weights' norm" in line
    assert any("is not judged" in warning for warning in certificate.warnings)


def test_untouched_tensors_by_bits_and_by_what_overflows():
    base = torch.tensor([[1.0, -0.0, math.nan], [70000.0, math.inf, 3.0]])

    def counts(written, original=base):
        return untouched(lambda a, b: original[a:b], lambda a, b: written[a:b], tuple(original.shape))

    assert counts(base.clone()) == (0, 0)
    assert counts(base.to(FP16)) == (0, 1)  # 70000 is infinite in fp16, and infinity was before
    other = base.clone()
    other[0, 1], other[1, 2] = 0.0, math.inf
    assert counts(other) == (2, 1)
    whole = torch.arange(6).reshape(2, 3)
    assert counts(whole.clone(), whole) == (0, 0)
