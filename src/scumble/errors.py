"""The errors that a user can cause, each with one line on what is wrong and one on what to do.

`ScumbleError` is the root. A subclass also inherits the standard error it refines, so that
`except FileNotFoundError` still catches a missing file. Knows nothing else of the project.
"""

from __future__ import annotations


class ScumbleError(Exception):
    """A failure with one line that says what is wrong and where, and a hint that says what to do.

    Attributes:
        message: what is wrong and where (file and line number where there is one).
        hint: what to do about it; empty where the message says all.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class ConfigError(ScumbleError, ValueError):
    """An option has a value that it cannot have."""


class AdapterError(ScumbleError, ValueError):
    """An adapter cannot be read, does not fit its base, or asks for what is not computed exactly."""


class BaseModelError(ScumbleError, OSError):
    """A base model cannot be found or loaded."""


class DataError(ScumbleError, ValueError):
    """A data set cannot be read, or has nothing to learn from."""


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
