"""What PyTorch allocates on the CPU while something is done, every allocation counted by its profiler."""

from __future__ import annotations

import os
from collections.abc import Callable

from torch.profiler import ProfilerActivity, profile

# the profiler writes marks for tracers among our lines; it reads the level at its first use
os.environ.setdefault("KINETO_LOG_LEVEL", "6")


def most_allocated(work: Callable[[], object]) -> int:
    """The most bytes that are held at once, beside what was there before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        work()
    now = most = 0
    events = (each for each in seen.profiler.kineto_results.events() if each.name() == "[memory]")
    for event in sorted(events, key=lambda each: each.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most
