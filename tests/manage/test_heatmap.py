"""Heat maps are well-formed, have a cell for each module, and write figures that can be read."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from scumble.manage.inspection.heatmap import Cell, columns_of, heat_map

SVG = "{http://www.w3.org/2000/svg}"


def drawn(cells, **options):
    return ET.fromstring(heat_map("a <title> & more", cells, **options))


def cells_of(tree):
    return [rect for rect in tree.iter(f"{SVG}rect") if rect.find(f"{SVG}title") is not None]


def test_every_module_has_a_cell_with_its_figure_and_path():
    cells = [Cell(n, c, n + k / 10, f"layers.{n}.{c}") for n in (0, 1) for k, c in enumerate(("q", "v"))]
    tree = drawn(cells)
    assert [rect.find(f"{SVG}title").text for rect in cells_of(tree)] == [
        "layers.0.q: 0",
        "layers.0.v: 0.1",
        "layers.1.q: 1",
        "layers.1.v: 1.1",
    ]
    assert tree.get("aria-label") == "a <title> & more"
    texts = [text.text for text in tree.iter(f"{SVG}text")]
    assert texts[:2] == ["q", "v"]
    # beside the figures in the cells, the legend has its ends and its middle
    assert texts[-3:] == ["0", "0.55", "1.1"]


def test_colours_grow_with_size_and_signs_have_their_own():
    tree = drawn([Cell(0, "q", -1.0), Cell(1, "q", 0.0), Cell(2, "q", 0.5)])
    rects = cells_of(tree)
    assert [rect.get("class") for rect in rects] == ["down", "up", "up"]
    depths = [float(rect.get("fill-opacity")) for rect in rects]
    assert depths[0] > depths[2] > depths[1] > 0
    assert depths[0] <= 0.7  # so that a figure on it is read


def test_a_figure_that_is_not_there_is_an_empty_cell_and_gaps_are_rows():
    tree = drawn([Cell(0, "q", 1.0), Cell(3, "q", None), Cell(None, "head", float("nan"))])
    assert [rect.get("class") for rect in cells_of(tree)] == ["none", "up", "none"]
    texts = [text.text for text in tree.iter(f"{SVG}text")]
    assert {"–", "0", "1", "2", "3"} <= set(texts)


def test_several_modules_in_one_place_are_their_mean():
    tree = drawn([Cell(0, "w1", 1.0, "a"), Cell(0, "w1", 2.0, "b")])
    assert cells_of(tree)[0].find(f"{SVG}title").text == "2 modules, mean: 1.5"


def test_nothing_is_nothing():
    assert heat_map("empty", []) == ""
    assert cells_of(drawn([Cell(0, "q", 0.0)]))  # no division by a largest figure of zero


@pytest.mark.parametrize("columns", [1, 7, 13, 60])
def test_a_page_of_a_telephone_is_wide_enough_for_seven_kinds(columns):
    tree = drawn([Cell(0, f"kind_{k}", 1.0) for k in range(columns)])
    assert len(cells_of(tree)) == columns
    if columns <= 7:
        assert int(tree.get("width")) <= 344  # 380 less the margins of the page


def test_columns_are_as_short_as_they_can_be():
    paths = [
        "m.layers.0.self_attn.q_proj",
        "m.layers.1.self_attn.q_proj",
        "m.layers.0.cross_attn.q_proj",
        "m.layers.0.mlp.up_proj",
        "lm_head",
    ]
    names = columns_of(paths)
    assert [names[path] for path in paths] == [
        "self_attn.q_proj",
        "self_attn.q_proj",
        "cross_attn.q_proj",
        "up_proj",
        "lm_head",
    ]
