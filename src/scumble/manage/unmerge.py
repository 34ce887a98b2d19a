"""`unmerge`: the base again, bit for bit, from a merged folder and the difference that lies in it.

Every tensor, header and document is held against its sha256, so that what is written is the base or nothing.
Knows files, and nothing of adapters.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scumble.errors import BaseModelError, MissingFileError, ScumbleError
from scumble.files import new_folder, refuse_existing
from scumble.manage.difference import DIFFERENCE_NAME, Difference
from scumble.manifest import write_manifest
from scumble.models import embedded
from scumble.models.checkpoint import Checkpoint
from scumble.models.resolve import resolve
from scumble.models.shards import raw_bytes
from scumble.progress import Reporter


@dataclass(frozen=True)
class Unmerged:
    """What an unmerge wrote.

    Attributes:
        out: the folder of the base.
        base: its name.
        tensors: how many were checked against their sha256.
        files: the names of its shards, which are the base's own byte for byte.
        bytes: their size.
    """

    out: Path
    base: str
    tensors: int
    files: tuple[str, ...]
    bytes: int

    def to_dict(self) -> dict[str, Any]:
        """What `--json` prints."""
        return {**vars(self), "out": str(self.out), "files": list(self.files)}


def unmerge(
    folder: str | Path,
    *,
    out: str | Path,
    base: str | Path | None = None,
    force: bool = False,
    quiet: bool = False,
) -> Unmerged:
    """Give the base of a merged model back, from the difference that `merge` kept.

    Args:
        folder: what `merge` wrote with `keep_difference`.
        out: the folder of the base.
        base: where the base may be found if there is no difference; by default what the certificate names.
        force: replace `out` where it exists.
        quiet: say nothing on stderr.

    Raises:
        MissingFileError: there is no such folder.
        BaseModelError: no difference is kept there (with where the base itself is, if it is on this
            machine), or the difference or the merged model was changed.
        OutputExistsError: `out` exists.
    """
    merged = Path(folder).expanduser()
    if not merged.is_dir():
        raise MissingFileError(f"the merged model {merged} does not exist", "name what `scumble merge` wrote")
    goal = refuse_existing(out, force=force, inputs=(merged,))
    if not (merged / DIFFERENCE_NAME).is_file():
        if not (merged / "certificate.json").is_file():
            raise MissingFileError(
                f"{merged} is not what a merge wrote: it has neither {DIFFERENCE_NAME} nor certificate.json",
                "name the folder that `scumble merge` wrote",
            )
        raise _needs_the_base(merged, base)
    difference = Difference(merged / DIFFERENCE_NAME)
    reporter = Reporter(quiet=quiet)
    with Checkpoint(merged.absolute(), str(merged)) as written, new_folder(goal, force=force) as temporary:
        size = 0
        with reporter.bar("unmerging", max(1, len(difference.tensors))):
            for file in difference.files:
                size += _write_shard(temporary / file, file, difference, written, reporter)
        for name in difference.documents:
            (temporary / name).write_bytes(difference.text(f"document {name}"))
        for name in difference.copied:
            source, copy = merged / name, temporary / name
            if source.is_file() and not copy.exists():
                copy.parent.mkdir(exist_ok=True)
                shutil.copyfile(source, copy)
        write_manifest(temporary)
    return Unmerged(goal, difference.base, len(difference.tensors), tuple(difference.files), size)


def _write_shard(
    path: Path, file: str, difference: Difference, written: Checkpoint, reporter: Reporter
) -> int:
    """Write one shard of the base, and give its size."""
    order = difference.order(file)
    for name in order:
        if name not in written.tensors:
            raise BaseModelError(
                f"the merged model {written.name} lacks the tensor {name}", "fetch or merge it again"
            )
    with open(path, "wb") as stream:
        stream.write(difference.text(f"header {file}"))
        for name in order:
            tensor = difference.original(name, written.read(name))
            if tensor.numel():
                stream.write(raw_bytes(tensor))
            reporter.advance()
        return stream.tell()


def _needs_the_base(merged: Path, base: str | Path | None) -> BaseModelError:
    """There is nothing to compute the base from: say where it is, or that it is needed."""
    named = str(base) if base is not None else _base_named_in(merged)
    what = f"{merged} keeps no difference, so unmerging it needs the base"
    hint = "merge with --keep-difference to get the base back from the merged model alone"
    if not named:
        return BaseModelError(what, hint)
    place = _place_of(named)
    if place is None:
        return BaseModelError(f"{what} {named}, which is not on this machine", hint)
    return BaseModelError(f"{what} {named}; that is at {place}, and need not be computed", hint)


def _base_named_in(merged: Path) -> str:
    try:
        found = json.loads((merged / "certificate.json").read_text(encoding="utf-8"))["base"]["name"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ""
    return found if isinstance(found, str) else ""


def _place_of(name: str) -> Path | None:
    """Where a base is on this machine; nothing is fetched or made."""
    try:
        source = resolve(name)
    except ScumbleError:
        return None
    if source.kind == "embedded":
        copy = embedded.present()
        return copy.folder if copy else None
    if source.path is not None:
        return source.path
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(source.name, local_files_only=True))
    except Exception:  # the hub's client has many ways to say that it is not there
        return None
