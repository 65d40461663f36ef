"""How much memory this process holds and held at most, in MiB; no model is known here."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from pruner_lib.method.capacity import give_back


def meter(device: torch.device | str) -> tuple[float, Callable[[], float]]:
    """Let the peak count from now on.

    Args:    device: on a GPU, what PyTorch's allocator holds counts; elsewhere the process's resident memory.
    Returns: MiB held now, and what tells the peak so far in MiB.
    """
    give_back()
    if torch.device(device).type != "cuda":
        reset_peak()
        return resident_mb(), peak_mb
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(
        device
    ) / 2**20, lambda: torch.cuda.max_memory_allocated(device) / 2**20


def reset_peak() -> None:
    """Let the peak count from now on; where the system can't do that, it goes on from the process's start."""
    try:
        Path("/proc/self/clear_refs").write_text("5")  # Linux
    except OSError:
        return


def peak_mb() -> float:
    """Give the highest resident memory in MiB: since `reset_peak` on Linux, of the process elsewhere."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return round(int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024, 1)
    except (OSError, StopIteration):
        unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, KiB elsewhere
        return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20, 1)


def resident_mb() -> float:
    """Give the memory that the process holds now, in MiB."""
    import psutil

    return psutil.Process().memory_info().rss / 2**20
