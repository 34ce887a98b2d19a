"""The errors that a user can cause, each with one line on what is wrong and one on what to do.

`ScumbleError` is the root. A subclass also inherits the standard error it refines, so that
`except FileNotFoundError` still catches a missing file. Knows nothing else of the project.
"""

from __future__ import annotations


class ScumbleError(Exception):
    """A failure with one line that says what is wrong and where, and a hint that says what to do.

    Both are made of one line of printable characters, whatever names out of a stranger's file they hold: an
    escape sequence of a terminal, or a line break, would let such a name forge what the user reads.

    Attributes:
        message: what is wrong and where (file and line number where there is one).
        hint: what to do about it; empty where the message says all.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        self.message, self.hint = printable(message), printable(hint)
        super().__init__(self.message)

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


def printable(text: object) -> str:
    """`text` as one line: white space becomes spaces, what else is not printable becomes Python's escape for it.

    Not printable are control characters, half surrogates, and marks that turn the direction of writing.
    """
    text = str(text)
    if text.isprintable():
        return text
    kept = (
        c if c.isprintable() else " " if c.isspace() else c.encode("unicode_escape").decode() for c in text
    )
    return "".join(kept)


def clipped(text: object, limit: int = 100) -> str:
    """`printable(text)`, its middle left out where it is longer than `limit` characters."""
    line = printable(text)
    half = (limit - 3) // 2
    return line if len(line) <= limit else f"{line[:half]}...{line[len(line) - half :]}"


def shown(value: object, limit: int = 100) -> str:
    """What a stranger's file holds, for a message: quoted, printable and not long; of a list only that it is one."""
    if isinstance(value, str):
        return clipped(repr(value if len(value) <= 4 * limit else value[:limit] + "..."), limit)
    if isinstance(value, int) and not -(10**40) < value < 10**40:
        return "a huge number"
    if value is None or isinstance(value, bool | int | float):
        return repr(value)
    return f"a {type(value).__name__}"


class ConfigError(ScumbleError, ValueError):
    """An option has a value that it cannot have."""


class AdapterError(ScumbleError, ValueError):
    """An adapter cannot be read, does not fit its base, or asks for what is not computed exactly.

    Its words are not long: most of them name what is in the adapter's file.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(clipped(message, 480), clipped(hint, 480))


class ManifestError(ScumbleError, ValueError):
    """A file is not what the manifest beside it says, or the manifest is none."""


class BaseModelError(ScumbleError, OSError):
    """A base model cannot be found or loaded."""


class DataError(ScumbleError, ValueError):
    """A data set cannot be read, or has nothing to learn from.

    Attributes:
        kind: the name of the check that `scumble data check` reports it under.
        line: the line or example that it is about, from 1; None where it is about the whole.
    """

    def __init__(
        self, message: str, hint: str = "", *, kind: str = "malformed", line: int | None = None
    ) -> None:
        super().__init__(message, hint)
        self.kind, self.line = kind, line


class MissingFileError(ScumbleError, FileNotFoundError):
    """A file or folder that was named does not exist."""


class OutputExistsError(ScumbleError, FileExistsError):
    """What would be written exists already, and `--force` was not given."""


class OutputError(ScumbleError, OSError):
    """What should be written cannot be (disk full, no permission)."""


class TrainingError(ScumbleError, RuntimeError):
    """Training cannot go on, such as after a loss that is not finite."""


class MissingExtraError(ScumbleError, ImportError):
    """A command needs an optional part that is not installed."""


class NotSupportedError(ScumbleError, NotImplementedError):
    """Something Scumble does not do, refused by name."""


class UnsupportedExampleError(DataError, NotSupportedError):
    """One example of a data set is of a sort that is not trained on here, such as a picture."""
