"""`load_tokenizer`: the tokenizer of a base alone, for what reads data and computes nothing with the weights."""

from __future__ import annotations

import contextlib
import io
from typing import Any

from scumble.errors import BaseModelError, ScumbleError
from scumble.models import embedded, weights
from scumble.models.hub import explain, hub_reachable
from scumble.models.resolve import Source, resolve


def load_tokenizer(name: str | None = None) -> Any:
    """Load the tokenizer of a base by the base's alias, folder, GGUF file or hub name.

    Args:
        name: as for `load_base`; by default `SCUMBLE_BASE`, or `smollm2`.

    Raises:
        MissingFileError: a path that does not exist.
        BaseModelError: it cannot be found or read, or the base has no tokenizer.
        MissingExtraError: the embedded default's package is not installed.
    """
    source = resolve(name)
    try:
        tokenizer = _read(source)
    except ScumbleError:
        raise
    except Exception as error:
        raise explain(error, source) from error
    if tokenizer is None:
        raise BaseModelError(
            f"the base {source.name} has no tokenizer", "add it to the base's folder, or name another --base"
        )
    return tokenizer


def _read(source: Source) -> Any | None:
    if source.kind == "embedded":
        return weights.read_tokenizer(str(embedded.ensure().folder))
    if source.kind == "gguf":
        from transformers import AutoTokenizer

        assert source.path is not None
        with weights.quiet(), contextlib.redirect_stderr(io.StringIO()):
            return AutoTokenizer.from_pretrained(str(source.path.parent), gguf_file=source.path.name)
    return weights.read_tokenizer(source.name, local=source.kind == "folder" or not hub_reachable())
