"""Writing without leaving half a file: a temporary name beside the goal, then a rename.

Knows paths and nothing of what is written.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scumble.errors import OutputError, OutputExistsError, ScumbleError


def refuse_existing(path: str | Path, *, force: bool = False) -> Path:
    """Return `path` where it may be written. Raises `OutputExistsError` where it exists without `force`."""
    path = Path(path).expanduser()
    if path.exists() and not force:
        raise OutputExistsError(f"{path} exists already", "choose another --out, or overwrite it with --force")
    return path


@contextmanager
def new_folder(path: str | Path, *, force: bool = False) -> Iterator[Path]:
    """Yield an empty temporary folder beside `path`; rename it to `path` where the body succeeds.

    With `force`, what was at `path` is removed only once the new folder is whole.

    Raises:
        OutputExistsError: `path` exists and `force` is not given.
        OutputError: the folder cannot be written (disk full, no permission).
    """
    path = refuse_existing(path, force=force)
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        temporary.chmod(0o755)
        yield temporary
        _put_in_place(temporary, path)
    except OSError as error:
        if isinstance(error, ScumbleError):
            raise
        raise _output_error(path, error) from error
    except Exception as error:
        # safetensors reports a full disk by an error of its own
        if "os error" in str(error).lower():
            raise _output_error(path, error) from error
        raise
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: str | Path, text: str) -> Path:
    """Write a file under a temporary name, then rename it. Raises `OutputError` where that fails."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise _output_error(path, error) from error
    return path


def _put_in_place(temporary: Path, path: Path) -> None:
    if path.exists():
        old = path.with_name(f".{path.name}.old-{os.getpid()}")
        path.rename(old)
        temporary.rename(path)
        shutil.rmtree(old) if old.is_dir() else old.unlink()
    else:
        temporary.rename(path)


def _output_error(path: Path, error: Exception) -> OutputError:
    reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
    return OutputError(f"{path} cannot be written: {reason}", "nothing was left behind; make room or choose another --out")
