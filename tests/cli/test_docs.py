"""The pages of the commands: their tables are those of the commands, and every command has a page."""

import importlib.util
import re
from pathlib import Path

import pytest
import typer

from scumble.cli.main import app

DOCS = Path(__file__).parents[2] / "docs"
COMMANDS = sorted(typer.main.get_command(app).commands)


@pytest.fixture(scope="module")
def options():
    spec = importlib.util.spec_from_file_location("docs_options", DOCS / "options.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.name)
def test_tables_are_fresh(options, page):
    text = page.read_text(encoding="utf-8")
    assert options.renew(text) == text, "run: python docs/options.py"


def test_a_stale_table_is_seen(options):
    stale = "<!-- options: doctor -->\nold\n<!-- end of options -->\n"
    assert "`--json`" in options.renew(stale)
    assert "old" not in options.renew(stale)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_page_with_its_options(command):
    text = (DOCS / f"{command}.md").read_text(encoding="utf-8")
    assert re.search(rf"<!-- options: {command}( [a-z]+)? -->", text)
    assert f"({command}.md)" in (DOCS / "README.md").read_text(encoding="utf-8")


def test_links_lead_somewhere():
    for page in DOCS.glob("*.md"):
        for link in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert link.startswith("http") or (DOCS / link).exists(), f"{page.name}: {link}"
