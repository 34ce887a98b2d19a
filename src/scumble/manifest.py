"""`manifest.json`: the size and the SHA-256 of each file of a folder, by which every flipped bit is found.

    {"format": 1, "sha256": {"name": "64 hexadecimal digits"}, "bytes": {"name": 1234}}

It finds damage. It is no signature: whoever can change a file can write a manifest that fits it. Knows files,
and nothing of what they hold.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from scumble.errors import ManifestError, clipped, shown
from scumble.files import open_regular, read_bounded, write_text

MANIFEST_NAME = "manifest.json"
_MAX_BYTES = 4 * 2**20
_CHUNK = 2**20
_HINT = f"fetch it again, or delete {MANIFEST_NAME} if it was changed on purpose"


def write_manifest(
    folder: str | Path,
    names: Iterable[str] | None = None,
    *,
    known: Mapping[str, tuple[str, int]] | None = None,
) -> Path:
    """Write `manifest.json` into a folder; the same files give the same bytes.

    Args:
        folder: what is in folders inside it is left out.
        names: of the files; by default all but the manifest itself.
        known: sum and size of files that were read already, by name; they are not read again.

    Returns:
        The manifest's path.

    Raises:
        OutputError: it cannot be written.
        OSError: a file cannot be read.
        ManifestError: a name is not that of a file in the folder itself.
    """
    folder = Path(folder)
    if names is None:
        names = [path.name for path in folder.iterdir() if path.is_file() and path.name != MANIFEST_NAME]
    known = known or {}
    sums = {_plain(name, folder): known.get(name) or _sum(folder / name) for name in sorted(set(names))}
    document = {
        "format": 1,
        "sha256": {name: digest for name, (digest, _) in sums.items()},
        "bytes": {name: size for name, (_, size) in sums.items()},
    }
    return write_text(folder / MANIFEST_NAME, json.dumps(document, indent=2, sort_keys=True) + "\n")


def check_manifest(folder: str | Path, names: Iterable[str] | None = None) -> bool:
    """Hold the files of a folder against its `manifest.json`.

    Args:
        folder: of the files.
        names: of the files to check; by default all that the manifest lists.

    Returns:
        True, or False where the folder has no manifest.

    Raises:
        ManifestError: a file is missing or not listed, or has another size or sum; or the manifest is damaged.
    """
    folder = Path(folder)
    listed = _read(folder / MANIFEST_NAME)
    if listed is None:
        return False
    for name in sorted(listed) if names is None else names:
        path = folder / name
        if name not in listed:
            raise ManifestError(f"{folder / MANIFEST_NAME} does not list {shown(name)}", _HINT)
        digest, size = listed[name]
        try:
            # the size first: it costs nothing, and a file that is cut short is the usual damage
            with open_regular(path) as file:
                found = file.seek(0, 2)
            if found != size:
                raise ManifestError(f"{path} has {found} bytes, and {MANIFEST_NAME} says {size}", _HINT)
            if _sum(path)[0] != digest:
                raise ManifestError(f"{path} has another SHA-256 than {MANIFEST_NAME} says", _HINT)
        except FileNotFoundError as error:
            raise ManifestError(f"{path} is missing, and {MANIFEST_NAME} lists it", _HINT) from error
        except OSError as error:
            raise ManifestError(f"{path} cannot be read: {error.strerror}", _HINT) from error
    return True


def _sum(path: Path) -> tuple[str, int]:
    """A file's SHA-256 and its bytes."""
    state, size = hashlib.sha256(), 0
    with open_regular(path) as file:
        while chunk := file.read(_CHUNK):
            state.update(chunk)
            size += len(chunk)
    return state.hexdigest(), size


def _read(path: Path) -> dict[str, tuple[str, int]] | None:
    """From file name to sum and size; None where there is no manifest."""
    try:
        document = json.loads(read_bounded(path, _MAX_BYTES))
    except FileNotFoundError:
        if path.is_symlink():
            raise ManifestError(f"{path} is a link that leads nowhere", _HINT) from None
        return None
    except OSError as error:
        raise ManifestError(f"{path} cannot be read: {error.strerror}", _HINT) from error
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"{path} is not JSON: {clipped(error)}", _HINT) from error
    sums, sizes = _part(document, "sha256", path), _part(document, "bytes", path)
    version = document.get("format")
    if type(version) is not int or version != 1:
        raise ManifestError(f"{path} has the format {shown(version)}, and 1 is known here", _HINT)
    if set(sums) != set(sizes):
        raise ManifestError(f"{path} has sums and sizes of different files", _HINT)
    for name, digest in sums.items():
        _plain(name, path)
        size = sizes[name]
        if not isinstance(digest, str) or len(digest) != 64 or set(digest) - set("0123456789abcdef"):
            raise ManifestError(f"{path}: the sum of {shown(name)} is not 64 hexadecimal digits", _HINT)
        if type(size) is not int or size < 0 or size > 2**63:
            raise ManifestError(f"{path}: the size of {shown(name)} is {shown(size)}", _HINT)
    return {name: (sums[name], sizes[name]) for name in sums}


def _part(document: Any, key: str, path: Path) -> dict[str, Any]:
    part = document.get(key) if isinstance(document, dict) else None
    if not isinstance(part, dict):
        raise ManifestError(f"{path} has no list of files under {key!r}", _HINT)
    return part


def _plain(name: str, where: Path) -> str:
    """The name, where it is that of a file in the folder itself, and not of the manifest."""
    odd = name in ("", ".", "..", MANIFEST_NAME) or len(name) > 255 or not name.isprintable()
    if odd or any(mark in name for mark in "/\\:"):
        raise ManifestError(f"{where}: {shown(name)} is not the name of a file beside it", _HINT)
    return name
