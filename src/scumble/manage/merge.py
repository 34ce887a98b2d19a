"""`merge`: an adapter added into its base, as a standard model folder with a certificate of how exact it is.

Tensors are read, changed and written one at a time, so that memory stays near the largest of them. What is
computed is `scumble.lora.merging`'s to say, where it goes `scumble.manage.layout`'s, and whether it is right
`scumble.manage.certificate.certificate`'s.
"""

from __future__ import annotations

import json
import shutil
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scumble.errors import AdapterError, BaseModelError, ConfigError, OutputError
from scumble.files import new_folder, refuse_existing
from scumble.lora.adapter import Adapter, find_adapter
from scumble.lora.fit import fit
from scumble.lora.merging import changed
from scumble.manage.certificate.certificate import Certificate, certify, describe
from scumble.manage.difference import DIFFERENCE_NAME, DifferenceWriter
from scumble.manage.layout import Layout, plan_layout, write_documents
from scumble.manifest import write_manifest
from scumble.models.base import Base
from scumble.models.checkpoint import Checkpoint, open_checkpoint
from scumble.models.shards import write_shard
from scumble.models.threads import with_threads
from scumble.models.weights import DTYPES
from scumble.progress import Reporter

CERTIFICATE_NAME = "certificate.json"
# What lies beside a model's weights and belongs to it: its tokenizer, chat templates, generation settings.
_BESIDE = (
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "spiece.model",
    "sentencepiece*.model",
    "tekken.json",
    "*.tiktoken",
    "chat_template*",
    "additional_chat_templates/*.jinja",
)
_SPARE = 2**20  # bytes beside the tensors: headers, configuration, tokenizer


@dataclass(frozen=True)
class Merged:
    """What a merge wrote.

    Attributes:
        out: the folder.
        certificate: the contents of its certificate.json.
        base: the base's name.
        adapter: the adapter's folder.
        dtype: what was asked for; None where every tensor kept its type.
        tensors: how many there are.
        changed: how many of them the adapter reaches.
        untied: parameters that shared a tensor in the base, and have their own now.
        difference: whether the difference is kept, so that `unmerge` needs no base.
        bytes: size of the tensors.
        seconds: all that it took, the certificate too.
        summary: the certificate in a few lines.
    """

    out: Path
    certificate: dict[str, Any]
    base: str
    adapter: str
    dtype: str | None
    tensors: int
    changed: int
    untied: tuple[str, ...]
    difference: bool
    bytes: int
    seconds: float
    summary: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """What `--json` prints: the certificate itself says what its summary says."""
        document = {**vars(self), "out": str(self.out), "untied": list(self.untied)}
        del document["summary"]
        return document


def merge(
    adapter: str | Path | Any,
    *,
    out: str | Path,
    base: Base | str | Path | None = None,
    dtype: str | None = None,
    keep_difference: bool = False,
    keep_failed: bool = False,
    prompts: Sequence[str] | None = None,
    weights_only: bool = False,
    force: bool = False,
    quiet: bool = False,
) -> Merged:
    """Merge an adapter into its base.

    Args:
        adapter: the folder of an adapter or of a run, or a `Run`.
        out: the folder of the merged model.
        base: what `load_base` takes; by default the base that the adapter names.
        dtype: `fp32`, `bf16` or `fp16` for all tensors; by default each keeps the type that it is stored in.
        keep_difference: also write what `unmerge` needs to give the base back.
        keep_failed: keep the folder where the certificate fails.
        prompts: what the certificate compares answers on; by default a fixed list.
        weights_only: let the certificate look at the weights alone, and load no model.
        force: replace `out` where it exists.
        quiet: say nothing on stderr.

    Raises:
        AdapterError: the adapter does not fit the base, or the certificate failed.
        NotSupportedError: the base is quantised, or the merged model has no standard form.
        OutputExistsError: `out` exists.
        ScumbleError: with one line on what else is wrong, and what to do.
    """
    begin = time.perf_counter()
    kind = _dtype(dtype)
    folder = find_adapter(getattr(adapter, "adapter", None) or adapter)
    goal = refuse_existing(out, force=force, inputs=(folder, base))
    loaded = Adapter.load(folder)
    reporter = Reporter(quiet=quiet)
    asked: dict[str, Any] = {
        "keep_difference": keep_difference,
        "prompts": prompts,
        "weights_only": weights_only,
    }
    with _open(base, loaded) as checkpoint:
        refuse_existing(goal, force=force, inputs=(checkpoint.folder,))
        layout = _planned(loaded, f"the adapter {folder}", checkpoint, kind)
        _check_room(goal, layout)
        _say(layout, checkpoint, reporter)
        with new_folder(goal, force=force) as temporary:
            certificate = _fill(temporary, checkpoint, loaded, layout, reporter=reporter, **asked)
            if not certificate.passed and not keep_failed:
                raise _failed(certificate, "nothing was left; --keep-failed keeps the folder")
    if not certificate.passed:
        raise _failed(certificate, f"{goal} was kept, with its {CERTIFICATE_NAME}")
    facts = {"out": goal, "base": checkpoint.name, "adapter": str(folder), "dtype": dtype}
    seconds = round(time.perf_counter() - begin, 3)
    return _result(layout, certificate, difference=keep_difference, seconds=seconds, **facts)


def _result(layout: Layout, certificate: Certificate, **facts: Any) -> Merged:
    """What `merge` gives: figures of the layout and the certificate, and the facts that it knows itself."""
    return Merged(
        certificate=certificate.to_dict(),
        tensors=len(layout.entries),
        changed=sum(entry.change is not None for entry in layout.entries.values()),
        untied=tuple(layout.untied),
        bytes=layout.bytes,
        summary=tuple(describe(certificate)),
        **facts,
    )


def _planned(adapter: Adapter, title: str, base: Checkpoint, dtype: torch.dtype | None) -> Layout:
    """What is to be written, once the adapter fits; a base that it was not trained on is warned of."""
    fit(adapter, base.modules, base.head, title, lambda path: base.read(base.weight_name(path)))
    _warn_of_another_base(adapter, base)
    return plan_layout(base, adapter, dtype)


def _fill(
    folder: Path,
    base: Checkpoint,
    adapter: Adapter,
    layout: Layout,
    *,
    reporter: Reporter,
    keep_difference: bool,
    prompts: Sequence[str] | None,
    weights_only: bool,
) -> Certificate:
    """Write everything that the folder holds, and give the certificate."""
    difference = DifferenceWriter() if keep_difference else None
    try:
        # one thread: reading and writing take as long, and where others use the machine two wait for each other
        with reporter.bar("merging", len(layout.entries)), with_threads(1):
            for file in base.files:
                write_shard(folder / file, layout.of(file), _maker(base, layout, difference, reporter))
                base.release()
        write_documents(layout, base, folder)
        copied = _copy_beside(base.folder, folder)
        certificate = certify(
            base, adapter, folder, prompts=prompts, weights_only=weights_only, reporter=reporter
        )
        text = json.dumps(certificate.to_dict(), indent=2)
        (folder / CERTIFICATE_NAME).write_text(text + "\n", encoding="utf-8")
        if difference is not None:
            difference.write(folder / DIFFERENCE_NAME, base, copied)
    finally:
        if difference is not None:
            difference.close()
    # the shards were summed for the certificate, as they were read back
    known = {shard["file"]: (shard["sha256"], shard["bytes"]) for shard in certificate.result["shards"]}
    write_manifest(folder, known=known)
    return certificate


def _maker(
    base: Checkpoint, layout: Layout, difference: DifferenceWriter | None, reporter: Reporter
) -> Callable[[str], Tensor]:
    """What makes a merged tensor by name, in the order in which a shard wants them."""

    def make(name: str) -> Tensor:
        entry = layout.entries[name]
        stored = torch.zeros(entry.fact.shape) if entry.source is None else base.read(entry.source)
        result = changed(stored, entry.change, entry.fact.dtype)
        new = result is not stored and result.is_floating_point()
        if new and not result.isfinite().all() and stored.isfinite().all():
            kind = str(entry.fact.dtype).removeprefix("torch.")
            raise AdapterError(
                f"{name} has values beyond the range of {kind} once merged", "merge with --dtype bf16 or fp32"
            )
        if difference is not None and name in base.tensors:
            difference.add(name, stored if entry.source == name else base.read(name), result)
        reporter.advance()
        return result

    return make


def _copy_beside(base: Path, folder: Path) -> list[str]:
    """Copy what makes the folder a whole model, and give the names of the files that lie in it directly."""
    names = []
    for pattern in _BESIDE:
        for file in sorted(base.glob(pattern)):
            goal = folder / file.relative_to(base)
            if not file.is_file() or goal.exists() or file.suffix == ".safetensors":
                continue
            goal.parent.mkdir(exist_ok=True)
            shutil.copyfile(file, goal)  # a link of the hub's cache is followed
            names.append(str(file.relative_to(base).as_posix()))
    return names


def _open(base: Base | str | Path | None, adapter: Adapter) -> Checkpoint:
    """The base's files. Raises `BaseModelError` where a base in memory is not what its files hold."""
    if not isinstance(base, Base):
        name = str(base) if base is not None else adapter.spec.base_name
        if not name:  # the default base would be a guess, and a merge into it may even fit
            raise AdapterError("the adapter names no base", "say which with --base")
        return open_checkpoint(name)
    checkpoint = open_checkpoint(base.name)
    if checkpoint.hash(base.dtype) != base.hash:
        checkpoint.close()
        raise BaseModelError(
            f"the base {base.name} in memory is not what its files hold", "save it, and name the folder"
        )
    return checkpoint


def _dtype(name: str | None) -> torch.dtype | None:
    if name is not None and name not in DTYPES:
        raise ConfigError(f"dtype {name!r} is not known", f"choose one of {', '.join(DTYPES)}")
    return DTYPES[name] if name is not None else None


def _warn_of_another_base(adapter: Adapter, base: Checkpoint) -> None:
    """The warning that the bank gives; the base's hash in every type that it may have been loaded in."""
    if not adapter.base_hash:
        return
    own = base.hash(torch.float32)
    kinds = (None, torch.bfloat16, torch.float16)
    if own is None or adapter.base_hash == own or any(adapter.base_hash == base.hash(kind) for kind in kinds):
        return
    warnings.warn(
        f"the adapter was trained on a base with hash {adapter.base_hash} ({adapter.spec.base_name}), and this "
        f"base has hash {own} ({base.name}); its answers may differ",
        stacklevel=4,
    )


def _check_room(out: Path, layout: Layout) -> None:
    holder = next(folder for folder in out.absolute().parents if folder.is_dir())
    free = shutil.disk_usage(holder).free
    if free < layout.bytes + _SPARE:
        raise OutputError(
            f"{out} needs {layout.bytes / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free",
            "make room, choose another --out, or --dtype bf16",
        )


def _say(layout: Layout, base: Checkpoint, reporter: Reporter) -> None:
    if layout.untied:
        reporter.note(
            f"{' and '.join(layout.untied)} are one tensor in {base.name} and differ once merged: both are "
            "written, and tie_word_embeddings becomes false"
        )
    if layout.switches:
        reporter.note(f"the adapter adds biases: {' and '.join(layout.switches)} become true")


def _failed(certificate: Certificate, what: str) -> AdapterError:
    wide = certificate.result["dtype"] == "float32"
    narrow = "" if wide else "merge with --dtype fp32, which rounds far less away; "
    # the first may be about the whole update, and the second then names the module that is worst
    shown, more = "; ".join(certificate.failures[:2]), len(certificate.failures) - 2
    also = f"; and {more} more" if more > 0 else ""
    return AdapterError(f"the merge failed its certificate: {shown}{also}", narrow + what)
