"""Writing without leaving half a file: a temporary name beside the goal, then a rename; and opening only files.

What is replaced is only ever what was named, whole, and never a folder that the caller stands in or reads from.
Knows paths and nothing of what is written.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from scumble.errors import OutputError, OutputExistsError, ScumbleError


def refuse_existing(
    path: str | Path,
    *,
    force: bool = False,
    file: bool = False,
    option: str = "--out",
    inputs: Iterable[Any] = (),
) -> Path:
    """Return `path` where it can be written; all of it is checked before any work is done.

    Args:
        path: of the folder, or with `file` of the file, to be written.
        force: it may replace what is there, but never a folder by a file or a file by a folder.
        file: it is a file.
        option: what the user calls it.
        inputs: what the work reads; the paths among them must not lie within what is replaced.

    Raises:
        OutputExistsError: it exists without `force`, or is something that is not replaced.
        OutputError: the folder that it would lie in is a file, or may not be written to.
    """
    path = Path(path).expanduser()
    if not os.path.lexists(path):
        _check_parent(path, option)
        return path
    _refuse_precious(path, option, inputs)
    if path.is_dir() == file:
        kind = "a file, not a folder" if path.is_file() else "a folder, not a file" if file else "no folder"
        raise OutputExistsError(f"{path} is {kind}", f"choose another {option}")
    if not force:
        raise OutputExistsError(
            f"{path} exists already", f"choose another {option}, or overwrite it with --force"
        )
    _check_parent(path, option)
    return path


@contextmanager
def new_folder(path: str | Path, *, force: bool = False) -> Iterator[Path]:
    """Yield an empty temporary folder beside `path`; rename it to `path` where the body succeeds.

    With `force`, what was at `path` is removed only once the new folder is whole.

    Raises:
        OutputExistsError: `path` exists and `force` is not given, or it is something that is not replaced.
        OutputError: the folder cannot be written (disk full, no permission).
    """
    path = refuse_existing(path, force=force)
    made = [folder for folder in path.parents if not folder.exists()]  # the deepest first
    temporary: Path | None = None
    whole = False
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        temporary.chmod(0o755)
        yield temporary
        _put_in_place(temporary, path)
        whole = True
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
        if not whole:
            with contextlib.suppress(OSError):
                for folder in made:
                    folder.rmdir()


@contextmanager
def new_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`; rename it to `path` where the body succeeds, and remove it elsewhere.

    Raises:
        OutputError: it cannot be written.
    """
    path = Path(path).expanduser()
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.replace(path)
    except OSError as error:
        if isinstance(error, ScumbleError):
            raise
        raise _output_error(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> Path:
    """Write a file under a temporary name, then rename it.

    Half of a surrogate pair, which a JSON escape can name and UTF-8 cannot hold, is written as `?`.

    Raises:
        OutputError: it cannot be written.
    """
    path = Path(path).expanduser()
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8", errors="replace")
        temporary.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise _output_error(path, error) from error
        raise
    return path


def open_regular(path: str | Path) -> BinaryIO:
    """Open a file, or a link to one, for reading; of a pipe, a device or a folder nothing is read or waited for.

    Raises:
        OSError: it is not there, may not be read, or is no regular file; `strerror` says which.
    """
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "it is no regular file", str(path))
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def read_bounded(path: str | Path, limit: int) -> bytes:
    """Read a regular file of at most `limit` bytes.

    Raises:
        OSError: as `open_regular`, or the file is larger.
    """
    with open_regular(path) as file:
        data = file.read(limit + 1) or b""  # None of what would be waited for, such as the kernel's log
    if len(data) > limit:
        raise OSError(errno.EFBIG, f"it is larger than {limit:,} bytes", str(path))
    return data


def _refuse_precious(path: Path, option: str, inputs: Iterable[Any]) -> None:
    """Refuse to replace what holds the user's own things: a link is replaced itself, not what it leads to."""
    goal = Path(os.path.abspath(path)) if path.is_symlink() else path.resolve()
    precious = {Path.cwd(): "the folder you are in", Path.home().resolve(): "your home folder"}
    for given in inputs:
        if isinstance(given, str | Path) and str(given) and os.path.lexists(Path(given).expanduser()):
            precious[Path(given).expanduser().resolve()] = f"{given}, which is read"
    for kept, title in precious.items():
        if goal == kept or goal in kept.parents:
            what = "is" if goal == kept else "holds"
            raise OutputExistsError(
                f"{path} {what} {title}, and is not replaced", f"choose another {option}, such as runs/first"
            )


def _check_parent(path: Path, option: str) -> None:
    """Refuse a path whose nearest folder is a file or may not be written to."""
    holder = next(folder for folder in Path(os.path.abspath(path)).parents if os.path.lexists(folder))
    if not holder.is_dir():
        raise OutputError(f"{path} cannot be written: {holder} is not a folder", f"choose another {option}")
    if not os.access(holder, os.W_OK | os.X_OK):
        raise OutputError(
            f"{path} cannot be written: no permission to write in {holder}", f"choose another {option}"
        )


def _put_in_place(temporary: Path, path: Path) -> None:
    if not os.path.lexists(path):
        temporary.rename(path)
        return
    old = path.with_name(f".{path.name}.old-{os.getpid()}")
    path.rename(old)
    try:
        temporary.rename(path)
    except OSError:
        old.rename(path)
        raise
    if old.is_dir() and not old.is_symlink():
        shutil.rmtree(old)
    else:
        old.unlink()


def _output_error(path: Path, error: Exception) -> OutputError:
    reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
    return OutputError(
        f"{path} cannot be written: {reason}",
        "nothing half written was left; make room or choose another --out",
    )
