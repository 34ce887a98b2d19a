"""Text out of a stranger's files on its way to the terminal: no line of it can be forged."""

from __future__ import annotations

import pytest

from scumble.cli import main, output
from scumble.errors import AdapterError, BaseModelError, ScumbleError, clipped, printable, shown
from scumble.models.resolve import resolve

HOSTILE = [
    "\x1b[2J\x1b[31mgone",
    "a\nerror: forged",
    "a\rforged",
    "\x1b]0;title\x07",
    "\x9b31m",
    "\u202egnp.exe",
    "a\u2028line",
    "\0",
    "\ud800",
    "\x7f\b\b",
]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_errors_failures_and_warnings_are_one_printable_line(text, capsys):
    error = ScumbleError(f"the tensor {text} is not known", f"try {text}")
    assert error.message.isprintable()
    assert error.hint.isprintable()
    assert str(error).isprintable()
    output.failure(text, text)
    main._one_line(f"trained on {text}", UserWarning, main.__file__)
    lines = capsys.readouterr().err.split("\n")
    assert [line.split(":")[0] for line in lines] == ["error", "  hint", "warning", ""]
    assert all(line.isprintable() for line in lines)


def test_what_is_shown_is_bounded_and_keeps_ordinary_text():
    assert printable("déjà vu ☃ 日本") == "déjà vu ☃ 日本"
    assert printable("a\tb") == "a b"
    assert len(AdapterError("x" * 10_000, "y" * 10_000).message) <= 480
    assert clipped("abcdefghij", 7) == "ab...ij"
    assert shown("a'\n") == '"a\'\\n"'
    assert shown(10**5000) == "a huge number"
    assert shown([[1]]) == "a list"
    assert shown(None) == "None"
    assert shown(0.5) == "0.5"
    assert len(shown("x" * 10**6)) <= 100


@pytest.mark.parametrize(
    "name",
    [
        *(text for text in HOSTILE),
        "../../x",
        "/no/such/folder",
        "http://localhost:1/x",
        "https://localhost:1/a/b.gguf",
        "~nobody-is-called-that/x",
        "x" * 5000,
        "a/" + "x" * 300,
        "/dev/zero",
        "/proc/self/mem",
        "file:///etc/passwd",
        "a/b/c",
        "git+ssh://x/y",
    ],
    ids=repr,
)
def test_the_base_that_an_adapter_names_is_looked_up_and_nothing_else(name, monkeypatch):
    """A name that is no folder, no GGUF file and no hub name reaches neither the network nor a reader."""
    import socket

    def never(*args: object, **kwargs: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "create_connection", never)
    with pytest.raises(ScumbleError) as error:
        resolve(name)
    assert str(error.value).isprintable()
    assert len(error.value.message) < 500


def test_a_device_is_no_base(tmp_path):
    (tmp_path / "base.gguf").symlink_to("/dev/zero")
    with pytest.raises(ScumbleError, match="does not exist"):
        resolve(str(tmp_path / "base.gguf"))
    (tmp_path / "adapter_config.json").symlink_to("/dev/zero")
    with pytest.raises(BaseModelError, match=r"no config\.json"):
        resolve(str(tmp_path))
