"""Packages that can be called: `scumble.train(...)` is a function, and `scumble.train` the folder it lives in.

A layer and the command it exists for share a name in the contract. Python binds that name to the folder as
soon as anything in it is imported, so the folder itself answers the call.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from types import ModuleType
from typing import Any


def make_callable(package: str, module: str, function: str) -> None:
    """Let calls of the package `package` go to `function` of its module `module`, imported when first called."""

    class CallablePackage(ModuleType):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return getattr(importlib.import_module(module), function)(*args, **kwargs)

        @property
        def __signature__(self) -> inspect.Signature:
            return inspect.signature(getattr(importlib.import_module(module), function))

    sys.modules[package].__class__ = CallablePackage
