"""Whether the hub can be reached, and one clear line for each way in which a base fails to load.

Knows nothing of how weights are read.
"""

from __future__ import annotations

import os
import socket
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from scumble.errors import BaseModelError, ScumbleError
from scumble.models.resolve import EMBEDDED_ALIAS, Source, suggestion

_PROBE_SECONDS = 3.0


def hub_reachable() -> bool:
    """Say whether the hub answers, in 3 s at most, so that its client's 23 s of retries are not waited for.

    A proxy is trusted to answer. `HF_HUB_OFFLINE` and `TRANSFORMERS_OFFLINE` mean no.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE or os.environ.get("TRANSFORMERS_OFFLINE", "") in ("1", "true", "True"):
        return False
    address = urlsplit(constants.ENDPOINT)
    host, port = address.hostname or "", address.port or (80 if address.scheme == "http" else 443)
    if address.scheme in urllib.request.getproxies():
        return True
    try:
        socket.create_connection((host, port), timeout=_PROBE_SECONDS).close()
    except OSError:
        return False
    return True


def explain(error: Exception, source: Source) -> ScumbleError:
    """Turn what transformers, the hub's client or safetensors raised into one line and a hint.

    Returns:
        The error to raise.
    """
    chain = list(_chain(error))
    if source.kind == "hub" and (known := _explain_hub(chain, source.name)):
        return known
    return _explain_contents(chain, source)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and what it was raised from; transformers wraps the telling one."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _explain_hub(chain: list[BaseException], name: str) -> ScumbleError | None:
    """Explain what only a hub name can meet: gated, private, missing, or no network."""
    from huggingface_hub import constants, errors

    def has(*kinds: type[BaseException]) -> bool:
        return any(isinstance(error, kinds) for error in chain)

    statuses = {getattr(getattr(error, "response", None), "status_code", None) for error in chain}
    host = urlsplit(constants.ENDPOINT).netloc
    if has(errors.GatedRepoError) or 403 in statuses:
        hint = f"accept its terms at {constants.ENDPOINT}/{name}, then log in with `hf auth login`"
        return BaseModelError(f"base {name!r} is gated on {host}", hint)
    if has(errors.RepositoryNotFoundError) or statuses & {401, 404}:
        hint = suggestion(name) or "check the spelling; for a private one, log in with `hf auth login`"
        return BaseModelError(
            f"{host} has no model {name!r} that you may read, and no folder here is called that", hint
        )
    if has(errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, ConnectionError, socket.gaierror):
        what = f"base {name!r} is no alias, no folder here and not in the hub's cache, and {host} cannot be reached"
        return BaseModelError(
            what, suggestion(name) or f"{EMBEDDED_ALIAS!r} needs no network; or name a folder or a GGUF file"
        )
    return None


def _explain_contents(chain: list[BaseException], source: Source) -> ScumbleError:
    """Explain what is wrong with the files themselves."""
    text = " ".join(str(error) for error in chain)
    name = source.name
    lowered = text.lower()
    if "trust_remote_code" in text or "custom code" in lowered:
        return BaseModelError(
            f"base {name} needs code of its own, which Scumble does not run",
            "choose a base that transformers has itself",
        )
    if ("model type" in lowered and "not recogni" in lowered) or "unrecognized model" in lowered:
        return BaseModelError(
            f"base {name} is of a model type that this version of transformers does not know",
            "look at model_type in its config.json, or upgrade transformers",
        )
    if "gguf" in lowered and "not supported" in lowered:
        return BaseModelError(f"base {name} is a GGUF file that transformers cannot read", _first_line(chain))
    if "not a valid json" in lowered:
        return BaseModelError(
            f"base {name} has a config.json that is not valid JSON", "mend it, or copy the folder again"
        )
    if isinstance(chain[0], MemoryError) or "out of memory" in lowered:
        return BaseModelError(
            f"base {name} does not fit in memory", "try --dtype bf16, or see `scumble plan`"
        )
    if any(type(error).__name__ == "SafetensorError" for error in chain):
        return BaseModelError(
            f"base {name} has broken weights: {_first_line(chain)}", "copy or download them again"
        )
    if (
        "no file named" in lowered
        or "does not appear to have" in lowered
        or ("safetensors" in lowered and "not" in lowered)
    ):
        return _explain_missing(source, text)
    return BaseModelError(
        f"base {name} cannot be loaded: {_first_line(chain)}", "check that its files are whole"
    )


def _explain_missing(source: Source, text: str) -> ScumbleError:
    if "config.json" in text and "safetensors" not in text:
        return BaseModelError(
            f"base {source.name} has no config.json", "name a repository that holds a whole model"
        )
    pickled = source.path is not None and any(Path(source.path).glob("*.bin"))
    hint = (
        "convert its *.bin files with safetensors first"
        if pickled
        else "a base has *.safetensors beside config.json"
    )
    return BaseModelError(
        f"base {source.name} has no safetensors weights, the only kind that is loaded", hint
    )


def _first_line(chain: list[BaseException]) -> str:
    """Give what the outermost error says as one line of at most 200 characters."""
    return " ".join(str(chain[0]).split())[:200] or type(chain[0]).__name__
