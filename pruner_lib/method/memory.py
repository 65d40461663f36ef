"""How much memory the process holds and how much is available (not part of the paper's method)."""

import contextlib
import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

HOLES = 2**26  # bytes of freed memory that the process may keep


class HeapTrimmer:
    """Return freed memory to the system whenever the process has grown.

    Freed memory leaves holes between live tensors that later tensors do not fit into: up to a third of the
    activations, and many times the size of the slices of a weight.
    """

    def __init__(self):
        self.resident = resident_bytes()

    def check(self) -> None:
        """Trim the heap if the process has grown by `HOLES` since the last trim."""
        if resident_bytes() - self.resident > HOLES:
            trim_heap()
            self.resident = resident_bytes()


def held_bytes(model: nn.Module) -> int:
    """Return the bytes that the process holds, including memory-mapped weights that are not loaded yet."""
    device = next(model.parameters()).device
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    storages = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in model.parameters()}
    resident, weights = resident_bytes(), sum(storages.values())
    return resident if resident > weights else resident + weights


def resident_bytes() -> int:
    """Return the resident memory of the process in bytes; 0 if the system does not report it."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:  # not Linux
        return 0


def available_bytes(device: torch.device) -> int | None:
    """Return the bytes available on a device; None if the system does not report them."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    if device.type != "cpu":
        return None
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = int(next(x for x in lines if x.startswith("MemAvailable")).split()[1]) * 1024
    except (OSError, StopIteration):
        return None
    return min([free, *_container_bytes()])


def _container_bytes(root=Path("/sys/fs/cgroup"), listing=Path("/proc/self/cgroup")) -> Iterator[int]:
    """Yield the bytes that the limit of each enclosing container leaves (cgroups version 1 and 2)."""
    files = {"": ("memory.max", "memory.current")}  # by controllers; version 2 names none
    files["memory"] = ("memory.limit_in_bytes", "memory.usage_in_bytes")
    lines = listing.read_text().splitlines() if listing.is_file() else []
    for _, controllers, path in (line.split(":", 2) for line in lines):
        if controllers not in files:
            continue
        group = root / controllers / path.lstrip("/")
        for folder in (group, *group.parents):
            limit, usage = (folder / name for name in files[controllers])
            if limit.is_file() and limit.read_text().strip().isdigit():
                stat = (folder / "memory.stat").read_text().split()
                cache = int(stat[stat.index("inactive_file") + 1])  # the system reclaims it on demand
                yield int(limit.read_text()) - int(usage.read_text()) + cache


def trim_heap() -> None:
    """Return freed memory of the process to the system, if the C library supports it (glibc)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
