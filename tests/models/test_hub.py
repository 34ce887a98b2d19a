import pytest
from huggingface_hub import errors

from scumble.models.hub import explain, hub_reachable
from scumble.models.resolve import Source

HUB = Source("hub", "meta-llama/Llama-9B")


class Response:
    """As much of an answer of the hub as its errors need."""

    headers: dict[str, str] = {}  # noqa: RUF012
    request = None

    def __init__(self, status_code: int) -> None:
        self.status_code = status_code


def wrapped(inner: Exception) -> OSError:
    outer = OSError("You are trying to access\nmany lines")
    outer.__cause__ = inner
    return outer


@pytest.mark.parametrize(
    ("kind", "status", "words"),
    [
        (errors.GatedRepoError, 401, "is gated"),
        (errors.GatedRepoError, 403, "hf auth login"),
        (errors.RepositoryNotFoundError, 401, "has no model 'meta-llama/Llama-9B'"),
        (errors.RepositoryNotFoundError, 404, "check the spelling"),
    ],
)
def test_each_answer_of_the_hub_has_its_line(kind, status, words):
    error = explain(wrapped(kind("no", response=Response(status))), HUB)
    assert words in str(error)
    assert "\n" not in str(error)


def test_no_network_has_its_line():
    error = explain(wrapped(errors.LocalEntryNotFoundError("no")), HUB)
    assert "cannot be reached" in error.message


def test_errors_that_are_each_others_cause_end():
    one, two = OSError("one"), OSError("two")
    one.__cause__, two.__cause__ = two, one
    assert "one" in str(explain(one, HUB))


def test_the_probe_is_quick_and_respects_offline(monkeypatch):
    from huggingface_hub import constants

    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("TRANSFORMERS_OFFLINE", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")  # nothing listens there
    assert not hub_reachable()
    monkeypatch.setattr(
        "socket.create_connection", lambda *a, **k: type("S", (), {"close": lambda self: None})()
    )
    assert hub_reachable()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert not hub_reachable()
