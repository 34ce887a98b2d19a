"""One toolkit for the whole life of a LoRA adapter on a causal language model.

What stands in `__all__` is the public API; what does not may change. Names are resolved when first used, so
that `import scumble` costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scumble import data
    from scumble.compare.run import compare
    from scumble.errors import ScumbleError
    from scumble.lab.bench_blend import bench_blend
    from scumble.lab.bench_train import bench_train
    from scumble.lab.cron import cron_hardness
    from scumble.lab.demo import demo
    from scumble.lab.lesson.lesson import lab
    from scumble.lab.planning import plan
    from scumble.lora.adapter import Adapter
    from scumble.lora.bank import Bank
    from scumble.lora.spec import LoraSpec
    from scumble.manage.blend import blend
    from scumble.manage.export.export import export
    from scumble.manage.inspection.inspection import inspect
    from scumble.manage.merge import merge
    from scumble.manage.resize import resize
    from scumble.manage.unmerge import unmerge
    from scumble.models.base import Base, load_base
    from scumble.models.doctor import diagnose as doctor
    from scumble.plan.plan import Plan
    from scumble.train.advice.advise import advise
    from scumble.train.result import Run
    from scumble.train.run import train
    from scumble.train.sweep.sweep import Sweep, sweep

__all__ = [
    "Adapter",
    "Bank",
    "Base",
    "LoraSpec",
    "Plan",
    "Run",
    "ScumbleError",
    "Sweep",
    "advise",
    "bench_blend",
    "bench_train",
    "blend",
    "compare",
    "cron_hardness",
    "data",
    "demo",
    "doctor",
    "export",
    "inspect",
    "lab",
    "load_base",
    "merge",
    "plan",
    "resize",
    "sweep",
    "train",
    "unmerge",
]

_HOMES = {
    "Adapter": ("scumble.lora.adapter", "Adapter"),
    "Bank": ("scumble.lora.bank", "Bank"),
    "Base": ("scumble.models.base", "Base"),
    "LoraSpec": ("scumble.lora.spec", "LoraSpec"),
    "Plan": ("scumble.plan.plan", "Plan"),
    "Run": ("scumble.train.result", "Run"),
    "ScumbleError": ("scumble.errors", "ScumbleError"),
    "advise": ("scumble.train.advice.advise", "advise"),
    "Sweep": ("scumble.train.sweep.sweep", "Sweep"),
    "bench_blend": ("scumble.lab.bench_blend", "bench_blend"),
    "bench_train": ("scumble.lab.bench_train", "bench_train"),
    "blend": ("scumble.manage.blend", "blend"),
    "compare": ("scumble.compare.run", "compare"),
    "cron_hardness": ("scumble.lab.cron", "cron_hardness"),
    "demo": ("scumble.lab.demo", "demo"),
    "doctor": ("scumble.models.doctor", "diagnose"),
    "export": ("scumble.manage.export.export", "export"),
    "inspect": ("scumble.manage.inspection.inspection", "inspect"),
    "lab": ("scumble.lab.lesson.lesson", "lab"),
    "load_base": ("scumble.models.base", "load_base"),
    "merge": ("scumble.manage.merge", "merge"),
    "plan": ("scumble.lab.planning", "plan"),
    "resize": ("scumble.manage.resize", "resize"),
    "sweep": ("scumble.train.sweep.sweep", "sweep"),
    "train": ("scumble.train.run", "train"),
    "unmerge": ("scumble.manage.unmerge", "unmerge"),
}


def __getattr__(name: str) -> Any:
    import importlib

    if name == "data":  # a folder of functions: scumble.data.check(...)
        return importlib.import_module("scumble.data")
    if name not in _HOMES:
        raise AttributeError(f"module 'scumble' has no attribute {name!r}")
    module, attribute = _HOMES[name]
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted(__all__)
