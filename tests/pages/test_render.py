"""Figures as pages write them."""

from __future__ import annotations

from scumble.pages.render import count, duration, number, setting, share, size


def test_figures_as_people_read_them() -> None:
    gap = "\u00a0"
    assert [size(v) for v in (538_090_408, 1_851_288, 999_999, 12, None)] == [
        f"538{gap}MB",
        f"1.85{gap}MB",
        f"1.00{gap}MB",
        f"12{gap}bytes",
        "–",
    ]
    assert [share(v) for v in (0.0, 0.00344, 0.705, 0.9999, 1.0)] == [
        f"{v}{gap}%" for v in ("0", "0.34", "70.5", "99.9", "100")
    ]
    assert [duration(v) for v in (41.26, 59.99, 221.4, 7500)] == [
        f"41.3{gap}s",
        f"1{gap}min 0{gap}s",
        f"3{gap}min 41{gap}s",
        f"2{gap}h 05{gap}min",
    ]
    assert [number(v) for v in (0.29314, 0.000132, 4.0, 12345.6, float("nan"), None)] == [
        "0.2931",
        "1.320e-04",
        "4.000",
        "12,346",
        "not finite",
        "–",
    ]
    assert count(134_515_008) == "134,515,008"
    assert [setting(v) for v in (None, True, 0.00132, 16.0, ["q", "v"], {"train": 2})] == [
        "–",
        "yes",
        "0.00132",
        "16",
        "q, v",
        "train 2",
    ]
