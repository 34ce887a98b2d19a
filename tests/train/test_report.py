"""The report of a run: whole in itself, escaped, the same for the same run, and there for runs that went wrong."""

from __future__ import annotations

import copy
import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

from scumble.train.curves import MOST_POINTS, series, smoothed, training_curves
from scumble.train.report import render_report

VOID = {"meta", "br", "hr", "img", "link", "input"}
HOSTILE = "</title></style><script>alert(1)</script><img src=x onerror=alert(1)>"


class Balance(HTMLParser):
    """Fails where a tag is closed that was not open last, or an id stands twice; keeps the text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.ids: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.seen.append(tag)
        name = dict(attrs).get("id")
        assert name is None or name not in self.ids, f"the id {name} stands twice"
        self.ids |= {name} - {None}

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def read(page: str) -> Balance:
    parser = Balance()
    parser.feed(page)
    parser.close()
    assert parser.open == []
    return parser


def rows(steps: int = 40, per_epoch: int = 20, evals: bool = True) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [{"step": 0, "epoch": 0.0, "eval_loss": 3.9}] if evals else []
    for step in range(1, steps + 1):
        rate = 1e-3 * (steps - step + 1) / steps
        figures = {
            "loss": 4.0 / step + 0.3,
            "learning_rate": rate,
            "grad_norm": 1.0,
            "tokens": 600 * step,
            "seconds": step,
        }
        found.append({"step": step, "epoch": round(step / per_epoch, 4), **figures})
        if evals and step % per_epoch == 0:
            found.append(
                {"step": step, "epoch": step / per_epoch, "eval_loss": 0.4 + abs(step - per_epoch) / 1000}
            )
    return found


def run(**changed: Any) -> dict[str, Any]:
    loss = {"first": 4.3, "last": 0.4, "best_eval": 0.4}
    result = {"steps": 40, "tokens": 24000, "seconds": 221.4, "tokens_per_second": 108.4, "loss": loss}
    document = {
        "scumble": "0.1.0",
        "started": "2026-11-24T21:00:00Z",
        "options": {"rank": 8, "targets": "minimal", "eval": None, "rslora": False},
        "choices": [{"option": "learning_rate", "value": 0.00132, "reason": "the fit for llama models"}],
        "base": {"name": "org/SmolLM2", "hash": "9f" * 32, "dtype": "float32", "device": "cpu", "parameters": 134515008, "bytes": 538090408},
        "data": {"source": "cron", "hash": "ab" * 16, "examples": 600, "tokens": 25871, "targets": 6402, "too_long": [["cron, line 3", 3000]]},
        "validation": {"source": "cron", "hash": "77" * 16, "examples": 60},
        "adapter": {"rank": 8, "alpha": 16.0, "targets": ["q_proj", "v_proj"], "modules": 60, "parameters": 460800, "bytes": 1851288, "percent": 0.3426},
        "training": {"steps": 40, "epochs": 2.0, "batch": 8, "accumulate": 2, "learning_rate": 0.00132, "schedule": "linear", "warmup": 4, "seed": 0, "threads": {"train": 2, "decode": 1}},
        "versions": {"torch": "2.11.0"},
        "machine": {"platform": "Linux", "cores": 2},
        "result": {**result, "peak_bytes": 1893888000, "best_step": 20, "stopped": None},
    }  # fmt: skip
    return {**document, **changed}


def comparison() -> dict[str, Any]:
    shown = {"prompt": "at noon", "expected": "0 12 * * *", "before": "At noon.", "after": "0 12 * * *"}
    metric = {"name": "exact_match", "n": 200, "before": 0.0, "after": 0.705}
    return {
        "metric": {**metric, "before_interval": [0.0, 0.0188], "after_interval": [0.638, 0.764]},
        "loss": {"before": 3.913, "after": 0.2931},
        "perplexity": {"before": 50.05, "after": 1.341},
        "examples": [{**shown, "right_before": False, "right_after": True}],
        "adapter_bytes": 1851288,
        "base_bytes": 538090408,
        "source_bytes": None,
        "data": {"source": "cron", "hash": "feed" * 8},
        "settings": {"temperature": 0.0, "max_new_tokens": 24},
    }


def test_it_holds_what_decided_the_result() -> None:
    page = render_report(run(), rows(), comparison())
    text = read(page).text
    assert "<title>SmolLM2 on cron: training report</title>" in page
    for shown in (
        "9f" * 32,
        "ab" * 16,
        "77" * 16,
        "the fit for llama models",
        "0.00132",
        "train 2, decode 1",
        "org/SmolLM2",
    ):
        assert shown in text
    for shown in (
        "1.89\u00a0GB",
        "3\u00a0min 41\u00a0s",
        "108 tokens/s",
        "460,800",
        "0.3426\u00a0%",
        "70.5\u00a0%",
        "cron, line 3 (3,000 tokens)",
    ):
        assert shown in text
    assert "that of step 20, where the loss on the validation data was lowest" in text


def test_it_asks_for_nothing_else() -> None:
    page = render_report(run(), rows(), comparison())
    assert "default-src 'none'" in page
    assert set(re.findall(r"url\([^)#]*\)", page)) == set()
    for outside in ("http:", "https:", "//", "src=", "@import", "<script"):
        assert outside not in page


def strings_replaced(document: Any) -> Any:
    if isinstance(document, dict):
        return {key: strings_replaced(value) for key, value in document.items()}
    if isinstance(document, list):
        return [strings_replaced(value) for value in document]
    return HOSTILE if isinstance(document, str) else document


def test_every_text_is_escaped() -> None:
    hostile = strings_replaced(run())
    hostile["options"] = {HOSTILE: HOSTILE}
    hostile["versions"] = {HOSTILE: HOSTILE}
    hostile["result"]["stopped"] = HOSTILE
    parsed = read(render_report(hostile, rows(), strings_replaced(comparison())))
    assert not {"script", "img"} & set(parsed.seen)
    assert parsed.seen.count("style") == 1
    assert HOSTILE in parsed.text


def test_without_a_comparison() -> None:
    text = read(render_report(run(), rows(), None)).text
    assert "Before and after" not in text
    assert "0.34\u00a0% of the base" in text


def test_without_evaluations() -> None:
    result = copy.deepcopy(run()["result"])
    result["loss"]["best_eval"], result["best_step"] = None, 40
    text = read(render_report(run(validation=None, result=result), rows(evals=False), None)).text
    assert "loss on the validation data" not in text
    assert "Validation data" not in text
    assert "that of step 40, the last one" in text


def test_a_run_that_stopped() -> None:
    result = {**run()["result"], "stopped": "step 31: the loss is nan"}
    text = read(render_report(run(result=result), rows(30), comparison())).text
    assert "This run ended early: step 31: the loss is nan. The adapter kept is that of step 20" in text


def test_a_run_that_stopped_before_its_first_step() -> None:
    loss = {"first": None, "last": None, "best_eval": None}
    result = {"steps": 0, "tokens": 0, "seconds": 0.0, "tokens_per_second": None, "loss": loss, "peak_bytes": 0, "best_step": None, "stopped": "stopped by Ctrl-C"}  # fmt: skip
    text = read(render_report(run(result=result), [], None)).text
    assert "nothing to draw" in text
    assert "None" not in text


@pytest.mark.parametrize(
    "absent",
    ["result", "choices", "validation", "options", "versions", "training", "adapter", "data", "base"],
)
def test_parts_may_be_absent(absent: str) -> None:
    document = run()
    del document[absent]
    assert "None" not in read(render_report(document, rows(), None)).text


def test_the_same_run_gives_the_same_bytes() -> None:
    assert render_report(run(), rows(), comparison()) == render_report(run(), rows(), comparison())


def test_curves_are_two_drawings_with_ids_of_their_own() -> None:
    page = render_report(run(), rows(), None)
    parsed = read(page)
    assert parsed.seen.count("svg") == 2
    used = set(re.findall(r'(?:url\(|href=")#([^)"]+)', page))
    assert used
    assert used <= parsed.ids


def test_curves_have_no_background_and_take_the_page_s_colours() -> None:
    drawn = training_curves(rows(), best_step=20)
    assert "#ffffff" not in drawn
    assert "#0" not in drawn.replace("var(--plot", "")
    for name in ("ink", "grid", "train", "eval"):
        assert f"var(--plot-{name}, #" in drawn


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), None])
def test_a_loss_that_is_not_finite_is_left_out(loss: float | None) -> None:
    found = [*rows(5, 5), {"step": 6, "epoch": 1.2, "loss": loss, "learning_rate": 1e-3}]
    assert len(series(found, "loss")) == 5
    assert "nan" not in training_curves(found)


def test_nothing_to_draw() -> None:
    assert training_curves([]) == ""
    assert training_curves([{"step": 1, "epoch": 1.0, "loss": float("nan"), "learning_rate": 1.0}]) == ""


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_short_runs_are_drawn(steps: int) -> None:
    assert "<svg" in training_curves(rows(steps, 1))
    assert "<svg" in training_curves(rows(steps, 1, evals=False))


def test_a_long_run_keeps_its_peaks_and_a_size() -> None:
    found = rows(20 * MOST_POINTS, 10**6, evals=False)
    found[9000]["loss"] = 77.0
    calm = rows(20 * MOST_POINTS, 10**6, evals=False)
    assert len(training_curves(found)) < 150_000
    assert training_curves(found) != training_curves(calm)


def test_smoothing_keeps_a_line_and_lowers_noise() -> None:
    line = np.linspace(4.0, 1.0, 50)
    # a line is what is fitted, so only rounding is left
    np.testing.assert_allclose(smoothed(line), line, atol=1e-9)
    noise = np.random.default_rng(0).normal(size=400)
    assert smoothed(noise).std() < 0.4 * noise.std()
    assert smoothed(np.array([2.0])).tolist() == [2.0]
