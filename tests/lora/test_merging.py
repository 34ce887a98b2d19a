"""Rounding once, to the nearest: against exact arithmetic, where rounding twice goes wrong."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scumble.lora.adapter import Factors
from scumble.lora.merging import Change, changed, merged_rows, rounded

KINDS = {"bf16": torch.bfloat16, "fp16": torch.float16}


def nearest(value: float, kind: torch.dtype) -> float:
    """The nearest number of a type by exact arithmetic, ties to the even one, among three neighbours."""
    bits = int(torch.tensor(abs(value), dtype=torch.float64).to(kind).view(torch.int16))
    found = {b: torch.tensor(b, dtype=torch.int16).view(kind) for b in (bits - 1, bits, bits + 1) if b >= 0}
    exact = Fraction(abs(value))
    finite = {b: float(t) for b, t in found.items() if torch.isfinite(t)}
    best = min(finite, key=lambda b: (abs(Fraction(finite[b]) - exact), b & 1))
    return math.copysign(finite[best], value)


@pytest.mark.parametrize("name", KINDS)
@settings(max_examples=300, deadline=None)
@given(value=st.floats(-6e4, 6e4, allow_subnormal=False))
def test_random_numbers(name, value):
    found = rounded(torch.tensor(value, dtype=torch.float64), KINDS[name])
    assert float(found) == nearest(value, KINDS[name])


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("sign", [1, -1])
def test_where_twice_is_once_too_often(name, sign):
    kind = KINDS[name]
    step = torch.finfo(kind).eps
    # just above the middle between 1 and the next number: fp32 rounds it to the middle, which goes to even, 1
    value = torch.tensor([sign * (1 + step / 2 + 2.0**-40)], dtype=torch.float64)
    assert float(value.to(torch.float32).to(kind)) == sign
    assert float(rounded(value, kind)) == sign * (1 + step)
    # just below the middle between the next two
    value = torch.tensor([sign * (1 + 3 * step / 2 - 2.0**-40)], dtype=torch.float64)
    assert float(value.to(torch.float32).to(kind)) == sign * (1 + 2 * step)
    assert float(rounded(value, kind)) == sign * (1 + step)


@pytest.mark.parametrize("name", KINDS)
def test_what_is_no_number_stays_so(name):
    value = torch.tensor([float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 1e39], dtype=torch.float64)
    found = rounded(value, KINDS[name]).float()
    assert found[0].isnan()
    assert found[1:].tolist() == [float("inf"), -float("inf"), 0.0, 0.0, float("inf")]
    assert torch.signbit(found[4])


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("block", [1, 7, 1000])
def test_blocks_change_nothing(monkeypatch, transposed, block):
    from scumble.lora import merging, updates

    monkeypatch.setattr(merging, "row_blocks", lambda shape: updates.row_blocks(shape, block))
    generator = torch.Generator().manual_seed(0)
    W, A, B = (torch.randn(size, generator=generator) for size in ((9, 5), (2, 5), (9, 2)))
    stored = W.T.contiguous() if transposed else W
    result = changed(stored, Change(Factors(A, B), 0.7, transposed), torch.float32)
    wanted = (W.double() + 0.7 * (B.double() @ A.double())).float()
    assert torch.equal(result, wanted.T if transposed else wanted)
    assert torch.equal(merged_rows(W[3:6], Factors(A, B), 0.7, 3, torch.float32), wanted[3:6])


def test_rows_and_an_update_of_the_same_embedding():
    """As in the bank: the change of the row and the update add up."""
    generator = torch.Generator().manual_seed(0)
    E, A, B, rows = (torch.randn(s, generator=generator) for s in ((9, 5), (2, 9), (5, 2), (2, 5)))
    change = Change(Factors(A, B, embedding=True), 0.5, True, tokens=rows, rows=(7, 2))
    update = 0.5 * (B.double() @ A.double()).T
    wanted = E.double() + update
    wanted[[7, 2]] = rows.double() + update[[7, 2]]
    assert torch.equal(changed(E, change, torch.float32), wanted.float())


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("transposed", [False, True])
def test_of_an_update_beside_rows_no_more_than_those_rows_is_held(transposed, dora, monkeypatch):
    """An embedding as (tokens, width), or an output layer: dense, by hand; and nothing large is put together."""
    generator = torch.Generator().manual_seed(1)
    E, rows = torch.randn(300, 5, generator=generator), torch.randn(2, 5, generator=generator)
    out, width = (5, 300) if transposed else (300, 5)
    A, B = torch.randn(2, width, generator=generator), torch.randn(out, 2, generator=generator)
    magnitude = torch.rand(out, generator=generator) + 0.5 if dora else None
    change = Change(Factors(A, B, magnitude=magnitude), 0.5, transposed, tokens=rows, rows=(7, 2))
    W = (E.T if transposed else E).double()
    full = W + 0.5 * (B.double() @ A.double())
    if magnitude is not None:
        full = full * (magnitude.double() / full.norm(dim=1))[:, None]
    update = (full - W).T if transposed else full - W
    wanted = E.double() + update
    wanted[[7, 2]] = rows.double() + update[[7, 2]]
    sizes, cat = [], torch.cat
    monkeypatch.setattr(
        torch, "cat", lambda parts, *a: sizes.append(cat(parts, *a).numel()) or cat(parts, *a)
    )
    found = changed(E, change, torch.float64)
    assert torch.allclose(found, wanted, rtol=0, atol=1e-13)  # fp64 sums in another order
    assert max(sizes, default=0) <= rows.numel()


def test_nothing_to_do_gives_the_tensor_itself():
    stored = torch.arange(3.0)
    assert changed(stored, None, torch.float32) is stored
    whole = torch.arange(3)
    assert changed(whole, None, torch.bfloat16) is whole
