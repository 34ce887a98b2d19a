"""Blends saved as one adapter, against dense weights in fp64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from scumble.errors import AdapterError, ConfigError
from scumble.lora.adapter import Adapter
from scumble.lora.blend import METHODS, Blended, Part, Recipe, blend
from scumble.lora.dropout import TokenMarks, keep_mask, module_key
from tests.lora.synthetic import dense, dense_bias, made, sizes, total

# fp32 factors round by 6e-8; 1e-6 of the sum of |w_i| |update_i| is what the issue asks for, fifteen times that
EXACT = 1e-6

CASES: dict[str, list[tuple[Adapter, float]]] = {
    "plain": [(made(seed=1), 0.7), (made(seed=2), 0.3)],
    "rslora": [(made(seed=1, rslora=True), 0.7), (made(seed=2, rslora=True), 0.3)],
    "rslora and plain": [(made(seed=1, rslora=True), 0.7), (made(seed=2, alpha=3.0), 0.3)],
    "patterns": [
        (made(seed=1, rank_pattern={"up_proj": 2}, alpha_pattern={"layers.1.mlp.up_proj": 32.0}), 0.5),
        (made(seed=2, rank_pattern={"layers.0.mlp.q_proj": 6}, rslora=True), 1.5),
    ],
    "different ranks": [(made(seed=1, rank=2), 0.7), (made(seed=2, rank=7), 0.3)],
    "different targets": [(made(("q_proj",), seed=1), 0.7), (made(("k_proj", "down_proj"), seed=2), 0.3)],
    "overlapping targets": [(made(("q_proj", "k_proj"), seed=1), 1.0), (made(("k_proj",), seed=2), 1.0)],
    "negative weights": [(made(seed=1), 1.0), (made(seed=2), -1.0)],
    "three adapters": [(made(seed=1), 0.5), (made(seed=2, rank=3), -0.25), (made(("q_proj",), seed=3), 2.0)],
    "bias": [(made(seed=1, lora_bias=True), 0.7), (made(seed=2, rslora=True), 0.3)],
    "one twice": [(made(seed=1), 0.7), (made(seed=1), 0.3)],
    "one against itself": [(made(seed=1), 1.0), (made(seed=1), -1.0)],
    "one alone": [(made(seed=1), 0.5)],
    "tiny beside large": [(made(seed=1, alpha=1e-3), 1.0), (made(seed=2, alpha=1e3), 1.0)],
}


def blended(case: list[tuple[Adapter, float]], **recipe: Any) -> Blended:
    return blend([Part(adapter, weight) for adapter, weight in case], Recipe(**recipe))


def reloaded(found: Blended, folder: Path) -> Adapter:
    return Adapter.load(found.adapter.save(folder / "blend"))


def wanted(case: list[tuple[Adapter, float]], method: str, density: float, seed: int) -> dict[str, Tensor]:
    """The dense result of a method, by its definition, module by module."""
    found: dict[str, Tensor] = {}
    for path in total(case):
        kept = []
        for place, (adapter, weight) in enumerate(case):
            update = dense(adapter).get(path)
            if update is None:
                continue
            if method in ("magnitude", "ties"):
                count = max(1, int(density * update.numel()))
                threshold = update.abs().flatten().sort(descending=True).values[count - 1]
                update = torch.where(update.abs() >= threshold, update, 0)
            elif method.startswith("dare"):
                rows = torch.arange(update.shape[0])[None]
                marks = TokenMarks(rows, torch.zeros_like(rows), 0)
                mask = keep_mask(module_key(seed, f"{place}:{path}"), marks, update.shape[1], 1 - density)[0]
                update = update * mask / density
            kept.append(weight * update)
        stacked = torch.stack(kept)
        if method.endswith("ties"):
            stacked = stacked * (stacked.sign() == stacked.sum(0).sign())
        found[path] = stacked.sum(0)
    return found


def error(found: dict[str, Tensor], right: dict[str, Tensor]) -> float:
    lost = sum(float((found[path] - right[path]).square().sum()) for path in right)
    return (lost / sum(float(update.square().sum()) for update in right.values())) ** 0.5


@pytest.mark.parametrize("name", CASES)
def test_exact_is_the_weighted_sum(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    result = dense(reloaded(blended(case), tmp_path))
    right, size = total(case), sizes(case)
    assert set(result) == set(right)
    for path, update in right.items():
        assert float((result[path] - update).norm()) <= EXACT * size[path], path


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("rank", [1, 3, 6])
def test_svd_is_the_best_of_its_rank(name: str, rank: int, tmp_path: Path) -> None:
    case = CASES[name]
    found = blended(case, method="svd", rank=rank)
    adapter = reloaded(found, tmp_path)
    result, size = dense(adapter), sizes(case)
    for path, update in total(case).items():
        best = float(torch.linalg.svdvals(update)[rank:].norm())
        assert float((result[path] - update).norm()) <= best + EXACT * size[path], path
        assert adapter.factors[path].rank <= rank


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("method", METHODS)
def test_the_predicted_error_is_the_true_one(name: str, method: str, tmp_path: Path) -> None:
    case = CASES[name]
    found = blended(case, method=method, rank=3, density=0.3, seed=5)
    adapter = reloaded(found, tmp_path)
    right = wanted(case, method, 0.3, 5)
    if not any(update.any() for update in right.values()):
        assert found.predicted == 0
        return
    true, (measured, _) = error(dense(adapter), right), found.measured(adapter)
    if true > 1e-5:
        assert found.predicted == pytest.approx(true, rel=1e-5)
    # the file's factors are fp32, whose rounding the prediction does not know
    assert measured == pytest.approx(true, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize(
    "name", ["plain", "patterns", "three adapters", "different targets", "negative weights"]
)
@pytest.mark.parametrize("method", ["magnitude", "ties", "dare", "dare_ties"])
def test_single_weights_are_kept_as_the_definition_says(name: str, method: str, tmp_path: Path) -> None:
    case = CASES[name]
    # of full rank, so that nothing is cut
    found = blended(case, method=method, rank=28, density=0.3, seed=5)
    right, size = wanted(case, method, 0.3, 5), sizes(case)
    result = dense(reloaded(found, tmp_path))
    for path, update in right.items():
        # DARE's survivors are 1 / density as large, and so is what fp32 rounds off of them
        assert float((result[path] - update).norm()) <= EXACT / 0.3 * size[path], path
    assert error(result, total(case)) > 0.05  # and it is another thing than the plain sum


@pytest.mark.parametrize("method", ["ties", "dare"])
def test_a_truncated_result_is_nearly_the_best_of_its_rank(method: str) -> None:
    case = CASES["three adapters"]
    found = blended(case, method=method, rank=4, density=0.3)
    for path, update in wanted(case, method, 0.3, 0).items():
        best = float(torch.linalg.svdvals(update)[4:].norm())
        # the iteration ends where a pass captures less than 1e-10 of the energy
        assert found.missing[path] <= best * (1 + 1e-6), path


def test_an_adapter_twice_needs_no_more_rank_than_once() -> None:
    found = blended(CASES["one twice"])
    assert {factors.rank for factors in found.adapter.factors.values()} == {4}


def test_an_adapter_against_itself_is_nothing() -> None:
    found = blended(CASES["one against itself"])
    assert {factors.rank for factors in found.adapter.factors.values()} == {1}
    assert all(float(update.norm()) < 1e-12 for update in dense(found.adapter).values())


@pytest.mark.parametrize("name", ["bias", "plain"])
def test_lora_bias_is_summed_with_its_scale(name: str, tmp_path: Path) -> None:
    case = (
        [(a, w) for a, w in CASES["bias"]] if name == "bias" else [(made(seed=1, lora_bias=True), -0.5)] * 2
    )
    result = dense_bias(reloaded(blended(case), tmp_path))
    right: dict[str, Tensor] = {}
    for adapter, weight in case:
        for path, bias in dense_bias(adapter).items():
            right[path] = right.get(path, 0) + weight * bias
    assert right
    for path, bias in right.items():
        torch.testing.assert_close(result[path], bias, rtol=1e-6, atol=1e-6)


def test_one_alpha_stands_for_every_module() -> None:
    found = blended(CASES["patterns"]).adapter
    assert not found.spec.alpha_pattern
    assert not found.spec.rslora
    for path, factors in found.factors.items():
        assert found.spec.scale_of(path) == found.spec.alpha / factors.rank


def test_names_that_mean_the_same_modules_stay() -> None:
    assert blended(CASES["plain"]).adapter.spec.targets == ("q_proj", "up_proj")
    mixed = blended(CASES["different targets"]).adapter.spec
    assert all(target.startswith("model.layers.") for target in mixed.targets)


def test_elected_signs_weigh_negative_weights() -> None:
    """At density 1 a weight that all agree on is the plain sum, and one that they dispute the stronger side."""
    one, two = made(("q_proj",), seed=1, layers=1), made(("q_proj",), seed=2, layers=1)
    found = blended([(one, 1.0), (two, -1.0)], method="ties", rank=16, density=1.0)
    path = "model.layers.0.mlp.q_proj"
    first, second = dense(one)[path], -dense(two)[path]
    agree = first.sign() == second.sign()
    stronger = torch.where(first.abs() > second.abs(), first, second)
    right = torch.where(agree, first + second, stronger)
    torch.testing.assert_close(dense(found.adapter)[path], right, rtol=1e-5, atol=1e-4)


def test_normalized_is_the_mean_of_what_agrees() -> None:
    one, two = made(("q_proj",), seed=1, layers=1), made(("q_proj",), seed=2, layers=1)
    found = blended([(one, 3.0), (two, 1.0)], method="ties", rank=16, density=1.0, normalize=True)
    path = "model.layers.0.mlp.q_proj"
    first, second = 3 * dense(one)[path], dense(two)[path]
    agree = first.sign() == second.sign()
    alone = torch.where(first.abs() > second.abs(), first / 3, second)
    right = torch.where(agree, (first + second) / 4, alone)
    torch.testing.assert_close(dense(found.adapter)[path], right, rtol=1e-5, atol=1e-4)


@settings(max_examples=40, deadline=None)
@given(
    weights=st.lists(st.floats(-3, 3, allow_nan=False), min_size=1, max_size=4),
    ranks=st.lists(st.integers(1, 9), min_size=4, max_size=4),
    rank=st.integers(1, 12),
    rslora=st.booleans(),
)
def test_any_blend_keeps_its_promise(weights: list[float], ranks: list[int], rank: int, rslora: bool) -> None:
    case = [(made(seed=i, rank=ranks[i], rslora=rslora), weight) for i, weight in enumerate(weights)]
    size, right = sizes(case), total(case)
    exact, short = blended(case), blended(case, method="svd", rank=rank)
    for path, update in right.items():
        assert float((dense(exact.adapter)[path] - update).norm()) <= EXACT * size[path] + 1e-30
        lost = float((dense(short.adapter)[path] - update).norm())
        assert abs(lost - short.missing[path]) <= EXACT * size[path] + 1e-30


def test_what_does_not_fit_together_is_refused() -> None:
    wide = made(("q_proj",), seed=1)
    for factors in wide.factors.values():
        factors.A = torch.randn(4, 99)
    with pytest.raises(AdapterError, match="different bases"):
        blended([(wide, 1.0), (made(("q_proj",), seed=2), 1.0)])
    with pytest.raises(AdapterError, match="no adapters"):
        blended([])
    with pytest.raises(ConfigError, match="needs a rank"):
        blended(CASES["plain"], method="svd")


def test_adapters_of_different_bases_draw_a_warning() -> None:
    with pytest.warns(UserWarning, match="different bases"):
        blended([(made(base_name="here"), 1.0), (made(base_name="there"), 1.0)])
