"""Uploads: a fake client in place of the hub's, and the client's own errors put into clear words."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import constants, errors

from scumble.errors import ConfigError, ManifestError, NotSupportedError, OutputError
from scumble.lora.adapter import Adapter
from scumble.manage.export.hub import explained, export_hub
from tests.manage.folders import model_of

SECRET = "hf_abcdefghijklmnopqrstuvwxyz"


class FakeApi:
    """What is asked of the hub, in order; `fails` is raised by the call of that name."""

    def __init__(
        self, *, role: str = "write", private: bool = False, fails: dict[str, Exception] | None = None
    ):
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.role, self.is_private, self.fails = role, private, fails or {}

    def _note(self, name: str, **options: Any) -> None:
        self.calls.append((name, options))
        if name in self.fails:
            raise self.fails[name]

    def whoami(self) -> dict[str, Any]:
        self._note("whoami")
        return {"name": "me", "auth": {"accessToken": {"role": self.role}}}

    def create_repo(self, repo: str, **options: Any) -> None:
        self._note("create_repo", repo=repo, **options)

    def repo_info(self, repo: str, **options: Any) -> Any:
        self._note("repo_info", repo=repo)
        return SimpleNamespace(private=self.is_private)

    def upload_folder(self, **options: Any) -> None:
        self._note("upload_folder", **options)


def failing(kind: Any, status: int, text: str = "no") -> Exception:
    """An error of the client with a response of that status."""
    error = kind.__new__(kind)
    Exception.__init__(error, text)
    error.response = SimpleNamespace(status_code=status)
    return error


@pytest.fixture
def adapter(made, tmp_path):
    run = tmp_path / "run"
    Adapter.load(made(model_of("llama"))).save(run / "adapter")
    (run / "run.json").write_text('{"private": "path"}')
    (run / "adapter" / "README.md").write_text("# card")
    (run / "adapter" / ".env").write_text("secret")
    (run / "adapter" / "notes.py").write_text("print()")
    return run


def test_the_adapter_of_a_run_is_sent_and_nothing_else(adapter):
    api = FakeApi(private=True)
    found = export_hub(adapter, to="me/legal", private=True, api=api)
    assert [name for name, _ in api.calls] == ["whoami", "create_repo", "repo_info", "upload_folder"]
    created, sent = api.calls[1][1], api.calls[3][1]
    assert created == {"repo": "me/legal", "private": True, "exist_ok": True, "repo_type": "model"}
    names = ["README.md", "adapter_config.json", "adapter_model.safetensors", "manifest.json"]
    assert sent["allow_patterns"] == names == found.files
    assert sent["folder_path"] == str(adapter / "adapter")
    assert sent["repo_id"] == "me/legal"
    assert found.private
    assert found.url.endswith("/me/legal")
    assert found.notes == []
    assert found.bytes == sum((adapter / "adapter" / name).stat().st_size for name in names)


def test_a_missing_card_is_noted(adapter):
    (adapter / "adapter" / "README.md").unlink()
    assert "scumble export card" in export_hub(adapter, to="me/legal", api=FakeApi()).notes[0]


def test_a_token_that_only_reads_makes_nothing(adapter):
    api = FakeApi(role="read")
    with pytest.raises(OutputError, match="may read, and not write"):
        export_hub(adapter, to="me/legal", api=api)
    assert [name for name, _ in api.calls] == ["whoami"]


def test_private_is_not_sent_to_a_public_repository(adapter):
    api = FakeApi(private=False)
    with pytest.raises(ConfigError, match="exists already and is public"):
        export_hub(adapter, to="me/legal", private=True, api=api)
    assert "upload_folder" not in [name for name, _ in api.calls]


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (errors.LocalTokenNotFoundError("none"), "no token"),
        (errors.OfflineModeIsEnabled("offline"), "HF_HUB_OFFLINE"),
        (failing(errors.GatedRepoError, 403), "is gated"),
        (failing(errors.HfHubHTTPError, 401), "does not know the token"),
        (failing(errors.HfHubHTTPError, 403), "may not write"),
        (failing(errors.RepositoryNotFoundError, 404), "has no repository me/legal"),
        (failing(errors.HfHubHTTPError, 409), "changed at the same time"),
        (failing(errors.HfHubHTTPError, 500, f"odd {SECRET}"), "refused the upload: odd hf_..."),
        (ConnectionError("no route"), "cannot be reached"),
        (TimeoutError("late"), "cannot be reached"),
        (ValueError(f"bearer {SECRET}"), "refused the upload"),
    ],
)
@pytest.mark.parametrize("call", ["whoami", "upload_folder"])
def test_each_failure_is_one_clear_line_without_the_token(error, says, call, adapter):
    with pytest.raises(OutputError, match=says) as raised:
        export_hub(adapter, to="me/legal", api=FakeApi(fails={call: error}))
    assert "\n" not in raised.value.message
    assert SECRET not in str(raised.value)
    assert raised.value.__cause__ is None  # the client's own message can hold the token


def test_real_network_errors_of_the_client_are_known():
    http = __import__(errors.HfHubHTTPError.__mro__[1].__module__.partition(".")[0])
    assert "cannot be reached" in explained(http.ConnectError("refused"), "me/legal").message
    assert "cannot be reached" in explained(http.ConnectTimeout("late"), "me/legal").message


def test_token_and_network_are_looked_at_first(adapter, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(OutputError, match="HF_HUB_OFFLINE is set"):
        export_hub(adapter, to="me/legal")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(OutputError, match="no token"):
        export_hub(adapter, to="me/legal")


@pytest.mark.parametrize("to", ["legal", "a/b/c", "../x", "a b/c", "", "-a/b"])
def test_names_that_cannot_be(to, adapter):
    with pytest.raises(ConfigError, match="is no name of a repository"):
        export_hub(adapter, to=to, api=FakeApi())


def test_damage_and_pickles_are_not_sent(adapter):
    api = FakeApi()
    (adapter / "adapter" / "extra.bin").write_bytes(b"pickle")
    with pytest.raises(NotSupportedError, match="is a pickle"):
        export_hub(adapter, to="me/legal", api=api)
    (adapter / "adapter" / "extra.bin").unlink()
    config = adapter / "adapter" / "adapter_config.json"
    config.write_text(config.read_text().replace("0", "1", 1))
    with pytest.raises(ManifestError):
        export_hub(adapter, to="me/legal", api=api)
    assert api.calls == []
