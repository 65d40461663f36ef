"""How much memory the process holds and how much is available (a question of machines, not of the paper)."""

import contextlib
import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

HOLES = 2**26  # bytes that may lie unused inside the process


class HeapTrimmer:
    """Returns freed memory to the system whenever what the process holds has grown.

    Freed memory lies in holes between tensors that stay, which no later tensor fits: up to a third of the
    activations, and many times the size of the slices of a weight.
    """

    def __init__(self):
        self.resident = resident_bytes()

    def check(self) -> None:
        """Trim the heap if memory has grown by `HOLES` since the last time."""
        if resident_bytes() - self.resident > HOLES:
            trim_heap()
            self.resident = resident_bytes()


def held_bytes(model: nn.Module) -> int:
    """Bytes that the process holds; weights of a mapped file, which come with their first use, included."""
    device = next(model.parameters()).device
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    storages = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in model.parameters()}
    resident, weights = resident_bytes(), sum(storages.values())
    return resident if resident > weights else resident + weights


def resident_bytes() -> int:
    """Bytes of memory that the process occupies; 0 where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:  # no Linux
        return 0


def available_bytes(device: torch.device) -> int | None:
    """Bytes available on a device; None where the system does not say."""
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
    return min([free, *_left_by_limits()])


def _left_by_limits(root=Path("/sys/fs/cgroup"), own=Path("/proc/self/cgroup")) -> Iterator[int]:
    """What the limits of containers leave (control groups, version 1 and 2)."""
    files = {"": ("memory.max", "memory.current")}  # by the names of controllers, of which version 2 has none
    files["memory"] = ("memory.limit_in_bytes", "memory.usage_in_bytes")
    lines = own.read_text().splitlines() if own.is_file() else []
    for _, controllers, path in (line.split(":", 2) for line in lines):
        if controllers not in files:
            continue
        place = root / controllers / path.lstrip("/")
        for folder in (place, *place.parents):
            limit, usage = (folder / name for name in files[controllers])
            if limit.is_file() and limit.read_text().strip().isdigit():
                stat = (folder / "memory.stat").read_text().split()
                cache = int(stat[stat.index("inactive_file") + 1])  # given up when others need it
                yield int(limit.read_text()) - int(usage.read_text()) + cache


def trim_heap() -> None:
    """Return memory that is free inside the process to the system, where the C library can (glibc)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
