"""An adapter or a merged model put on the Hugging Face hub, and clear words for each way in which that fails.

Nothing leaves the machine before the name, the token, its permission and the repository's visibility have been
looked at, and only whole files of known kinds are sent: no pickles, no runs, nothing hidden. The token is never
shown. Knows files and the hub's client, and nothing of weights.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from scumble.errors import ConfigError, NotSupportedError, OutputError, ScumbleError
from scumble.manage.export.holding import folder_of
from scumble.manifest import check_manifest

_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
_SENT = (".json", ".safetensors", ".md", ".jinja", ".txt", ".model", ".tiktoken", ".gguf", ".modelfile")
_LOGIN = "make a token that may write, then log in with `hf auth login`, or set HF_TOKEN"


@dataclass(frozen=True)
class Upload:
    """What was put on the hub.

    Attributes:
        to: the repository.
        url: where it is.
        private: whether only its owner sees it.
        files: what was sent.
        bytes: their size.
        notes: what the user should know.
    """

    to: str
    url: str
    private: bool
    files: list[str]
    bytes: int
    notes: list[str]

    def to_dict(self) -> dict[str, Any]:
        """What `--json` prints."""
        return {"kind": "hub", **asdict(self)}


def export_hub(what: str | Path | Any, *, to: str, private: bool = False, api: Any = None) -> Upload:
    """Put the folder of an adapter or of a merged model on the hub.

    Args:
        what: its folder, or that of a run, of which the adapter alone is sent.
        to: the repository, `owner/name`; made where it is missing.
        private: only its owner may see it.
        api: a `huggingface_hub.HfApi`; by default one with the token of this machine.

    Raises:
        ConfigError: the repository's name cannot be one, or it is public and `private` was asked for.
        MissingFileError, ManifestError: there is nothing to send, or it is damaged.
        NotSupportedError: the folder holds a pickle.
        OutputError: no token, one without permission, a gated repository, or no network; in one line.
    """
    if not _NAME.fullmatch(to):
        raise ConfigError(f"--to {to!r} is no name of a repository", "write it as owner/name")
    folder = folder_of(what)
    names = files_to_send(folder)
    check_manifest(folder)
    notes = [] if "README.md" in names else ["there is no README.md: scumble export card writes one"]
    client = api if api is not None else _client()
    with _explaining(to):
        _check_permission(client.whoami())
        client.create_repo(to, private=private, exist_ok=True, repo_type="model")
        is_private = bool(client.repo_info(to, repo_type="model").private)
        if private and not is_private:
            raise ConfigError(
                f"{to} exists already and is public", "choose another --to, or leave out --private"
            )
        client.upload_folder(
            repo_id=to,
            folder_path=str(folder),
            allow_patterns=names,
            repo_type="model",
            commit_message="Uploaded by Scumble",
        )
    size = sum((folder / name).stat().st_size for name in names)
    return Upload(to, f"{_endpoint()}/{to}", is_private, names, size, notes)


def files_to_send(folder: Path) -> list[str]:
    """The names of the files in a folder that are sent, sorted: its own, of known kinds, none hidden.

    Raises:
        NotSupportedError: there is a pickle among them.
    """
    files = [path for path in sorted(folder.iterdir()) if path.is_file() and not path.name.startswith(".")]
    for path in files:
        if path.suffix in (".bin", ".pt", ".pth", ".pkl", ".ckpt"):
            raise NotSupportedError(
                f"{path} is a pickle, which can run any code where it is loaded",
                "save it as safetensors, or remove it",
            )
    return [path.name for path in files if path.suffix.lower() in _SENT]


def _client() -> Any:
    """The hub's client, where there is a token and a network is allowed."""
    from huggingface_hub import HfApi, constants, get_token

    if constants.HF_HUB_OFFLINE:
        raise OutputError("HF_HUB_OFFLINE is set, so nothing is sent", "unset it to upload")
    if not get_token():
        raise OutputError("there is no token for the hub on this machine", _LOGIN)
    return HfApi()


def _check_permission(me: dict[str, Any]) -> None:
    """Refuse a token that can only read, before anything is made with it."""
    role = me.get("auth", {}).get("accessToken", {}).get("role")
    if role == "read":
        raise OutputError(f"the token of {me.get('name', 'this machine')} may read, and not write", _LOGIN)


@contextlib.contextmanager
def _explaining(to: str) -> Iterator[None]:
    """Turn what the hub's client raises into one line and a hint, without the token."""
    from huggingface_hub import get_token

    try:
        yield
    except ScumbleError:
        raise
    except Exception as error:
        raise explained(error, to, get_token()) from None  # the client's own message can hold the token


def explained(error: Exception, to: str, token: Any = None) -> ScumbleError:
    """One line and a hint for what the hub's client raised.

    Args:
        error: what it raised.
        to: the repository.
        token: is taken out of what is shown.
    """
    from huggingface_hub import errors

    host = urlsplit(_endpoint()).netloc
    chain = list(_chain(error))
    status = next((s for each in chain if (s := _status(each)) is not None), None)
    if any(isinstance(each, errors.LocalTokenNotFoundError) for each in chain):
        return OutputError("there is no token for the hub on this machine", _LOGIN)
    if any(isinstance(each, errors.OfflineModeIsEnabled) for each in chain):
        return OutputError("HF_HUB_OFFLINE is set, so nothing is sent", "unset it to upload")
    if any(isinstance(each, errors.GatedRepoError) for each in chain):
        return OutputError(f"{to} is gated on {host}", f"ask for access at {_endpoint()}/{to}")
    if status == 401:
        return OutputError(f"{host} does not know the token of this machine", _LOGIN)
    if status == 403:
        return OutputError(f"the token of this machine may not write to {to}", _LOGIN)
    if status == 404 or any(isinstance(each, errors.RepositoryNotFoundError) for each in chain):
        return OutputError(
            f"{host} has no repository {to} that this token may write to",
            "check the owner's name, and the token's",
        )
    if status == 409:
        return OutputError(f"{to} exists on {host} and was changed at the same time", "try again")
    if status is None and any(_is_network(each) for each in chain):
        return OutputError(f"{host} cannot be reached", "check the network; nothing was changed here")
    return OutputError(f"{host} refused the upload: {_shown(error, token)}", "nothing was changed here")


def _status(error: BaseException) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _is_network(error: BaseException) -> bool:
    """A failure to reach anything: of the operating system, or of the client's HTTP library, whichever it is."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return isinstance(error, ConnectionError | TimeoutError) or bool(
        names
        & {"TransportError", "ConnectError", "ConnectTimeout", "ConnectionError", "ProxyError", "gaierror"}
    )


def _shown(error: Exception, token: Any) -> str:
    text = " ".join(str(error).split())[:200] or type(error).__name__
    text = re.sub(r"hf_[A-Za-z0-9]{8,}", "hf_...", text)
    return text.replace(token, "...") if isinstance(token, str) and token else text


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _endpoint() -> str:
    from huggingface_hub import constants

    return str(constants.ENDPOINT)
