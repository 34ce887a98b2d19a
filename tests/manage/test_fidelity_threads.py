"""How many threads a certificate's passes get: one, unless several are much faster."""

import pytest
import torch

from scumble.manage.certificate import fidelity
from scumble.models.threads import with_threads


@pytest.mark.parametrize(
    ("seconds", "chosen"), [({1: 1.0, 3: 0.4}, 3), ({1: 1.0, 3: 0.9}, 1), ({1: 1.0, 3: 5.0}, 1)]
)
def test_what_a_short_pass_takes_decides(seconds, chosen, monkeypatch):
    now, lengths = [0.0], []

    def passed(model, ids):
        lengths.append(len(ids))
        now[0] += seconds[torch.get_num_threads()]

    monkeypatch.setattr(fidelity, "_logits", passed)
    monkeypatch.setattr(fidelity.time, "perf_counter", lambda: now[0])
    with with_threads(3):
        assert fidelity._threads(None, [list(range(40)), [1]]) == chosen
        assert torch.get_num_threads() == 3
    assert lengths == [16, 16, 16]


def test_one_thread_is_not_measured(monkeypatch):
    monkeypatch.setattr(fidelity, "_logits", lambda *_: pytest.fail("nothing is to be decided"))
    with with_threads(1):
        assert fidelity._threads(None, [[1, 2]]) == 1
