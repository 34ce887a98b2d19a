"""Cards by name and sizes with units; what is wrong is said with what to write instead."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scumble.errors import ConfigError
from scumble.plan.cards import CARDS, CONTEXT, LARGEST, SMALLEST, find_card, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("24GB", 24 * 10**9),
        ("24 GiB", 24 * 2**30),
        ("80g", 80 * 10**9),
        ("500MB", 5 * 10**8),
        ("1.5 gb", 15 * 10**8),
        ("  2TiB ", 2 * 2**40),
        ("2e3MB", 2 * 10**9),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size
    card = find_card(text, on_gpu=False)
    assert (card.total, card.usable) == (size, size)


def test_of_a_gpu_s_size_cuda_takes_its_part() -> None:
    assert find_card("24GB").usable == 24 * 10**9 - CONTEXT
    with pytest.raises(ConfigError, match="no more than CUDA itself takes"):
        find_card("500MB")


@pytest.mark.parametrize(
    ("text", "name", "mib"),
    [
        ("rtx 4090", "rtx 4090", 24_564),
        ("RTX4090", "rtx 4090", 24_564),
        ("4090", "rtx 4090", 24_564),
        ("NVIDIA GeForce RTX 4090 24GB", "rtx 4090", 24_564),
        ("a100-80gb", "a100 80GB", 81_920),
        ("A100 40GB", "a100 40GB", 40_960),
        ("h100", "h100", 81_559),
        ("Tesla T4", "t4", 15_360),
        ("l4", "l4", 23_034),
        ("l40s", "l40s", 46_068),
        ("RTX 4060 Ti 16GB", "rtx 4060 ti 16GB", 16_380),
        ("AMD Instinct MI300X", "mi300x", 196_592),
    ],
)
def test_names(text: str, name: str, mib: int) -> None:
    card = find_card(text)
    assert (card.name, card.total) == (name, mib * 2**20)
    assert card.usable == card.total - CONTEXT
    assert card.to_dict() == {"name": name, "total": card.total, "usable": card.usable}


@pytest.mark.parametrize("name", CARDS)
def test_every_card_is_found_by_the_name_that_the_table_has(name: str) -> None:
    for sold, mib in CARDS[name].items():
        assert find_card(f"{name} {sold}GB").total == mib * 2**20
        # what drivers show is within a twelfth of what the box says: a wrong digit would be further off
        assert 11 / 12 < mib / (sold * 1024) < 13 / 12


def test_a_card_of_several_sizes_must_be_told_apart() -> None:
    with pytest.raises(ConfigError, match="sold as a100 40GB or a100 80GB"):
        find_card("a100")
    with pytest.raises(ConfigError, match="sold as a100 40GB or a100 80GB"):
        find_card("a100-60gb")


def test_an_unknown_card_names_the_nearest() -> None:
    with pytest.raises(ConfigError) as caught:
        find_card("rtx 4099")
    assert "rtx 4090" in caught.value.hint
    assert "24GB" in caught.value.hint
    with pytest.raises(ConfigError, match="no card that is known here") as caught:
        find_card("---")
    assert caught.value.hint == "give a size, such as 24GB"


@pytest.mark.parametrize("text", ["0GB", "-24GB", "1e9 GB", "1kb", "1e400GB"])
def test_sizes_out_of_range(text: str) -> None:
    with pytest.raises(ConfigError, match="out of range") as caught:
        find_card(text)
    assert caught.value.hint == "from 1MB to 10TB"


def test_a_number_alone_is_no_size() -> None:
    with pytest.raises(ConfigError, match="has no unit") as caught:
        find_card("24")
    assert "24GB" in caught.value.hint
    with pytest.raises(ConfigError, match="--limit 'much' is no size"):
        parse_size("much", "--limit")


@given(st.integers(SMALLEST // 10**6, LARGEST // 10**6))
def test_whole_megabytes_come_back_as_they_are(megabytes: int) -> None:
    assert parse_size(f"{megabytes}MB") == megabytes * 10**6


@given(st.text(max_size=30))
def test_whatever_is_typed_is_a_card_or_one_line(text: str) -> None:
    said = ""
    try:
        size = find_card(text).total
    except ConfigError as error:
        size, said = SMALLEST, error.message + error.hint
    assert SMALLEST <= size <= LARGEST
    assert said.isprintable()
