"""'Write a docstring' chats made of the functions of Python's standard library, which nobody here wrote.

Every function that has a docstring becomes a chat: the function without it is asked, the docstring is answered. What is
found depends on the version of Python. Knows source files, and nothing of tokens and models.
"""

from __future__ import annotations

import ast
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import xxhash

ASKED = "Write a docstring for this function.\n\n```python\n{source}\n```"
LEFT_OUT = {"test", "tests", "idle_test", "site-packages", "__pycache__", "lib2to3", "pydoc_data"}
LONGEST = 6000  # characters of a function


def standard_library() -> Path:
    """The folder of the standard library of this Python."""
    return Path(sysconfig.get_paths()["stdlib"])


def chats(folder: Path) -> Iterator[dict[str, Any]]:
    """The chats of all modules of a folder, in the order of their names: `messages`, `module` and `line`."""
    for path in sorted(folder.rglob("*.py")):
        inside = path.relative_to(folder)
        if LEFT_OUT & set(inside.parts):
            continue
        try:
            text = path.read_text(encoding="utf-8")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                tree = ast.parse(text)
        except (SyntaxError, UnicodeDecodeError):
            continue
        for found in ast.walk(tree):
            if isinstance(found, ast.FunctionDef | ast.AsyncFunctionDef) and (made := chat(found)):
                yield {**made, "module": ".".join(inside.with_suffix("").parts), "line": found.lineno}


def chat(function: ast.FunctionDef | ast.AsyncFunctionDef) -> dict[str, Any] | None:
    """One function as a chat; None without a docstring, or where nothing but the docstring is there."""
    docstring = ast.get_docstring(function)
    if not docstring or len(function.body) < 2:
        return None
    function.body = function.body[1:]
    source = ast.unparse(function)
    if len(source) > LONGEST:
        return None
    turns = (("user", ASKED.format(source=source)), ("assistant", docstring))
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def shuffled(rows: Iterator[dict[str, Any]], seed: int) -> list[dict[str, Any]]:
    """Chats in an order that their contents and a seed decide: one more or less moves none of the others."""

    def place(row: dict[str, Any]) -> int:
        return xxhash.xxh3_64_intdigest(row["messages"][0]["content"].encode(), seed=seed)

    return sorted(rows, key=place)
