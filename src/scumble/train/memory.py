"""The peak of memory over a stretch of work: the allocator's on a GPU, the process's resident size on a CPU."""

from __future__ import annotations

import contextlib
import resource
import sys
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")
_MEMINFO = Path("/proc/meminfo")
_GROUP = Path("/sys/fs/cgroup")


def start_peak(device: torch.device) -> None:
    """Forget earlier peaks, where the system lets us."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        # 5 resets the high-water mark of the resident size (Linux, proc(5)); elsewhere the life's peak counts
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")


def peak_bytes(device: torch.device) -> int:
    """The peak since `start_peak`, in bytes."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    with contextlib.suppress(OSError, ValueError, IndexError):
        line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def free_bytes(device: torch.device) -> int | None:
    """Memory that can be had on a device now; None where the system does not tell."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    found = [_read_number(_MEMINFO, "MemAvailable", 1024)]
    # a container may have less than its machine
    limit, used = (_read_number(_GROUP / name) for name in ("memory.max", "memory.current"))
    found.append(limit - used if limit is not None and used is not None else None)
    return min((each for each in found if each is not None), default=None)


def _read_number(path: Path, name: str = "", unit: int = 1) -> int | None:
    """The number of a file, or that of the line which begins with `name`; None where there is none."""
    with contextlib.suppress(OSError, ValueError, IndexError, StopIteration):
        text = path.read_text()
        return unit * int(
            next(line for line in text.splitlines() if line.startswith(name))
            .removeprefix(f"{name}:")
            .split()[0]
        )
    return None
