"""What the tests of adapters as files share."""

from __future__ import annotations

from tests.lora.conftest import _quiet, made

__all__ = ["_quiet", "made"]
