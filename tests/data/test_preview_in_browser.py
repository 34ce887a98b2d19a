"""The page of a preview in a real browser: nothing is fetched, nothing fails, and nothing scrolls sideways."""

from __future__ import annotations

import shutil

import pytest

from scumble.data.previewing import preview
from tests.bases import chat, letters_tokenizer, sums

CHROMIUM = shutil.which("chromium")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="Debian's chromium is not installed"),
]


@pytest.mark.parametrize(("width", "scheme"), [(1400, "light"), (380, "dark")])
def test_the_page_fits_the_window(tmp_path, width: int, scheme: str) -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    rows = [*sums(20), chat("x" * 500, "שלום 😀 \x1b[0m"), {"messages": []}]
    file = tmp_path / "page.html"
    preview(rows[::-1], 3, tokenizer=letters_tokenizer(), html=file)
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        said, asked = [], []
        page.on("console", lambda message: said.append(message.text))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(file.as_uri())
        assert said == []
        assert asked == [file.as_uri()]
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        loss, read = (
            page.locator(f".tokens .t{kind}").first.evaluate("e => getComputedStyle(e).backgroundColor")
            for kind in (".loss", ":not(.loss)")
        )
        assert loss != read
        browser.close()
